"""Cells of a long table, means with intervals as text and in figures: what presentations of studies share."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars

from fastwi.analysis.statistics import NOTHING, Estimate, mean_estimate, verdict, verdict_text
from fastwi.report.summary import Table, estimates_table, interval_text, n_text, value_text, variant_text

TREATMENT_COLOURS = {"averaged": "tab:blue", "own": "tab:blue", "recomputed": "tab:orange"}

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


def last_cells(
    frame: polars.DataFrame, names: Sequence[str], most: int = 8
) -> tuple[list[tuple[tuple[Any, ...], polars.DataFrame]], str]:
    """The last `most` cells, values of `names` and rows of each; and for a title, what part of all they are."""
    every = list(groups(frame, names))
    return every[-most:], f" (the last {most} of {len(every)} cells)" if most < len(every) else ""


def first_cells(
    frame: polars.DataFrame, names: Sequence[str], most: int = 8
) -> tuple[list[tuple[tuple[Any, ...], polars.DataFrame]], str]:
    """The first ones likewise: of the averages that `chosen_pairs` gives, those of the largest k and s."""
    every = list(groups(frame, names))
    return every[:most], f" (the first {most} of {len(every)} cells)" if most < len(every) else ""


def cell_heading(names: Sequence[str], values: Sequence[Any], rows: polars.DataFrame, *more: str) -> str:
    """A cell's k, s, alpha if there is one, and n; a line for its other axes and for each of `more`. For a panel."""
    at = names.index("k")
    cell = ", ".join(f"{name} = {value_text(value)}" for name, value in zip(names[at:], values[at:], strict=True))
    variant = variant_text(zip(names[:at], values, strict=False))
    return "\n".join(filter(None, [f"{cell}; {counted_text(rows)}", variant, *more]))


def estimate_of(rows: polars.DataFrame, column: str) -> Estimate | None:
    """The mean over parents of each parent's mean, of the rows that have a value; None where none has."""
    there = rows.drop_nulls(column)
    return mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list()) if there.height else None


def value_of(estimate: Estimate | None) -> float:
    """Its value; NaN, a gap in a figure, where there is none."""
    return float("nan") if estimate is None or estimate.value is None else estimate.value


def correlation_of(row: Mapping[str, Any]) -> Estimate:
    """The estimate of a row of the study governance."""
    note = row["note"] or ""
    return Estimate(row["spearman"], row["low"], row["high"], row["n_parents"], row["n_pairs"], note)


def counted(rows: polars.DataFrame) -> tuple[int, int]:
    """Parents, and pairs of all of them."""
    return rows["parent_seed"].n_unique(), rows.select("parent_seed", "pair").unique().height


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


def titled(
    title: str, columns: Sequence[str], body: Sequence[Sequence[str]], parents: int, notes: Iterable[str] = ()
) -> Table:
    """A table with each of `notes` once in its title, and that n = 1 lets nothing be concluded.

    parents: of the row that has most.
    """
    said = [NOTHING] if parents == 1 else []
    end = "".join(f". {note}" for note in dict.fromkeys([*said, *notes]) if note)
    return estimates_table(title + end, columns, body)


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
    notes = list[str]()
    most = 0
    for values, rows in groups(frame, names):
        parents, pairs = counted(rows)
        most = max(most, parents)
        found = {place: estimate_of(here, column) for place, here in groups(rows, by)}
        cells = [shown(found[place], parents, digits) if place in found else absent for place in across]
        notes += [estimate.note for estimate in found.values() if estimate]
        body.append([*map(value_text, values), str(parents), str(pairs), *cells])
    return titled(f"{title} [95 %]", (*names, "parents", "pairs", *across.values()), body, most, notes)


def verdict_cells(estimate: Estimate, digits: int = 2) -> list[str]:
    """An estimate, its parents and pairs, and the verdict on the claim that it is above 0."""
    n = estimate.n_parents
    return [shown(estimate, n, digits), str(n), str(estimate.n_pairs), verdict_text(verdict(estimate), n)]


def verdict_table(
    title: str, columns: Sequence[str], rows: Iterable[tuple[Sequence[str], Estimate | None]], digits: int = 2
) -> Table:
    """A row for each estimate: what names it, and `verdict_cells`. Estimates of None are left out."""
    there = [(names, estimate) for names, estimate in rows if estimate is not None]
    body = [[*names, *verdict_cells(estimate, digits)] for names, estimate in there]
    most = max((estimate.n_parents for _, estimate in there), default=0)
    return titled(title, columns, body, most, [estimate.note for _, estimate in there])


def draw_spread(axis: Any, estimate: Estimate | None, at: float, colour: str, across: bool = False) -> None:
    """What an estimate rests on, at the place `at`: its interval as a line, or without one a dot for each parent.

    across: along x, with `at` on y.
    """
    if estimate is None:
        return
    values: Sequence[float] = estimate.points
    style: dict[str, Any] = {"ls": "", "marker": "o", "ms": 2.2, "alpha": 0.8}
    if estimate.low is not None and estimate.high is not None:
        values = (estimate.low, estimate.high)
        style = {"lw": 1.2}
    places = [at] * len(values)
    axis.plot(*((values, places) if across else (places, values)), color=colour, zorder=4, **style)


def spread_text(estimates: Iterable[Estimate | None]) -> str:
    """What `draw_spread` draws of them, for a reader of the figure."""
    found = [e for e in estimates if e is not None]
    bars = any(e.conclusive for e in found)
    dots = any(e.points and not e.conclusive for e in found)
    return "; ".join(["bars: 95 % interval over parents"] * bars + ["dots: each parent"] * dots)


def draw_bars(axis: Any, rows: polars.DataFrame, column: str, by: str, label: str) -> list[Estimate | None]:
    """The estimate of `column` for each value of the column `by`, a bar for each treatment of batch norm.

    label: of a treatment, with {} in its place. Returns the estimates.
    """
    treatments = distinct(rows, "batch_norm")
    places = distinct(rows, by)
    width = 0.8 / len(treatments)
    every = list[Estimate | None]()
    for t, treatment in enumerate(treatments):
        own = rows.filter(batch_norm=treatment)
        found = [estimate_of(own.filter(polars.col(by) == place), column) for place in places]
        x = [i + (t - (len(treatments) - 1) / 2) * width for i in range(len(places))]
        colour = TREATMENT_COLOURS[treatment]
        axis.bar(x, list(map(value_of, found)), width, color=colour, alpha=0.75, label=label.format(treatment))
        for at, estimate in zip(x, found, strict=True):
            draw_spread(axis, estimate, at, "0.15")
        every += found
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set_xticks(range(len(places)), list(map(str, places)), fontsize=7)
    return every


def draw_rows(
    labels: Sequence[str], found: Mapping[str, Sequence[Estimate | None]], inches: float, x: str, y: str = ""
) -> Any:
    """A figure with a row for each label, from the top: its estimates, their spread and n. `inches`: its width.

    found: the estimates of all labels, by treatment of batch norm. A mean without an interval is hollow.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches, 0.36 * len(labels) + 1.9), layout="constrained")
    axis = figure.subplots()
    style(axis, x, y)
    for i, (treatment, estimates) in enumerate(found.items()):
        colour = TREATMENT_COLOURS[treatment]
        name = f"{treatment} batch-norm statistics"
        for row, estimate in enumerate(estimates):
            if estimate is None:
                continue
            at = row + 0.28 * (i - (len(found) - 1) / 2)
            draw_spread(axis, estimate, at, colour, across=True)
            face = colour if estimate.conclusive else "white"
            axis.plot([value_of(estimate)], [at], "o", markersize=4.5, color=colour, markerfacecolor=face, label=name)
            n = f"n = {estimate.n_parents} ({estimate.n_pairs})"
            beside = ("axes fraction", "data")
            axis.annotate(n, (1.01, at), fontsize=6, va="center", xycoords=beside, color=colour)
            name = ""  # once in the legend
    axis.axvline(0, color="0.3", lw=0.9)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def style(axis: Any, x: str = "", y: str = "", title: str = "", whole_x: bool = False) -> None:
    """Labels, title, ticks and grid, alike in all figures of studies. `whole_x`: ticks of x at whole numbers."""
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    if whole_x:
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def panels(count: int, across: int, inches: tuple[float, float], below: float, **shared: Any) -> tuple[Any, Any]:
    """A figure of `count` panels of that many inches, `across` of them in a row, and its axes.

    below: inches for the legend and the title.
    """
    from matplotlib.figure import Figure

    across = min(across, count)
    down = -(-count // across)
    figure = Figure(figsize=(inches[0] * across + 0.6, inches[1] * down + below), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **shared).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def set_title(figure: Any, *lines: str, size: int = 9) -> None:
    """Write a figure's title: those of `lines` that are not empty."""
    figure.suptitle("\n".join(filter(None, lines)), fontsize=size)


ALMOST = 9  # times as much on the hard half as on the easy one, over 90 % of the whole, is almost the whole of it


def hard_less_easy(rows: polars.DataFrame, column: str, times: int = 1) -> Estimate | None:
    """The mean of `column` over the harder half of the splits, less `times` that over the easier half, paired.

    In points. Where the whole is positive, it is above 0 where the harder half has over times / (1 + times) of the
    whole: 9 times asks for over 90 %. Of an odd number of splits the middle one is in neither half. Pairs that lack a
    split are left out; None where no pair has all.
    """
    splits = sorted(distinct(rows, "split"))
    half = len(splits) // 2
    split = polars.col("split")
    hard = split.is_in(splits[-half:])
    easy = split.is_in(splits[:half])
    weight = polars.when(hard).then(1).when(easy).then(-times).otherwise(0)
    each = [name for name in ("epochs_after", "batch_norm") if name in rows.columns]
    keys = [*cell_names(rows, alpha=True), "parent_seed", "pair", *each]
    contrast = (polars.col(column) * weight).sum() / half
    sums = rows.drop_nulls(column).group_by(keys, maintain_order=True).agg(contrast.alias("sum"), polars.len())
    return estimate_of(sums.filter(polars.col("len") == len(splits)), "sum")
