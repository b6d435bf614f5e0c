"""What a machine with a GPU can do, the decisive figures first, in at most 8 minutes and without a network.

    python -m benchmarks.device_check                          all steps but `peers`
    python -m benchmarks.device_check population=300 peers     these, the first in at most 300 s

Steps run in the order below. Each may take its own seconds and what those before it left; then it is interrupted, and
what it has printed and written is kept. In the output directory results.json holds each step's last results, and an
archive the logs, JSON files, pictures and the GPU's clocks of a run. Exit codes: 0 all passed (steps that need a
missing GPU or tool are left out), 1 one failed or was cut off, 2 bad use.

Steps need torch, NumPy, Triton, joblib and safetensors, and for pictures matplotlib; tests need pytest, hypothesis
and torchvision too. Wheels in build/wheels are installed for the steps alone; for Python 3.12 on a machine without a
network they are fetched by, for instance,

    pip download --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_17_x86_64 \
        -d build/wheels joblib hypothesis

Compiled kernels are kept in build/device_check, so that a second run finds them. git ignores both directories: name
them where a tool carries the working tree to the machine, and bring build/device_check back to use it elsewhere.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.device_steps import ROOT, STEPS, Step, chosen_steps, words_of
from fastwi.cli import EXIT_FAILED, command
from fastwi.files import write_json

GRACE_S = 5
KEPT, WHEELS = ROOT / "build/device_check", ROOT / "build/wheels"


@command
def main(argv: list[str]) -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device_check", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
    )  # fmt: skip
    parser.add_argument("steps", nargs="*", metavar="STEP[=SECONDS]", help=f"some of {', '.join(STEPS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/device_check", help="output directory")
    parser.add_argument("--data", default="random", help="a dataset's directory; default: random 32 x 32 images")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all seconds, for a slow or busy machine")
    given = parser.parse_args(argv)
    steps = {name: replace(s, seconds=s.seconds * given.scale) for name, s in chosen_steps(given.steps).items()}
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        return _Check(steps, given.out.resolve(), given.data, Path(place)).run()


class _Check:
    """One run of some steps."""

    def __init__(self, steps: Mapping[str, Step], out: Path, data: str, place: Path) -> None:
        self._steps, self._out, self._data, self._place = steps, out, data, place
        self._archive = out / time.strftime("logs-%Y%m%d-%H%M%S.tar.gz")
        self._ended: dict[str, str] = {}
        self._failed = False

    def run(self) -> int:
        """Run the steps; the exit code."""
        import torch

        on_gpu, begun, deadline = torch.cuda.is_available(), time.monotonic(), time.monotonic()
        environment = _environment(on_gpu)
        try:
            with _clocks(self._place / "clocks.csv") as clocks:
                for name, step in self._steps.items():
                    deadline += step.seconds
                    self._ended[name] = self._one(name, step, on_gpu, deadline, environment)
                    for line in _busy(clocks):
                        print(line)
                    self._keep()
        finally:
            lines = [f"{name:<14} {self._ended.get(name, 'not run: interrupted')}" for name in self._steps]
            lines.append(f"{time.monotonic() - begun:.0f} s in all; results are in {self._out}")
            print("", *lines, sep="\n", flush=True)
            (self._place / "summary.txt").write_text("\n".join(lines) + "\n")
            self._keep()
        return EXIT_FAILED if self._failed else 0

    def _one(self, name: str, step: Step, on_gpu: bool, deadline: float, environment: dict[str, str]) -> str:
        """Run a step until `deadline`; how it ended."""
        print(f"\n== {name}", flush=True)
        name_of_tool, *tool_words = step.tool.split() or [""]
        tool = name_of_tool and (shutil.which(name_of_tool) or _in_toolkit(name_of_tool))
        if not on_gpu and not step.cpu:
            return "left out: torch sees no GPU"
        if step.tool and not tool:
            return f"left out: {name_of_tool} is not on this machine"
        out = self._place / name
        out.mkdir()
        words = [sys.executable, *words_of(step, on_gpu, self._data, out)]
        if tool:  # without torch's cache of memory every tensor is an allocation, whose ends can be overrun
            words = [tool, *tool_words, *words]
            environment = environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        begun, left = time.monotonic(), deadline - time.monotonic()
        print(f"at most {left:.0f} s: {' '.join(words)}", flush=True)
        code = run_until(words, deadline, self._place / f"{name}.log", environment)
        took = f"{time.monotonic() - begun:.0f} s"
        kept = self._out / "results.json"
        results = json.loads(kept.read_text()) if kept.exists() else {}
        results.pop(name, None)  # or a step that fails would leave those of an earlier run
        for path in out.glob("*.json"):
            results[name] = json.loads(path.read_text())
        write_json(kept, results)
        if code == 0:
            return f"passed in {took}"
        self._failed = True
        return f"FAILED: cut off after {took}" if code is None else f"FAILED: exit code {code} after {took}"

    def _keep(self) -> None:
        """Write the archive of all so far."""
        new = self._archive.with_suffix(".tmp")
        with tarfile.open(new, "w:gz") as archive:
            archive.add(self._place, "device_check")
        new.replace(self._archive)


def run_until(words: Sequence[str], deadline: float, log: Path, environment: Mapping[str, str]) -> int | None:
    """Run a command, its output to standard output and `log`. None: it ran past `deadline` (`time.monotonic`).

    It is then interrupted as by Ctrl-C, with all its children, and killed after GRACE_S.
    """
    with (
        log.open("wb") as kept,
        subprocess.Popen(
            words, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        ) as process,
    ):  # fmt: skip

        def copy() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                kept.write(line)
                sys.stdout.write(line.decode(errors="replace"))
                sys.stdout.flush()

        reader = threading.Thread(target=copy, daemon=True)
        reader.start()
        code: int | None = None
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            with suppress(ProcessLookupError):  # else it left children behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join(GRACE_S)
        return code


def _environment(on_gpu: bool) -> dict[str, str]:
    """Of the steps: compiled kernels are kept, and wheels are importable."""
    site = KEPT / "site"
    if WHEELS.is_dir() and not site.is_dir():
        unfinished = KEPT / "site.unfinished"  # an installation that was cut off is not taken for a whole one
        shutil.rmtree(unfinished, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        wheels = map(str, WHEELS.glob("*.whl"))
        done = subprocess.run([*pip, "--no-deps", "--target", str(unfinished), *wheels], check=False)
        if done.returncode == 0:
            unfinished.rename(site)
        else:  # most steps need none
            print(f"the wheels in {WHEELS} are not installed; pip says why", flush=True)
    path = [str(ROOT), os.environ.get("PYTHONPATH", ""), *([str(site)] if site.is_dir() else [])]
    interpret = {"TRITON_INTERPRET": "0"} if on_gpu else {}  # or tests/conftest.py may ask for the interpreter
    return (
        os.environ
        | interpret
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "TRITON_CACHE_DIR": str(KEPT / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(KEPT / "inductor"),
            "XDG_CACHE_HOME": str(KEPT / "cache"),
        }
    )


def _in_toolkit(tool: str) -> str:
    """Where CUDA's toolkit has a tool; empty where it has not."""
    return max(map(str, Path("/usr/local").glob(f"cuda*/bin/{tool}")), default="")


_CLOCKS = (
    "utilization.gpu",
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
_SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal", 0x40: "hardware thermal", 0x80: "power brake"}


@contextmanager
def _clocks(path: Path) -> Iterator[Iterator[str]]:
    """The lines that nvidia-smi writes within the block, twice a second; none where it is missing."""
    if not shutil.which("nvidia-smi"):
        yield iter(())
        return
    query = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader,nounits", "-lms", "500"]
    with path.open("wb") as written, path.open() as lines:
        process = subprocess.Popen(query, stdout=written, stderr=subprocess.STDOUT)
        try:
            yield iter(lines.readline, None)  # type: ignore[arg-type]
        finally:
            process.terminate()
            process.wait()


def _busy(lines: Iterator[str]) -> Iterator[str]:
    """Of the clocks so far: their range while the GPU was busy, and what slowed it."""
    samples = []
    for line in lines:
        if not line:
            break
        try:
            use, core, memory, watts, celsius = (float(word) for word in line.split(",")[:5])
            reasons = int(line.split(",")[5], 16)
        except ValueError:
            continue
        if use >= 50:
            samples.append((core, memory, watts, celsius, reasons))
    if samples:
        core_s, memory_s, watts_s, celsius_s, reasons_s = zip(*samples, strict=True)
        slowed = [name for bit, name in _SLOWED.items() if any(int(each) & bit for each in reasons_s)]
        yield (
            f"GPU in {len(samples)} busy samples: SM {min(core_s):.0f} - {max(core_s):.0f} MHz, memory "
            f"{min(memory_s):.0f} MHz, at most {max(watts_s):.0f} W and {max(celsius_s):.0f} C; slowed by: "
            f"{', '.join(slowed) or 'nothing'}"
        )


if __name__ == "__main__":
    sys.exit(main())
