"""A compiled kernel's figures, read from its machine code, and the limits that they put on a launch (a roofline).

A launch takes at least as long as each of these, each SM doing its share of the CTAs:

    issue     instructions of all warps / (4 a cycle)
    shared    bytes that its loads, stores and matrix instructions move through L1 and shared memory / (128 a cycle)
    tensor    multiply-adds of its matrix instructions / (the tensor cores' a cycle)
    memory    bytes that must come from memory or go there / the bandwidth of a large copy

Instructions in the main loop count once a trip. Bank conflicts, latencies and L2 are left out: it is a bound from
below. A kernel of any origin has a row: `row` takes a cubin and the facts of its launch.
"""

import functools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_KIB = {80: 164, 90: 228, 100: 228}
"""Shared memory of an SM by compute capability (CUDA C++ Programming Guide, table of technical specifications)."""


@dataclass(frozen=True)
class Gpu:
    """Figures of a GPU: clock as it is under load; bandwidth as a large copy has it, some 0.9 of the data sheet's."""

    arch: int
    sms: int
    hertz: float
    bytes_per_s: float
    macs: int
    """Dense bf16 multiply-adds a cycle of an SM."""


GPUS = {
    "A100": Gpu(80, 108, 1.41e9, 1.7e12, 1024),
    "H100": Gpu(90, 132, 1.755e9, 3.0e12, 2048),
    "H200": Gpu(90, 132, 1.755e9, 4.2e12, 2048),
    "B200": Gpu(100, 148, 1.85e9, 7.0e12, 4096),
}
NODE_S = 1.3e-6
"""Estimate: the least time of a node of a CUDA graph, its start and its end included."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: `ctas` of `warps` warps and `shared` bytes of dynamic shared memory.

    `trips` of its main loop; `macs` are the multiply-adds of a trip of a CTA, and `moved` the bytes that it must
    read from memory and write to it. `inner`: trips of the loops within the main loop, in their order.
    """

    name: str
    ctas: int
    warps: int
    shared: int
    moved: int
    trips: float = 1
    macs: int = 0
    inner: Sequence[float] = ()


@dataclass(frozen=True)
class Usage:
    """What a kernel holds: registers and bytes of stack of a thread, bytes of static shared memory of a CTA."""

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Code:
    """A kernel's machine code: what a thread and a CTA hold, and (address, mnemonic, operands) up to its end."""

    usage: Usage
    instructions: Sequence[tuple[int, str, str]]

    @functools.cached_property
    def loops(self) -> list[range]:
        """Places of each loop's instructions, in order."""
        places = {address: place for place, (address, *_) in enumerate(self.instructions)}
        found = []
        for place, (_, mnemonic, operands) in enumerate(self.instructions):
            target = re.search(r"0x([0-9a-f]+)\s*$", operands) if mnemonic.startswith("BRA") else None
            first = places.get(int(target[1], 16), place) if target else place
            if first < place:
                found.append(range(first, place + 1))
        return sorted(found, key=lambda loop: (loop.start, -loop.stop))

    @functools.cached_property
    def main_loop(self) -> range:
        """Places of the longest loop's instructions; empty without a loop."""
        return max(self.loops, key=len, default=range(0))

    def times(self, launch: Launch) -> list[float]:
        """How often a warp executes each instruction. A loop that is unrolled n times has n times fewer trips.

        Of `launch.inner` the first have no loop where the compiler unrolled them. Raises ValueError for more loops.
        """
        inner = [loop for loop in self.loops if loop != self.main_loop and loop.start in self.main_loop]
        if launch.inner and len(inner) > len(launch.inner):
            raise ValueError(f"{launch.name} has {len(inner)} loops within its main loop, not {launch.inner}")
        in_loop = sum(_macs(self.instructions[place], launch.warps) for place in self.main_loop)
        unrolled = max(1, round(in_loop / launch.macs)) if launch.macs else 1
        executed = [1.0] * len(self.instructions)
        for place in self.main_loop:
            executed[place] = launch.trips / unrolled
        for loop, trips in zip(reversed(inner), reversed(launch.inner), strict=False):
            for place in loop:
                executed[place] *= trips
        return executed

    def count(self, pattern: str) -> int:
        """Instructions whose mnemonic begins so."""
        return sum(bool(re.match(pattern, mnemonic)) for _, mnemonic, _ in self.instructions)

    def widths(self, pattern: str) -> dict[int, int]:
        """Number of such loads or stores by the bytes that a thread moves."""
        return Counter(_width(m) for _, m, _ in self.instructions if re.match(pattern, m))


def _cuobjdump(cuobjdump: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [cuobjdump, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_usage(cubin: bytes, cuobjdump: str) -> Usage:
    """Of a cubin's only kernel. `cuobjdump`: the tool's path. Takes milliseconds."""
    text = _cuobjdump(cuobjdump, cubin, "--dump-resource-usage")
    found = re.search(r"Function .*:\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if found is None:
        raise ValueError("the cubin has no kernel")
    return Usage(*map(int, found.groups()))


def read_cubin(cubin: bytes, cuobjdump: str) -> Code:
    """The code of a cubin's only kernel. It takes some 0.3 s."""
    _, part, *_ = _cuobjdump(cuobjdump, cubin, "-sass").split("Function : ")
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", part, re.MULTILINE)
    code = [(int(address, 16), mnemonic, operands) for address, mnemonic, operands in lines]
    last = max(place for place, (_, mnemonic, _) in enumerate(code) if mnemonic.startswith("EXIT"))
    return Code(read_usage(cubin, cuobjdump), code[: last + 1])


def ctas_per_sm(registers: int, shared: int, warps: int, arch: int) -> int:
    """How many CTAs an SM holds at once. Registers are given in units of 256 a warp, 1 KiB a CTA is the system's."""
    by_registers = 65536 // (-(-registers * 32 // 256) * 256) // warps
    return min(by_registers, SHARED_KIB[arch] * 1024 // (shared + 1024), 64 // warps, 32)


def row(launch: Launch, code: Code, arch: int) -> dict[str, Any]:
    """A kernel's line in the table of compiled kernels. Loads and stores: numbers of 16, 8, 4, 2 and 1 bytes."""
    loads, stores = code.widths(r"LDG"), code.widths(r"STG|RED|ATOMG")
    tensor = code.count(r"HMMA|HGMMA|UTC\w*MMA|QGMMA|IMMA")
    shared = max(launch.shared, code.usage.shared)
    return {
        "kernel": launch.name,
        "registers": code.usage.registers,
        "stack": code.usage.stack,
        "spills": code.count(r"LDL|STL"),
        "shared_KiB": round(shared / 1024, 1),
        "warps": launch.warps,
        "CTAs_an_SM": ctas_per_sm(code.usage.registers, shared, launch.warps, arch),
        "loads": _by_width(loads),
        "stores": _by_width(stores),
        "tensor": tensor,
        "instructions": len(code.instructions),
    }


def limits(launch: Launch, code: Code, gpu: Gpu) -> dict[str, float]:
    """Seconds that a launch takes at least, by what limits it. CTAs are whole: the fullest SM counts."""
    times = code.times(launch)
    ctas = -(-launch.ctas // gpu.sms)
    through = sum(
        count * _shared_bytes(instruction, launch.warps)
        for count, instruction in zip(times, code.instructions, strict=True)
    )
    return {
        "issue": ctas * launch.warps * sum(times) / (4 * gpu.hertz),
        "shared": ctas * through / (128 * gpu.hertz),
        "tensor": ctas * launch.trips * launch.macs / (gpu.macs * gpu.hertz),
        "memory": launch.moved / gpu.bytes_per_s,
    }


def _by_width(widths: Mapping[int, int]) -> str:
    return "/".join(str(widths.get(width, 0)) for width in (16, 8, 4, 2, 1))


def _width(mnemonic: str) -> int:
    """Bytes that a thread moves."""
    parts = mnemonic.split(".")
    sizes = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((sizes[part] for part in parts if part in sizes), 4)


def _macs(instruction: tuple[int, str, str], warps: int) -> float:
    """Multiply-adds of a CTA in one matrix instruction; 0 where the mnemonic does not say (sm_100)."""
    _, mnemonic, _ = instruction
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", mnemonic):  # by 4 warps together
        rows, columns, depth = map(int, found.groups())
        return rows * columns * depth * warps / 4
    if found := re.match(r"HMMA\.(16)(8)(\d+)", mnemonic):
        rows, columns, depth = map(int, found.groups())
        return rows * columns * depth * warps
    return 0.0


def _shared_bytes(instruction: tuple[int, str, str], warps: int) -> float:
    """Bytes that a CTA moves through L1 and shared memory in one instruction."""
    _, mnemonic, operands = instruction
    if re.match(r"LDG|STG|LDS\b|STS\b|LDL|STL|LDSM|STSM", mnemonic):
        matrices = re.search(r"\.(?:M\w+\.)?(\d)\b", mnemonic)
        width = 4 * int(matrices[1]) if mnemonic.startswith(("LDSM", "STSM")) and matrices else _width(mnemonic)
        return 32 * warps * width
    if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", mnemonic):
        rows, columns, depth = map(int, found.groups())
        left = 0 if re.match(r"\s*R\d+, R\d+,", operands) else rows * depth * 2
        return (left + columns * depth * 2) * warps / 4
    return 0.0


def find_cuobjdump(triton_directory: str) -> str:
    """The path of cuobjdump: Triton brings it; else the system's."""
    own = Path(triton_directory) / "backends/nvidia/bin/cuobjdump"
    return str(own) if own.exists() else shutil.which("cuobjdump") or "cuobjdump"
