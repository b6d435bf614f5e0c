"""Runs of a fraction of a second, every name in them beside what it names.

A run is planned as a sweep of one point is and done by a `Worker`, one task after the other, in a store of its own: a
name that is wrong can't find another run's results there.
"""

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.dataset import Dataset, Split, silent
from data_prep.digits import load_digits
from data_prep.write import write_dataset
from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepSpec
from fastwi.config.write import config_hash
from fastwi.data.card import CARD_FILE
from fastwi.experiment.opened import plan_sweep
from fastwi.experiment.planner import PointStates
from fastwi.experiment.points import Point, child_seeds
from fastwi.experiment.store import StateFile
from fastwi.experiment.tree import OWN, Average, Epoch, Initial, Probe, Tree
from fastwi.experiment.worker import Job, Worker
from fastwi.files import write_json
from fastwi.population import Population

TRAIN_IMAGES, TEST_IMAGES = 24, 20

NETWORK = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, classes)
    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))
"""


def tiny_network(classes: int, width: float) -> nn.Module:
    """A network of the registry's kind, with batch norm, and as small as `NETWORK`."""
    channels = round(64 * width)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(channels, classes),
    )  # fmt: skip


Place = tuple[object, ...]
"""Where in a run: ("child", 1, 2) is the first child after its second epoch, (..., "recomputed") a probe of it."""

Settings = Mapping[str, Any]
"""Values by the dotted names of their keys."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A state or a measurement: its name, and all the numbers that the name stands for.

    `content`: every bit of the network, as it is trained on: weights, momentum, statistics, counters. `rows`: what
    was measured.
    """

    name: tuple[str, ...]
    content: str
    rows: tuple[float | None, ...]

    @property
    def numbers(self) -> tuple[object, ...]:
        """What must be equal wherever the name is."""
        return self.content, *self.rows


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A run's states and measurements by their place, and the name that `python -m fastwi.train` gives the run."""

    config: Config
    identity: str
    found: dict[Place, Named]

    @property
    def names(self) -> dict[Place, tuple[str, ...]]:
        """The names alone."""
        return {place: named.name for place, named in self.found.items()}

    @property
    def numbers(self) -> dict[Place, tuple[object, ...]]:
        """The numbers alone."""
        return {place: named.numbers for place, named in self.found.items()}


def write_digits(directory: Path, change: str = "") -> Path:
    """A few digits as a dataset; `change` one thing alone.

    That is: train pixels, test pixels, labels, classes (one more), mean or std (in the card).
    """
    digits = load_digits("digits")

    def few(split: Split, count: int, name: str) -> Split:
        images_NHWC, labels_N = split.images_NHWC[:count], split.labels_N[:count]
        if change == f"{name} pixels":
            images_NHWC = images_NHWC.copy()
            images_NHWC[0] = images_NHWC[0, ::-1]
        if change == "labels":
            labels_N = labels_N.copy()
            labels_N[:2] = labels_N[1::-1]
        return Split(images_NHWC, labels_N)

    classes = (*digits.classes, "ten") if change == "classes" else digits.classes
    chosen = Dataset(
        digits.name,
        classes,
        few(digits.train, TRAIN_IMAGES, "train"),
        few(digits.test, TEST_IMAGES, "test"),
        digits.source,
    )
    directory.mkdir(parents=True)
    card = write_dataset(chosen, directory, "raw", silent)
    if change in ("mean", "std"):
        changed = {change: (0.4, *getattr(card, change)[1:])}
        write_json(directory / CARD_FILE, dataclasses.replace(card, **changed).to_json())
    return directory


def config_of(settings: Settings) -> Config:
    """The checked configuration with these settings."""
    mapping: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, _, name = path.partition(".")
        mapping.setdefault(section, {})[name] = value
    return config_from_mapping(mapping)


def point_of(config: Config) -> Point:
    """The run as the point of a sweep: every child's noise spelled out."""
    seeds = dataclasses.replace(config.seeds, child_noise=child_seeds(config))
    return Point((), config.seeds.init, 0, None, dataclasses.replace(config, seeds=seeds))


def names_in(tree: Tree, place: PointStates) -> dict[Place, tuple[str, ...]]:
    """The names of a point's states and measurements in a tree that may hold others too."""
    first = place.average
    while not isinstance(tree.states[first], Initial):
        state = tree.states[first]
        first = state.children[0] if isinstance(state, Average) else state.before
    found: dict[Place, tuple[str, ...]] = {("initial",): (first,), ("average",): (place.average,)}
    found |= {("parent", i): (key,) for i, key in enumerate(place.parent)}
    found |= {("child", c, i): (key,) for c, keys in enumerate(place.children) for i, key in enumerate(keys)}
    found |= {("after", i): (key,) for i, key in enumerate(place.after)}
    ends: list[tuple[Place, str]] = [(("average",), place.average)]
    ends += [(("end", c), key) for c, key in enumerate(place.ends)]
    for at, key in ends:
        found |= {
            (*at, kind): (key, treatment)
            for kind, treatment in (("own", OWN), ("recomputed", place.recomputed))
            if (key, treatment) in tree.probes
        }
    return found


def tiny_run(settings: Settings) -> TinyRun:
    """Do the whole run of these settings."""
    config = config_of(settings)
    planned = plan_sweep(SweepSpec(config), [point_of(config)])
    tree, (place,) = planned.tree, planned.places
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with tempfile.TemporaryDirectory() as directory:
            states, probes = _do(tree, Worker(Path(directory), Path.cwd()))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    found: dict[Place, Named] = {}
    for at, name in names_in(tree, place).items():
        content, rows = states[name[0]]
        found[at] = Named(name, content, probes[name[0], name[1]] if len(name) == 2 else rows)
    return TinyRun(config, config_hash(config, planned.dataset_of(config).digest), found)


_Rows = tuple[float | None, ...]


def _do(tree: Tree, worker: Worker) -> tuple[dict[str, tuple[str, _Rows]], dict[tuple[str, str], _Rows]]:
    """Each state's content and measurement, each probe's measurement."""
    files: dict[str, StateFile] = {}
    states: dict[str, tuple[str, _Rows]] = {}
    for key, state in tree.states.items():
        if isinstance(state, Epoch):
            job = Job(
                (state,), tree.made_of(state.before), _some(files, tree.needs(state)), frozenset({key}), tree.contents
            )
            outcome = worker.run(job)
            (files[key],) = outcome.states
            m = outcome.measurements[0]
            rows = (m.train_loss, m.learning_rate, m.test_loss, m.test_accuracy)
            states[key] = files[key].sha256, rows
        else:
            job = Job((), tree.made_of(key), _some(files, tree.sources(key)), frozenset(), tree.contents)
            # A run measures some of them only; each is a network that one could.
            rows = _probe(tree, worker, files, Probe(key, OWN, state.epoch, 0, 0, state.config))
            states[key] = _content(worker.state(key, state.config, job, True)), rows
    return states, {key: _probe(tree, worker, files, probe) for key, probe in tree.probes.items()}


def _probe(tree: Tree, worker: Worker, files: Mapping[str, StateFile], probe: Probe) -> _Rows:
    job = Job((probe,), tree.made_of(probe.state), _some(files, tree.needs(probe)), frozenset(), tree.contents)
    m = worker.run(job).measurements[0]
    return m.test_loss, m.test_accuracy


def _some(files: Mapping[str, StateFile], keys: tuple[str, ...]) -> dict[str, StateFile]:
    return {key: files[key] for key in keys}


def _content(population: Population) -> str:
    digest = hashlib.sha256(json.dumps([population.members, population.layout.P]).encode())
    for tensor in (population.weights_MP, population.momentum_MP, population.statistics_MQ, population.counters_MB):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
