"""The interpolation benchmark runs, verifies its contestants and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_run_writes_its_results(tmp_path):
    command = [sys.executable, "-m", "benchmarks.interpolation", "--pairs=2", "--rounds=2", "--device=cpu"]
    done = subprocess.run([*command, f"--out={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "interpolation-cpu.json").read_text())
    assert told["settings"]["floats_per_network"] == 269_722 + 1_376
    names = [measurement["contestant"] for measurement in told["measurements"]]
    assert {"fastwi rows", "AveragedModel"} <= set(names)
    assert all(len(measurement["seconds"]) == 2 for measurement in told["measurements"])
    assert all(name in done.stdout for name in names)
    assert (tmp_path / "interpolation-cpu.png").read_bytes().startswith(b"\x89PNG")
