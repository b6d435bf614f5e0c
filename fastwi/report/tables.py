"""Tables: of one run, and of a sweep what averaging gains in each cell and what becomes of the gain.

A cell is one combination of k, s, the other axes and alpha. Differences are of test accuracy in points, under the
same batch-norm statistics on both sides. Intervals are over parents. Sweeps' tables take the frame of `rows.gains`.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import polars

from fastwi.config.sweep import SweepSpec
from fastwi.experiment.store.records import infinite_loss
from fastwi.experiment.tree import OWN
from fastwi.report.effects import effects_table
from fastwi.report.estimates import SAME, cell_names, counted, estimate_of, groups, mean_text, named_texts
from fastwi.report.rows import ACCURACY, OVER, TREATMENTS, Row
from fastwi.report.summary import OVER_PARENTS, Table, count_of, estimates_table, value_text, variant_text

Shown = dict[str, tuple[Callable[[polars.DataFrame, str], str], str]]
"""By heading, what makes a cell's text of its rows and a column, and the column."""
_MOST_EPOCHS = 8  # columns of a table of further epochs
_ROUND_EPOCHS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)


def cells(gains: polars.DataFrame) -> Iterator[tuple[str, float, float, polars.DataFrame]]:
    """Each cell's other axes and alpha in words, k, s and rows, in the order of the sweep."""
    names = [*cell_names(gains), "alpha"]
    for (*values, k, s, alpha), rows in groups(gains, names):
        variant = list(zip(names, values, strict=False))
        variant += [] if alpha is None else [("alpha", alpha)]  # none: the plain mean
        yield variant_text(variant), k, s, rows


def gain_column(treatment: str, over: str = "best") -> str:
    """The column of the gain over the "best" child or the "mean" of the children."""
    return f"gain_{over}_{treatment}_points"


def measured(gains: polars.DataFrame, over: str = "best") -> list[str]:
    """The treatments of batch norm under which there are gains; the first alone where the other repeats it."""
    names = [name for name in TREATMENTS if gains[gain_column(name, over)].count()]
    return names[:1] if note_of(gains) else names


def note_of(gains: polars.DataFrame) -> str:
    """`SAME` where all numbers of recomputed statistics repeat the own ones; else empty."""
    own = {name: name.replace("recomputed", "own") for name in gains.columns if "recomputed" in name}
    columns = [name for name in own if own[name] in gains.columns and gains[name].count()]
    same = all(gains[name].equals(gains[own[name]]) for name in columns)
    return SAME if columns and same else ""


def most_epochs(gains: polars.DataFrame) -> int:
    """The most further epochs of a pair."""
    return max(gains["after_%"].list.len(), default=0)


def after_column(treatment: str, what: str) -> str:
    """The column of the average's further training: "%" or less what was at interpolation, "vs_best_points"."""
    return f"after_{what}" if treatment == OWN else f"after_{treatment}_{what}"


def treatments_after(gains: polars.DataFrame) -> list[str]:
    """The treatments of batch norm under which further training is measured."""
    columns = {name: after_column(name, "%") for name in TREATMENTS}
    return [name for name, column in columns.items() if column in gains.columns and gains[column].list.len().max()]


def measured_after(gains: polars.DataFrame) -> list[str]:
    """The same; the first alone where the other repeats it."""
    names = treatments_after(gains)
    return names[:1] if note_of(gains) else names


def sweep_tables(gains: polars.DataFrame) -> list[Table]:
    """All tables of a sweep; none where nothing is measured."""
    if not gains.height:
        return []
    tables = [cell_table(gains), cell_table(gains, "mean")]
    columns = {f"gain, {name}": gain_column(name) for name in measured(gains)}
    for treatment in measured_after(gains):
        tables += [after_table(gains, against, treatment) for against in ("best", "average")]
        last = polars.col(after_column(treatment, "vs_best_points")).list.last()
        gains = gains.with_columns(last.alias(f"last_{treatment}"))
        columns[f"trained on, over the best child, {treatment}"] = f"last_{treatment}"
    effects = effects_table(gains, columns, note_of(gains))
    return [*tables, effects] if effects else tables


def cell_table(gains: polars.DataFrame, over: str = "best") -> Table:
    """One row a cell: the mean gain `over` the "best" child or the "mean", and the share of pairs that beat all."""
    columns: Shown = {}
    for name in measured(gains, over):
        columns[f"gain, {name} [95 %]"] = mean_text, gain_column(name, over)
        columns[f"beats all, {name} (%)"] = _wins, gain_column(name)
    title = f"Gain of the average over {OVER[over]} at interpolation, in points"
    return _table("; ".join(filter(None, [title, note_of(gains)])), gains, columns)


def shown_epochs(most: int) -> list[int]:
    """Of `most` further epochs those that tables show, the last always."""
    if most <= _MOST_EPOCHS:
        return list(range(1, most + 1))
    return [epoch for epoch in _ROUND_EPOCHS if epoch < most] + [most]


def after_table(gains: polars.DataFrame, against: str = "best", treatment: str = OWN) -> Table:
    """One row a cell: the average's accuracy after further epochs, less that at interpolation, in points.

    `against`: "average" or "best" child. In a sweep with times within epochs it is after each end of an epoch ("end
    1" ...), and at the average's own end.
    """
    epochs = shown_epochs(most_epochs(gains))
    name = after_column(treatment, f"vs_{against}_points")
    sign = "+" if gains["k"].dtype.is_integer() else "end "
    at = {f"{sign}{epoch}": polars.col(name).list.get(epoch - 1, null_on_oob=True) for epoch in epochs}
    what = {"average": "the average", "best": "the best child"}[against]
    title = f"The average trained on: accuracy less that of {what} at interpolation, {treatment} statistics"
    title += ", in points [95 %]"
    return _table(title, gains.with_columns(**at), {column: (mean_text, column) for column in at})


def _table(title: str, gains: polars.DataFrame, columns: Shown) -> Table:
    """One row a cell: axes, k, s, alpha where there is one, parents, pairs, and then `columns`."""
    names, body = cell_names(gains, alpha=True), []
    for values, rows in groups(gains, names):
        texts = [text(rows, column) for text, column in columns.values()]
        body.append([*named_texts(names, values, rows), *map(str, counted(rows)), *texts])
    return estimates_table(title, [*names, "parents", "pairs", *columns], body)


def _wins(rows: polars.DataFrame, column: str) -> str:
    gains = rows[column].drop_nulls()
    return f"{100 * int((gains > 0).sum()) / len(gains):.0f}" if len(gains) else ""


def summary_markdown(
    spec: SweepSpec, gains: polars.DataFrame, planned: int, missing: int = 0, diverged: int = 0
) -> str:
    """What was swept, what is there of it, and the tables.

    `planned`: points; `missing`: measurements that are not there yet; `diverged`: networks.
    """
    options = spec.options
    lines = [f"# {options.name or 'Sweep'}", ""]
    lines += [f"- {path}: {', '.join(map(value_text, values))}" for path, values in spec.axes.items()]
    lines.append(
        f"- {count_of(len(options.parents), 'parent')}, {options.children} children of each at each k, "
        f"{options.tuple_size} averaged together ({options.tuples})"
    )
    part = f"; missing: {count_of(missing, 'measurement')}, so this is a part of the sweep" if missing else ""
    part += f"; {count_of(diverged, 'network')} diverged, of which no gain is computed" if diverged else ""
    lines.append(f"- {gains.height:,} of {planned:,} averages measured{part}")
    for table in sweep_tables(gains):
        lines += ["", table.markdown().rstrip("\n")]
    columns = [gain_column(name, over) for name in TREATMENTS for over in OVER]
    estimates = [estimate_of(rows, column) for *_, rows in cells(gains) for column in columns]
    if gains.height:
        notes = dict.fromkeys(e.note for e in estimates if e is not None and e.note)
        lines += ["", OVER_PARENTS, *(f"{note}." for note in notes)]
    return "\n".join(lines) + "\n"


def run_tables(rows: Sequence[Row], gains: polars.DataFrame, end: int | float) -> list[Table]:
    """Of one run: every network at interpolation with the gain, and the average trained on.

    The average is compared with itself and the best child at interpolation and, where the children were trained on,
    with the best of them at the same epoch, both with the same statistics. Nothing is compared with a network that
    diverged.
    `gains` has the run's row, if there is one; `end` is the epoch of interpolation, of several rounds the last.
    """
    (gain,) = gains.to_dicts() or [{}]
    over_time = _run_over_time(rows)
    rows = [row for row in rows if "over_time" not in row]
    at = [row for row in rows if row["stage"] == "interpolation" and row["epoch"] == end]
    networks = list[tuple[str, ...]]()
    for row in at:
        best = gain.get(f"gain_best_{row['batch_norm']}_points")
        text = "none: diverged" if best is None else f"{best:+.2f}"
        losses = (f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}")
        networks.append((row["network"], row["batch_norm"], *losses, text if row["network"] == "average" else ""))
    title = "At interpolation; gain over the best child under the same batch-norm statistics, in points"
    tables = [Table(title, ("network", "statistics", "test loss", "test acc. (%)", "gain"), tuple(networks))]
    after = [row for row in rows if row["stage"] == "after"]
    for treatment in TREATMENTS:
        under = [row for row in after if row["batch_norm"] == treatment]
        tables += [_run_after(under, gain, end)] if under else []
    return [*tables, over_time] if over_time.rows else tables


def _sound(row: Row) -> bool:
    """Whether the network of a row did not diverge in that epoch."""
    return not infinite_loss(row.get("train_loss"), row["test_loss"], row["batch_norm"] == OWN)


def _run_over_time(rows: Sequence[Row]) -> Table:
    """The averages over time of each network after its last epoch, less the network itself."""
    lasts = {(row["network"], row["over_time"], row["batch_norm"]): row for row in rows if "over_time" in row}
    plain = [row for row in rows if "over_time" not in row and _sound(row)]
    own = {(row["network"], row["epoch"], row["batch_norm"]): row[ACCURACY] for row in plain}
    body = []
    for (*names, treatment), row in lasts.items():
        there = own.get((row["network"], row["epoch"], treatment))
        difference = f"{row[ACCURACY] - there:+.2f}" if there is not None and _sound(row) else ""
        body.append((*names, str(row["epoch"]), treatment, f"{row[ACCURACY]:.2f}", difference))
    columns = ("network", "over time", "epoch", "statistics", "test acc. (%)", "vs network")
    return Table("Averages over time, less the network itself, in points", columns, tuple(body))


def _run_after(rows: Sequence[Row], gain: Row, end: int | float) -> Table:
    """The second table of `run_tables`, of rows under one treatment of batch norm."""
    averages = [row for row in rows if row["network"] == "average"]
    children = [row for row in rows if row["network"] != "average"]
    treatment = rows[0]["batch_norm"]
    epochs = list[tuple[str, ...]]()
    for row in averages:
        at = math.ceil(row["epoch"]) - math.floor(end) - 1
        against = (after_column(treatment, f"vs_{name}_points") for name in ("average", "best"))
        differences = [gain[column][at] if gain else None for column in against]
        if children:
            same = [r for r in children if r["iteration"] == row["iteration"]]
            beside = [r[ACCURACY] for r in same if _sound(r)]
            differences.append(row[ACCURACY] - max(beside) if beside and _sound(row) else None)
        losses = [f"{row[name]:.4f}" for name in ("train_loss", "test_loss") if name in row]
        texts = ("" if value is None else f"{value:+.2f}" for value in differences)
        epochs.append((f"+{value_text(row['epoch'] - end)}", *losses, f"{row[ACCURACY]:.2f}", *texts))
    losses = ["train loss", "test loss"] if treatment == OWN else ["test loss"]
    columns = ("epoch", *losses, "test acc. (%)", "vs average", "vs best child")
    columns += ("vs child trained on",) if children else ()
    title = "The average trained on; differences to interpolation, in points"
    title += "" if treatment == OWN else f"; {treatment} statistics"
    return Table(title, columns, tuple(epochs))
