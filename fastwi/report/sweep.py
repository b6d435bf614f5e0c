"""The tables of a sweep: what averaging gains in each cell, and what becomes of the gain.

A cell is one combination of k, s, the other axes and alpha. Differences are of test accuracy in percentage points,
taken under the same treatment of batch-norm statistics on both sides. Intervals are over parents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars

from fastwi.analysis.columns import PAIR_COLUMNS, pair_types
from fastwi.analysis.statistics import Estimate, mean_estimate
from fastwi.config.sweep import RECOMPUTED, SweepSpec
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.sweeppoints import Point
from fastwi.config.wording import show
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.report.summary import OVER_PARENTS, Table, estimates_table

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

TREATMENTS = (OWN, RECOMPUTED)
OVER = {"best": "the best child", "mean": "the children's mean"}
"""What gains are taken over, in words."""

GAIN_COLUMNS = {
    **PAIR_COLUMNS,
    **{
        name: description
        for treatment in TREATMENTS
        for name, description in {
            f"average_{treatment}_%": ("%", f"test accuracy of the average at interpolation, {treatment} statistics"),
            f"children_{treatment}_%": ("%", f"that of each child at interpolation, {treatment} statistics"),
            f"gain_best_{treatment}_points": ("points", f"average less best child, both with {treatment} statistics"),
            f"gain_mean_{treatment}_points": ("points", "average less the children's mean, likewise"),
        }.items()
    },
    "after_%": ("%", "test accuracy of the average after each further epoch, own statistics"),
    "after_vs_average_points": ("points", "that less the average's at interpolation, own statistics"),
    "after_vs_best_points": ("points", "that less the best child's at interpolation, own statistics"),
}
"""Unit and meaning of the columns of `gains`. Null: not measured (yet), or a network of these diverged."""

_MOST_EPOCHS = 8  # columns of a table of further epochs
_ROUND_EPOCHS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Cell:
    """All pairs of one combination of axis values and alpha.

    `axes` holds the axes beside k and s: dotted name and value. `alpha` is None for the plain mean. `pairs` counts
    the averages that are measured, `parents` the parents that they come from. By treatment of batch norm and by
    "best" or "mean" child, `gains` is the mean gain in percentage points; `wins` is the share of pairs in % whose
    average beats every child. `rows` are the cell's rows of `gains`.
    """

    axes: tuple[tuple[str, Any], ...]
    k: int
    s: int
    alpha: float | None
    parents: int
    pairs: int
    gains: Mapping[tuple[str, str], Estimate]
    wins: Mapping[str, float]
    rows: polars.DataFrame

    @property
    def variant(self) -> tuple[tuple[str, Any], ...]:
        """What a cell has beside k and s: axes and, where it is not the plain mean, alpha."""
        return self.axes + (() if self.alpha is None else (("alpha", self.alpha),))


def gains(
    spec: SweepSpec,
    points: Sequence[Point],
    places: Sequence[PointStates],
    measurements: "Mapping[MeasurementKey, Measurement]",
) -> polars.DataFrame:
    """One row a point (cell, parent, tuple, alpha) whose average and children are measured at interpolation.

    Left out are points whose average, or a child, diverged under every treatment of batch norm.

    Columns: the axes beside k and s, by dotted name, then `GAIN_COLUMNS`.
    """
    axes = other_axes(spec)
    columns = pair_types(spec)
    for name in TREATMENTS:
        columns[f"average_{name}_%"] = polars.Float64
        columns[f"children_{name}_%"] = polars.List(polars.Float64)
        columns |= {f"gain_{over}_{name}_points": polars.Float64 for over in OVER}
    columns |= dict.fromkeys(
        ("after_%", "after_vs_average_points", "after_vs_best_points"), polars.List(polars.Float64)
    )
    rows: list[tuple[Any, ...]] = []
    for point, place in zip(points, places, strict=True):
        at = [_at_interpolation(place, treatment, measurements) for treatment in place.treatments]
        there = all((state, OWN) in measurements for state in (place.average, *place.ends))
        if not there or all(each is _NO_GAIN for each in at):
            continue
        after = [_accuracy(measurements.get((state, OWN))) for state in place.after]
        average, best = (None, None) if at[0] is _NO_GAIN else (at[0][0], max(at[0][1]))
        e = point.config.experiment
        values = [axis_value(path, point.values[i]) for path, i in axes.items()]
        rows.append(
            (
                *values, e.k, e.s, point.alpha, point.parent, point.tuple_index,
                *at[0], *(at[1] if len(at) > 1 else _NO_GAIN),
                after, *([_difference(accuracy, base) for accuracy in after] for base in (average, best)),
            )
        )  # fmt: skip
    return polars.DataFrame(rows, schema=columns, orient="row")


def _accuracy(found: "Measurement | None") -> float | None:
    """Test accuracy in %; None where nothing was measured, or the network diverged in that very epoch."""
    return None if found is None or found.diverged else found.test_accuracy


def _difference(accuracy: float | None, base: float | None) -> float | None:
    return None if accuracy is None or base is None else accuracy - base


def cells(frame: polars.DataFrame) -> list[Cell]:
    """The cells of the frame that `gains` gives, in the order of the sweep."""
    names = [*frame.columns[: frame.columns.index("k") + 2], "alpha"]
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(frame.select(names).rows()):
        places.setdefault(tuple(tuple(v) if isinstance(v, list) else v for v in row), []).append(i)
    found = []
    for (*values, k, s, alpha), chosen in places.items():
        rows = frame[chosen]
        gain = {}
        for treatment in TREATMENTS:
            for over in OVER:
                estimate = _estimate(rows, f"gain_{over}_{treatment}_points")
                if estimate is not None:
                    gain[treatment, over] = estimate
        wins = {
            treatment: 100.0 * float((rows[f"gain_best_{treatment}_points"].drop_nulls() > 0).mean())  # type: ignore[arg-type]
            for treatment in TREATMENTS
            if (treatment, "best") in gain
        }
        axes = tuple(zip(names, values, strict=False))
        parents = rows["parent_seed"].n_unique()
        found.append(Cell(axes, k, s, alpha, parents, rows.height, gain, wins, rows))
    return found


def cell_table(found: Sequence[Cell], over: str = "best") -> Table:
    """One row a cell: the mean gain `over` the best child or the children's mean, under each treatment.

    Beside it the share of pairs whose average beats every child. A cell of few parents has no interval, but its n.
    """
    measured = [name for name in TREATMENTS if any((name, over) in cell.gains for cell in found)]
    columns = [*_head(found), "parents", "pairs"]
    for name in measured:
        columns += [f"gain, {name} [95 %]", f"beats all, {name} (%)"]
    body = []
    for cell in found:
        row = [*_values(cell, found), str(cell.parents), str(cell.pairs)]
        for name in measured:
            row.append(_show(cell.gains.get((name, over)), cell))
            row.append(f"{cell.wins[name]:.0f}" if name in cell.wins else "")
        body.append(tuple(row))
    return estimates_table(f"Gain of the average over {OVER[over]} at interpolation, in points", columns, body)


def after_table(found: Sequence[Cell], against: str = "best") -> Table:
    """One row a cell: the average's accuracy after each further epoch, less that at interpolation, in points.

    `against`: the "average" itself, or the "best" child. Of many epochs, some are shown, the last always.
    """
    most = max((len(values) for cell in found for values in cell.rows["after_%"].to_list()), default=0)
    epochs = list(range(1, most + 1))
    if most > _MOST_EPOCHS:
        epochs = [epoch for epoch in _ROUND_EPOCHS if epoch < most] + [most]
    body = []
    for cell in found:
        column = cell.rows.select("parent_seed", f"after_vs_{against}_points")
        row = [*_values(cell, found), str(cell.parents), str(cell.pairs)]
        for epoch in epochs:
            there = column.with_columns(polars.col(column.columns[1]).list.get(epoch - 1, null_on_oob=True))
            row.append(_show(_estimate(there, column.columns[1]), cell))
        body.append(tuple(row))
    what = {"average": "the average", "best": "the best child"}[against]
    return estimates_table(
        f"The average trained on: accuracy less that of {what} at interpolation, own statistics, in points [95 %]",
        (*_head(found), "parents", "pairs", *(f"+{epoch}" for epoch in epochs)),
        body,
    )


def summary_markdown(spec: SweepSpec, found: Sequence[Cell], planned: int, missing: int = 0) -> str:
    """The sweep's summary: what was swept, what is there of it, the tables, and what must be said beside them.

    `planned`: points of the sweep; `missing`: measurements that are not there yet.
    """
    options = spec.options
    done = sum(cell.pairs for cell in found)
    count = len(options.parents)
    lines = [
        f"# {options.name or 'Sweep'}",
        "",
        *(f"- {axis.path}: {', '.join(value_text(v) for v in axis.values)}" for axis in spec.axes),
        f"- {count} parent{'s' if count > 1 else ''}, {options.children} children of each at each k, "
        f"{options.tuple_size} averaged together ({options.tuples})",
        f"- {done:,} of {planned:,} averages measured"
        + (f"; {missing:,} measurements are missing: this is a part of the sweep" if missing else ""),
    ]
    if not found:
        return "\n".join(lines) + "\n"
    tables = [cell_table(found), cell_table(found, "mean")]
    if any(cell.rows["after_%"].list.len().max() for cell in found):
        tables += [after_table(found), after_table(found, "average")]
    for table in tables:
        lines += ["", table.markdown().rstrip("\n")]
    lines += ["", OVER_PARENTS]
    notes = dict.fromkeys(e.note for cell in found for e in cell.gains.values() if e.note)
    lines += [f"{note}." for note in notes]
    return "\n".join(lines) + "\n"


def value_text(value: Any) -> str:
    """An axis value as tables and figures show it."""
    if isinstance(value, str):
        return value
    return f"[{', '.join(map(value_text, value))}]" if isinstance(value, list | tuple) else show(value)


def variant_text(variant: Iterable[tuple[str, Any]]) -> str:
    """Axes and alpha of a cell in one line: 'optimizer.learning_rate = 0.1, alpha = 0.5'."""
    return ", ".join(f"{name} = {value_text(value)}" for name, value in variant)


_NO_GAIN = (None, None, None, None)


def _at_interpolation(
    place: PointStates, treatment: str, measurements: "Mapping[MeasurementKey, Measurement]"
) -> tuple[Any, ...]:
    """Accuracies of average and children, gains over best and mean; all None where one is missing or diverged."""
    accuracies = []
    for state in (place.average, *place.ends):
        accuracy = _accuracy(measurements.get((state, treatment)))
        if accuracy is None:
            return _NO_GAIN
        accuracies.append(accuracy)
    average, *children = accuracies
    return average, children, average - max(children), average - sum(children) / len(children)


def _estimate(rows: polars.DataFrame, column: str) -> Estimate | None:
    there = rows.drop_nulls(column)
    return mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list()) if there.height else None


def _head(found: Sequence[Cell]) -> list[str]:
    axes = [name for name, _ in found[0].axes] if found else []
    return [*axes, "k", "s"] + (["alpha"] if any(cell.alpha is not None for cell in found) else [])


def _values(cell: Cell, found: Sequence[Cell]) -> list[str]:
    values = [*(value for _, value in cell.axes), cell.k, cell.s]
    if "alpha" in _head(found):
        values.append(cell.alpha)
    return [value_text(value) for value in values]


def _show(estimate: Estimate | None, cell: Cell) -> str:
    """A mean with its interval; with its n where there is none, or where that is not the cell's own."""
    if estimate is None or estimate.value is None:
        return ""
    counted = estimate.n_parents == cell.parents and estimate.n_pairs == cell.pairs
    n = f"n = {estimate.n_parents}" + ("" if counted else f", {estimate.n_pairs} pairs")
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2f} ({n})"
    interval = f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
    return interval if counted else f"{interval} ({n})"
