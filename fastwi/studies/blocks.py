"""Which block of layers the barrier, or the gain, of the whole line comes from.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: one block of
A is replaced by the mean of A's and B's, alpha = 0.5, the rest stays A's; and with A and B exchanged.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import SPLITS, Bench
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, chosen_lines
from fastwi.config.sweep import AnalysisOptions
from fastwi.report.estimates import (
    cell_heading,
    cell_names,
    draw_bars,
    estimate_table,
    last_cells,
    set_title,
    spread_text,
    style,
)
from fastwi.report.study import LINE_COLUMNS, MEASURED_COLUMNS, Frames, Study
from fastwi.report.summary import Table

WHOLE = "all"
_CHANGES = {"loss_nats": "loss_change_nats", "error_%": "error_change_points"}

COLUMNS = {
    "blocks": {
        **LINE_COLUMNS,
        "rest": Column("", "the child that all other blocks are of: A, the pair's first, or B", polars.String),
        "block": Column("", f"the block that is half A's and half B's, by name; {WHOLE}: every one", polars.String),
        "block_number": Column("", f"place of the block in the network, from 0; -1: {WHOLE}", polars.Int64),
        **MEASURED_COLUMNS,
        **{
            f"{split}_{change}": Column(change.rpartition("_")[2], "less that of the child that the rest is of")
            for split in SPLITS
            for change in _CHANGES.values()
        },
    }
}


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Move one block of A half-way to B, for every block of each chosen pair, and of B half-way to A.

    blocks: loss and error, and their change from the network that the rest is of, under the same treatment. The block
    "all" is the plain average.
    """
    by_model: dict[Any, dict[str, list[str]]] = {}  # a network is built for the names

    def groups_of(pair: Pair) -> dict[str, list[str]]:
        model = pair.config.model
        if model not in by_model:
            found = analysis.block_groups(opened.resources.network(pair.config))
            by_model[model] = {f"{name} (part)" if name == WHOLE else name: found[name] for name in found}
        return by_model[model]

    ends_and_average = 3
    bench = Bench(opened, options, progress)
    pairs = chosen_lines(opened, options)
    rows = list[dict[str, Any]]()
    for pair, how in bench.each(pairs, lambda pair: ends_and_average + 2 * len(groups_of(pair))):
        two = opened.states(pair.place.ends)
        line = analysis.evaluate_line(pair=two, alphas=[0, 0.5, 1], **how)
        on_line = {(row["batch_norm"], row["alpha"]): row for row in line.rows()}
        moved = analysis.evaluate_blocks(pair=two, alphas=[0.5], groups=groups_of(pair), **how).rows()
        by_rest = itertools.groupby(moved, lambda row: (row["batch_norm"], row["rest"]))
        for (treatment, rest), of_blocks in by_rest:
            own = on_line[treatment, float(rest == "B")]
            average = {**on_line[treatment, 0.5], "rest": rest, "block": WHOLE}
            for number, row in enumerate([average, *of_blocks], -1):
                rows.append({**pair.columns(), **row, "block_number": number, **_changes(row, own)})
    return opened.frames(COLUMNS, blocks=rows)


def _changes(row: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, float | None]:
    """Loss and error less the unchanged network's; None where one of them is not defined."""
    found: dict[str, float | None] = {}
    for split in SPLITS:
        for name, change in _CHANGES.items():
            new = row[f"{split}_{name}"]
            old = own[f"{split}_{name}"]
            found[f"{split}_{change}"] = None if new is None or old is None else new - old
    return found


_MOVED = "with one block half-way to the sibling, less without"
_TABLES = {
    "train_error_change_points": (f"Train error {_MOVED}, in points", 2),
    "test_error_change_points": (f"Test error {_MOVED}, in points", 2),
    "train_loss_change_nats": (f"Train loss {_MOVED}, in nats", 4),
    "test_loss_change_nats": (f"Test loss {_MOVED}, in nats", 4),
}


def tables(frames: Frames) -> list[Table]:
    """One table a quantity, one row a cell and block: means over both directions, with intervals over parents."""
    frame = frames["blocks"]
    names = [*cell_names(frame), "block"]
    end = f"; {WHOLE}: every block, the plain average"
    return [
        estimate_table(frame, title + end, names, ["batch_norm"], column, digits)
        for column, (title, digits) in _TABLES.items()
    ]


_PANELS = {
    "test_loss_change_nats": "test loss change (nats)",
    "test_error_change_points": "test error change (points)",
}


def draw(frames: Frames, title: str) -> Any:
    """Draw a bar for each block: test loss change left, test error change right, one row of panels a cell.

    Of many cells the last ones are drawn, and the title says so.
    """
    from matplotlib.figure import Figure

    names = cell_names(frames["blocks"])
    cells, part = last_cells(frames["blocks"], names)
    figure = Figure(figsize=(10.5, 2.9 * len(cells) + 0.9), layout="constrained")
    axes = figure.subplots(len(cells), 2, squeeze=False)
    found = []
    for row, (values, rows) in enumerate(cells):
        for axis, (column, label) in zip(axes[row], _PANELS.items(), strict=True):
            found += draw_bars(axis, rows.sort("block_number"), column, "block", "{} batch-norm statistics")
            style(axis, "", label, cell_heading(names, values, rows))
            axis.tick_params(axis="x", labelrotation=40)
    axes[0, 0].legend(fontsize=7)
    what = f"Change of one child by one block moved half-way to its sibling{part}"
    set_title(figure, what, f"{title}; {spread_text(found)}", size=10)
    return figure


QUESTION = "what each block of layers does when it alone is interpolated"
OPTIONS = ("train_images", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
