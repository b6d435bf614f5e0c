"""The machine that a measurement ran on. `python -m benchmarks.machine` prints it and what modules are missing."""

import datetime
import importlib.util
import os
import platform
import subprocess
from importlib import metadata

import torch

from fastwi.engine.precision import processor
from fastwi.report.manifest import commit, cpu_name
from fastwi.version import __version__

_EXTENSIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
_WANTED = (
    "fastargs", "hypothesis", "joblib", "matplotlib", "polars", "pydantic", "pytest", "safetensors", "scipy",
    "sklearn", "torchvision", "triton", "xdist",
)  # fmt: skip
_POWER = "--query-gpu=power.limit --format=csv,noheader"


def describe_machine(device: torch.device) -> dict[str, str]:
    """The machine, the versions, the commit and the date."""
    vectors = ", ".join(words for flag, words in _EXTENSIONS.items() if flag in processor().flags)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu_name()} ({vectors})",
        "device": "cpu" if gpu is None else f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "power_limit": subprocess.getoutput(f"nvidia-smi -i GPU-{gpu.uuid} {_POWER}") if gpu else "unknown",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": next((d.version for d in metadata.distributions() if d.name == "triton"), "absent"),
        "fastwi": __version__,
        "commit": commit() or "none",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main() -> None:
    """Print all that is known of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = describe_machine(device) | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    found["numpy"] = metadata.version("numpy")
    found["missing modules"] = [name for name in _WANTED if importlib.util.find_spec(name) is None] or "none"
    for key, value in found.items():
        print(f"{key}: {value}")
    if device.type == "cuda":
        print(subprocess.getoutput("nvidia-smi"))


if __name__ == "__main__":
    main()
