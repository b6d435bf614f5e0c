"""What studies of averages share: the averages that are measured, with their children, states and images.

One is a point of the sweep: a tuple of children of one parent, at one k, s, alpha and combination of other axes. It
is called a pair as in the sweep's results, also where `sweep.tuple_size` is more than 2. Studies of the line between
two children, where alpha has no part, use `fastwi.analysis.studies.pairs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastwi.analysis.columns import PAIR_COLUMNS
from fastwi.analysis.studies.opened import OpenedSweep
from fastwi.config.analysis import AnalysisOptions, chosen_cells
from fastwi.config.schema import Config
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.sweeppoints import Point, child_tuples
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, even_subset
from fastwi.errors import UserError
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN
from fastwi.population import Population

STUDY_COLUMNS = {
    **PAIR_COLUMNS,
    "batch_norm": ("", "batch-norm statistics: own (the average's: its children's averaged), or recomputed"),
}
"""Unit and meaning of the columns that these studies share. Before them stand the sweep's axes beside k and s."""


@dataclass(frozen=True, eq=False)
class ChosenPair:
    """A point of the sweep and its place in the tree.

    `variant`: name and value of each axis beside k and s. `numbers`: the children's numbers, from 1 within their
    parent and k.
    """

    point: Point
    place: PointStates
    variant: tuple[tuple[str, Any], ...]
    numbers: tuple[int, ...]

    @property
    def config(self) -> Config:
        """The configuration of the pair's point alone."""
        return self.point.config

    @property
    def k(self) -> int:
        """Epochs that the parent trained before cloning."""
        return self.point.config.experiment.k

    @property
    def s(self) -> int:
        """Epochs that each child trained before averaging."""
        return self.point.config.experiment.s

    def columns(self) -> dict[str, Any]:
        """What every row about this pair begins with: axes, k, s, alpha, parent_seed, pair."""
        return {
            **dict(self.variant), "k": self.k, "s": self.s, "alpha": self.point.alpha,
            "parent_seed": self.point.parent, "pair": self.point.tuple_index,
        }  # fmt: skip


def all_pairs(opened: OpenedSweep) -> list[ChosenPair]:
    """Every point of the sweep, measured or not, in its order."""
    planned = opened.planned
    axes, tuples = other_axes(planned.spec), child_tuples(planned.spec)
    return [
        ChosenPair(
            point,
            place,
            tuple((path, axis_value(path, point.values[i])) for path, i in axes.items()),
            tuples[point.tuple_index],
        )
        for point, place in zip(planned.points, planned.places, strict=True)
    ]


def chosen_pairs(opened: OpenedSweep, options: AnalysisOptions) -> list[ChosenPair]:
    """The pairs of `options.cells` (empty: all), of each parent the first `options.pairs` (0: all).

    Of a sweep's alphas only the plain mean, 1/2, is chosen where it is among them. Cells are in the order of
    `options.cells`; without, the largest k and s come first. Left out are pairs whose average or children are not
    measured at interpolation; and, noted in `opened.left_out`, those of which one diverged, under whichever
    treatment of batch norm. Raises UserError for a cell that the sweep has not, and where nothing is left.
    """
    every = all_pairs(opened)
    there = sorted({(pair.k, pair.s) for pair in every}, reverse=True)
    cells = chosen_cells(options)
    for k, s in cells:
        if (k, s) not in there:
            known = "; ".join(f"{a},{b}" for a, b in reversed(there))
            raise UserError(f"analysis.cells: the sweep has no cell {k},{s}; its cells k,s are: {known}")
    order = list(dict.fromkeys(cells or there))
    chosen = [
        pair
        for pair in every
        if (pair.k, pair.s) in order and (not options.pairs or pair.point.tuple_index < options.pairs)
    ]
    chosen = [pair for pair in chosen if pair.point.alpha in (None, 0.5)] or chosen
    lost = opened.lost()
    diverged = [pair for pair in chosen if _diverged(opened, pair, lost)]
    opened.leave_out([pair.point for pair in diverged], [pair.point for pair in chosen])
    chosen = [
        pair
        for pair in chosen
        if pair not in diverged
        and all((state, OWN) in opened.measured for state in (pair.place.average, *pair.place.ends))
    ]
    if not chosen:
        raise UserError("analysis: no pair of these cells is measured yet; run python -m fastwi.sweep first")
    return sorted(chosen, key=lambda pair: order.index((pair.k, pair.s)))


def _diverged(opened: OpenedSweep, pair: ChosenPair, lost: set[str]) -> bool:
    states = (pair.place.average, *pair.place.ends)
    found = (opened.measured.get((state, name)) for state in states for name in pair.place.treatments)
    return not lost.isdisjoint(states) or any(m is not None and m.diverged for m in found)


def by_variant(pairs: Sequence[ChosenPair]) -> dict[tuple[tuple[str, Any], ...], list[ChosenPair]]:
    """The pairs of each combination of axes beside k and s."""
    groups: dict[tuple[tuple[str, Any], ...], list[ChosenPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.variant, []).append(pair)
    return groups


def recomputed(opened: OpenedSweep, population: Population, config: Config, epoch: int) -> Population:
    """A copy of `population` with the batch-norm statistics that the sweep's own recomputation gives at `epoch`.

    So a network's accuracy is the one that the sweep measured as recomputed there, to the bit on the same machine.
    """
    train = opened.resident_splits(config)[0]
    noises = [Noise(config.seeds.statistics_noise)] * population.members
    images = config.experiment.recompute_images
    return opened.resources.engine(config).recompute_statistics(population, train, noises, epoch, images)


def part_of(dataset: ResidentDataset, images: int, option: str) -> tuple[ResidentDataset, list[int]]:
    """`images` of the dataset's images, evenly over classes (0: all), and their positions in it.

    Raises UserError, naming `option`, where there are fewer.
    """
    if not images or images == len(dataset):
        return dataset, list(range(len(dataset)))
    if images > len(dataset):
        raise UserError(f"{option}: {images}; the sweep has {len(dataset)}: give at most that, or 0 for all")
    kept = even_subset(dataset.labels_N.cpu().numpy(), images)
    part = ResidentDataset(
        dataset.images_NHWC[kept].contiguous(), dataset.labels_N[kept], dataset.table_C256, dataset.classes
    )
    return part, [int(place) for place in kept]
