"""Tables: of one run, and of a sweep what averaging gains in each cell and what becomes of the gain.

A cell is one combination of k, s, the other axes and alpha. Differences are of test accuracy in percentage points,
taken under the same treatment of batch-norm statistics on both sides. Intervals are over parents.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


def cells(frame: polars.DataFrame) -> list[Cell]:
    """The cells of the frame that `gains` gives, in the order of the sweep."""
    names = [*cell_names(frame), "alpha"]
    found = []
    for (*values, k, s, alpha), rows in groups(frame, names):
        gains, wins = {}, {}
        for name in TREATMENTS:
            for over in OVER:
                estimate = estimate_of(rows, f"gain_{over}_{name}_points")
                if estimate is not None:
                    gains[name, over] = estimate
            best = rows[f"gain_best_{name}_points"].drop_nulls()
            if len(best):
                wins[name] = 100.0 * (int((best > 0).sum()) / len(best))
        axes = tuple(zip(names, values, strict=False))
        found.append(Cell(axes, k, s, alpha, rows["parent_seed"].n_unique(), rows.height, gains, wins, rows))
    return found


def most_epochs(gains: polars.DataFrame) -> int:
    """The most further epochs of a pair."""
    return max(gains["after_%"].list.len(), default=0)


def sweep_tables(found: Sequence[Cell]) -> list[Table]:
    """All tables of a sweep's cells; none where nothing is measured."""
    if not found:
        return []
    tables = [cell_table(found), cell_table(found, "mean")]
    if any(most_epochs(cell.rows) for cell in found):
        tables += [after_table(found), after_table(found, "average")]
    return tables


def cell_table(found: Sequence[Cell], over: str = "best") -> Table:
    """One row a cell: the mean gain `over` the "best" child or the "mean", and the share of pairs that beat all."""
    columns: dict[str, Callable[[Cell], str]] = {}
    for name in TREATMENTS:
        if any((name, over) in cell.gains for cell in found):
            columns[f"gain, {name} [95 %]"] = partial(_gain, key=(name, over))
            columns[f"beats all, {name} (%)"] = partial(_wins, name=name)
    return _table(f"Gain of the average over {OVER[over]} at interpolation, in points", found, columns)


def after_table(found: Sequence[Cell], against: str = "best") -> Table:
    """One row a cell: the average's accuracy after each further epoch, less that at interpolation, in points.

    `against`: the "average" itself, or the "best" child. Of many epochs, some are shown, the last always.
    """
    most = max((most_epochs(cell.rows) for cell in found), default=0)
    epochs = list(range(1, most + 1))
    if most > _MOST_EPOCHS:
        epochs = [epoch for epoch in _ROUND_EPOCHS if epoch < most] + [most]
    column = f"after_vs_{against}_points"
    what = {"average": "the average", "best": "the best child"}[against]
    title = f"The average trained on: accuracy less that of {what} at interpolation, own statistics, in points [95 %]"
    return _table(title, found, {f"+{epoch}": partial(_after, column=column, epoch=epoch) for epoch in epochs})


def _table(title: str, found: Sequence[Cell], columns: Mapping[str, Callable[[Cell], str]]) -> Table:
    """One row a cell: its axes, k, s, alpha where there is one, parents, pairs, and then `columns`, as text."""
    head = [name for name, _ in found[0].axes] if found else []
    alphas = ["alpha"] if any(cell.alpha is not None for cell in found) else []
    body = []
    for cell in found:
        values = [*(value for _, value in cell.axes), cell.k, cell.s, *(cell.alpha for _ in alphas)]
        texts = [text(cell) for text in columns.values()]
        body.append([*map(value_text, values), str(cell.parents), str(cell.pairs), *texts])
    return estimates_table(title, [*head, "k", "s", *alphas, "parents", "pairs", *columns], body)


def _gain(cell: Cell, key: tuple[str, str]) -> str:
    return _shown(cell, cell.gains.get(key))


def _wins(cell: Cell, name: str) -> str:
    return f"{cell.wins[name]:.0f}" if name in cell.wins else ""


def _after(cell: Cell, column: str, epoch: int) -> str:
    at = polars.col(column).list.get(epoch - 1, null_on_oob=True)
    return _shown(cell, estimate_of(cell.rows.with_columns(at), column))


def _shown(cell: Cell, estimate: Estimate | None) -> str:
    return "" if estimate is None else shown(estimate, cell.parents, pairs=cell.pairs)


def summary_markdown(spec: SweepSpec, found: Sequence[Cell], planned: int, missing: int = 0) -> str:
    """The sweep's summary: what was swept, what is there of it, the tables, and what must be said beside them.

    `planned`: points of the sweep; `missing`: measurements that are not there yet.
    """
    options = spec.options
    lines = [f"# {options.name or 'Sweep'}", ""]
    lines += [f"- {axis.path}: {', '.join(map(value_text, axis.values))}" for axis in spec.axes]
    lines.append(
        f"- {count_of(len(options.parents), 'parent')}, {options.children} children of each at each k, "
        f"{options.tuple_size} averaged together ({options.tuples})"
    )
    part = f"; {missing:,} measurements are missing: this is a part of the sweep" if missing else ""
    lines.append(f"- {sum(cell.pairs for cell in found):,} of {planned:,} averages measured{part}")
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
        text = "none: diverged" if best is None else f"{best:+.2f}"
        losses = (f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}")
        body.append((row["network"], row["batch_norm"], *losses, text if row["network"] == "average" else ""))
    title = "At interpolation; gain over the best child under the same batch-norm statistics, in points"
    tables = [Table(title, ("network", "statistics", "test loss", "test acc. (%)", "gain"), tuple(body))]
    after = [row for row in rows if row["stage"] == "after"]
    averages = [row for row in after if row["network"] == "average"]
    children = [row for row in after if row["network"] != "average"]
    body = []
    for row in averages:
        further = row["epoch"] - at[0]["epoch"]
        less = [gain[f"after_vs_{name}_points"][further - 1] if gain else None for name in ("average", "best")]
        if children:
            beside = [r[ACCURACY] for r in children if r["epoch"] == row["epoch"] and math.isfinite(r["test_loss"])]
            less.append(row[ACCURACY] - max(beside) if beside else None)
        measured = (f"{row['train_loss']:.4f}", f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}")
        differences = ("" if value is None else f"{value:+.2f}" for value in less)
        body.append((f"+{further}", *measured, *differences))
    columns = ["epoch", "train loss", "test loss", "test acc. (%)", "vs average", "vs best child"]
    columns += ["vs child trained on"] if children else []
    title = "The average trained on; differences to interpolation, in points"
    return [*tables, Table(title, tuple(columns), tuple(body))] if after else tables
