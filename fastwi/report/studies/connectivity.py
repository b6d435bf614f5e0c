"""Linear mode connectivity in tables and a figure: the errors on the line between siblings, and its barriers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars

from fastwi.report.heatmap import K_LABEL, save_figure
from fastwi.report.studies.cells import (
    TREATMENT_COLOURS,
    cell_names,
    draw_spread,
    estimate_of,
    estimate_table,
    groups,
    variant_of,
)
from fastwi.report.summary import Table

_TABLES = {
    "barrier_error_points": ("Error barrier over the mean of the ends' errors, in points", 2),
    "barrier_error_linear_points": ("Error barrier over the line between the ends' errors, in points", 2),
    "barrier_loss_nats": ("Loss barrier over the mean of the ends' losses, in nats", 4),
    "barrier_loss_linear_nats": ("Loss barrier over the line between the ends' losses, in nats", 4),
    "gain_best_points": ("Gain at alpha = 0.5 over the better end: its error less that of the middle, in points", 2),
    "gain_mean_points": ("Gain at alpha = 0.5 over the mean of the ends, likewise", 2),
}
_BARRIERS = (
    ("barrier_error_points", "test error barrier (points)"),
    ("barrier_loss_nats", "test loss barrier (nats)"),
)
_MOST_ROWS, _MOST_COLUMNS = 8, 6  # of panels


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """One table a quantity, one row a cell, one column a split and treatment: means with intervals over parents."""
    barrier = frames["barrier"]
    kinds = list(barrier.select("split", "batch_norm").unique(maintain_order=True).rows())
    return [
        estimate_table(
            barrier, f"{title} [95 %]", cell_names(barrier),
            {
                f"{split}, {treatment}": (
                    (polars.col("split") == split) & (polars.col("batch_norm") == treatment), column, digits,
                )
                for split, treatment in kinds
            },
        )
        for column, (title, digits) in _TABLES.items()
    ]  # fmt: skip


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw the test error along the line of each cell, and below it the barriers against k for each s.

    Pairs are thin, their mean over parents is thick; dashed: the mean on the training images. Of many cells a part is
    drawn, and the title says so. Writes PNG (`path`), PDF and SVG; raises UserError where that fails.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    line = frames["line"]
    names = cell_names(line)
    cells = dict(groups(line, names))
    across = sorted({values[-1] for values in cells})
    down = list(dict.fromkeys(values[:-1] for values in cells))
    shown_across, shown_down = across[:_MOST_COLUMNS], down[:_MOST_ROWS]
    width = max(2.9 * len(shown_across), 7.6)
    height = 2.3 * len(shown_down)
    figure = Figure(figsize=(width + 0.4, height + 4.1), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, 3.2])
    upper, lower = parts
    axes = upper.subplots(len(shown_down), len(shown_across), squeeze=False, sharex=True)
    for y, row in enumerate(shown_down):
        for x, s in enumerate(shown_across):
            axis = axes[y, x]
            cell = (*row, s)
            if cell not in cells:
                axis.set_axis_off()
                continue
            _panel(axis, cells[cell], f"k = {row[-1]}, s = {s}", variant_of(names, row))
            if x == 0:
                axis.set_ylabel("error (%)", fontsize=8)
            if y == len(shown_down) - 1:
                axis.set_xlabel("place on the line, A to B", fontsize=8)
    handles = [Line2D([], [], color=_colour(t), lw=1.8, label=f"test, {t} statistics") for t in _treatments(line)]
    handles.append(Line2D([], [], color="0.3", lw=1.2, ls="--", label="training images"))
    upper.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    _against_k(lower, frames["barrier"])
    part = f"\n{len(shown_down) * len(shown_across)} of {len(cells)} cells are drawn"
    figure.suptitle(title + (part if (len(down), len(across)) != (len(shown_down), len(shown_across)) else ""),
                    fontsize=10)  # fmt: skip
    save_figure(figure, path)


def _panel(axis: Any, rows: polars.DataFrame, cell: str, variant: str) -> None:
    pairs = rows.select("parent_seed", "pair").unique().height
    for treatment in _treatments(rows):
        own = rows.filter(polars.col("batch_norm") == treatment).sort("alpha")
        for _, one in groups(own, ["parent_seed", "pair"]):
            axis.plot(one["alpha"], _numbers(one, "test_error_%"), color=_colour(treatment), lw=0.6,
                      alpha=float(np.clip(8 / pairs, 0.08, 0.5)))  # fmt: skip
        for column, style, width in (("test_error_%", "-", 1.8), ("train_error_%", "--", 1.2)):
            by_parent = own.group_by("alpha", "parent_seed").agg(polars.col(column).mean())
            mean = by_parent.group_by("alpha").agg(polars.col(column).mean()).sort("alpha")
            axis.plot(mean["alpha"], _numbers(mean, column), color=_colour(treatment), lw=width, ls=style)
    parents = rows["parent_seed"].n_unique()
    axis.set_title(f"{cell}; n = {parents} ({pairs} pair{'s' * (pairs != 1)})" + (f"\n{variant}" if variant else ""),
                   fontsize=8)  # fmt: skip
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)


def _against_k(figure: Any, barrier: polars.DataFrame) -> None:
    """Test error and loss barriers against k, a line for each s and combination of other axes."""
    from matplotlib import colormaps

    names = cell_names(barrier)
    test = barrier.filter(polars.col("split") == "test")
    panels = [(t, column, label) for t in _treatments(test) for column, label in _BARRIERS]
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    others = [name for name in names if name != "k"]
    for axis, (treatment, column, label) in zip(axes, panels, strict=True):
        lines = list(groups(test.filter(polars.col("batch_norm") == treatment), others))
        colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(lines)))
        for i, ((values, rows), colour) in enumerate(zip(lines, colours, strict=True)):
            found = [(k, estimate_of(own, column)) for (k,), own in groups(rows.sort("k"), ["k"])]
            shown = [(k, e) for k, e in found if e is not None and e.value is not None]
            ks = [k for k, _ in shown]
            variant = variant_of([*others[:-1], "k", "s"], values[:-1])
            axis.plot(ks, [e.value for _, e in shown], color=colour, marker="o", ms=3.5, lw=1.3,
                      label=f"s = {values[-1]}" + (f", {variant}" if variant else ""))  # fmt: skip
            for k, e in shown:
                draw_spread(axis, e, k + 0.03 * (i - (len(lines) - 1) / 2), colour)  # apart, so that each is seen
        axis.axhline(0, color="0.6", lw=0.8, zorder=0)
        axis.set_xlabel(K_LABEL, fontsize=8)
        axis.set_title(f"{label}\n{treatment} statistics", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    if len(axes[0].lines) and len({values for values, _ in groups(test, others)}) <= 12:
        axes[0].legend(fontsize=7)


def _treatments(frame: polars.DataFrame) -> list[str]:
    return frame["batch_norm"].unique(maintain_order=True).to_list()


def _colour(treatment: str) -> str:
    return TREATMENT_COLOURS.get(treatment, "0.3")


def _numbers(frame: polars.DataFrame, column: str) -> Any:
    """A column with NaN where it is null: a gap in the line."""
    return frame[column].fill_null(float("nan")).to_numpy()
