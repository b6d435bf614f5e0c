"""Training beside a busy process, in a small run."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.busy import WAYS

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.busy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_small_run_writes_its_results(digits_directory: Path, tmp_path: Path) -> None:
    sizes = ("--batch=16", "--batches=1", "--rounds=2", "--busy=1")
    done = run(f"--data={digits_directory}", *sizes, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "busy-cpu.json").read_text())
    assert [(m["busy"], m["way"]) for m in told["measurements"]] == [(busy, way) for busy in (0, 1) for way in WAYS]
    assert all(len(m["round_s"]) == 2 and m["images"] == 16 for m in told["measurements"])
    assert (tmp_path / "busy-cpu.png").stat().st_size > 1000


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    done = run(f"--data={tmp_path / 'nowhere'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
