"""What a measurement ran on: the machine in words, and the copy that tells its bandwidth."""

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import Timing
from fastwi.report.manifest import commit
from fastwi.version import __version__

GIGA = 1e9


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe_machine(device: torch.device) -> dict[str, str]:
    """The machine, the versions, the commit and the date, as words that a table or a JSON file can hold."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "absent"
    return {
        "cpu": _cpu(),
        "device": "cpu" if gpu is None else f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
        "power_limit": "unknown" if gpu is None else _power_limit(device),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "fastwi": __version__,
        "commit": commit() or "none",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


@dataclass(frozen=True)
class CopyTask:
    """A copy from one buffer of random numbers to another, to be timed among a benchmark's contestants.

    Its bandwidth is bytes read plus bytes written a second. On a CPU an ordinary copy also reads the lines
    that it is about to overwrite, which is not counted: code that updates in place can exceed 100 % of it.
    """

    source: Tensor
    target: Tensor

    @classmethod
    def of(cls, device: torch.device, size_bytes: int | None = None) -> "CopyTask":
        """Buffers of `size_bytes`, by default a multiple of the last-level cache; at most a third of free memory.

        On a GPU that is 16 times, so that a launch's latency is no part of the copy.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
        if size_bytes is None:
            size_bytes = (16 if device.type == "cuda" else 2) * _last_level_cache(device)
        source, target = torch.empty(2, max(1, min(size_bytes, free // 6) // 4), device=device)
        for piece in source.split(2**22):
            piece.normal_()
        return cls(source, target)

    def run(self) -> None:
        """Copy once."""
        self.target.copy_(self.source)

    def bandwidth_gbps(self, timing: Timing) -> float:
        """GB/s (10^9) at the median of `timing`."""
        return 2 * self.source.nbytes / timing.median_s / GIGA


def _cpu() -> str:
    """Cores that this process may use, model name, and the vector extensions that matter."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    name = re.search(r"model name\s*: (.*)", info)
    flags = set(re.findall(r"\w+", next(iter(re.findall(r"flags\s*: (.*)", info)), "")))
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}
    extensions = ", ".join(words for flag, words in known.items() if flag in flags)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {name.group(1) if name else platform.machine()} ({extensions})"


def _last_level_cache(device: torch.device) -> int:
    """Bytes of the last-level cache as the system reports it; 64 MiB where it does not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", entry.read_text().strip())
        if found:
            sizes.append(int(found.group(1)) * 1024 ** ("KMG".index(found.group(2)) + 1))
    return max(sizes, default=64 * 2**20)


def _free_memory() -> int:
    """Bytes of memory that can be had without swapping; 4 GiB where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else 4 * 2**30


def _run(*command: str) -> str:
    """The output of a command, or nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _power_limit(device: torch.device) -> str:
    """The GPU's power limit as its driver reports it."""
    place = str(device.index or 0)
    return _run("nvidia-smi", f"--id={place}", "--query-gpu=power.limit", "--format=csv,noheader") or "unknown"
