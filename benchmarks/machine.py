"""The machine that a measurement ran on, in words, and its sizes."""

import datetime
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fastwi.report.manifest import commit, cpu_name
from fastwi.version import __version__

_EXTENSIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe_machine(device: torch.device) -> dict[str, str]:
    """The machine, the versions, the commit and the date."""
    flags = set(re.search(r"flags\s*:(.*)|$", _read("/proc/cpuinfo"))[0].split())  # type: ignore[index]
    vectors = ", ".join(words for flag, words in _EXTENSIONS.items() if flag in flags)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {cpu_name()} ({vectors})",
        "device": "cpu" if gpu is None else f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "power_limit": "unknown" if gpu is None else _power_limit(device),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": next((d.version for d in metadata.distributions() if d.name == "triton"), "absent"),
        "fastwi": __version__,
        "commit": commit() or "none",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def last_level_cache(device: torch.device) -> int:
    """Bytes of the last-level cache as the system reports it; 64 MiB where it does not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    entries = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [re.fullmatch(r"(\d+)([KMG])", entry.read_text().strip()) for entry in entries]
    return max((int(size[1]) * 1024 ** ("KMG".index(size[2]) + 1) for size in found if size), default=64 * 2**20)


def free_memory(device: torch.device) -> int:
    """Bytes of memory that can be had without swapping; 4 GiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = re.search(r"MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"))
    return int(found[1]) * 1024 if found else 4 * 2**30


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _power_limit(device: torch.device) -> str:
    """The GPU's power limit as its driver reports it."""
    command = ["nvidia-smi", f"--id={device.index or 0}", "--query-gpu=power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
