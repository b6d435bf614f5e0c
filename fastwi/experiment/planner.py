"""From points to one tree of trajectories: content keys, shared edges, and what is still to be done.

Nothing here imports torch, and everything is linear in the number of epochs and points.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastwi.config.keys import section_keys
from fastwi.config.schema import Config
from fastwi.config.write import value_of
from fastwi.engine.schedule import learning_rate
from fastwi.errors import UserError
from fastwi.experiment.plan import contents_key, rates_after
from fastwi.experiment.points import Point
from fastwi.experiment.tree import OWN, Average, Epoch, Initial, MeasurementKey, Probe, Task, Tree
from fastwi.models.names import placeless

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

MOST_STATES = 500_000
"""Of a tree. Each takes about 0.8 KB."""

KEY_VERSION = 2
"""Raise it when the same key would name another result: a default or the meaning of a setting changed."""

_IN_OTHER_WORDS = frozenset({"optimizer.learning_rate", "model.weights"})
"""Keys that decide by the rate of each epoch, and by the content of the file (`Dataset.digest`)."""

_DIGITS = 32  # 128 bits: no two of any number of trajectories ever meet


@dataclass(frozen=True)
class Dataset:
    """What a dataset is: what names its content, and how many images training and testing use.

    `digest`: `fastwi.experiment.plan.result_digest`, which also has the source of a network that is the user's own
    and the weights that parents start from.
    """

    digest: str
    train_images: int
    test_images: int


@dataclass(frozen=True, slots=True)
class PointStates:
    """Where a point's results are found in the tree.

    `parent`: states after epochs 1 .. k. `children`: for each child those after k + 1 .. k + s, and on where children
    are trained on. `ends`: the children's states at interpolation. `after`: the average's after k + s + 1 and on.
    `recomputed`: the treatment under which recomputed statistics are filed; empty where they are not measured.
    """

    parent: tuple[str, ...]
    children: tuple[tuple[str, ...], ...]
    ends: tuple[str, ...]
    average: str
    after: tuple[str, ...]
    recomputed: str


@dataclass(frozen=True)
class Todo:
    """What is left: epochs to train and probes to make, each in an order in which they can be done."""

    epochs: tuple[Epoch, ...]
    probes: tuple[Probe, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All of it."""
        return *self.epochs, *self.probes


def plan_tree(
    points: Iterable[Point],
    dataset_of: Callable[[Config], Dataset],
    precision: str,
    measure: Collection[str],
    keep: str,
) -> tuple[Tree, list[PointStates]]:
    """The tree of all `points`, and each point's place in it.

    `dataset_of` says what a configuration's data is; `precision` is what engine.precision: auto means on the devices
    in use, in the configuration's words; `measure` and `keep` are the sweep's options.
    """
    planner = _Planner(dataset_of, precision, "recomputed" in measure, keep == "all")
    return planner.tree, [planner.add(point) for point in points]


def unfinished(
    tree: Tree, measured: Collection[MeasurementKey], stored: Collection[str], diverged: Collection[str] = ()
) -> Todo:
    """What is left of `tree`, given the measurements that are there and the states that are stored.

    An epoch is left where it was never measured, or where something that is left needs its state and that is gone.
    What comes of the states `diverged` is not left: there is nothing to learn from it.
    """
    lost = lost_with(tree, diverged)
    probes = tuple(
        probe for key, probe in tree.probes.items() if key not in measured and not is_lost(tree, lost, key)
    )
    needed = {source for probe in probes for source in tree.needs(probe)}
    epochs = []
    for state in reversed(tree.states.values()):  # later epochs first: they say which earlier states they need
        if not isinstance(state, Epoch) or state.before in lost:
            continue
        if (state.key, OWN) not in measured or (state.key in needed and state.key not in stored):
            epochs.append(state)
            needed.update(tree.needs(state))
    return Todo(tuple(reversed(epochs)), probes)


def stopped_states(tree: Tree, measurements: "Iterable[Measurement]") -> list[str]:
    """The states of `tree` of which nothing is made, because they diverged.

    An average is judged with the batch-norm statistics that it would be trained on with. Other measurements beside
    an epoch's own (of an initial network, or with recomputed statistics) stop nothing.
    """

    def stops(m: "Measurement") -> bool:
        state = tree.states.get(m.state)
        if isinstance(state, Average):
            return (m.treatment == OWN) == (state.config.experiment.batch_norm == "average")
        return isinstance(state, Epoch) and m.treatment == OWN

    return [m.state for m in measurements if m.diverged and stops(m)]


def lost_with(tree: Tree, diverged: Collection[str]) -> set[str]:
    """The states `diverged` of `tree` and all that are made of them."""
    lost = set(diverged)
    if lost:
        for state in tree.states.values():
            made_of = state.children if isinstance(state, Average) else ()
            if (isinstance(state, Epoch) and state.before in lost) or not lost.isdisjoint(made_of):
                lost.add(state.key)
    return lost


def is_lost(tree: Tree, lost: Collection[str], measurement: MeasurementKey) -> bool:
    """Whether a measurement is of a network made of one of the states `lost`, or of such an epoch made otherwise.

    What diverged has measurements of its own: an epoch the one that it ends with, an average all.
    """
    key, treatment = measurement
    state = tree.states[key]
    if isinstance(state, Epoch):
        return state.before in lost or (treatment != OWN and key in lost)
    return isinstance(state, Average) and any(child in lost for child in state.children)


def without_lost(tree: Tree, measured: "Mapping[MeasurementKey, Measurement]") -> "dict[MeasurementKey, Measurement]":
    """The measurements that count: an average may have been trained on before it was found to have diverged."""
    lost = lost_with(tree, stopped_states(tree, measured.values()))
    return {key: m for key, m in measured.items() if not is_lost(tree, lost, key)}


def naive_epochs(points: Iterable[Point]) -> int:
    """Epochs that would be trained if every point were run alone."""
    total = 0
    for point in points:
        e = point.config.experiment
        total += e.k + e.children * e.s + e.after * (1 + e.children * e.continue_children)
    return total


class _Planner:
    def __init__(
        self, dataset_of: Callable[[Config], Dataset], precision: str, recomputed: bool, keep_all: bool
    ) -> None:
        self.tree = Tree()
        self._dataset_of, self._precision = dataset_of, precision
        self._recomputed, self._keep_all = recomputed, keep_all
        self._contexts: dict[tuple[object, ...], str] = {}
        self._paths: dict[tuple[object, ...], list[str]] = {}
        self._rates: dict[tuple[object, ...], list[str]] = {}  # by epoch

    def add(self, point: Point) -> PointStates:
        """Put what `point` needs into the tree, where it is not there yet."""
        config, tree = point.config, self.tree
        experiment, seeds = config.experiment, config.seeds
        context = self._context(config)
        k, end = experiment.k, experiment.k + experiment.s
        start = _digest("initial", self._untrained(config), seeds.init)
        if start not in tree.states:
            tree.states[start] = Initial(start, config)
        parent = self._path(start, 0, k, seeds.parent_noise, config, context)
        clone = parent[-1] if parent else start
        children = tuple(self._path(clone, k, end, noise, config, context) for noise in seeds.child_noise)
        ends = tuple(child[-1] if child else clone for child in children)
        if experiment.continue_children:
            trained_on = dataclasses.replace(config, optimizer=rates_after(config))
            children = tuple(
                child + self._path(last, end, end + experiment.after, noise, trained_on, context)
                for child, last, noise in zip(children, ends, seeds.child_noise, strict=True)
            )
        average = self._average(ends, config, context)
        after = self._path(average, end, end + experiment.after, seeds.average_noise, config, context)
        tree.stops.update((clone, *ends, *after[-1:], *(child[-1] for child in children if child)))
        return PointStates(parent, children, ends, average, after, self._probe(ends, average, end, config, context))

    def _path(self, start: str, first: int, last: int, noise: int, config: Config, context: str) -> tuple[str, ...]:
        """Keys of the states after epochs first + 1 .. last of the trajectory from `start`; extends the tree."""
        # Trajectories whose rates differ only from some epoch on have the same keys up to there.
        rates = self._rates.setdefault((context, config.optimizer, config.schedule), [])
        for epoch in range(len(rates), last):
            rates.append(self._alike(config, context, epoch))
        known = self._paths.setdefault((start, noise, id(rates)), [])
        planned = len(self.tree.states) + max(0, last - first - len(known))
        if planned > MOST_STATES:
            raise UserError(
                f"sweep: its tree has {planned:,} epochs and averages or more (at experiment.k = "
                f"{config.experiment.k:,}, s = {config.experiment.s:,}), and {MOST_STATES:,} is the most that can be "
                "planned; make k, s, after, sweep.parents or sweep.children smaller"
            )
        key = known[-1] if known else start
        for epoch in range(first + len(known), last):
            alike = rates[epoch]
            before, key = key, _hash(f"{key} {alike} {noise}")
            known.append(key)
            if key not in self.tree.states:
                self.tree.states[key] = Epoch(key, before, epoch + 1, noise, alike, config)
                if self._keep_all:
                    self.tree.stops.add(key)
        return tuple(known[: last - first])

    def _average(self, ends: tuple[str, ...], config: Config, context: str) -> str:
        experiment = config.experiment
        weights = experiment.weights or (1 / len(ends),) * len(ends)
        treatment: list[object] = [experiment.momentum, experiment.batch_norm]
        if experiment.batch_norm == "recompute":
            treatment += [context, config.seeds.statistics_noise, self._recomputed_batches(config)]
        key = _digest("average", ends, weights, treatment)
        if key not in self.tree.states:
            self.tree.states[key] = Average(key, ends, weights, experiment.k + experiment.s, config)
        return key

    def _probe(self, ends: tuple[str, ...], average: str, epoch: int, config: Config, context: str) -> str:
        """Probe the average and its children; returns the treatment of recomputed statistics, or ""."""
        noise, images = config.seeds.statistics_noise, config.experiment.recompute_images
        wanted = [(average, OWN), *((end, OWN) for end in ends if isinstance(self.tree.states[end], Initial))]
        treatment = ""
        if self._recomputed:
            treatment = "recomputed-" + _digest(context, noise, self._recomputed_batches(config), epoch)[:12]
            wanted += [(state, treatment) for state in (average, *ends)]
        for key in wanted:
            if key not in self.tree.probes:
                self.tree.probes[key] = Probe(*key, epoch, noise, images, config)
        return treatment

    def _recomputed_batches(self, config: Config) -> int:
        """The batches that statistics are recomputed on, as the engine counts them."""
        every = self._dataset_of(config).train_images
        return max(1, min(config.experiment.recompute_images or every, every) // config.optimizer.batch_size)

    def _untrained(self, config: Config) -> str:
        """A digest of what decides a parent before its first epoch and its measurement, beside its seed."""
        sections = (config.model, config.data, config.engine.precision)
        if sections not in self._contexts:
            dataset, settings = self._dataset_of(config), _settings(config, "model")
            self.tree.contents[contents_key(config)] = dataset.digest
            precision = self._precision if config.engine.precision == "auto" else config.engine.precision
            self._contexts[sections] = _digest(
                "untrained", KEY_VERSION, settings, precision, dataset.digest, dataset.test_images
            )
        return self._contexts[sections]

    def _context(self, config: Config) -> str:
        """A digest of what decides any epoch beside its start, noise and learning rates."""
        sections = (config.model, config.augment, config.optimizer, config.data, config.engine.precision)
        if sections not in self._contexts:
            settings, images = _settings(config, "augment", "optimizer"), self._dataset_of(config).train_images
            self._contexts[sections] = _digest("context", self._untrained(config), settings, images)
        return self._contexts[sections]

    def _alike(self, config: Config, context: str, epoch: int) -> str:
        """A digest of the context, the epoch (from 0) and its learning rates."""
        per_epoch = max(1, self._dataset_of(config).train_images // config.optimizer.batch_size)
        # Past warm-up an epoch has one rate; within, the last step's, the full rate and the length decide all others.
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch - 1
        warm = config.schedule.warmup_iterations
        rates: list[float] = [learning_rate(last, per_epoch, config.optimizer, config.schedule)]
        if first < warm:
            rates += [config.optimizer.learning_rate, warm]
        return _digest(context, epoch, rates)


def _settings(config: Config, *sections: str) -> dict[str, object]:
    """The settings of `sections` that differ from their defaults.

    A default adds nothing: a key that the schema gains later leaves older states' names as they were.
    """
    keys = [key for section in sections for key in section_keys(section) if key.path not in _IN_OTHER_WORDS]
    found: dict[str, object] = {
        key.path: value_of(config, key) for key in keys if value_of(config, key) != key.default
    }
    if "model.name" in found:
        found["model.name"] = placeless(config.model.name)  # what is there is in `Dataset.digest`
    return found


def _digest(*parts: object) -> str:
    """A stable hex digest of plain values."""
    return _hash(json.dumps(parts, sort_keys=True, separators=(",", ":")))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]
