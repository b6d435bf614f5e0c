"""A sweep planned on the datasets that are there, and a finished one opened for analyses."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastwi.config.schema import Config, DataConfig, EngineConfig
from fastwi.config.sweep import KEEP, SweepOptions, SweepSpec
from fastwi.config.sweepaxes import show_value
from fastwi.data.card import Card, read_card
from fastwi.errors import UserError
from fastwi.experiment.contents import result_digest
from fastwi.experiment.networks import source_change, sources_of
from fastwi.experiment.planner import DataSummary, PointStates, kept_states, plan_tree
from fastwi.experiment.points import Point, child_seeds, points
from fastwi.experiment.todo import lost_with, stopped_states, without_lost
from fastwi.experiment.tree import MeasurementKey, Tree

if TYPE_CHECKING:
    from fastwi.engine.precision import Choice
    from fastwi.experiment.store import Measurement
    from fastwi.population import Population


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
    """Plan a run as a sweep of one point, on a store of its own."""
    seeds = replace(config.seeds, child_noise=child_seeds(config))
    point = Point((), config.seeds.init, 0, None, replace(config, seeds=seeds))
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
        _check_batch(config, datasets[key].train_images)
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


def _check_batch(config: Config, train_images: int) -> None:
    """Raise UserError where not even one batch can be made of the training images."""
    if train_images < config.optimizer.batch_size:
        raise UserError(
            f"optimizer.batch_size: {config.optimizer.batch_size} is more than the {train_images} training "
            "images; give a smaller one"
        )


class OpenedSweep:
    """A sweep and its store, for analyses: which points are measured, and any state as a population.

    A context manager. Nothing is trained: a state that the store does not have is refused.
    """

    def __init__(self, spec: SweepSpec, results: Path | None = None) -> None:
        """Raises UserError where the store or a dataset is not there.

        results: the sweep's directory. A user's network whose source made other results than these is refused too.
        """
        from fastwi.experiment.resident import ResidentStates
        from fastwi.experiment.resources import Resources
        from fastwi.experiment.store import Store

        self.planned = plan_sweep(spec)
        names = {point.config.model.name for point in self.planned.points}
        change = source_change(results / "manifest.json", names) if results is not None else None
        if change is not None:
            raise UserError(f"{results}: {change}; bring the source back, or run the sweep again")
        self.store = Store.open(spec.options.store, create=False)
        self.resources = Resources(Path.cwd())
        tree = self.planned.tree
        self.resources.expect(tree.contents)
        self.measured: dict[MeasurementKey, Measurement]
        self.measured = without_lost(tree, self.store.measurements(tree.measurement_keys()))
        self.left_out: tuple[str, ...] = ()
        """The cells of which a study left out pairs that diverged, in words."""
        self._stored = self.store.states(tree.keys[node] for node in tree.epoch_nodes())
        self._resident = ResidentStates(self.store.directory, self.resources, 0)

    def __enter__(self) -> "OpenedSweep":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def lost(self) -> set[str]:
        """The states that diverged, and those that would be made of them."""
        tree = self.planned.tree
        return {tree.keys[node] for node in lost_with(tree, stopped_states(tree, self.measured.values()))}

    def leave_out(self, diverged: Sequence[Point], chosen: Sequence[Point]) -> None:
        """Note that of the points `chosen` the points `diverged` take no part in a study.

        Raises UserError where they are all.
        """
        cells, names = Counter(map(self._cell, chosen)), Counter(map(self._cell, diverged))
        self.left_out = tuple(f"{count} of {cells[name]} at {name}" for name, count in names.items())
        if diverged and len(diverged) == len(chosen):
            raise UserError(
                f"analysis: all {len(chosen)} pairs of these cells diverged ({next(iter(names))}); sweep a lower "
                "optimizer.learning_rate, or name other analysis.cells"
            )

    def _cell(self, point: Point) -> str:
        """The point's cell in words."""
        axes = zip(self.planned.spec.axes, point.values, strict=True)
        named = [(axis.path.removeprefix("experiment."), value) for axis, value in axes]
        e = point.config.experiment
        named = [("k", e.k), ("s", e.s), *((name, value) for name, value in named if name not in ("k", "s"))]
        named += [] if point.alpha is None else [("alpha", point.alpha)]
        return ", ".join(f"{name} = {show_value(value)}" for name, value in named)

    def has(self, keys: Iterable[str]) -> bool:
        """Whether all the states `keys` are stored, or can be made of stored ones."""
        return not self._missing(keys)

    def states(self, keys: Sequence[str]) -> "Population":
        """The states `keys` as the members of one population, in their order.

        An average has its children's batch-norm statistics, averaged. Raises UserError for a state that the store
        does not have, and DamagedState for one that is damaged.
        """
        self.require(keys)
        tree = self.planned.tree
        nodes = [tree.nodes[key] for key in keys]
        files = self.store.state_files({tree.keys[source] for node in nodes for source in tree.sources(node)})
        return self._resident.gather(keys, tree.configs[nodes[0]], tree.made_of(nodes), files, trains=False)

    def require(self, keys: Iterable[str]) -> None:
        """Raise UserError where the store lacks one of the states `keys`, or of those that it is made of."""
        missing = self._missing(keys)
        if not missing:
            return
        planned = self.planned
        enough = [keep for keep in KEEP if missing.keys() <= kept_states(planned.tree, planned.places, keep)]
        again = "" if planned.spec.options.keep in enough else f" with sweep.keep: {enough[0]}"
        raise UserError(
            f"{self.store.directory}: lacks {len(missing)} states, the first at epoch "
            f"{planned.tree.epochs[min(missing)]}; run the sweep{again}"
        )

    def _missing(self, keys: Iterable[str]) -> dict[int, None]:
        """The epochs of which the store lacks the states that the states `keys` are made of."""
        tree = self.planned.tree
        sources = (source for key in keys for source in tree.sources(tree.nodes[key]))
        return dict.fromkeys(source for source in sources if tree.keys[source] not in self._stored)
