"""Which block of layers the barrier, or the gain, of the whole line comes from.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: one block of
A is replaced by the mean of A's and B's, alpha = 0.5, the rest stays A's; and with A and B exchanged.
"""

import itertools
from typing import Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import SPLITS, Bench
from fastwi.analysis.pairs import Pair
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import cell_names, cells_of, estimate_tables
from fastwi.report.study import LINE_COLUMNS, MEASURED_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table

WHOLE = "all"
_CHANGES = {
    f"{split}_{name}": f"{split}_{change}"
    for split in SPLITS
    for name, change in (("loss_nats", "loss_change_nats"), ("error_%", "error_change_points"))
}

COLUMNS = {
    "blocks": {
        **LINE_COLUMNS,
        "rest": Column("", "the child that all other blocks are of: A, the pair's first, or B", polars.String),
        "block": Column("", f"the block that is half A's and half B's, by name; {WHOLE}: every one", polars.String),
        "block_number": Column("", f"place of the block in the network, from 0; -1: {WHOLE}", polars.Int64),
        **MEASURED_COLUMNS,
        **{
            change: Column(change.rpartition("_")[2], "less that of the child that the rest is of")
            for change in _CHANGES.values()
        },
    }
}


def measure(bench: Bench) -> Found:
    """Move one block of A half-way to B, for every block of each chosen pair, and of B half-way to A.

    blocks: loss and error, and their change from the network that the rest is of, under the same treatment. The block
    "all" is the plain average.
    """
    by_architecture: dict[Any, dict[str, list[str]]] = {}  # a network is built for the names

    def groups_of(pair: Pair) -> dict[str, list[str]]:
        kind = bench.opened.resources.architecture(pair.config)
        if kind not in by_architecture:
            found = analysis.block_groups(bench.opened.resources.network(pair.config))
            by_architecture[kind] = {f"{name} (part)" if name == WHOLE else name: found[name] for name in found}
        return by_architecture[kind]

    ends_and_average = 3
    rows = list[Row]()
    for pair, how in bench.each_line(bench.lines(), lambda pair: ends_and_average + 2 * len(groups_of(pair))):
        two = bench.opened.states(pair.place.ends)
        line = analysis.evaluate_line(pair=two, alphas=[0, 0.5, 1], **how)
        on_line = {(row["batch_norm"], row["alpha"]): row for row in line.rows()}
        moved = analysis.evaluate_blocks(pair=two, alphas=[0.5], groups=groups_of(pair), **how).rows()
        by_rest = itertools.groupby(moved, lambda row: (row["batch_norm"], row["rest"]))
        for (treatment, rest), of_blocks in by_rest:
            own = on_line[treatment, float(rest == "B")]
            average = {**on_line[treatment, 0.5], "rest": rest, "block": WHOLE}
            for number, row in enumerate([average, *of_blocks], -1):
                rows.append({**pair.columns(), **row, "block_number": number, **_changes(row, own)})
    return {"blocks": rows}


def _changes(row: Row, own: Row) -> dict[str, float]:
    """Loss and error less the unchanged network's, where both are defined."""
    defined = [name for name in _CHANGES if row[name] is not None and own[name] is not None]
    return {_CHANGES[name]: row[name] - own[name] for name in defined}


_MOVED = "with one block half-way to the sibling, less without, in"
_WHOLE = f"{WHOLE}: every block, the plain average"
_TABLES = {
    "train_error_change_points": (f"Train error {_MOVED} points; {_WHOLE}", 2),
    "test_error_change_points": (f"Test error {_MOVED} points; {_WHOLE}", 2),
    "train_loss_change_nats": (f"Train loss {_MOVED} nats; {_WHOLE}", 4),
    "test_loss_change_nats": (f"Test loss {_MOVED} nats; {_WHOLE}", 4),
}


def tables(frames: Frames) -> list[Table]:
    """One table a quantity, one row a cell and block: means over both directions, with intervals over parents."""
    frame = frames["blocks"]
    return estimate_tables(frame, _TABLES, [*cell_names(frame), "block"], ["batch_norm"])


_PANELS = {
    "test_loss_change_nats": "test loss change (nats)",
    "test_error_change_points": "test error change (points)",
}


def draw(frames: Frames, title: str) -> Any:
    """Draw a bar for each block: test loss change left, test error change right, one row of panels a cell.

    Of many cells the last ones are drawn, and the title says so.
    """
    cells, part = cells_of(frames["blocks"], most=8, last=True)
    sheet = Sheet(len(cells), 2, (5.25, 2.9), (0, 0.9))
    for row, cell in zip(sheet.axes, cells, strict=True):
        for axis, (column, label) in zip(row, _PANELS.items(), strict=True):
            sheet.bars(axis, cell.rows.sort("block_number"), column, "block")
            style(axis, "", label, cell.heading)
            axis.tick_params(axis="x", labelrotation=40)
    sheet.axes[0, 0].legend(fontsize=7)
    return sheet.titled(f"Change of one child by one block moved half-way to its sibling{part}", title, size=10)


QUESTION = "what each block of layers does when it alone is interpolated"
OPTIONS = ("train_images", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
