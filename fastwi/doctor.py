"""python -m fastwi.doctor: what this machine has for fastwi, what it lacks, and the line that mends it."""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastwi.cli import run_command
from fastwi.engine.precision import cpu_precision, processor
from fastwi.kernels.compiler import compiler
from fastwi.version import __version__

LOWEST_TORCH = (2, 11)
FFCV_APT = "apt-get install pkg-config libopencv-dev libturbojpeg0-dev"
FFCV_PIP = "pip install ffcv==1.0.2"
_FFCV_LIBRARIES = ("opencv4", "libturbojpeg")  # as pkg-config calls them
_IMPORT_PATIENCE = 120  # seconds

# What fastwi imports besides them: module -> what pip calls it.
_PACKAGES = {
    "numpy": "numpy",
    "fastargs": "fastargs==1.2.0",
    "terminaltables": "terminaltables",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "joblib": "joblib",
    "PIL": "pillow",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "polars": "polars",
    "scipy": "scipy",
    "jinja2": "jinja2",
}


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        subject: what was looked at.
        found: what there is.
        mend: what to do about what is lacking; empty where nothing is.
        needed: whether fastwi cannot train without it.
    """

    subject: str
    found: str
    mend: str = ""
    needed: bool = False


def examine() -> Iterator[Check]:
    """Look at this machine, one finding after the other. Takes seconds: torch and FFCV are imported."""
    yield _python()
    yield from _torch()
    yield _packages()
    yield _simplejpeg()
    yield _compiler()
    yield _precision()
    yield _ffcv()
    yield _cores()
    yield _memory()


def can_train(findings: Sequence[Check]) -> bool:
    """Whether nothing that is needed is lacking."""
    return not any(finding.needed and finding.mend for finding in findings)


def _python() -> Check:
    supported = (3, 10) <= sys.version_info[:2] < (3, 14)
    mend = "" if supported else "install Python 3.10 to 3.13"
    return Check("Python", platform.python_version(), mend, needed=True)


def _torch() -> Iterator[Check]:
    """torch and torchvision, then the GPU and Triton."""
    mend = f"pip install 'torch>={LOWEST_TORCH[0]}.{LOWEST_TORCH[1]}' torchvision"
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything: OSError for a missing library, ...
        yield Check("torch", f"cannot be imported ({_first_line(str(error))})", mend, needed=True)
        return
    recent = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= LOWEST_TORCH
    yield Check("torch", torch.__version__, "" if recent else mend, needed=True)
    yield _torchvision()
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        said = [f"{device.name}, {device.total_memory / 2**30:.1f} GiB" for device in devices]
        yield Check("CUDA device", "; ".join(said))
    else:
        yield Check("CUDA device", "none; fastwi runs on the CPU")
    triton = importlib.util.find_spec("triton") is not None
    yield Check("Triton", "installed" if triton else "none; GPU kernels fall back to torch")
    yield Check("torch threads", str(torch.get_num_threads()))


def _torchvision() -> Check:
    """Only data_prep's downloads need it. A build that does not match torch's fails to import."""
    try:
        import torchvision
    except Exception as error:
        said = f"cannot be imported ({_first_line(str(error))}); no downloads of datasets"
        return Check("torchvision", said, "pip install --force-reinstall torch torchvision")
    return Check("torchvision", torchvision.__version__)


def _precision() -> Check:
    choice = cpu_precision(processor())
    return Check("CPU precision", f"auto is {choice.precision}: {choice.reason}")


def _packages() -> Check:
    lacking = [pip for module, pip in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if lacking:
        return Check("packages", f"{', '.join(lacking)} missing", f"pip install {' '.join(lacking)}", needed=True)
    return Check("packages", f"all {len(_PACKAGES)} there")


def _simplejpeg() -> Check:
    """Not built for every platform; data_prep does without it, and says so."""
    if importlib.util.find_spec("simplejpeg") is None:
        found = "none; data_prep cannot check JPEGs for damage that Pillow passes over"
        return Check("simplejpeg", found, "pip install simplejpeg")
    return Check("simplejpeg", "installed")


def _compiler() -> Check:
    path = compiler()
    if path is None:
        return Check("C++ compiler", "none; CPU training is slower", "apt-get install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        found = f"{path}, but no Python.h; networks without batch norm train uncompiled on a CPU"
        return Check("C++ compiler", found, "apt-get install python3-dev")
    return Check("C++ compiler", path)


def _ffcv() -> Check:
    """Tried in a process of its own: FFCV's import changes torch's threads, and may crash."""
    if importlib.util.find_spec("ffcv") is None:
        return Check("FFCV", "none; the project's own writer is used", _ffcv_mend())
    command = [sys.executable, "-c", "import ffcv"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return Check("FFCV", f"its import takes over {_IMPORT_PATIENCE} seconds", _ffcv_mend())
    if tried.returncode:
        said = tried.stderr.strip().splitlines()[-1:] or [f"exit code {tried.returncode}"]
        return Check("FFCV", f"cannot be imported ({said[0]})", _ffcv_mend())
    return Check("FFCV", "installed")


def _ffcv_mend() -> str:
    """The line that installs FFCV; without the libraries that pkg-config already finds."""
    steps = FFCV_PIP
    if not _has_ffcv_libraries():
        steps = f"{FFCV_APT} && {steps}"
    return steps


def _has_ffcv_libraries() -> bool:
    if shutil.which("pkg-config") is None:
        return False
    asked = subprocess.run(["pkg-config", "--exists", *_FFCV_LIBRARIES], capture_output=True, check=False)
    return asked.returncode == 0


def _cores() -> Check:
    if hasattr(os, "sched_getaffinity"):
        return Check("CPU cores", f"{len(os.sched_getaffinity(0))} for this process, {os.cpu_count()} in all")
    return Check("CPU cores", str(os.cpu_count()))


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kibibytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        free, total = kibibytes["MemAvailable"] / 2**20, kibibytes["MemTotal"] / 2**20
    except (OSError, KeyError, ValueError, IndexError):
        return Check("free memory", "not known on this system")
    return Check("free memory", f"{free:.1f} of {total:.1f} GiB")


def _first_line(text: str) -> str:
    return (text.splitlines() or ["no message"])[0]


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastwi.doctor",
        description="Say what this machine has and lacks. Exit code 0: fastwi can train here; 1: it cannot.",
    )
    parser.add_argument("--version", action="version", version=f"fastwi {__version__}")
    parser.parse_args(arguments)
    findings = []
    for finding in examine():
        findings.append(finding)
        mark = ("LACKS" if finding.needed else "could") if finding.mend else "ok"
        print(f"{mark:<6} {finding.subject:<14} {finding.found}", flush=True)
        if finding.mend:
            print(f"{'':<21} mend: {finding.mend}", flush=True)
    able = can_train(findings)
    print("fastwi can train on this machine" if able else "fastwi cannot train on this machine as it is")
    return 0 if able else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. `arguments`: None takes those of the process."""
    return run_command(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
