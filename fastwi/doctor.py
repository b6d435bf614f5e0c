"""`python -m fastwi.doctor`: what this machine has for fastwi, what it lacks, and the command that installs it."""

import argparse
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastwi.cli import command
from fastwi.engine.precision import cpu_precision, processor
from fastwi.kernels.compiler import compiler
from fastwi.version import __version__

_IMPORT_SECONDS = 120  # FFCV compiles at its import
LOWEST_TORCH = (2, 11)
FFCV_FIX = "apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv==1.0.2"

# What fastwi imports besides torch and torchvision: module -> what pip calls it, where that is another name.
_PACKAGES = dict.fromkeys(("numpy", "terminaltables", "safetensors", "joblib", "pydantic", "rich")) | {
    "matplotlib": None, "polars": None, "scipy": None, "jinja2": None, "fastargs": "fastargs==1.2.0",
    "yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, what there is, and how to fix what is missing (empty: nothing is).

    `needed`: fastwi cannot train without it.
    """

    subject: str
    found: str
    fix: str = ""
    needed: bool = False


def examine() -> Iterator[Check]:
    """Look at this machine, one check after the other. Takes seconds: torch and FFCV are imported."""
    supported = (3, 10) <= sys.version_info[:2] < (3, 14)
    yield Check("Python", platform.python_version(), "" if supported else "install Python 3.10 to 3.13", needed=True)
    yield from _torch()
    yield _packages()
    if importlib.util.find_spec("simplejpeg") is None:
        found = "none; data_prep cannot check JPEGs for damage that Pillow accepts"
        yield Check("simplejpeg", found, "pip install simplejpeg")
    yield _compiler()
    choice = cpu_precision(processor())
    yield Check("CPU precision", f"auto is {choice.precision}: {choice.reason}")
    yield _ffcv()
    yield Check("CPU cores", f"{len(os.sched_getaffinity(0))} for this process, {os.cpu_count()} in all")


def _torch() -> Iterator[Check]:
    fix = f"pip install 'torch>={LOWEST_TORCH[0]}.{LOWEST_TORCH[1]}' torchvision"
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything: OSError for a missing library, ...
        yield Check("torch", f"cannot be imported ({_first_line(error)})", fix, needed=True)
        return
    recent = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= LOWEST_TORCH
    yield Check("torch", torch.__version__, "" if recent else fix, needed=True)
    try:
        yield Check("torchvision", importlib.import_module("torchvision").__version__)
    except Exception as error:  # a build for another torch
        found = f"cannot be imported ({_first_line(error)}); no downloads of datasets"
        yield Check("torchvision", found, "pip install --force-reinstall torch torchvision")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = [f"{device.name}, {device.total_memory / 2**30:.1f} GiB" for device in devices]
    yield Check("CUDA device", "; ".join(names) or "none; fastwi runs on the CPU")
    triton = importlib.util.find_spec("triton") is not None
    yield Check("Triton", "installed" if triton else "none; GPU kernels fall back to torch")
    yield Check("torch threads", str(torch.get_num_threads()))
    from fastwi.data.split import free_host_bytes

    yield Check("free memory", f"{free_host_bytes() / 2**30:.1f} GiB")


def _packages() -> Check:
    missing = [pip or module for module, pip in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        return Check("packages", f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}", needed=True)
    return Check("packages", f"all {len(_PACKAGES)} installed")


def _compiler() -> Check:
    path = compiler()
    if path is None:
        return Check("C++ compiler", "none; CPU training is slower", "apt-get install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        found = f"{path}, but no Python.h; networks without batch norm train uncompiled on a CPU"
        return Check("C++ compiler", found, "apt-get install python3-dev")
    return Check("C++ compiler", path)


def _ffcv() -> Check:
    """Imported in a process of its own: FFCV's import changes torch's threads, and may crash."""
    if importlib.util.find_spec("ffcv") is None:
        return Check("FFCV", "none; the project's own writer is used", FFCV_FIX)
    command = [sys.executable, "-c", "import ffcv"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return Check("FFCV", f"its import takes over {_IMPORT_SECONDS} seconds", FFCV_FIX)
    if ended.returncode:
        reason = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
        return Check("FFCV", f"cannot be imported ({reason[0]})", FFCV_FIX)
    return Check("FFCV", "installed")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@command
def main(argv: list[str]) -> int:
    """Entry point. Exit codes: 0 fastwi can train here, 1 it cannot, 2 bad use."""
    parser = argparse.ArgumentParser(
        prog="python -m fastwi.doctor",
        description="Show what this machine has and lacks. Exit code 0: fastwi can train here; 1: it cannot.",
    )
    parser.add_argument("--version", action="version", version=f"fastwi {__version__}")
    parser.parse_args(argv)
    able = True
    for check in examine():
        able = able and not (check.needed and check.fix)
        mark = ("LACKS" if check.needed else "could") if check.fix else "ok"
        print(f"{mark:<6} {check.subject:<14} {check.found}", flush=True)
        if check.fix:
            print(f"{'':<21} fix: {check.fix}", flush=True)
    print("fastwi can train on this machine" if able else "fastwi cannot train on this machine as it is")
    return 0 if able else 1


if __name__ == "__main__":
    sys.exit(main())
