"""A tiny sweep of real digits, trained once for all tests of studies, and what studies find computed otherwise.

The reference is plain: state dicts, one network at a time, float64, loops.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, all_pairs
from fastwi.config.read import read_sweep_request
from fastwi.config.sweep import AnalysisOptions
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.engine.choose import build_network
from fastwi.population import Population
from fastwi.report.figures import save_figure
from fastwi.report.summary import Table
from fastwi.studies import all_studies
from fastwi.sweep import main

TEXT = """
data: {{path: {data}, train_images: 60, test_images: 50, last_batch: keep}}
augment: {{padding: 2, flip: 0.0}}
model: {{name: resnet20, width: 0.125}}
optimizer: {{batch_size: 20, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{after: 1, recompute_images: 50}}
engine: {{device: cpu, precision: fp32, backend: eager, threads: 1}}
axes:
  experiment.k: [1, 2]
  experiment.s: [1, 2]
sweep: {{store: {here}/store, directory: {here}/sweeps, name: tiny, parents: [0, 1], children: 2, keep: all}}
"""
_ONE_CELL = ("--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]")
STOPS = (
    "--sweep.keep", "stops", "--axes.experiment.k", "[2]", "--axes.experiment.s", "[2]", "--sweep.parents", "[0]",
)  # fmt: skip
"""One parent, one cell, and no states between stops."""
VARIANTS = (
    *_ONE_CELL, "--sweep.alphas", "[0.25, 0.5, 0.75]", "--axes.experiment.momentum", "[reset, average]",
    "--experiment.continue_children", "true", "--experiment.children_rate_factor", "0.1",
)  # fmt: skip
"""A cell with all that the plain sweep lacks."""
SCHEDULES = (*_ONE_CELL, "--axes.schedule.drop_epochs", "[[], [1]]")
"""A cell whose children end with one of two learning rates."""
ANNEALED = (
    *_ONE_CELL, "--axes.schedule.at_average", "[keep, anneal]", "--experiment.continue_children", "true",
    "--experiment.after", "2", "--experiment.measure", "[own, recomputed]",
)  # fmt: skip
"""A cell whose averages and children train on by two schedules."""
PAIRS = (*_ONE_CELL, "--sweep.children", "4")
"""A cell with two pairs of each parent."""
ROUNDS = (*_ONE_CELL, "--axes.experiment.rounds", "[1, 3]", "--experiment.continue_parent", "total")
"""A cell with one round of averaging or three, and the parents trained on alone."""
OVER_TIME = (
    *PAIRS, "--trajectory.averages", "[lawa, swa, ema]", "--trajectory.window", "2", "--optimizer.ema_decay", "0.6",
)  # fmt: skip
"""A cell with two pairs of each parent, and averages over time of every network."""
THREE = (
    *_ONE_CELL, "--sweep.parents", "[0]", "--sweep.children", "3", "--sweep.tuple_size", "3",
    "--schedule.drop_epochs", "[1]",
)  # fmt: skip
"""A cell whose averages are of three children; their learning rate is a tenth of the parent's."""
WITHIN = (
    "--axes.experiment.k", "[0, 2it, 1, 4it]", "--axes.experiment.s", "[2ep-k]", "--experiment.after", "1ep1it",
)  # fmt: skip
"""Cells that are cloned within epochs of 3 iterations, all averaged after 2 epochs."""
ON_ANY_SWEEP = [name for name in all_studies() if name != "over_time"]
"""Studies that need no more of a sweep than the plain one has."""
_made: dict[str, Path] = {}

State = dict[str, Tensor]
Frames = dict[str, polars.DataFrame]


def sweep_file(digits: Path, factory: pytest.TempPathFactory, *flags: str) -> Path:
    """The sweep's file; the sweep is finished. `flags` change it as on the command line. Tests must not change it."""
    name = " ".join(flags)
    if name not in _made:
        here = factory.mktemp("studied")
        if flags and "stops" not in flags and "" in _made:  # what the plain one trained serves the others
            shutil.copytree(_made[""] / "store", here / "store")
        (here / "sweep.yaml").write_text(TEXT.format(data=digits, here=here))
        assert main(["--config", str(here / "sweep.yaml"), *flags, "--json"]) == 0
        _made[name] = here
    return _made[name] / "sweep.yaml"


def studied_sweep(digits: Path, factory: pytest.TempPathFactory, *flags: str, trains: bool = True) -> OpenedSweep:
    """The sweep, opened. Where it does not train, the plain sweep's store is opened for the sweep of `flags`."""
    path = sweep_file(digits, factory, *(flags if trains else ()))
    return OpenedSweep(read_sweep_request(["--config", str(path), *flags]).spec)


def measured(study: str, opened: OpenedSweep, **options: object) -> Frames:
    """The study's frames. Nothing was trained or written, and progress went from 0 to its total."""

    def files() -> dict[str, bytes]:
        states = {str(path): path.read_bytes() for path in (opened.store.directory / "states").rglob("*.safetensors")}
        return states | {str(name): str(count).encode() for name, count in opened.store.attempts().items()}

    before = files()
    progress = list[tuple[int, int]]()
    frames = all_studies()[study].measure(opened, AnalysisOptions(**options), lambda *at: progress.append(at))  # type: ignore[arg-type]
    assert files() == before
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1][0] == progress[-1][1] > 0
    assert set(frames) == set(all_studies()[study].columns)
    return frames


def presented(study: str, frames: Frames, directory: Path) -> tuple[list[Table], str]:
    """The study's tables, and the text of its figure's SVG."""
    path = directory / "figure.svg"
    save_figure(all_studies()[study].draw(frames, "ResNet on digits"), path, kinds=["svg"])
    tables = all_studies()[study].tables(frames)
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    return tables, path.read_text()


def bars(study: str, frames: Frames) -> dict[str, list[float]]:
    """The heights of the bars in the figure by what is on a panel's y axis; of several panels those of the first."""
    found = dict[str, list[float]]()
    for axis in all_studies()[study].draw(frames, "").axes:
        found.setdefault(axis.get_ylabel(), [bar.get_height() for bar in axis.patches])
    return found


def tables_at_two_alphas(study: str, frames: Frames) -> list[Table]:
    """The study's tables of a sweep with two alphas, none of them 1/2. Panels name the alpha."""
    two = [[frame.with_columns(alpha=polars.lit(alpha)) for frame in frames.values()] for alpha in (0.25, 0.75)]
    both = {name: polars.concat(each) for name, *each in zip(frames, *two, strict=True)}
    titles = " ".join(axis.get_title() for axis in all_studies()[study].draw(both, "").axes)
    for text in ("alpha = 0.25", "alpha = 0.75"):
        assert text in titles
    return all_studies()[study].tables(both)


def column(table: Table, name: str) -> list[str]:
    """One column's cells."""
    return [row[table.columns.index(name)] for row in table.rows]


def by_cell(opened: OpenedSweep) -> dict[tuple[int, int, int], Pair]:
    """The first pair of each parent in each cell, by k, s and parent."""
    found: dict[tuple[int, int, int], Pair] = {}
    for pair in all_pairs(opened):
        found.setdefault((pair.k, pair.s, pair.point.parent), pair)
    return found


def state_of(opened: OpenedSweep, key: str) -> State:
    """A stored state as float64."""
    return {name: tensor.double() for name, tensor in opened.states([key]).state_dict(0).items()}


def mixed(*weighted: tuple[float, State]) -> State:
    """The weighted sum of networks, statistics too."""
    return {name: sum(weight * state[name] for weight, state in weighted) for name in weighted[0][1]}  # type: ignore[misc]


def mean_state(states: list[State]) -> State:
    return mixed(*((1 / len(states), state) for state in states))


def logits(opened: OpenedSweep, state: Mapping[str, Tensor], dataset: ResidentDataset) -> NDArray[np.float64]:
    """Logits [N, K] by the plain module, from images through the table."""
    network = build_network(opened.planned.points[0].config, dataset.classes).double().eval()
    network.load_state_dict(dict(state))
    channels = [dataset.table_C256[c].double()[dataset.images_NHWC[..., c].long()] for c in range(3)]
    with torch.no_grad():
        return network(torch.stack(channels, dim=1)).numpy()


def accuracy(logits_NK: NDArray[np.float64], dataset: ResidentDataset) -> float:
    return 100.0 * float(np.mean(logits_NK.argmax(1) == dataset.labels_N.numpy()))


def unclear(logits_NK: NDArray[np.float64]) -> float:
    """The percentage of images with two logits that float32's rounding, amplified by 20 layers, could swap."""
    first, second = np.sort(logits_NK)[:, ::-1][:, :2].T
    return 100.0 * float(np.mean(first - second < 1e-4 * np.abs(logits_NK).max(1)))


def losses(logits_NK: NDArray[np.float64], dataset: ResidentDataset) -> NDArray[np.float64]:
    log_NK = logits_NK - np.logaddexp.reduce(logits_NK, axis=1)[:, None]
    return -log_NK[np.arange(len(log_NK)), dataset.labels_N.numpy()]


def treated(opened: OpenedSweep, state: State, treatment: str, epoch: int) -> State:
    """With statistics as the sweep recomputes them at `epoch`: by the engine, which has tests of its own."""
    if treatment != "recomputed":
        return state
    config = opened.planned.points[0].config
    network = build_network(config, 10)
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    train, _ = opened.resources.splits(config)
    noises = [Noise(config.seeds.statistics_noise)]
    fresh = opened.resources.engine(config).recompute_statistics(
        Population.from_modules([network]), train, noises, epoch, config.experiment.recompute_images
    )
    return {name: tensor.double() for name, tensor in fresh.state_dict(0).items()}


def check(opened: OpenedSweep, row: dict, state: State, split: str, rel: float = 2e-4) -> float:
    """Loss and error on `split` of a row are those of `state`, treated as the row says. Returns the loss."""
    dataset = opened.resources.splits(opened.planned.points[0].config)[split == "test"]
    logits_NK = logits(opened, treated(opened, state, row["batch_norm"], row["k"] + row["s"]), dataset)
    loss = float(losses(logits_NK, dataset).mean())
    assert row[f"{split}_loss_nats"] == pytest.approx(loss, rel=rel, abs=1e-5), row
    error = 100 - accuracy(logits_NK, dataset)
    assert row[f"{split}_error_%"] == pytest.approx(error, abs=unclear(logits_NK) + 1e-9), row
    return loss
