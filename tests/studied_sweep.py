"""A tiny sweep of real digits, trained once for all tests of studies that ask for it."""

import shutil
from pathlib import Path

import pytest
import torch

from fastwi.analysis.opened import OpenedSweep
from fastwi.config.sweepfile import read_sweep_request
from fastwi.sweep import main

TEXT = """
data: {{path: {data}, train_images: 60, test_images: 50}}
augment: {{padding: 2, flip: 0.0}}
model: {{name: resnet20, width: 0.125}}
optimizer: {{batch_size: 20, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{after: 1, recompute_images: 40}}
engine: {{device: cpu, precision: fp32, backend: eager, threads: 1}}
axes:
  experiment.k: [1, 2]
  experiment.s: [1, 2]
sweep: {{store: {here}/store, directory: {here}/sweeps, name: tiny, parents: [0, 1], children: 2, keep: all}}
"""
STOPS = (
    "--sweep.keep",
    "stops",
    "--axes.experiment.k",
    "[2]",
    "--axes.experiment.s",
    "[2]",
    "--sweep.parents",
    "[0]",
)
"""One parent, one cell, and no states between stops."""
VARIANTS = (
    "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--sweep.alphas", "[0.25, 0.5]",
    "--axes.experiment.momentum", "[reset, average]", "--experiment.continue_children", "true",
    "--experiment.children_rate_factor", "0.1",
)  # fmt: skip
"""A cell with all that the plain sweep lacks."""
_made: dict[str, Path] = {}


def studied_sweep(digits: Path, factory: pytest.TempPathFactory, *flags: str) -> OpenedSweep:
    """The sweep, opened; `flags` change it as on the command line. Tests must not write to it."""
    name = " ".join(flags)
    threads = torch.get_num_threads()
    if name not in _made:
        here = factory.mktemp("studied")
        if flags and "stops" not in flags and "" in _made:  # what the plain one trained serves the others
            shutil.copytree(_made[""] / "store", here / "store")
        (here / "sweep.yaml").write_text(TEXT.format(data=digits, here=here))
        assert main(["--config", str(here / "sweep.yaml"), *flags, "--json"]) == 0
        _made[name] = here
    torch.set_num_threads(threads)
    return OpenedSweep(read_sweep_request(["--config", str(_made[name] / "sweep.yaml"), *flags]).spec)


def files_of(opened: OpenedSweep) -> dict[str, bytes]:
    """Every state in the store, and the epochs' attempts: equal before and after what trains and writes nothing."""
    states = {str(path): path.read_bytes() for path in (opened.store.directory / "states").rglob("*.safetensors")}
    return states | {str(name): str(count).encode() for name, count in opened.store.attempts().items()}
