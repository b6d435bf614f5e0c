"""A sweep planned on the datasets that are there, and a finished one opened for analyses."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastwi.config.schema import Config, DataConfig
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepaxes import show_value
from fastwi.data.card import Card, read_card
from fastwi.errors import UserError
from fastwi.experiment.networks import source_change, sources_of
from fastwi.experiment.plan import check_batch, result_digest
from fastwi.experiment.planner import Dataset, PointStates, lost_with, plan_tree, stopped_states, without_lost
from fastwi.experiment.points import Point, points
from fastwi.experiment.tree import Average, Initial, MeasurementKey, Tree

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
    dataset_of: Callable[[Config], Dataset]
    auto: "Choice | None"
    networks: dict[str, dict[str, Any]]


def plan_sweep(spec: SweepSpec, some: Sequence[Point] | None = None) -> PlannedSweep:
    """Plan `some` points of a sweep (default: all). Reads the datasets' cards, not their images.

    Raises UserError where a dataset is not there or is smaller than a batch.
    """
    from fastwi.experiment.begun import precision_of_store

    cards: dict[str, Card] = {}
    datasets: dict[tuple[DataConfig, str, str], Dataset] = {}

    def dataset_of(config: Config) -> Dataset:
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
            datasets[key] = Dataset(result_digest(card, config), *counts)
        check_batch(config, datasets[key].train_images)
        return datasets[key]

    every = list(points(spec) if some is None else some)
    auto = None
    if any(point.config.engine.precision == "auto" for point in every):
        auto = precision_of_store(Path(spec.options.store), spec.base.engine)
        every = [_in_precision(point, auto.precision) for point in every]
    precision = auto.precision if auto else spec.base.engine.precision
    tree, places = plan_tree(every, dataset_of, precision, spec.options.measure, spec.options.keep)
    networks = sources_of(point.config.model.name for point in every)
    return PlannedSweep(spec, every, tree, places, dataset_of, auto, networks)


def _in_precision(point: Point, precision: str) -> Point:
    """`point` with engine.precision: auto as `precision`: no worker decides for itself."""
    config = point.config
    if config.engine.precision != "auto":
        return point
    return replace(point, config=replace(config, engine=replace(config.engine, precision=precision)))


class OpenedSweep:
    """A sweep and its store, for analyses: which points are measured, and any state as a population.

    A context manager. Nothing is trained: a state that the store does not have is refused.
    """

    def __init__(self, spec: SweepSpec, results: Path | None = None) -> None:
        """Raises UserError where the store or a dataset is not there.

        results: the sweep's directory. A user's network whose source made other results than these is refused too.
        """
        from fastwi.experiment.store import Store
        from fastwi.experiment.worker import Worker

        self.planned = plan_sweep(spec)
        names = {point.config.model.name for point in self.planned.points}
        change = source_change(results / "manifest.json", names) if results is not None else None
        if change is not None:
            raise UserError(f"{results}: {change}; bring the source back, or run the sweep again")
        self.store = Store.open(spec.options.store, create=False)
        self.worker = Worker(self.store.directory, Path.cwd())
        self.worker.expect(self.planned.tree.contents)
        found = self.store.measurements(self.planned.tree.measurement_keys())
        self.measured: dict[MeasurementKey, Measurement] = without_lost(self.planned.tree, found)
        self.left_out: tuple[str, ...] = ()
        """The cells of which a study left out pairs that diverged, in words."""
        self._stored = self.store.states(epoch.key for epoch in self.planned.tree.epochs())

    def __enter__(self) -> "OpenedSweep":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def lost(self) -> set[str]:
        """The states that diverged, and those that would be made of them."""
        tree = self.planned.tree
        return lost_with(tree, stopped_states(tree, self.measured.values()))

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

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all the states `keys` are stored, or can be made of stored ones."""
        return all(source in self._stored for key in keys for source in self.planned.tree.sources(key))

    def states(self, keys: Sequence[str]) -> "Population":
        """The states `keys` as the members of one population, in their order.

        An average has its children's batch-norm statistics, averaged. Raises UserError for a state that the store
        does not have, and DamagedState for one that is damaged.
        """
        from fastwi.experiment.worker import Job
        from fastwi.population import Population

        tree = self.planned.tree
        missing = [key for key in keys if not self.has([key])]
        if missing:
            state = tree.states[missing[0]]
            raise UserError(
                f"{self.store.directory}: lacks {len(missing)} states, the first at epoch {state.epoch}; "
                "run the sweep (with sweep.keep: all where every epoch is asked for)"
            )
        made: dict[str, Initial | Average] = {}
        for key in keys:
            made |= tree.made_of(key)
        files = {source: self.store.state_file(source) for key in keys for source in tree.sources(key)}
        job = Job((), made, files, frozenset(), tree.contents)
        return Population.stack([self.worker.state(key, self._config(key), job, False) for key in keys])

    def _config(self, key: str) -> Config:
        return self.planned.tree.states[key].config
