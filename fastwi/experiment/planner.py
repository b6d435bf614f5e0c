"""From points to one tree of trajectories: content keys, shared epochs, and what stays of them.

Nothing here imports torch, and everything is linear in the number of epochs and points.
"""

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from fastwi.config.keys import section_keys
from fastwi.config.schema import Config
from fastwi.config.write import value_of
from fastwi.engine.schedule import learning_rate
from fastwi.errors import UserError
from fastwi.experiment.contents import contents_key
from fastwi.experiment.points import Point
from fastwi.experiment.tree import OWN, Treatment, Tree
from fastwi.models.names import placeless

MOST_STATES = 5_000_000
"""Of a tree. Each takes about 0.3 KB, with its share of points and of what is planned for it."""

KEY_VERSION = 2
"""Raise it when the same key would name another result: a default or the meaning of a setting changed."""

_IN_OTHER_WORDS = frozenset({"optimizer.learning_rate", "model.weights"})
"""Keys that decide by the rate of each epoch, and by the content of the file (`DataSummary.digest`)."""

_DIGITS = 32  # 128 bits: no two of any number of trajectories ever meet


@dataclass(frozen=True)
class DataSummary:
    """What a configuration's data is: what names its content, and how many images training and testing use.

    `digest`: `fastwi.experiment.contents.result_digest`, which also has the source of a network that is the user's
    own and the weights that parents start from.
    """

    digest: str
    train_images: int
    test_images: int


@dataclass(frozen=True, slots=True)
class PointStates:
    """Where a point's results are found in the tree: its last nodes, and by them the keys of all its states.

    `clone_node`: the parent after k epochs. `end_nodes`: the children at interpolation. `last_nodes`: the children's
    last, which differ from those where children are trained on. `after_node`: the average's last. `recomputed`: the
    treatment under which recomputed statistics are filed; empty where they are not measured.
    """

    tree: Tree = field(repr=False)
    clone_node: int
    end_nodes: tuple[int, ...]
    last_nodes: tuple[int, ...]
    average_node: int
    after_node: int
    recomputed: str

    @property
    def clone(self) -> str:
        """The parent where it was cloned."""
        return self.tree.keys[self.clone_node]

    @property
    def parent(self) -> tuple[str, ...]:
        """The parent after epochs 1 .. k."""
        return self._path(self.clone_node, 0)

    @property
    def children(self) -> tuple[tuple[str, ...], ...]:
        """Each child after epochs k + 1 .. k + s, and on where children are trained on."""
        k = self.tree.epochs[self.clone_node]
        return tuple(self._path(last, k) for last in self.last_nodes)

    @property
    def ends(self) -> tuple[str, ...]:
        """The children at interpolation."""
        return tuple(self.tree.keys[end] for end in self.end_nodes)

    @property
    def average(self) -> str:
        """The average of the children."""
        return self.tree.keys[self.average_node]

    @property
    def after(self) -> tuple[str, ...]:
        """The average after epochs k + s + 1 and on."""
        return self._path(self.after_node, self.tree.epochs[self.average_node])

    def _path(self, last: int, first: int) -> tuple[str, ...]:
        return tuple(self.tree.keys[node] for node in self.tree.path(last, first))


def plan_tree(
    points: Iterable[Point],
    dataset_of: Callable[[Config], DataSummary],
    precision: str,
    measure: Collection[str],
    keep: str,
) -> tuple[Tree, list[PointStates]]:
    """The tree of all `points`, and each point's place in it.

    `dataset_of` says what a configuration's data is; `precision` is what engine.precision: auto means on the devices
    in use, in the configuration's words; `measure` and `keep` are the sweep's options.
    """
    planner = _Planner(dataset_of, precision, "recomputed" in measure)
    places = [planner.add(point) for point in points]
    planner.tree.stops = kept_states(planner.tree, places, keep)
    return planner.tree, places


def kept_states(tree: Tree, places: Iterable[PointStates], keep: str) -> set[int]:
    """The epochs whose states stay in the store under the choice `keep` of sweep.keep."""
    if keep == "all":
        return set(tree.epoch_nodes())
    kept: set[int] = set()
    if keep == "ends":
        kept = set(tree.epoch_nodes()).difference(tree.before)
    if keep == "stops":
        for place in places:
            kept.update((place.clone_node, place.after_node, *place.end_nodes, *place.last_nodes))
    return {node for node in kept if tree.is_epoch(node)}


@dataclass(eq=False)
class _Cell:
    """What all points share whose configurations differ in seeds and experiment only, and what is found for them.

    `untrained` and `context`: digests of what decides a parent before its first epoch and its measurement, beside
    its seed, and any epoch beside its start, noise and learning rates. `alike`: digests by epoch, so far.
    """

    untrained: str
    context: str
    train_images: int
    alike: list[str] = field(default_factory=list)
    initial: dict[int, int] = field(default_factory=dict)  # by seed
    treatments: dict[tuple[int, int, int], Treatment] = field(default_factory=dict)  # by noise, images, epoch
    children_on: "dict[float, tuple[Config, _Cell]]" = field(default_factory=dict)  # by children_rate_factor


class _Planner:
    def __init__(self, dataset_of: Callable[[Config], DataSummary], precision: str, recomputed: bool) -> None:
        self.tree = Tree()
        self._dataset_of, self._precision, self._recomputed = dataset_of, precision, recomputed
        self._cells: dict[tuple[object, ...], _Cell] = {}
        self._last: tuple[tuple[object, ...], _Cell] | None = None
        self._treatments: dict[str, Treatment] = {}
        self._paths: dict[tuple[int, int, int], array[int]] = {}

    def add(self, point: Point) -> PointStates:
        """Put what `point` needs into the tree, where it is not there yet."""
        config, cell = point.config, self._cell(point.config)
        experiment, seeds = config.experiment, config.seeds
        k, end, last = experiment.k, experiment.k + experiment.s, experiment.k + experiment.s + experiment.after
        start = cell.initial.get(seeds.init)
        if start is None:
            start = self.tree.add_initial(_digest("initial", cell.untrained, seeds.init), config)
            cell.initial[seeds.init] = start
        clone = self._train(start, k, seeds.parent_noise, config, cell)
        ends = lasts = tuple([self._train(clone, end, noise, config, cell) for noise in seeds.child_noise])
        average = self._average(ends, config, cell)
        if experiment.continue_children:
            later = self._children_on(config, cell)
            noises = zip(ends, seeds.child_noise, strict=True)
            lasts = tuple([self._train(node, last, noise, *later) for node, noise in noises])
        after = self._train(average, last, seeds.average_noise, config, cell)
        recomputed = self._probe(ends, average, end, config, cell)
        return PointStates(self.tree, clone, ends, lasts, average, after, recomputed)

    def _train(self, start: int, last: int, noise: int, config: Config, cell: _Cell) -> int:
        """The node after epoch `last` of the trajectory from `start`; extends the tree."""
        tree, first = self.tree, self.tree.epochs[start]
        if first == last:
            return start
        while len(cell.alike) < last:
            cell.alike.append(self._alike(config, cell, len(cell.alike)))
        # Trajectories whose rates differ only from some epoch on have the same keys up to there. An average is hardly
        # ever trained on in two points, so its trajectory is not held.
        held = start not in tree.averages
        known = self._paths.setdefault((start, noise, id(cell)), array("i")) if held else array("i")
        planned = len(tree) + max(0, last - first - len(known))
        if planned > MOST_STATES:
            raise UserError(
                f"sweep: its tree has {planned:,} epochs and averages or more (at experiment.k = "
                f"{config.experiment.k:,}, s = {config.experiment.s:,}), and {MOST_STATES:,} is the most that can be "
                "planned; make k, s, after, sweep.parents or sweep.children smaller"
            )
        node = known[-1] if known else start
        for epoch in range(first + len(known), last):
            alike = cell.alike[epoch]
            key = _hash(f"{tree.keys[node]} {alike} {noise}")
            node = tree.add_epoch(key, node, epoch + 1, noise, alike, config)
            known.append(node)
        return known[last - first - 1]

    def _average(self, ends: tuple[int, ...], config: Config, cell: _Cell) -> int:
        experiment = config.experiment
        weights = experiment.weights or (1 / len(ends),) * len(ends)
        treatment: list[object] = [experiment.momentum, experiment.batch_norm]
        if experiment.batch_norm == "recompute":
            treatment += [cell.context, config.seeds.statistics_noise, self._recomputed_batches(config, cell)]
        key = _digest("average", [self.tree.keys[end] for end in ends], weights, treatment)
        return self.tree.add_average(key, ends, weights, experiment.k + experiment.s, config)

    def _probe(self, ends: tuple[int, ...], average: int, epoch: int, config: Config, cell: _Cell) -> str:
        """Probe the average and its children; returns the treatment of recomputed statistics, or ""."""
        tree, noise, images = self.tree, config.seeds.statistics_noise, config.experiment.recompute_images
        own = Treatment(OWN, epoch, 0, 0)
        tree.add_probe(average, own, config)
        if epoch == 0:
            tree.add_probe(ends[0], own, config)
        if not self._recomputed:
            return ""
        treatment = cell.treatments.get((noise, images, epoch))
        if treatment is None:
            name = "recomputed-" + _digest(cell.context, noise, self._recomputed_batches(config, cell), epoch)[:12]
            treatment = self._treatments.setdefault(name, Treatment(name, epoch, noise, images))
            cell.treatments[noise, images, epoch] = treatment
        for node in (average, *ends):
            tree.add_probe(node, treatment, config)
        return treatment.name

    def _cell(self, config: Config) -> _Cell:
        sections = (config.model, config.data, config.engine, config.augment, config.optimizer, config.schedule)
        # Points in a row share their sections, and objects that are the same compare as equal at once.
        if self._last is None or sections != self._last[0]:
            if sections not in self._cells:
                self._cells[sections] = self._new_cell(config)
            self._last = sections, self._cells[sections]
        return self._last[1]

    def _new_cell(self, config: Config) -> _Cell:
        dataset = self._dataset_of(config)
        self.tree.contents[contents_key(config)] = dataset.digest
        precision = self._precision if config.engine.precision == "auto" else config.engine.precision
        settings = _settings(config, "model")
        untrained = _digest("untrained", KEY_VERSION, settings, precision, dataset.digest, dataset.test_images)
        context = _digest("context", untrained, _settings(config, "augment", "optimizer"), dataset.train_images)
        return _Cell(untrained, context, dataset.train_images)

    def _children_on(self, config: Config, cell: _Cell) -> tuple[Config, _Cell]:
        """Configuration and cell of children that are trained on after the interpolation."""
        factor = config.experiment.children_rate_factor
        if factor not in cell.children_on:
            rate = config.optimizer.learning_rate * factor
            later = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=rate))
            cell.children_on[factor] = later, self._cell(later)
        return cell.children_on[factor]

    def _alike(self, config: Config, cell: _Cell, epoch: int) -> str:
        """A digest of the context, the epoch (from 0) and its learning rates."""
        per_epoch = max(1, cell.train_images // config.optimizer.batch_size)
        # Past warm-up an epoch has one rate; within, the last step's, the full rate and the length decide all others.
        first, last = epoch * per_epoch, (epoch + 1) * per_epoch - 1
        warm = config.schedule.warmup_iterations
        rates: list[float] = [learning_rate(last, per_epoch, config.optimizer, config.schedule)]
        if first < warm:
            rates += [config.optimizer.learning_rate, warm]
        return _digest(cell.context, epoch, rates)

    def _recomputed_batches(self, config: Config, cell: _Cell) -> int:
        """The batches that statistics are recomputed on, as the engine counts them."""
        every = cell.train_images
        return max(1, min(config.experiment.recompute_images or every, every) // config.optimizer.batch_size)


def _settings(config: Config, *sections: str) -> dict[str, object]:
    """The settings of `sections` that differ from their defaults.

    A default adds nothing: a key that the schema gains later leaves older states' names as they were.
    """
    keys = [key for section in sections for key in section_keys(section) if key.path not in _IN_OTHER_WORDS]
    found: dict[str, object] = {
        key.path: value_of(config, key) for key in keys if value_of(config, key) != key.default
    }
    if "model.name" in found:
        found["model.name"] = placeless(config.model.name)  # what is there is in `DataSummary.digest`
    return found


def _digest(*parts: object) -> str:
    """A stable hex digest of plain values."""
    return _hash(json.dumps(parts, sort_keys=True, separators=(",", ":")))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]
