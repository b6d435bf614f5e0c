"""The averages that a study measures: which ones, where their networks are, and how a table names them.

An average is of a tuple of children of one parent, at one k, s, alpha and combination of other axes. It is called a
pair as in the sweep's results, also where `sweep.tuple_size` is more than 2.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastwi.analysis.opened import OpenedSweep
from fastwi.config.schema import Config
from fastwi.config.sweep import AnalysisOptions, Point, child_tuples, chosen_cells, variant_of
from fastwi.config.time import AnyTime
from fastwi.config.values import show
from fastwi.errors import UserError
from fastwi.experiment.places import PointStates
from fastwi.experiment.tree import OWN

Progress = Callable[[int, int], None]
"""Called with how much of a study is done, and its total."""


@dataclass(frozen=True, eq=False)
class Pair:
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
        """The configuration of this point."""
        return self.point.config

    @property
    def k(self) -> int | float:
        """Epochs that the parent trained before cloning; an int where they are whole."""
        return self.place.k

    @property
    def s(self) -> int | float:
        """Epochs that each child trained before averaging, likewise."""
        return self.place.s

    @property
    def statistics_epoch(self) -> int:
        """The epoch of the draws on which statistics at interpolation are recomputed."""
        return self.place.tree.epochs[self.place.average_node]

    @property
    def whole(self) -> bool:
        """Whether both are whole epochs."""
        return isinstance(self.k, int) and isinstance(self.s, int)

    @property
    def cell(self) -> tuple[AnyTime, AnyTime]:
        """(k, s) as the sweep file says them."""
        return self.config.experiment.k, self.config.experiment.s

    def columns(self) -> dict[str, Any]:
        """What a row about this average begins with: axes, k, s, alpha, parent_seed, pair."""
        return {
            **dict(self.variant), "k": self.k, "s": self.s, "alpha": self.point.alpha,
            "parent_seed": self.point.parent, "pair": self.point.tuple_index,
        }  # fmt: skip


def all_pairs(opened: OpenedSweep) -> list[Pair]:
    """Every point of the sweep, measured or not, in the sweep's order."""
    planned = opened.planned
    tuples = child_tuples(planned.spec)
    pairs = []
    for point, place in zip(planned.points, planned.places, strict=True):
        variant = tuple(variant_of(planned.spec, point).items())
        pairs.append(Pair(point, place, variant, tuples[point.tuple_index]))
    return pairs


def chosen_pairs(opened: OpenedSweep, options: AnalysisOptions) -> list[Pair]:
    """The averages of `options.cells` (empty: all), of each parent the first `options.pairs` (0: all).

    Of a sweep's alphas only the plain mean, 1/2, is chosen where it is among them. Without `options.cells` the
    largest k and s come first. Left out are averages that are not measured, they or their children; and, noted in
    `opened.left_out`, those that diverged or have a child that did. Raises UserError where nothing is left.
    """
    lost = opened.lost()
    measured = opened.measured

    def networks(pair: Pair) -> tuple[str, ...]:
        return pair.place.average, *pair.place.ends

    def diverged(pair: Pair) -> bool:
        found = (measured.get((state, name)) for state in networks(pair) for name in pair.place.treatments)
        return not lost.isdisjoint(networks(pair)) or any(m is not None and m.diverged for m in found)

    sound = _sound(opened, options, diverged)
    kept = [pair for pair in sound if all((state, OWN) in measured for state in networks(pair))]
    return _ordered(sorted(kept, key=lambda pair: (pair.k, pair.s), reverse=True), chosen_cells(options))


def chosen_lines(opened: OpenedSweep, options: AnalysisOptions) -> list[Pair]:
    """The pairs of `options.cells` whose line is measured, each once: points that differ in alpha have one line.

    Those with a child that diverged are left out, and noted. Raises UserError for tuples that are not pairs, as
    `require_one_line` does, and where nothing is left.
    """
    size = opened.planned.spec.options.tuple_size
    if size != 2:
        raise UserError(f"sweep.tuple_size: {size}; this study is of pairs; sweep tuples of 2")
    lost = opened.lost()
    lines: dict[tuple[Any, ...], Pair] = {}
    for pair in _sound(opened, options, lambda pair: not lost.isdisjoint(pair.place.ends)):
        require_one_line(pair, lines.setdefault((pair.point.values, pair.point.parent, pair.point.tuple_index), pair))
    return _ordered(list(lines.values()), chosen_cells(options))


def require_one_line(pair: Pair, other: Pair) -> None:
    """Raise UserError where two points that differ in alpha alone have other children.

    From the second round on, children start from the average of the round before, which alpha decides.
    """
    if pair.place.ends != other.place.ends:
        raise UserError(
            f"sweep.alphas: after experiment.rounds: {pair.config.experiment.rounds}, the children at alpha = "
            f"{show(pair.point.alpha)} are others than those at {show(other.point.alpha)}, and this study is of one "
            "set of children; sweep 0.5 too, which is chosen, or one alpha alone"
        )


def _sound(opened: OpenedSweep, options: AnalysisOptions, diverged: Callable[[Pair], bool]) -> list[Pair]:
    """The averages that the options ask for without those that diverged, which are noted in `opened.left_out`.

    Of a sweep's alphas 1/2 alone where it is among them. Raises UserError where all diverged.
    """
    cells = chosen_cells(options)
    most = options.pairs
    every = [pair for pair in all_pairs(opened) if not cells or pair.cell in cells]
    asked = [pair for pair in every if not most or pair.point.tuple_index < most]
    chosen = [pair for pair in asked if pair.point.alpha in (None, 0.5)] or asked
    gone = [pair for pair in chosen if diverged(pair)]
    counts = Counter(map(_cell_text, chosen))
    names = Counter(map(_cell_text, gone))
    opened.left_out = tuple(f"{count} of {counts[name]} at {name}" for name, count in names.items())
    if gone and len(gone) == len(chosen):
        raise UserError(
            f"analysis: all {len(chosen)} pairs of these cells diverged ({next(iter(names))}); sweep a lower "
            "optimizer.learning_rate, or name other analysis.cells"
        )
    return [pair for pair in chosen if pair not in gone]


def _cell_text(pair: Pair) -> str:
    """The pair's cell in words: 'k = 1, s = 2, momentum = reset'."""
    axes = {name.removeprefix("experiment."): value for name, value in pair.variant}
    named = {"k": pair.k, "s": pair.s, **axes, "alpha": pair.point.alpha}
    return ", ".join(f"{name} = {show(value)}" for name, value in named.items() if value is not None)


def _ordered(pairs: list[Pair], cells: Sequence[tuple[AnyTime, AnyTime]]) -> list[Pair]:
    if not pairs:
        raise UserError("analysis.cells: no pair of these cells is measured; name others, or run the sweep first")
    return sorted(pairs, key=lambda pair: cells.index(pair.cell)) if cells else pairs
