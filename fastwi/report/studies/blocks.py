"""What moving one block of layers does, in tables and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars

from fastwi.analysis.studies.blocks import WHOLE
from fastwi.report.heatmap import save_figure
from fastwi.report.studies.cells import (
    TREATMENT_COLOURS,
    cell_names,
    counted,
    draw_spread,
    estimate_of,
    estimate_table,
    groups,
    variant_of,
)
from fastwi.report.summary import Table

_TABLES = {
    "error_change_points": ("Error with one block half-way to the sibling, less without, in points", 2),
    "loss_change_nats": ("Loss with one block half-way to the sibling, less without, in nats", 4),
}
_MOST_CELLS = 8


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """One table a quantity, one row a cell and block: means over both directions, with intervals over parents."""
    frame = frames["blocks"]
    treatments = frame["batch_norm"].unique(maintain_order=True).to_list()
    return [
        estimate_table(
            frame, f"{title} [95 %]; {WHOLE}: every block, the plain average", [*cell_names(frame), "block"],
            {
                f"{split}, {treatment}": (polars.col("batch_norm") == treatment, f"{split}_{column}", digits)
                for split in ("train", "test")
                for treatment in treatments
            },
        )
        for column, (title, digits) in _TABLES.items()
    ]  # fmt: skip


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw a bar for each block, with its interval or its parents: test loss change left, test error change right.

    One row of panels a cell; of many, the last ones are drawn, and the title says so. Writes PNG (`path`), PDF and
    SVG; raises UserError where that fails.
    """
    from matplotlib.figure import Figure

    names = cell_names(frames["blocks"])
    every = list(groups(frames["blocks"], names))
    cells = every[-_MOST_CELLS:]
    figure = Figure(figsize=(10.5, 2.9 * len(cells) + 0.7), layout="constrained")
    axes = figure.subplots(len(cells), 2, squeeze=False)
    panels = (("test_loss_change_nats", "test loss change (nats)"), ("test_error_change_points",
              "test error change (points)"))  # fmt: skip
    for row, (values, rows) in enumerate(cells):
        for axis, (column, label) in zip(axes[row], panels, strict=True):
            _bars(axis, rows, column)
            axis.set_ylabel(label, fontsize=8)
            parents, pairs = counted(rows)
            cell = f"k = {values[-2]}, s = {values[-1]}; n = {parents} ({pairs} pair{'s' * (pairs != 1)})"
            axis.set_title("\n".join(filter(None, [cell, variant_of(names, values)])), fontsize=8)
    axes[0, 0].legend(fontsize=7)
    part = f"\nthe last {len(cells)} of {len(every)} cells are drawn" if len(cells) < len(every) else ""
    figure.suptitle(f"{title}{part}", fontsize=10)
    save_figure(figure, path)


def _bars(axis: Any, rows: polars.DataFrame, column: str) -> None:
    blocks = rows.sort("block_number")["block"].unique(maintain_order=True).to_list()
    treatments = rows["batch_norm"].unique(maintain_order=True).to_list()
    width = 0.8 / len(treatments)
    for t, treatment in enumerate(treatments):
        own = rows.filter(polars.col("batch_norm") == treatment)
        found = [estimate_of(own.filter(polars.col("block") == block), column) for block in blocks]
        values = [float("nan") if e is None or e.value is None else e.value for e in found]
        x = np.arange(len(blocks)) + (t - (len(treatments) - 1) / 2) * width
        axis.bar(x, values, width, color=TREATMENT_COLOURS.get(treatment, "0.3"), label=f"{treatment} statistics")
        for place, e in zip(x, found, strict=True):
            draw_spread(axis, e, place, "0.2")
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set_xticks(range(len(blocks)), blocks, rotation=40, ha="right", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="y", alpha=0.25)
