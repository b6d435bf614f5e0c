"""What `engine.precision: auto` is on a device: on a CPU what was measured to train faster on its kind of processor.

The measurements are in benchmarks/NOTES.md: with AVX512-BF16 bf16 is faster on some processors and 1.8 x slower on
another. What was not measured computes in fp32. The choice is a function of the processor alone, because it is in the
names of states. This module imports torch only where a device is asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastwi.sealed import read_sealed

if TYPE_CHECKING:
    import torch

_CPUINFO = Path("/proc/cpuinfo")

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Of each engine.precision torch's name of its dtype, which manifests have."""

NOTED = "precision.json"
"""The file of a store that says what auto was where the store was begun."""


class Processor(NamedTuple):
    """A CPU as Linux describes it: vendor (GenuineIntel, AuthenticAMD), family and instruction sets."""

    vendor: str = ""
    family: str = ""
    flags: frozenset[str] = frozenset()


class Choice(NamedTuple):
    """A precision as `engine.precision` names it, and why it was chosen."""

    precision: str
    reason: str


def processor() -> Processor:
    """This machine's; an empty one where the system does not say."""
    try:
        first, _, _ = _CPUINFO.read_text(errors="replace").partition("\n\n")
    except OSError:
        return Processor()
    pairs = (line.partition(":") for line in first.splitlines())
    found = {name.strip(): value.strip() for name, _, value in pairs}
    flags = frozenset(found.get("flags", "").split())
    return Processor(found.get("vendor_id", ""), found.get("cpu family", ""), flags)


def cpu_precision(cpu: Processor) -> Choice:
    """What was measured faster on processors like `cpu`."""
    if "amx_bf16" in cpu.flags:
        return Choice("bf16", "AMX, measured faster than fp32 there")
    if "avx512_bf16" not in cpu.flags:
        return Choice("fp32", "no bf16 instructions")
    if cpu.vendor == "AuthenticAMD" and cpu.family in {"25", "26"}:  # Zen 4 and Zen 5
        return Choice("bf16", f"AVX512-BF16 of AMD's family {cpu.family}, measured faster than fp32 there")
    if cpu.vendor == "GenuineIntel":
        return Choice("fp32", "AVX512-BF16 without AMX, measured slower than fp32 on Intel")
    return Choice("fp32", f"AVX512-BF16 of {cpu.vendor or 'a vendor'}'s family {cpu.family} was not measured")


def own_convolutions(cpu: Processor, precision: str) -> bool:
    """Whether fastwi's convolutions (Winograd's and direct ones) are faster on processors like `cpu` than oneDNN's.

    Winograd's compute in float32, with a quarter of the products. AMX multiplies bf16 faster than that.
    """
    return precision == "fp32" or (precision == "bf16" and "amx_bf16" not in cpu.flags)


def auto_precision(device: "torch.device") -> Choice:
    """What `engine.precision: auto` is on `device`: bf16 on a CUDA device that computes in it."""
    if device.type != "cuda":
        return cpu_precision(processor())
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice("bf16", "the device computes in it")
    return Choice("fp32", "the device does not compute in bf16")


def noted_precision(store: Path) -> str:
    """What auto was where `store` was begun; empty: it is not noted. CheckpointError where the note is damaged."""
    if not (store / NOTED).exists():
        return ""
    fix = "delete it, and give engine.precision: bf16 or fp32, as the store was begun"
    return str(read_sealed(store / NOTED, fix)["auto"])
