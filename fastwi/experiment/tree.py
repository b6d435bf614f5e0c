"""A tree of trajectories: states of networks, named by all that decides them, and what is measured of them.

A state is a network at some moment: its weights, momentum and batch-norm statistics. There are three kinds: a freshly
drawn parent; what an epoch of training, or a part of one, makes of the state before it; the average of other states.

A trajectory is cut at the ends of epochs. One that ends within an epoch branches off at the epoch's beginning: its
last steps are an epoch in part. One that starts within an epoch trains the rest of it first, by its own noise.

Keys are hex digests of what decides the state and what is measured of it: the start, the network, optimizer,
augmentation, dataset, precision, noise, epoch and the learning rates of that epoch. Not: devices, engines, threads,
names or places of files. Two points of a sweep that agree up to an epoch share its key, so the epoch is trained once.

A tree has millions of epochs, so it is columns of numbers. A state is its number, `node`, each after those that it is
made of. A probe is a measurement of a state beside the one that its own training ends with. A task is a number too:
the node of the epoch to be trained, or the number of states plus the number of the probe to be made.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fastwi.config.schema import Config
from fastwi.config.time import epochs_of
from fastwi.experiment.inputs import Inputs, InputsKey

OWN = "own"
MOVING = "moving-"
"""Before the name of a treatment: of the network at the moving average of its weights."""

MeasurementKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Treatment:
    """Of batch-norm statistics, where a state is measured: OWN, or the name of their recomputation.

    They are recomputed on `images` images drawn from the statistics streams of `noise` at `epoch`; 0: they are not.
    moving: the network's weights are the moving average of its own.
    """

    name: str
    epoch: int
    noise: int
    images: int
    moving: bool = False

    @property
    def own(self) -> bool:
        """Whether batch-norm statistics are the network's own."""
        return not self.images


@dataclass(frozen=True, slots=True)
class Average:
    """A state made of the states `nodes`: sums of their weights, batch-norm statistics and momentum.

    Each sum has a weight for each node; 0: it takes no part.
    """

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    statistics: tuple[float, ...]
    momentum: tuple[float, ...]


class Tree:
    """States, probes, and the states worth keeping (`stops`).

    Columns by node: `keys`, `iterations` (done at the state), `per_epoch` (iterations of an epoch), `epochs` (done,
    one in part counts as one), `before` (the node that an epoch starts from; -1 for the other kinds), `noises`,
    `alike` (equal for epochs that can be trained as one population: same network, optimizer, rates, augmentation,
    dataset and iterations), `configs`. `averages`: by node; some are `trained` on. `resets`: epochs that start with
    zero momentum, whatever their start has. Columns by probe: `probe_nodes`, `probe_treatments` (places in
    `treatments`), `probe_configs`. `inputs`: see `Inputs`.
    """

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.nodes: dict[str, int] = {}
        self.iterations = array("q")
        self.per_epoch = array("i")
        self.epochs = array("i")
        self.before = array("i")
        self.noises = array("Q")
        self.alike = array("i")
        self.configs: list[Config] = []
        self.resets: set[int] = set()
        self.averages: dict[int, Average] = {}
        self.trained: set[int] = set()
        self.probe_nodes = array("i")
        self.probe_treatments = array("i")
        self.probe_configs: list[Config] = []
        self.treatments: list[Treatment] = []
        self.stops: set[int] = set()
        self.inputs: dict[InputsKey, Inputs] = {}
        self._probed: list[set[int]] = []  # nodes, by treatment
        self._alike: dict[str, int] = {}
        self._treatments: dict[Treatment, int] = {}

    def __len__(self) -> int:
        """States."""
        return len(self.keys)

    def add(
        self,
        key: str,
        config: Config,
        iteration: int = 0,
        before: int = -1,
        noise: int = 0,
        alike: str = "",
        average: Average | None = None,
        per_epoch: int = 1,
    ) -> int:
        """The node of a state, added where it is not there yet: of an initial network if no more is given."""
        if key in self.nodes:
            return self.nodes[key]
        self.nodes[key] = node = len(self.keys)
        self.keys.append(key)
        self.iterations.append(iteration)
        self.per_epoch.append(per_epoch)
        self.epochs.append(-(-iteration // per_epoch))
        self.before.append(before)
        self.noises.append(noise)
        self.alike.append(self._alike.setdefault(alike, len(self._alike)))
        self.configs.append(config)
        if average is not None:
            self.averages[node] = average
        if before in self.averages:
            self.trained.add(before)
        return node

    def add_probe(self, node: int, treatment: Treatment, config: Config) -> bool:
        """Add a probe; returns whether it was not there yet. An epoch has none with its own statistics."""
        place = self._treatments.setdefault(treatment, len(self.treatments))
        if place == len(self.treatments):
            self.treatments.append(treatment)
            self._probed.append(set())
        new = node not in self._probed[place]
        if new:
            self._probed[place].add(node)
            self.probe_nodes.append(node)
            self.probe_treatments.append(place)
            self.probe_configs.append(config)
        return new

    def is_epoch(self, node: int) -> bool:
        """Whether a state comes of training."""
        return self.before[node] >= 0

    def epoch_nodes(self) -> Iterator[int]:
        """Every epoch, each after the one before it."""
        return (node for node, before in enumerate(self.before) if before >= 0)

    def probes(self) -> range:
        """Every probe. Its `stop` is more than any task's number."""
        return range(len(self.keys), len(self.keys) + len(self.probe_nodes))

    def widest(self) -> int:
        """The most epochs that can be trained as one population."""
        alike_E = np.array(self.alike)[np.array(self.before) >= 0]
        return int(np.bincount(alike_E).max(initial=0))

    def tasks(self) -> list[int]:
        """Every task, epochs first: in an order in which they can be done."""
        return [*self.epoch_nodes(), *self.probes()]

    def count(self, tasks: Sequence[int]) -> tuple[int, int]:
        """How many of `tasks`, which ascend, are epochs, and how many are probes."""
        epochs = bisect_left(tasks, len(self))
        return epochs, len(tasks) - epochs

    def treatment_of(self, probe: int) -> Treatment:
        """The treatment under which the task `probe` measures."""
        return self.treatments[self.probe_treatments[probe - len(self.keys)]]

    def measurement_key(self, task: int) -> MeasurementKey:
        """What a task's measurement is filed under, and the task's name."""
        if task < len(self.keys):
            return self.keys[task], OWN
        return self.keys[self.start_of(task)], self.treatment_of(task).name

    def measurement_keys(self) -> list[MeasurementKey]:
        """What all measurements are filed under, those of epochs first."""
        return list(map(self.measurement_key, self.tasks()))

    def config_of(self, task: int) -> Config:
        """The configuration of some point that needs a task."""
        return self.configs[task] if task < len(self.keys) else self.probe_configs[task - len(self.keys)]

    def path(self, last: int, first: int) -> list[int]:
        """The nodes of a trajectory after iteration `first`, up to the node `last`."""
        nodes = []
        while last >= 0 and self.iterations[last] > first:
            nodes.append(last)
            last = self.before[last]
        return nodes[::-1]

    def time(self, node: int) -> int | float:
        """The epochs done at a state: whole ones as an int, else with the part."""
        return epochs_of(self.iterations[node], self.per_epoch[node])

    def start_of(self, task: int) -> int:
        """The node that a task trains from, or measures."""
        return self.before[task] if task < len(self.keys) else self.probe_nodes[task - len(self.keys)]

    def sources(self, node: int) -> tuple[int, ...]:
        """The epochs whose states are needed to have a state: itself, or what it is made of; none for an initial."""
        if self.before[node] >= 0:
            return (node,)
        children = self.averages[node].nodes if node in self.averages else ()
        return tuple(dict.fromkeys(source for child in children for source in self.sources(child)))

    def needs(self, task: int) -> tuple[int, ...]:
        """The epochs whose states a task starts from."""
        return self.sources(self.start_of(task))
