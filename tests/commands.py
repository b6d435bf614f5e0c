"""Commands under test: refused in one line, and killed wherever they are."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from begun_stores import measured_so_far

HUNG = 1200  # seconds; no machine is so slow


def refused(main: Callable[[list[str]], int], capsys, argv: list[str]) -> str:
    """The one line that the command prints as it refuses."""
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("fastwi: error: ")
    return line


def rows_of(run: Path) -> list[dict]:
    """The rows of the run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below the directory, by its path there."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def started(module: str, argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process: subprocess.Popen) -> None:
    """Wait for it; it ends well."""
    out, err = process.communicate(timeout=HUNG)
    assert process.returncode == 0, out + err


def killed(module: str, argv: list[str], directory: Path, times: int, seed: int) -> int:
    """Start the command and kill it -9 at random moments, so often; then let it end. How often it was still there.

    `directory`: has the store, which says how far it is.
    """
    draw, kills = random.Random(seed), 0
    for _ in range(times):
        process, before = started(module, argv), measured_so_far(directory)
        deadline = time.monotonic() + HUNG
        if draw.random() < 0.85:  # else while it imports
            while process.poll() is None and measured_so_far(directory) == before and time.monotonic() < deadline:
                time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills > 0
    ended(started(module, argv))
    return kills
