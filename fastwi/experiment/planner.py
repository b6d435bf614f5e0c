"""From points to one tree of trajectories: shared epochs, each point's place among them, what stays of them.

Nothing here imports torch, and everything is linear in the number of epochs and points.
"""

import functools
from array import array
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.config.schema import Config, DataConfig, EngineConfig
from fastwi.config.sweep import RECOMPUTED, SweepOptions, SweepSpec
from fastwi.data.card import Card, read_card
from fastwi.errors import UserError
from fastwi.experiment.contents import contents_key, result_digest
from fastwi.experiment.keys import DataSummary, Namer, epoch_key
from fastwi.experiment.networks import sources_of
from fastwi.experiment.points import Point, points
from fastwi.experiment.tree import OWN, Treatment, Tree

if TYPE_CHECKING:
    from fastwi.engine.precision import Choice

MOST_STATES = 5_000_000
"""Of a tree. Each takes about 0.4 KB, with its share of points and of what is planned for it."""


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

    @property
    def treatments(self) -> tuple[str, ...]:
        """The treatments of batch-norm statistics that are measured at the interpolation, own first."""
        return (OWN, self.recomputed) if self.recomputed else (OWN,)

    def _path(self, last: int, first: int) -> tuple[str, ...]:
        return tuple(self.tree.keys[node] for node in self.tree.path(last, first))


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep's points, the tree that they make, and each point's place in it.

    The points' configurations name a precision; `auto` is what engine.precision: auto stood for, None where no point
    had it. `networks`: the sources of the user's own (`fastwi.experiment.networks.sources_of`).
    """

    spec: SweepSpec
    points: list[Point]
    tree: Tree
    places: list[PointStates]
    dataset_of: Callable[[Config], DataSummary]
    auto: "Choice | None"
    networks: dict[str, dict[str, Any]]


def plan_run(config: Config, store: Path) -> PlannedSweep:
    """Plan a run as a sweep of one point, on a store of its own. Its children have noise 1, 2, ... if not told."""
    noise = config.seeds.child_noise or tuple(range(1, config.experiment.children + 1))
    whole = replace(config, seeds=replace(config.seeds, child_noise=noise))
    point = Point((), config.seeds.init, 0, None, whole)
    return plan_sweep(SweepSpec(config, options=SweepOptions(store=str(store))), [point])


def plan_sweep(spec: SweepSpec, some: Iterable[Point] | None = None) -> PlannedSweep:
    """Plan `some` points of a sweep (default: all). Reads the datasets' cards, not their images.

    Raises UserError where a dataset is not there or is smaller than a batch.
    """
    from fastwi.experiment.store.precision import precision_of_store

    cards: dict[str, Card] = {}
    datasets: dict[tuple[DataConfig, str, str], DataSummary] = {}

    def dataset_of(config: Config) -> DataSummary:
        data = config.data
        key = (data, config.model.name, config.model.weights)
        if key not in datasets:
            if data.path not in cards:
                cards[data.path] = read_card(Path(data.path))
            card = cards[data.path]
            counts = [
                min(asked or card.counts[split], card.counts[split])
                for split, asked in (("train", data.train_images), ("test", data.test_images))
            ]
            datasets[key] = DataSummary(result_digest(card, config), *counts)
        if datasets[key].train_images < config.optimizer.batch_size:
            raise UserError(
                f"optimizer.batch_size: {config.optimizer.batch_size} is more than the "
                f"{datasets[key].train_images} training images; give a smaller one"
            )
        return datasets[key]

    every = list(points(spec) if some is None else some)
    auto = None
    if any(point.config.engine.precision == "auto" for point in every):
        auto = precision_of_store(Path(spec.options.store), spec.base.engine)
        every = _in_precision(every, auto.precision)
    precision = auto.precision if auto else spec.base.engine.precision
    tree, places = plan_tree(every, dataset_of, precision, spec.options.measure, spec.options.keep)
    networks = sources_of({point.config.model.name for point in every})
    return PlannedSweep(spec, every, tree, places, dataset_of, auto, networks)


def _in_precision(every: Iterable[Point], precision: str) -> list[Point]:
    """The points with engine.precision: auto as `precision`: no worker decides for itself."""

    @functools.cache
    def resolved(engine: EngineConfig) -> EngineConfig:
        return replace(engine, precision=precision) if engine.precision == "auto" else engine

    return [replace(point, config=replace(point.config, engine=resolved(point.config.engine))) for point in every]


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
    planner = _Planner(dataset_of, precision, RECOMPUTED in measure)
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


class _Planner:
    def __init__(self, dataset_of: Callable[[Config], DataSummary], precision: str, recomputed: bool) -> None:
        self.tree = Tree()
        self._dataset_of, self._precision, self._recomputed = dataset_of, precision, recomputed
        self._namers: dict[tuple[object, ...], Namer] = {}
        self._last: tuple[tuple[object, ...], Namer] | None = None
        self._trajectories: dict[tuple[int, int, Namer], array[int]] = {}
        self._treatments: dict[str, Treatment] = {}
        self._initial = functools.cache(Namer.initial)
        self._treatment = functools.cache(self._new_treatment)
        self._children_on = functools.cache(self._new_children_on)

    def add(self, point: Point) -> PointStates:
        """Put what `point` needs into the tree, where it is not there yet."""
        config, namer, tree = point.config, self._namer(point.config), self.tree
        experiment, seeds = config.experiment, config.seeds
        k, end, last = experiment.k, experiment.k + experiment.s, experiment.k + experiment.s + experiment.after
        start = tree.add_initial(self._initial(namer, seeds.init), config)
        clone = self._train(start, k, seeds.parent_noise, config, namer)
        ends = lasts = tuple([self._train(clone, end, noise, config, namer) for noise in seeds.child_noise])
        weights = experiment.weights or (1 / len(ends),) * len(ends)
        key = namer.average([tree.keys[node] for node in ends], weights, config)
        average = tree.add_average(key, ends, weights, end, config)
        if experiment.continue_children:
            later, noises = self._children_on(namer, experiment.children_rate_factor), seeds.child_noise
            lasts = tuple([self._train(node, last, noise, *later) for node, noise in zip(ends, noises, strict=True)])
        after = self._train(average, last, seeds.average_noise, config, namer)
        return PointStates(tree, clone, ends, lasts, average, after, self._probe(ends, average, end, config, namer))

    def _train(self, start: int, last: int, noise: int, config: Config, namer: Namer) -> int:
        """The node after epoch `last` of the trajectory from `start`; extends the tree."""
        tree, first = self.tree, self.tree.epochs[start]
        if first == last:
            return start
        # An average is hardly ever trained on in two points, so its trajectory is not held.
        held = start not in tree.averages
        known = self._trajectories.setdefault((start, noise, namer), array("i")) if held else array("i")
        planned = len(tree) + max(0, last - first - len(known))
        if planned > MOST_STATES:
            raise UserError(
                f"sweep: its tree has {planned:,} epochs and averages or more (at experiment.k = "
                f"{config.experiment.k:,}, s = {config.experiment.s:,}), and {MOST_STATES:,} is the most that can be "
                "planned; make k, s, after, sweep.parents or sweep.children smaller"
            )
        node, alike = known[-1] if known else start, namer.alike(last)
        for epoch in range(first + len(known), last):
            key = epoch_key(tree.keys[node], alike[epoch], noise)
            node = tree.add_epoch(key, node, epoch + 1, noise, alike[epoch], config)
            known.append(node)
        return known[last - first - 1]

    def _probe(self, ends: tuple[int, ...], average: int, epoch: int, config: Config, namer: Namer) -> str:
        """Probe the average and its children; returns the treatment of recomputed statistics, or ""."""
        own = Treatment(OWN, epoch, 0, 0)
        for node in (average, *ends):
            if not self.tree.is_epoch(node):
                self.tree.add_probe(node, own, config)
        if not self._recomputed:
            return ""
        treatment = self._treatment(namer, config.seeds.statistics_noise, config.experiment.recompute_images, epoch)
        for node in (average, *ends):
            self.tree.add_probe(node, treatment, config)
        return treatment.name

    def _new_treatment(self, namer: Namer, noise: int, images: int, epoch: int) -> Treatment:
        name = namer.recomputed(noise, images, epoch)
        return self._treatments.setdefault(name, Treatment(name, epoch, noise, images))

    def _new_children_on(self, namer: Namer, factor: float) -> tuple[Config, Namer]:
        """How children are trained on after the interpolation."""
        optimizer = namer.config.optimizer
        later = replace(namer.config, optimizer=replace(optimizer, learning_rate=optimizer.learning_rate * factor))
        return later, self._namer(later)

    def _namer(self, config: Config) -> Namer:
        sections = (config.model, config.data, config.engine, config.augment, config.optimizer, config.schedule)
        # Points in a row share their sections, and objects that are the same compare as equal at once.
        if self._last is None or sections != self._last[0]:
            if sections not in self._namers:
                dataset = self._dataset_of(config)
                self.tree.contents[contents_key(config)] = dataset.digest
                self._namers[sections] = Namer(config, dataset, self._precision)
            self._last = sections, self._namers[sections]
        return self._last[1]
