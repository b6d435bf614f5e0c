"""A tiny finished sweep of digits, for the tests of studies, and its stored networks read without the planner."""

import hashlib
from pathlib import Path

import numpy as np
import polars
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.data.noise import Stream, permutation
from fastwi.data.resident import ResidentDataset
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.sweep import main

BATCH = 25
WIDTH = 0.25
STATISTICS_NOISE = 77
SWEEP = f"""
data: {{{{path: {{data}}, train_images: 100, test_images: 50}}}}
augment: {{{{padding: 0, flip: 0.0}}}}
model: {{{{width: {WIDTH}}}}}
optimizer: {{{{batch_size: {BATCH}, learning_rate: 0.05}}}}
schedule: {{{{drop_epochs: []}}}}
experiment: {{{{after: 0, recompute_images: 75}}}}
seeds: {{{{statistics_noise: {STATISTICS_NOISE}}}}}
engine: {{{{device: cpu, precision: fp32, backend: eager, threads: 1}}}}
axes:
  experiment.k: [1]
  experiment.s: [1, 2]
sweep:
  store: {{here}}/store
  directory: {{here}}/sweeps
  parents: [0, 3]
  children: 4
  measure: [own, recomputed]
analysis: {{{{alphas: 4, pairs: 1}}}}
"""
State = dict[str, Tensor]


def trained(directory: Path, data: Path) -> Path:
    """Carry out the sweep in `directory`; returns its sweep file."""
    path = directory / "grid.yaml"
    path.write_text(SWEEP.format(data=data, here=directory))
    threads = torch.get_num_threads()
    assert main(["--config", str(path)]) == 0
    torch.set_num_threads(threads)
    return path


def contents(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory, by path."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def stored(sweep_file: Path, **where: object) -> State:
    """The one stored network that the sweep's table of results has at `where`, as a float64 state dict."""
    results = polars.read_parquet(sweep_file.parent / "sweeps" / "grid" / "results.parquet")
    (key,) = results.filter(**where)["state"].unique()
    (path,) = (sweep_file.parent / "store" / "states").rglob(f"{key}*")
    return {name: value.double() for name, value in Population.load(path).state_dict(0).items()}


def pair(sweep_file: Path, s: int, parent: int, number: int = 0) -> tuple[State, State]:
    """A and B of one pair at k = 1, read from the store."""
    first = parent * 1_000_000 + 2 * number + 1
    a, b = (
        stored(sweep_file, stage="children", epoch=1 + s, parent_seed=parent, noise=noise)
        for noise in (first, first + 1)
    )
    return a, b


def mixed(*weighted: tuple[float, State]) -> State:
    """The weighted sum of networks, in float64, statistics too."""
    return {name: sum(weight * state[name] for weight, state in weighted) for name in weighted[0][1]}  # type: ignore[misc]


def plainly(
    state: State, treatment: str, train: ResidentDataset, dataset: ResidentDataset, epoch: int
) -> tuple[float, float, float]:
    """Loss (nats) and error (%) by torch's own module in float64, and how far float32 could move the error (%)."""
    network = build_model("resnet20", train.classes, WIDTH).double()
    network.load_state_dict(state)
    if treatment == "recomputed":
        _recompute(network, train, epoch)
    network.eval()
    with torch.no_grad():
        logits_NK = network(_inputs(dataset))
    loss = float(functional.cross_entropy(logits_NK, dataset.labels_N))
    wrong = float((logits_NK.argmax(1) != dataset.labels_N).double().mean())
    top_N2 = logits_NK.topk(2, dim=1).values
    # Two logits that float32's rounding, of about 1e-7 a layer and amplified by 20 of them, could swap.
    close = float(((top_N2[:, 0] - top_N2[:, 1]) < 1e-4 * logits_NK.abs().amax(1)).double().mean())
    return loss, 100 * wrong, 100 * close


def _recompute(network: nn.Module, train: ResidentDataset, epoch: int) -> None:
    """Statistics as the plain mean over 3 batches, unaugmented, drawn from the statistics stream at `epoch`."""
    order = torch.from_numpy(permutation(STATISTICS_NOISE, Stream.STATISTICS_ORDER, epoch, len(train)))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
    network.train()
    with torch.no_grad():
        for batch in order[: 3 * BATCH].split(BATCH):
            network(_inputs(train)[batch])


def _inputs(dataset: ResidentDataset) -> Tensor:
    """Normalised images [N, C, H, W] in float64."""
    channels = [dataset.table_C256[c].double()[dataset.images_NHWC[..., c].long()] for c in range(3)]
    return torch.stack(channels, dim=1)


def close(found: float, expected: float) -> bool:
    """Whether a loss in float32 through 20 layers is the one in float64."""
    return bool(np.isclose(found, expected, rtol=1e-4, atol=1e-5))
