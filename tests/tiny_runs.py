"""Runs of a fraction of a second, every name in them beside what it names.

A run is planned as a sweep of one point is and done by a `Worker`, one task after the other, in a store of its own: a
name that is wrong can't find another run's results there.
"""

import dataclasses
import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from listeners import Silent
from mappings import config_from_mapping
from torch import nn

from data_prep.dataset import ImageSet, Split
from data_prep.digits import load_digits
from data_prep.progress import silent
from data_prep.write import write_dataset
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepOptions, SweepSpec, run_point
from fastwi.config.write import config_hash
from fastwi.data.card import CARD_FILE
from fastwi.experiment.places import PointStates
from fastwi.experiment.planner import plan_sweep
from fastwi.experiment.store import StoredState, write_states
from fastwi.experiment.tree import Tree
from fastwi.experiment.worker import Job, Outcome, Worker, score
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


class Named(NamedTuple):
    """A state or a measurement: its name, and all the numbers that the name stands for.

    That is every bit of the network as it is trained on (weights, momentum, statistics, counters), and what was
    measured.
    """

    name: tuple[str, ...]
    numbers: tuple[object, ...]


class TinyRun(NamedTuple):
    """A run's states and measurements by their place, and the name that `python -m fastwi.train` gives the run."""

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


def few_digits(train_images: int, test_images: int) -> ImageSet:
    """The first digits of each split, in memory of their own."""
    digits = load_digits("digits")
    train, test = (
        Split(split.images_NHWC[:count].copy(), split.labels_N[:count].copy())
        for split, count in ((digits.train, train_images), (digits.test, test_images))
    )
    return dataclasses.replace(digits, train=train, test=test)


def write_digits(directory: Path, change: str = "") -> Path:
    """A few digits as a dataset; `change` one thing alone.

    That is: train pixels, test pixels, labels, classes (one more), mean or std (in the card).
    """
    digits = few_digits(TRAIN_IMAGES, TEST_IMAGES)
    for name, split in (("train", digits.train), ("test", digits.test)):
        if change == f"{name} pixels":
            split.images_NHWC[0] = split.images_NHWC[0, ::-1].copy()
        if change == "labels":
            split.labels_N[:2] = split.labels_N[1::-1].copy()
    if change == "classes":
        digits = dataclasses.replace(digits, classes=(*digits.classes, "ten"))
    directory.mkdir(parents=True)
    card = write_dataset(digits, directory, "raw", silent)
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


def names_in(tree: Tree, place: PointStates) -> dict[Place, tuple[str, ...]]:
    """The names of a point's states and measurements in a tree that may hold others too."""
    parent = tree.path(place.clone_node, 0)
    first = tree.before[parent[0]] if parent else place.clone_node
    found: dict[Place, tuple[str, ...]] = {("initial",): (tree.keys[first],), ("average",): (place.average,)}
    found |= {("parent", i): (key,) for i, key in enumerate(place.parent)}
    found |= {("child", c, i): (key,) for c, keys in enumerate(place.children) for i, key in enumerate(keys)}
    found |= {("alone", i): (key,) for i, key in enumerate(place.alone)}
    found |= {("after", i): (key,) for i, key in enumerate(place.after)}
    probed = set(map(tree.measurement_key, tree.probes()))
    for number, each in enumerate(place.rounds, 1):
        ends: list[tuple[Place, int]] = [(("average",), each.average_node)]
        ends += [(("end", c), node) for c, node in enumerate(each.end_nodes)]
        for (name, *rest), node in ends:
            at = (name, *rest) if each is place.rounds[-1] else (name, "round", number, *rest)
            found |= {at: (tree.keys[node],)} if name == "average" else {}
            found |= {
                (*at, kind): (tree.keys[node], treatment)
                for kind, treatment in zip(("own", "recomputed"), each.treatments, strict=False)
                if (tree.keys[node], treatment) in probed
            }
        for i, (node, treatments) in enumerate(each.alone):
            (recomputed,) = treatments.keys() - {"own"}
            found["alone at", number, i] = tree.keys[node], recomputed
    for average in place.over_time:
        key, (own, recomputed) = tree.keys[average.node], average.treatments.values()
        # Alike in all runs, whatever the average is called.
        at = average.name.split()[0], average.network, average.child, average.round, tree.epochs[average.node]
        found |= {(*at, "own"): (key, own.name), (*at, "recomputed"): (key, recomputed.name)}
    for at, (key, *_) in list(found.items()) if place.recomputed else ():
        if tree.is_epoch(tree.nodes[key]) and at[0] != "end":
            found[(*at, "recomputed")] = key, place.recomputed[tree.epochs[tree.nodes[key]]].name
    return found


def tiny_run(settings: Settings) -> TinyRun:
    """Do the whole run of these settings."""
    config = config_of(settings)
    planned = plan_sweep(SweepSpec(config), [run_point(config)])
    tree, (place,) = planned.tree, planned.places
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with tempfile.TemporaryDirectory() as directory:
            states, probes = _do(tree, Path(directory))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    found = {}
    for at, name in names_in(tree, place).items():
        content, rows = states[name[0]]
        found[at] = Named(name, (content, *(probes[name[0], name[1]] if len(name) == 2 else rows)))
    return TinyRun(config_hash(config, planned.inputs_of(config).digest), found)


_Rows = tuple[float | None, ...]


def _do(tree: Tree, directory: Path) -> tuple[dict[str, tuple[str, _Rows]], dict[tuple[str, str], _Rows]]:
    """Each state's content and measurement, each probe's measurement."""
    worker, silent = Worker(tree, SweepOptions(store=str(directory), memory_GiB=0.0)), Silent()
    files: dict[str, StoredState] = {}

    def outcome(task: int) -> Outcome:
        return worker.run(Job(((task,),), files, frozenset([task]), math.inf), silent)

    states: dict[str, tuple[str, _Rows]] = {}
    for node, key in enumerate(tree.keys):
        if tree.is_epoch(node):
            trained = outcome(node)
            (m,), ((_, network),) = trained.measurements, trained.states
            files[key] = write_states(directory, [(key, network)])[0]
            rows: _Rows = (m.train_loss, m.learning_rate, m.test_loss, m.test_accuracy)
        else:
            # A run measures some of them only; each is a network that one could.
            config = tree.configs[node]
            test = worker.resources.splits(config)[1]
            network = worker.resident.gather([node], files, trains=False)
            (rows,) = score(worker.resources.engine(config), network, test, silent)
            network = worker.resident.gather([node], files, trains=True)
        states[key] = _content(network), rows
    probes = [m for task in tree.probes() for m in outcome(task).measurements]
    return states, {m.key: (m.test_loss, m.test_accuracy) for m in probes}


def _content(population: Population) -> str:
    digest = hashlib.sha256(json.dumps([population.members, population.layout.P]).encode())
    for tensor in population.matrices:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
