"""Linear mode connectivity of siblings: error and loss on the whole line A -> B, its barriers, and the gain.

Iyer, Dziugaite, Rolnick 2024 tie the gain of averaging, that of the plain mean at alpha = 0.5, to linear mode
connectivity. `fastwi.analysis.line` has the barriers' equations.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import TIME_COLUMNS, Column
from fastwi.analysis.measuring import Bench
from fastwi.config.sweep import AnalysisOptions
from fastwi.report.drawing import TREATMENT_COLOURS, Sheet, set_title, style
from fastwi.report.estimates import (
    by_end,
    cell_names,
    counted_text,
    distinct,
    estimate_tables,
    estimates_by,
    groups,
    variant_of,
    verdict_table,
)
from fastwi.report.heatmap import K_LABEL
from fastwi.report.study import LINE_COLUMNS, MEASURED_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, value_text

MIDDLE = 0.5
STABLE = 2.0
"""Points of error: networks with a lower barrier are stable (Frankle et al. 2020, section 3)."""

_SNAP = 1e-9  # a place this near to an end or the middle is meant to be it

COLUMNS = {
    "line": {
        **LINE_COLUMNS,
        "alpha": Column("1", "place on the line: 0 is A, the pair's first child, 1 is B"),
        **MEASURED_COLUMNS,
    },
    "barrier": {
        **{name: column for name, column in LINE_COLUMNS.items() if name != "batch_norm"},
        "split": Column("", "images that were measured on, without augmentation: train or test", polars.String),
        "batch_norm": LINE_COLUMNS["batch_norm"],
        "barrier_error_points": Column("points", "largest error on the line less the mean of the ends' errors"),
        "barrier_error_linear_points": Column("points", "largest excess of the error over the ends' line"),
        "barrier_error_at_points": Column("points", "that excess where the error is largest (gsaltintas/lmc)"),
        "barrier_loss_nats": Column("nats", "largest loss on the line less the mean of the ends' losses"),
        "barrier_loss_linear_nats": Column("nats", "largest excess of the loss over the ends' line"),
        "barrier_loss_at_nats": Column("nats", "that excess where the loss is largest (gsaltintas/lmc)"),
        "alpha_of_largest_error": Column("1", "where on the line the error is largest"),
        "alpha_of_largest_loss": Column("1", "where on the line the loss is largest"),
        "gain_best_points": Column("points", "error of the better end less that at alpha = 0.5, same statistics"),
        "gain_mean_points": Column("points", "mean of the ends' errors less that at alpha = 0.5, likewise"),
        "gain_best_nats": Column("nats", "loss of the better end less that at alpha = 0.5, likewise"),
        "gain_mean_nats": Column("nats", "mean of the ends' losses less that at alpha = 0.5, likewise"),
        "places": Column("", "places on the line that the barriers are taken over, from 0 to 1", polars.Int64),
        **TIME_COLUMNS,
    },
}


def measure(bench: Bench) -> Found:
    """Measure the line of every chosen pair on training and test images, under each treatment of batch norm.

    The barriers are over the `alphas` places from `low` to `high` that lie in 0..1. 0, 0.5 and 1 are measured in any
    case; 0.5 counts for a barrier only where it is one of the places.
    """
    alphas_L, counted_L = line_places(bench.options)
    lines, barriers = list[Row](), list[Row]()
    for pair, how in bench.each_line(bench.lines(), lambda pair: len(alphas_L)):
        line = analysis.evaluate_line(pair=bench.opened.states(pair.place.ends), alphas=alphas_L, **how)
        lines += [{**pair.columns(), **row} for row in line.rows()]
        times = {"k_iterations": pair.place.k_iterations, "s_iterations": pair.place.s_iterations}
        barriers += [{**pair.columns(), **row, **times} for row in _barrier_rows(line, counted_L)]
    return {"line": lines, "barrier": barriers}


def line_places(options: AnalysisOptions) -> tuple[Any, Any]:
    """Places on the line, float64 [L], ascending, each once; and whether each counts for a barrier, bool [L].

    Those that count are the evenly spaced ones and the ends 0 and 1.
    """
    even = np.linspace(options.low, options.high, options.alphas)
    for special in (0.0, MIDDLE, 1.0):
        even[np.abs(even - special) < _SNAP] = special
    alphas_L = np.unique(np.concatenate([even, [0.0, MIDDLE, 1.0]]))
    return alphas_L, np.isin(alphas_L, even) | np.isin(alphas_L, [0.0, 1.0])


def _barrier_rows(line: "analysis.Measured", counted_L: Any) -> Iterator[Row]:
    """The barriers and the gains of one line: a row a split and treatment."""
    alphas_L = line.column("alpha")
    for split, treatment in itertools.product(line.loss, next(iter(line.loss.values()))):
        found = analysis.barrier_of(line, split, treatment, counted_L)
        row = {
            "barrier_error_points": found.error, "barrier_error_linear_points": found.error_linear,
            "barrier_error_at_points": found.error_at, "barrier_loss_at_nats": found.loss_at,
            "barrier_loss_nats": found.loss, "barrier_loss_linear_nats": found.loss_linear,
            "alpha_of_largest_error": found.alpha_of_error, "alpha_of_largest_loss": found.alpha_of_loss,
        }  # fmt: skip
        for table, unit in ((line.error, "points"), (line.loss, "nats")):
            values_L = table[split][treatment]
            first, middle, last = (float(values_L[alphas_L == alpha][0]) for alpha in (0.0, MIDDLE, 1.0))
            row[f"gain_best_{unit}"] = float(np.minimum(first, last)) - middle
            row[f"gain_mean_{unit}"] = (first + last) / 2 - middle
        named = {"split": split, "batch_norm": treatment, "places": found.alphas}
        yield named | {name: analysis.finite(value) for name, value in row.items()}


_TABLES = {
    "barrier_error_points": ("Error barrier over the mean of the ends' errors, in points", 2),
    "barrier_error_linear_points": ("Error barrier over the line between the ends' errors, in points", 2),
    "barrier_error_at_points": ("The same where the error is largest (gsaltintas/lmc), in points", 2),
    "barrier_loss_nats": ("Loss barrier over the mean of the ends' losses, in nats", 4),
    "barrier_loss_linear_nats": ("Loss barrier over the line between the ends' losses, in nats", 4),
    "gain_best_points": ("Gain at alpha = 0.5 over the better end: its error less that of the middle, in points", 2),
    "gain_mean_points": ("Gain at alpha = 0.5 over the mean of the ends, likewise", 2),
}


def tables(frames: Frames) -> list[Table]:
    """One table a quantity, one row a cell, one column a split and treatment: means with intervals over parents.

    And where k varies, from which k on training is stable.
    """
    barrier = frames["barrier"]
    # Frames of earlier versions have fewer columns.
    quantities = {column: about for column, about in _TABLES.items() if column in barrier.columns}
    shown = estimate_tables(barrier, quantities, cell_names(barrier), ["split", "batch_norm"])
    return [*shown, _stable(barrier)] if barrier["k"].n_unique() > 1 and "k_iterations" in barrier.columns else shown


def _stable(barrier: polars.DataFrame) -> Table:
    """A row for each k, and all else that a cell has: whether the error barrier is below that of a stable network."""
    names = [*cell_names(barrier), "k_iterations", "split", "batch_norm"]
    below = barrier.with_columns(below=STABLE - polars.col("barrier_error_points"))
    title = (
        f"Stable to SGD noise from k on: {STABLE:g} points less the error barrier, the limit of Frankle et al. 2020, "
        "section 3 [95 %]"
    )
    columns = [*names, "below the limit by", "parents", "pairs", "stable"]
    return verdict_table(title, columns, estimates_by(below, names, "below"))


_BARRIERS = {"barrier_error_points": "error barrier (points)", "barrier_loss_nats": "loss barrier (nats)"}
_MOST_ROWS, _MOST_COLUMNS = 8, 6  # of panels


def draw(frames: Frames, title: str) -> Any:
    """Draw the test error along the line of each cell, and below it the barriers against k for each s.

    Against k in iterations where a k is within an epoch, and for each end where s is up to one end for all k. Of many
    cells a part is drawn, and the title says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    (line, s_name), (barrier, _) = map(by_end, (frames["line"], frames["barrier"]))
    names = cell_names(line)
    cells = dict(groups(line, names))
    across = sorted({values[-1] for values in cells})[:_MOST_COLUMNS]
    down = list(dict.fromkeys(values[:-1] for values in cells))[:_MOST_ROWS]
    drawn = sum(values[-1] in across and values[:-1] in down for values in cells)
    width = max(2.9 * len(across), 7.6)
    height = 2.3 * len(down)
    figure = Figure(figsize=(width + 0.4, height + 4.3), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, 3.4])
    upper, lower = parts
    sheet = Sheet(len(down), len(across), figure=upper, sharex=True)
    for y, row in enumerate(down):
        for x, s in enumerate(across):
            axis = sheet.axes[y, x]
            rows = cells.get((*row, s))
            if rows is None:
                axis.set_axis_off()
                continue
            _draw_lines(sheet, axis, rows)
            cell = f"k = {value_text(row[-1])}, {s_name} = {value_text(s)}; {counted_text(rows)}"
            heading = [cell, variant_of(names, (*row, s))]
            along = "place on the line: 0 is A, 1 is B" if y == len(down) - 1 else ""
            style(axis, along, "error (%)" if x == 0 else "", "\n".join(filter(None, heading)))
    # Each entry is a line in the colour of each treatment that it stands for.
    entries: dict[str, tuple[Line2D, ...]] = {}
    colours = {treatment: TREATMENT_COLOURS[treatment] for treatment in distinct(line, "batch_norm")}
    for treatment, colour in colours.items():
        label = f"test images, mean over parents, {treatment} statistics"
        entries[label] = (Line2D([], [], color=colour, lw=1.8),)
    for label, look in (
        ("training images, mean over parents", {"lw": 1.2, "ls": "--"}),
        ("test images, each pair", {"lw": 0.6, "alpha": 0.6}),
    ):
        entries[label] = tuple(Line2D([], [], color=colour, **look) for colour in colours.values())
    upper.legend(
        list(entries.values()),
        list(entries),
        handler_map={tuple: HandlerTuple(ndivide=None)},
        handlelength=4,
        loc="outside upper center",
        ncols=2,
        fontsize=8,
    )
    _draw_barriers(lower, barrier, s_name)
    part = f" ({drawn} of {len(cells)} cells)" if drawn < len(cells) else ""
    set_title(figure, f"Error on the line between two children{part}", title, size=10)
    return figure


def _draw_lines(sheet: Sheet, axis: Any, rows: polars.DataFrame) -> None:
    """The lines of one cell: thin for each pair, thick for the mean over parents, dashed on training images."""
    pairs = list(groups(rows.sort("alpha"), ["batch_norm", "parent_seed", "pair"]))
    strength = float(np.clip(8 * rows["batch_norm"].n_unique() / len(pairs), 0.08, 0.5))
    for (treatment, *_), one in pairs:
        errors = one["test_error_%"].fill_null(float("nan"))
        axis.plot(one["alpha"], errors, color=TREATMENT_COLOURS[treatment], lw=0.6, alpha=strength)
    for (treatment,), own in groups(rows, ["batch_norm"]):
        for column, dashes, width in (("test_error_%", "-", 1.8), ("train_error_%", "--", 1.2)):
            look: dict[str, Any] = {"color": TREATMENT_COLOURS[treatment], "lw": width, "ls": dashes}
            sheet.curve(axis, own, "alpha", column, spread=False, **look)


def _draw_barriers(figure: Any, barrier: polars.DataFrame, s_name: str) -> None:
    """Error and loss barriers against k, a line for each s and combination of other axes; dashed: training images."""
    from matplotlib import colormaps

    at, x_label, apart = "k", K_LABEL, 0.03
    if not barrier["k"].dtype.is_integer():
        at, x_label = "k_iterations", "k: iterations of the parent"
        apart = 0.005 * barrier[at].to_numpy().max()
    others = [name for name in cell_names(barrier) if name != "k"]
    panels = [(t, column, label) for t in distinct(barrier, "batch_norm") for column, label in _BARRIERS.items()]
    sheet = Sheet(1, len(panels), figure=figure)
    for axis, (treatment, column, label) in zip(sheet.axes[0], panels, strict=True):
        lines = list(groups(barrier.filter(batch_norm=treatment), others))
        colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(lines)))
        for i, ((values, rows), colour) in enumerate(zip(lines, colours, strict=True)):
            variant = variant_of([*others[:-1], "k", "s"], values[:-1])
            name = f"{s_name} = {value_text(values[-1])}" + (f", {variant}" if variant else "")
            test, train = (rows.filter(split=split) for split in ("test", "train"))
            beside = apart * (i - (len(lines) - 1) / 2)  # so that each is seen
            look: dict[str, Any] = {"color": colour, "marker": "o", "ms": 3.5, "lw": 1.3, "label": name}
            sheet.curve(axis, test, at, column, apart=beside, **look)
            sheet.curve(axis, train, at, column, spread=False, color=colour, lw=1.0, ls="--")
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        axis.margins(0.12)  # intervals stay off the frame
        style(axis, x_label, "", f"{label}\n{treatment} statistics", whole_x=True)
    sheet.titled("", "Barriers on test images, on training images dashed; means over parents")
    if len(sheet.axes[0, 0].get_legend_handles_labels()[1]) <= 12:
        sheet.axes[0, 0].legend(fontsize=7)


QUESTION = "the barrier and the errors on the line between the children, beside the gain"
OPTIONS = ("alphas", "low", "high", "train_images", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
