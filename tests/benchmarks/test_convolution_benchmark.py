"""The convolution benchmark: its floor, and a small run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.convolution import floor_s
from benchmarks.floor import ConvolutionShape
from fastwi.kernels.cpu import library

ROOT = Path(__file__).parents[2]


def test_the_floor_counts_every_product_once_forward_and_once_for_each_gradient():
    shape = ConvolutionShape(16, 32, (3, 3), (2, 2), (1, 1), 1, 8, 8, first=False)
    products = 4 * 32 * 4 * 4 * 16 * 9
    assert floor_s(shape, 4, 2.0) == pytest.approx(2 * products * 3 / 2e9)
    first = ConvolutionShape(3, 16, (3, 3), (1, 1), (1, 1), 1, 8, 8, first=True)
    assert floor_s(first, 1, 1.0) == pytest.approx(2 * 16 * 64 * 27 * 2 / 1e9)


def test_a_small_run_writes_its_results(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.convolution",
        "--image=8",
        "--batch=2",
        "--rounds=2",
        f"--out={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "convolution-cpu.json").read_text())
    by = {(m["convolution"], m["way"]) for m in told["measurements"]}
    assert ("16->16 3x3/1 at 8x8", "channels-last") in by
    assert (("16->16 3x3/1 at 8x8", "winograd") in by) == (library() is not None)
    assert ("3->16 3x3/1 at 8x8", "winograd") not in by
    assert sum(m["count"] for m in told["measurements"] if m["way"] == "contiguous") == 19
    assert all(len(m["step_s"]) == len(m["forward_s"]) == 2 for m in told["measurements"])
    assert (tmp_path / "convolution-cpu.png").stat().st_size > 1000
