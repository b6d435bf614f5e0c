"""The memory benchmark: its line through peaks, its way to measure a peak, and a small run."""

import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.memory import bytes_now, forget_peak, peak_bytes, slope_and_shared

ROOT = Path(__file__).parents[2]


def test_slope_is_the_members_part():
    assert slope_and_shared({1: 107.0, 2: 109.0, 4: 113.0, 16: 137.0}) == pytest.approx((2.0, 105.0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is in use")
def test_a_peak_is_seen_and_forgotten():
    device, size = torch.device("cpu"), 64 * 2**20
    forget_peak(device)
    before = peak_bytes(device)
    with mmap.mmap(-1, size) as block:  # not from the heap, which may hold freed memory
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
        assert peak_bytes(device) >= bytes_now(device) > 0
    assert peak_bytes(device) - before > 0.9 * size
    forget_peak(device)
    assert peak_bytes(device) - before < 0.5 * size


def test_a_small_run_writes_its_results(tmp_path, digits_directory):
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--members=1,2",
        "--rounds=1",
        "--engines=loop",
        "--batch=8",
    ]
    command += ["--width=0.25", "--device=cpu", f"--data={digits_directory}", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "memory-cpu.json").read_text())
    (measured,) = told["measurements"]
    assert measured["engine"] == "loop"
    assert set(measured["peak_MB"]) == {"1", "2"}
    assert min(measured["peak_MB"].values()) > 10
    # Weights, momentum and statistics of a ResNet20 of a quarter of the width, with room for alignment.
    assert 0.1 < measured["population_MB_a_member"] < 0.2
    assert "[M, P] a member" in done.stdout
    for kind in ("png", "svg"):
        assert (tmp_path / f"memory-cpu.{kind}").stat().st_size > 1000


def test_a_missing_dataset_is_said_in_one_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks.memory", "--short", "--engines=loop", f"--data={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no dataset here" in done.stderr
    assert "Traceback" not in done.stderr
