"""Tables: of one run, and of a sweep what averaging gains in each cell and what becomes of the gain.

A cell is one combination of k, s, the other axes and alpha. Differences are of test accuracy in percentage points,
taken under the same treatment of batch-norm statistics on both sides. Intervals are over parents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars

from fastwi.analysis.statistics import Estimate
from fastwi.config.sweep import SweepSpec
from fastwi.report.estimates import cell_names, estimate_of, groups, shown
from fastwi.report.rows import ACCURACY, OVER, TREATMENTS, Row
from fastwi.report.summary import OVER_PARENTS, Table, count_of, estimates_table, value_text

_MOST_EPOCHS = 8  # columns of a table of further epochs
_ROUND_EPOCHS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Cell:
    """All pairs of one combination of axis values and alpha (None: the plain mean).

    `axes`: the axes beside k and s. `parents`, `pairs`: of measured averages. `gains`: the mean gain in points, by
    treatment of batch norm and "best" or "mean" child; `wins`: the share of pairs in % whose average beats every
    child, by treatment. `rows`: the cell's rows of `gains`.
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

    @property
    def after(self) -> int:
        """The most further epochs of a pair."""
        return int(self.rows["after_%"].list.len().max() or 0)  # type: ignore[arg-type]


def cells(frame: polars.DataFrame) -> list[Cell]:
    """The cells of the frame that `gains` gives, in the order of the sweep."""
    names = [*cell_names(frame), "alpha"]
    found = []
    for (*values, k, s, alpha), rows in groups(frame, names):
        of = {(name, over): estimate_of(rows, f"gain_{over}_{name}_points") for name in TREATMENTS for over in OVER}
        gain = {key: estimate for key, estimate in of.items() if estimate is not None}
        wins = {
            name: 100.0 * float((rows[f"gain_best_{name}_points"].drop_nulls() > 0).mean())  # type: ignore[arg-type]
            for name in TREATMENTS
            if (name, "best") in gain
        }
        axes = tuple(zip(names, values, strict=False))
        found.append(Cell(axes, k, s, alpha, rows["parent_seed"].n_unique(), rows.height, gain, wins, rows))
    return found


def sweep_tables(found: Sequence[Cell]) -> list[Table]:
    """All tables of a sweep's cells; none where nothing is measured."""
    if not found:
        return []
    after = any(cell.after for cell in found)
    return [
        cell_table(found), cell_table(found, "mean"),
        *([after_table(found), after_table(found, "average")] if after else []),
    ]  # fmt: skip


def cell_table(found: Sequence[Cell], over: str = "best") -> Table:
    """One row a cell: the mean gain `over` the "best" child or the "mean", and the share of pairs that beat all."""
    measured = [name for name in TREATMENTS if any((name, over) in cell.gains for cell in found)]
    columns = _head(found)
    for name in measured:
        columns += [f"gain, {name} [95 %]", f"beats all, {name} (%)"]
    body = []
    for cell in found:
        row = _begun(cell, found)
        for name in measured:
            row.append(_show(cell.gains.get((name, over)), cell))
            row.append(f"{cell.wins[name]:.0f}" if name in cell.wins else "")
        body.append(row)
    return estimates_table(f"Gain of the average over {OVER[over]} at interpolation, in points", columns, body)


def after_table(found: Sequence[Cell], against: str = "best") -> Table:
    """One row a cell: the average's accuracy after each further epoch, less that at interpolation, in points.

    `against`: the "average" itself, or the "best" child. Of many epochs, some are shown, the last always.
    """
    most = max((cell.after for cell in found), default=0)
    epochs = list(range(1, most + 1))
    if most > _MOST_EPOCHS:
        epochs = [epoch for epoch in _ROUND_EPOCHS if epoch < most] + [most]
    column = f"after_vs_{against}_points"
    body = []
    for cell in found:
        at = [cell.rows.with_columns(polars.col(column).list.get(e - 1, null_on_oob=True)) for e in epochs]
        body.append([*_begun(cell, found), *(_show(estimate_of(rows, column), cell) for rows in at)])
    what = {"average": "the average", "best": "the best child"}[against]
    return estimates_table(
        f"The average trained on: accuracy less that of {what} at interpolation, own statistics, in points [95 %]",
        [*_head(found), *(f"+{epoch}" for epoch in epochs)],
        body,
    )


def summary_markdown(spec: SweepSpec, found: Sequence[Cell], planned: int, missing: int = 0) -> str:
    """The sweep's summary: what was swept, what is there of it, the tables, and what must be said beside them.

    `planned`: points of the sweep; `missing`: measurements that are not there yet.
    """
    options = spec.options
    done = sum(cell.pairs for cell in found)
    lines = [
        f"# {options.name or 'Sweep'}",
        "",
        *(f"- {axis.path}: {', '.join(map(value_text, axis.values))}" for axis in spec.axes),
        f"- {count_of(len(options.parents), 'parent')}, {options.children} children of each at each k, "
        f"{options.tuple_size} averaged together ({options.tuples})",
        f"- {done:,} of {planned:,} averages measured"
        + (f"; {missing:,} measurements are missing: this is a part of the sweep" if missing else ""),
    ]
    for table in sweep_tables(found):
        lines += ["", table.markdown().rstrip("\n")]
    if found:
        notes = dict.fromkeys(e.note for cell in found for e in cell.gains.values() if e.note)
        lines += ["", OVER_PARENTS, *(f"{note}." for note in notes)]
    return "\n".join(lines) + "\n"


def run_tables(rows: Sequence[Row], gains: polars.DataFrame) -> list[Table]:
    """Of one run: every network at interpolation with the gain, and the average trained on. `gains`: its row, if any.

    The average's further epochs are compared with itself and with the best child at interpolation and, where the
    children were trained on too, with the best of them at the same epoch, all with their own batch-norm statistics.
    Nothing is compared with a network that diverged.
    """
    (gain,) = gains.to_dicts() or [{}]
    at = [row for row in rows if row["stage"] == "interpolation"]
    body = list[tuple[str, ...]]()
    for row in at:
        best = gain.get(f"gain_best_{row['batch_norm']}_points")
        text = "" if row["network"] != "average" else "none: diverged" if best is None else f"{best:+.2f}"
        body.append((row["network"], row["batch_norm"], f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}", text))
    tables = [
        Table(
            "At interpolation; gain over the best child under the same batch-norm statistics, in points",
            ("network", "statistics", "test loss", "test acc. (%)", "gain"),
            tuple(body),
        )
    ]
    after = [row for row in rows if row["stage"] == "after"]
    if not after:
        return tables
    continued = any(row["network"] != "average" for row in after)
    body = []
    for row in (row for row in after if row["network"] == "average"):
        further = row["epoch"] - at[0]["epoch"]
        less = [gain[f"after_vs_{name}_points"][further - 1] if gain else None for name in ("average", "best")]
        if continued:
            beside = [r for r in after if r["epoch"] == row["epoch"] and r["network"] != "average"]
            sound = [r[ACCURACY] for r in beside if math.isfinite(r["test_loss"])]
            less.append(row[ACCURACY] - max(sound) if sound else None)
        measured = f"{row['train_loss']:.4f}", f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}"
        differences = ("" if value is None else f"{value:+.2f}" for value in less)
        body.append((f"+{further}", *measured, *differences))
    columns = ["epoch", "train loss", "test loss", "test acc. (%)", "vs average", "vs best child"]
    columns += ["vs child trained on"] * continued
    title = "The average trained on; differences to interpolation, in points"
    return [*tables, Table(title, tuple(columns), tuple(body))]


def _head(found: Sequence[Cell]) -> list[str]:
    axes = [name for name, _ in found[0].axes] if found else []
    alpha = ["alpha"] if any(cell.alpha is not None for cell in found) else []
    return [*axes, "k", "s", *alpha, "parents", "pairs"]


def _begun(cell: Cell, found: Sequence[Cell]) -> list[str]:
    """What stands below `_head`."""
    values = [*(value for _, value in cell.axes), cell.k, cell.s]
    if "alpha" in _head(found):
        values.append(cell.alpha)
    return [*map(value_text, values), str(cell.parents), str(cell.pairs)]


def _show(estimate: Estimate | None, cell: Cell) -> str:
    """A mean as `shown`; empty where there is none."""
    return "" if estimate is None else shown(estimate, cell.parents, pairs=cell.pairs)
