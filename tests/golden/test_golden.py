"""Every registered network's first losses, held to recorded ones: `python -m tests.golden.record` records them again.

Where machine and versions are those of the record, losses are held exactly: a refactor that should change nothing
changes no bit. Elsewhere they are held to what no rounding can break, with room to what was measured: over torch's
and oneDNN's instruction sets (SSE4.1, AVX2, AVX-512), 1 and 2 threads, and weights changed by 1e-6 of themselves.

- float64, each of 8 losses: 1e-8 of it. Measured: 6e-12 at most, 2e-11 over other seeds. Rounding changes little
  until it turns a ReLU or a max pool over, which it does in proportion to its size: in float64 never.
- fp32, first loss: 1e-4, the forward pass alone. Measured: 5e-6.
- fp32, second and third: a few ReLUs were turned over in the first backward pass, each a jump of the gradient.
  Measured: 1.5e-3 and 6e-3; held to 3e-2 and 1e-1.
- fp32, from there on training goes its own way: single losses differ by up to 2e-1, the mean of all 30 by 2e-2. Held:
  single ones to a factor of 3, so that one that diverges is seen, the mean to 2e-1.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden import record

FLOAT64, FIRST, EARLY, FACTOR, MEAN = 1e-8, 1e-4, (3e-2, 1e-1), 3.0, 2e-1
_CHOOSES_KERNELS = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_", "GOMP_")


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(record.RECORDED.read_text())


@pytest.fixture(scope="module")
def found() -> dict:
    """The traces of this machine, from a process of their own: no other test's settings are in them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_CHOOSES_KERNELS)}
    command = [sys.executable, str(Path(record.__file__)), "--print"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_network_is_recorded(recorded):
    assert tuple(recorded["losses"]) == record.NETWORKS
    for name, traces in recorded["losses"].items():
        assert traces.keys() == {"eager", "float64"} | ({"fused"} if record.has_batch_norm(name) else set())


@pytest.mark.parametrize("name", record.NETWORKS)
def test_losses_are_those_recorded(recorded, found, name):
    if found["machine"] == recorded["machine"]:
        assert found["losses"][name] == recorded["losses"][name]
    for kind, losses in found["losses"][name].items():  # without a compiler there is no fused one
        close = close_in_float64 if kind == "float64" else close_in_float32
        close(np.array(losses), np.array(recorded["losses"][name][kind]))


def close_in_float64(losses: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(losses, expected, rtol=FLOAT64)


def close_in_float32(losses: np.ndarray, expected: np.ndarray) -> None:
    off = np.abs(losses / expected - 1)
    assert off[0] <= FIRST, off
    assert (off[1:3] <= EARLY).all(), off
    assert (losses > expected / FACTOR).all(), losses
    assert (losses < expected * FACTOR).all(), losses
    assert abs(losses.mean() / expected.mean() - 1) <= MEAN, (losses, expected)


@pytest.mark.parametrize(("setting", "value"), [("RATE", 1.001e-3), ("DROP", 6), ("PADDING", 1)])
def test_small_changes_are_noticed(recorded, digits_directory, monkeypatch, setting, value):
    """On any machine: what the float64 traces are for."""
    digits = record.images_of(digits_directory)
    expected = np.array(recorded["losses"]["convnet"]["float64"])
    monkeypatch.setattr(record, setting, value)
    changed = np.array(record.float64_trace("convnet", digits))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        close_in_float64(changed, expected)
