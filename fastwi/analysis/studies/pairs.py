"""What studies of pairs share: which pairs, their states, and what to measure them with."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars

from fastwi.analysis.columns import PAIR_COLUMNS, axis_types
from fastwi.config.analysis import AnalysisOptions, chosen_cells
from fastwi.config.schema import Config
from fastwi.config.sweep import RECOMPUTED, SweepSpec
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.sweeppoints import Point
from fastwi.errors import UserError
from fastwi.experiment.planner import PointStates

if TYPE_CHECKING:
    from fastwi.analysis.evaluator import Evaluator, Recomputation
    from fastwi.analysis.studies.opened import OpenedSweep
    from fastwi.data.resident import ResidentDataset

Tell = Callable[[int, int], None]  # done, total

SPLITS = ("train", "test")

LINE_COLUMNS = {
    **{name: PAIR_COLUMNS[name] for name in ("k", "s", "parent_seed")},
    "pair": ("", "which pair of the parent's children, from 0"),
    "batch_norm": ("", "batch-norm statistics: the ends' averaged as the weights are, or recomputed"),
    **{
        name: about
        for split in SPLITS
        for name, about in {
            f"{split}_loss_nats": ("nats", f"mean cross-entropy on the {split} images; null where not finite"),
            f"{split}_error_%": ("%", f"share of {split} images classified wrongly; null where not defined"),
        }.items()
    },
}
"""Unit and meaning of the columns that several studies have. Before them stand the sweep's axes beside k and s."""

_HEAD: dict[str, Any] = dict.fromkeys(("k", "s", "parent_seed", "pair"), polars.Int64)


@dataclass(frozen=True)
class Pair:
    """Two siblings A and B of one cell. `head`: their values in the columns that name a pair."""

    head: Mapping[str, Any]
    config: Config
    place: PointStates

    @property
    def cell(self) -> tuple[int, int]:
        """(k, s)."""
        return self.config.experiment.k, self.config.experiment.s


def pairs_of(opened: "OpenedSweep", options: AnalysisOptions) -> list[Pair]:
    """The pairs of the cells asked for, each once, in the sweep's order; cells that were asked for in that order.

    Left out, and noted in `opened.left_out`, are pairs one of which diverged. Raises UserError for a sweep whose
    tuples are not pairs, and where nothing is left.
    """
    spec, planned = opened.planned.spec, opened.planned
    if spec.options.tuple_size != 2:
        raise UserError(f"sweep.tuple_size: {spec.options.tuple_size}; this study is of pairs; sweep tuples of 2")
    wanted, axes = chosen_cells(options), other_axes(spec)
    lost = opened.lost()
    chosen, diverged = list[Point](), list[Point]()
    found: dict[tuple[Any, ...], Pair] = {}
    for point, place in zip(planned.points, planned.places, strict=True):
        e = point.config.experiment
        if (wanted and (e.k, e.s) not in wanted) or (options.pairs and point.tuple_index >= options.pairs):
            continue
        chosen.append(point)
        if not lost.isdisjoint(place.ends):
            diverged.append(point)
            continue
        # Points that differ in alpha have one line, and so one pair.
        head = {path: _plain(axis_value(path, point.values[i])) for path, i in axes.items()}
        head |= {"k": e.k, "s": e.s, "parent_seed": point.parent, "pair": point.tuple_index}
        found.setdefault((point.values, point.parent, point.tuple_index), Pair(head, point.config, place))
    opened.leave_out(diverged, chosen)
    pairs = list(found.values())
    if not pairs:
        raise UserError("analysis.cells: the sweep has no pair of these cells; name others")
    return sorted(pairs, key=lambda pair: wanted.index(pair.cell)) if wanted else pairs


def frame_of(spec: SweepSpec, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> polars.DataFrame:
    """The rows as a frame: the sweep's axes beside k and s, the columns that name a pair, then `columns`."""
    return polars.DataFrame(list(rows), schema=axis_types(spec) | _HEAD | dict(columns), orient="row")


@dataclass(frozen=True)
class Measuring:
    """What one configuration's networks are measured with.

    `splits`: "train" and "test" as the options say. `recomputation`: the sweep's own, at the pair's interpolation.
    """

    evaluator: "Evaluator"
    splits: "dict[str, ResidentDataset]"
    recomputation: "Recomputation"


class Bench:
    """Evaluators by configuration, built once each, and the progress of all of them."""

    def __init__(self, opened: "OpenedSweep", options: AnalysisOptions, tell: Tell) -> None:
        self._opened, self._options, self._tell = opened, options, tell
        self._built: dict[tuple[object, ...], Measuring] = {}
        self._done, self._total = 0, 1

    def expect(self, measured: Iterable[tuple[Config, int]], splits: Sequence[str] = SPLITS) -> None:
        """Announce so many networks of each configuration, each under every treatment."""
        self._total = max(1, sum(count * self._images(config, splits) for config, count in measured))
        self._tell(0, self._total)

    def finish(self) -> None:
        """Say that all is done: networks that are not defined are passed over."""
        self._tell(self._total, self._total)

    def of(self, config: Config) -> Measuring:
        """What networks of `config` are measured with.

        Raises UserError where the options ask for more images than the sweep has.
        """
        self._images(config, SPLITS)
        kind = (config.model, config.engine, config.optimizer.batch_size, config.augment, config.data,
                config.seeds.statistics_noise, config.experiment.recompute_images)  # fmt: skip
        if kind not in self._built:
            self._built[kind] = self._build(config)
        found = self._built[kind]
        # The sweep's own draws: those of the epoch at which the pair was averaged.
        epoch = config.experiment.k + config.experiment.s
        return dataclasses.replace(found, recomputation=dataclasses.replace(found.recomputation, epoch=epoch))

    def _build(self, config: Config) -> Measuring:
        from fastwi.analysis.evaluator import Evaluator, Recomputation
        from fastwi.data.noise import Noise

        resources, options = self._opened.resources, self._options
        trained, _ = self._opened.resident_splits(config)
        data = dataclasses.replace(
            config.data,
            train_images=options.train_images or config.data.train_images,
            test_images=options.test_images or config.data.test_images,
        )
        splits = dict(zip(SPLITS, self._opened.resident_splits(dataclasses.replace(config, data=data)), strict=True))
        evaluator = Evaluator(
            resources.network(config), config.engine,
            config.optimizer.batch_size, config.augment, self._passed,
        )  # fmt: skip
        images = config.experiment.recompute_images
        return Measuring(evaluator, splits, Recomputation(trained, Noise(config.seeds.statistics_noise), images))

    def _passed(self, images: int) -> None:
        self._done = min(self._done + images, self._total)
        self._tell(self._done, self._total)

    def _images(self, config: Config, splits: Sequence[str]) -> int:
        """Images that measuring one network takes; refuses more than there are."""
        inputs = self._opened.planned.inputs_of(config)
        images = 0
        for split in splits:
            asked = getattr(self._options, f"{split}_images")
            most = inputs.images(split, config.data)
            if asked > most:
                raise UserError(
                    f"analysis.{split}_images: {asked} is more than the sweep's {most}; lower it, or give 0"
                )
            images += asked or most
        recomputed = RECOMPUTED in self._options.treatments
        return images * len(self._options.treatments) + recomputed * (
            config.experiment.recompute_images or inputs.images("train", config.data)
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
