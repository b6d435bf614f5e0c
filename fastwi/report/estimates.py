"""Cells of a long table, and means with intervals as text: what presentations of studies share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import polars
from polars import selectors

from fastwi.analysis.statistics import NOTHING, Estimate, between_parents, mean_estimate, verdict, verdict_text
from fastwi.report.summary import Table, estimates_table, interval_text, n_text, value_text, variant_text

SAME = "recomputed statistics give the same, as without batch norm"
"""What is said where they are not shown for that reason."""


def cell_names(frame: polars.DataFrame, alpha: bool = False) -> list[str]:
    """The columns that name a cell: the sweep's axes beside k and s, k, s, and on demand alpha where there is one."""
    names = frame.columns[: frame.columns.index("k") + 2]
    return [*names, "alpha"] if alpha and frame["alpha"].null_count() < frame.height else names


def by_end(frame: polars.DataFrame) -> tuple[polars.DataFrame, str]:
    """A frame to draw, and what its column s is: k + s in place of s where that is one end for all k."""
    ends = (polars.col("k") + polars.col("s")).round(6)
    one_end = frame["s"].n_unique() > 1 and frame.select(ends.n_unique()).item() == 1
    return (frame.with_columns(s=ends), "k + s") if one_end else (frame, "s")


def groups(frame: polars.DataFrame, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], polars.DataFrame]]:
    """The values of the columns `names` and the rows that have them, in order of first appearance."""
    for values, rows in frame.group_by(names, maintain_order=True):
        yield tuple(tuple(value) if isinstance(value, list) else value for value in values), rows


def distinct(frame: polars.DataFrame, name: str) -> list[Any]:
    """The values of a column, each once, in order of first appearance."""
    return frame[name].unique(maintain_order=True).to_list()


def variant_of(names: Sequence[str], values: Sequence[Any]) -> str:
    """The axes beside k and s in one line; empty where there are none."""
    return variant_text(zip(names[:-2], values, strict=False))


class Cell(NamedTuple):
    """A cell: the values of its `cell_names`, its rows, and what a panel of it is called."""

    values: tuple[Any, ...]
    rows: polars.DataFrame
    heading: str


def cells_of(
    frame: polars.DataFrame, alpha: bool = False, most: int = 0, last: bool = False
) -> tuple[list[Cell], str]:
    """At most so many cells (0: all) in order, the first or the last; and for a title, what part of all they are.

    Of the averages that `chosen_pairs` gives, the first ones are those of the largest k and s.
    """
    names = cell_names(frame, alpha)
    every = [Cell(values, rows, cell_heading(names, values, rows)) for values, rows in groups(frame, names)]
    if not 0 < most < len(every):
        return every, ""
    which = "last" if last else "first"
    return every[-most:] if last else every[:most], f" (the {which} {most} of {len(every)} cells)"


def cell_heading(names: Sequence[str], values: Sequence[Any], rows: polars.DataFrame, *more: str) -> str:
    """A cell's k, s, alpha if there is one, and n; a line for its other axes and for each of `more`. For a panel."""
    at = names.index("k")
    texts = named_texts(names, values, rows)[at:]
    cell = ", ".join(f"{name} = {text}" for name, text in zip(names[at:], texts, strict=True))
    variant = variant_text(zip(names[:at], values, strict=False))
    return "\n".join(filter(None, [f"{cell}; {counted_text(rows)}", variant, *more]))


def named_texts(names: Sequence[str], values: Sequence[Any], rows: polars.DataFrame) -> list[str]:
    """The values of the columns `names` of some rows as text; k and s within an epoch in iterations, such as 10it.

    These are in epochs where the rows, of an earlier version or of another study, have no iterations.
    """
    found = dict(zip(names, values, strict=True))
    for name in {"k", "s"} & found.keys():
        time, steps = found[name], f"{name}_iterations"
        if isinstance(time, float) and time.is_integer():
            found[name] = int(time)
        elif isinstance(time, float) and steps in rows.columns:
            found[name] = f"{rows[steps][0]}it"
    return list(map(value_text, found.values()))


def estimate_of(rows: polars.DataFrame, column: str) -> Estimate | None:
    """The mean over parents of each parent's mean, of the rows that have a value; None where none has.

    Of pairs of different parents (`other_seed`) the mean over pairs.
    """
    there = rows.drop_nulls(column)
    if not there.height:
        return None
    if "other_seed" in there.columns and (there["other_seed"] != there["parent_seed"]).any():
        return between_parents(there[column].to_numpy(), there.select("parent_seed", "other_seed").rows())
    return mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list())


def estimate_at_interpolation(rows: polars.DataFrame, column: str) -> Estimate | None:
    """`estimate_of` of rows of all cells: a pair counts once, whatever the axes of its further training are."""
    found, there = estimate_of(rows, column), rows.drop_nulls(column)
    return None if found is None else replace(found, n_pairs=pairs_at_interpolation(there, column))


def value_of(estimate: Estimate | None) -> float:
    """Its value; NaN, a gap in a figure, where there is none."""
    return float("nan") if estimate is None or estimate.value is None else estimate.value


def correlation_of(row: Mapping[str, Any]) -> Estimate:
    """The estimate of a row of the study governance."""
    note = row["note"] or ""
    return Estimate(row["spearman"], row["low"], row["high"], row["n_parents"], row["n_pairs"], note)


def counted(rows: polars.DataFrame) -> tuple[int, int]:
    """Parents, and pairs of all of them."""
    pairs = rows.select(selectors.by_name("parent_seed", "other_seed", "pair", require_all=False)).unique()
    return len({*pairs["parent_seed"], *pairs.get_column("other_seed", default=[])}), pairs.height


_LATER = frozenset({
    "schedule.at_average", "experiment.momentum", "experiment.batch_norm", "experiment.after",
    "experiment.continue_children", "experiment.children_rate_factor", "experiment.continue_parent",
})  # fmt: skip
"""Axes that leave a pair at interpolation as it is, beside those of the section `trajectory`."""


def pairs_at_interpolation(rows: polars.DataFrame, *columns: str) -> int:
    """How many pairs rows of all cells have that differ before axes of further training, or in one of `columns`."""
    every = cell_names(rows, alpha="alpha" in rows.columns)
    names = [name for name in every if name not in _LATER and not name.startswith("trajectory.")]
    return rows.select(list(dict.fromkeys([*names, "parent_seed", "pair", *columns]))).n_unique()


def counted_text(rows: polars.DataFrame, pairs: int = 0) -> str:
    """The same in words. `pairs`: of all cells, where the rows are of several."""
    parents, here = counted(rows)
    return n_text(parents, pairs or here)


def shown(estimate: Estimate | None, parents: int, digits: int = 2, pairs: int = 0) -> str:
    """A mean with its interval; with its n where there is none, or where that is not `parents` (and `pairs`)."""
    if estimate is None or estimate.value is None:
        return "not defined"
    all_counted = estimate.n_parents == parents and pairs in (0, estimate.n_pairs)
    of_pairs = f", {estimate.n_pairs} pairs" if pairs and not all_counted else ""
    n = "" if all_counted and estimate.conclusive else f" (n = {estimate.n_parents}{of_pairs})"
    interval = interval_text(estimate, digits)
    return f"{estimate.value:+.{digits}f}" + (f" {interval}" if interval else "") + n


def mean_text(rows: polars.DataFrame, column: str, pairs: int = 0) -> str:
    """The estimate of a column as `shown`; empty where no row has a value. `pairs`: of all cells, as before."""
    estimate = estimate_of(rows, column)
    parents, here = counted(rows)
    return "" if estimate is None else shown(estimate, parents, pairs=pairs or here)


def titled(
    title: str, columns: Sequence[str], body: Sequence[Sequence[str]], estimates: Iterable[Estimate | None]
) -> Table:
    """A table with the notes of its estimates, each once, in its title; and that n = 1 lets nothing be concluded."""
    found = [estimate for estimate in estimates if estimate is not None]
    said = [NOTHING] if max((estimate.n_parents for estimate in found), default=0) == 1 else []
    notes = dict.fromkeys([*said, *(estimate.note for estimate in found)])
    return estimates_table("".join([title, *(f". {note}" for note in notes if note)]), columns, body)


def estimate_table(
    frame: polars.DataFrame,
    title: str,
    names: Sequence[str],
    by: Sequence[str],
    column: str,
    digits: int = 2,
    heading: str = "{}",
    absent: str = "not defined",
) -> Table:
    """The estimate of `column`: a row for each combination of the columns `names`, with parents and pairs.

    A column for each combination of the columns `by`; `heading`: with {} in place of it. absent: a cell without rows.
    """
    across = {values: heading.format(", ".join(map(value_text, values))) for values, _ in groups(frame, by)}
    body = []
    every = list[Estimate | None]()
    for values, rows in groups(frame, names):
        parents, pairs = counted(rows)
        found = {place: estimate_of(here, column) for place, here in groups(rows, by)}
        cells = [shown(found[place], parents, digits) if place in found else absent for place in across]
        every += found.values()
        body.append([*named_texts(names, values, rows), str(parents), str(pairs), *cells])
    return titled(f"{title} [95 %]", (*names, "parents", "pairs", *across.values()), body, every)


def estimate_tables(
    frame: polars.DataFrame,
    quantities: Mapping[str, tuple[str, int]],
    names: Sequence[str],
    by: Sequence[str],
    **how: str,
) -> list[Table]:
    """`estimate_table` of each of `quantities`: by column, its title and digits."""
    return [
        estimate_table(frame, title, names, by, column, digits, **how)
        for column, (title, digits) in quantities.items()
    ]


def estimates_by(
    frame: polars.DataFrame, names: Sequence[str], column: str
) -> Iterator[tuple[list[str], Estimate | None]]:
    """For `verdict_table`: the values of the columns `names` as text, and the estimate of `column` there.

    `names` has those of the cell. A pair counts once, also where it has a row for each of its children.
    """
    for values, rows in groups(frame, names):
        estimate = estimate_of(rows, column)
        if estimate is not None:
            estimate = replace(estimate, n_pairs=counted(rows.drop_nulls(column))[1])
        yield named_texts(names, values, rows), estimate


def verdict_table(
    title: str, columns: Sequence[str], rows: Iterable[tuple[Sequence[str], Estimate | None]], digits: int = 2
) -> Table:
    """A row for each estimate: what names it, its parents and pairs, and the verdict on the claim that it is above 0.

    Estimates of None are left out.
    """
    there = [(names, estimate, estimate.n_parents) for names, estimate in rows if estimate is not None]
    body = [
        [*names, shown(found, n, digits), str(n), str(found.n_pairs), verdict_text(verdict(found), n)]
        for names, found, n in there
    ]
    return titled(title, columns, body, [found for _, found, _ in there])


ALMOST = 9  # times as much on the hard half as on the easy one, over 90 % of the whole, is almost the whole of it


def hard_less_easy(rows: polars.DataFrame, column: str, times: int = 1) -> Estimate | None:
    """The mean of `column` over the harder half of the splits, less `times` that over the easier half, paired.

    In points. Where the whole is positive, it is above 0 where the harder half has over times / (1 + times) of the
    whole: 9 times asks for over 90 %. Of an odd number of splits the middle one is in neither half where they are
    compared (1 time), and not in the harder one where its share is asked for. Pairs that lack a split are left out;
    None where no pair has all.
    """
    splits = sorted(distinct(rows, "split"))
    half = len(splits) // 2
    split = polars.col("split")
    hard = split.is_in(splits[-half:])
    easy = split.is_in(splits[:half] if times == 1 else splits[:-half])
    weight = polars.when(hard).then(1).when(easy).then(-times).otherwise(0)
    each = [name for name in ("epochs_after", "batch_norm") if name in rows.columns]
    keys = [*cell_names(rows, alpha=True), "parent_seed", "pair", *each]
    contrast = (polars.col(column) * weight).sum() / half
    sums = rows.drop_nulls(column).group_by(keys, maintain_order=True).agg(contrast.alias("sum"), polars.len())
    return estimate_of(sums.filter(polars.col("len") == len(splits)), "sum")
