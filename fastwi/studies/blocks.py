"""Which block of layers the barrier, or the gain, of the whole line comes from.

Adilova, Andriushchenko, Kamp, Fischer, Jaggi, Layer-wise Linear Mode Connectivity, ICLR 2024, section 3: one block of
A is replaced by the mean of A's and B's, alpha = 0.5, the rest stays A's; and with A and B exchanged.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import SPLITS, Bench
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Progress, chosen_lines
from fastwi.config.sweep import AnalysisOptions
from fastwi.report.estimates import (
    cell_names,
    counted_text,
    distinct,
    draw_bars,
    estimate_table,
    groups,
    spread_text,
    style,
    variant_of,
)
from fastwi.report.figures import save_figure
from fastwi.report.study import LINE_COLUMNS, MEASURED_COLUMNS, Frames, Study
from fastwi.report.summary import Table

if TYPE_CHECKING:
    from torch import nn

    from fastwi.population import Layout

WHOLE = "all"
_MIDDLE = 0.5
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

    blocks: one row a treatment, direction and block: loss and error on train and on test, and their change from the
    network that the rest is of, under the same treatment of batch norm. A block's averaged statistics move with it.
    The block "all" is the plain average.
    """
    pairs = chosen_lines(opened, options)
    opened.require(key for pair in pairs for key in pair.place.ends)
    bench = Bench(opened, options, progress)
    ends_and_mean = 3
    bench.expect(
        (pair.config, ends_and_mean + 2 * len(block_groups(opened.resources.layout(pair.config)))) for pair in pairs
    )
    names: dict[object, list[str]] = {}
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        population = opened.states(pair.place.ends)
        groups = block_groups(population.layout)
        evaluator, splits, how = bench.evaluator(pair.config), bench.splits(pair.config), bench.treatments(pair)
        line = analysis.evaluate_line(evaluator, population, splits, [0.0, _MIDDLE, 1.0], **how)
        found = analysis.evaluate_blocks(evaluator, population, splits, [_MIDDLE], groups=groups, **how)
        model = pair.config.model
        if model not in names:
            names[model] = block_names(groups, opened.resources.network(pair.config))
        for treatment in options.treatments:
            for d, (rest, end) in enumerate((("A", 0), ("B", 2))):
                own = line.columns(treatment, end)
                measured = [(WHOLE, line.columns(treatment, 1))]
                measured += [(name, found.columns(treatment, d, g, 0)) for g, name in enumerate(names[model])]
                for number, (name, values) in enumerate(measured, -1):
                    row = {"batch_norm": treatment, "rest": rest, "block": name, "block_number": number}
                    rows.append({**pair.columns(), **row, **values, **_changes(values, own)})
    bench.finish()
    return opened.frames(COLUMNS, blocks=rows)


def block_groups(layout: "Layout") -> dict[str, list[str]]:
    """The blocks of an architecture by name, in order: its top-level parts, and of a numbered list each element.

    So the residual blocks `blocks.0`, `blocks.1` ... of a ResNet are one each.
    """
    names: dict[str, list[str]] = {}
    for span in layout.parameters:
        first, *rest = span.name.split(".")
        name = ".".join([first, *itertools.takewhile(str.isdigit, rest)])
        names[name] = [name]
    return names


def block_names(groups: Mapping[str, Any], network: "nn.Module") -> list[str]:
    """The blocks as a reader knows them: where a name is only a number, with the layer's class: `0 Conv2d`."""
    layers = dict(network.named_modules())
    return [f"{name} {type(layers[name]).__name__}" if name.replace(".", "").isdigit() else name for name in groups]


def _changes(values: dict[str, float | None], own: dict[str, float | None]) -> dict[str, float | None]:
    """Loss and error less the unchanged network's; None where one of them is not defined."""
    found: dict[str, float | None] = {}
    for split in SPLITS:
        for name, change in _CHANGES.items():
            new, old = values[f"{split}_{name}"], own[f"{split}_{name}"]
            found[f"{split}_{change}"] = None if new is None or old is None else new - old
    return found


_TABLES = {
    "error_change_points": ("Error with one block half-way to the sibling, less without, in points", 2),
    "loss_change_nats": ("Loss with one block half-way to the sibling, less without, in nats", 4),
}


def tables(frames: Frames) -> list[Table]:
    """One table a quantity, one row a cell and block: means over both directions, with intervals over parents."""
    frame = frames["blocks"]
    return [
        estimate_table(
            frame, f"{title} [95 %]; {WHOLE}: every block, the plain average", [*cell_names(frame), "block"],
            {
                f"{split}, {treatment}": (polars.col("batch_norm") == treatment, f"{split}_{column}", digits)
                for split in ("train", "test")
                for treatment in distinct(frame, "batch_norm")
            },
        )
        for column, (title, digits) in _TABLES.items()
    ]  # fmt: skip


_PANELS = {
    "test_loss_change_nats": "test loss change (nats)",
    "test_error_change_points": "test error change (points)",
}
_MOST_CELLS = 8


def draw(frames: Frames, path: Path, title: str) -> None:
    """Draw a bar for each block: test loss change left, test error change right, one row of panels a cell.

    Of many cells the last ones are drawn, and the title says so.
    """
    from matplotlib.figure import Figure

    names = cell_names(frames["blocks"])
    every = list(groups(frames["blocks"], names))
    cells = every[-_MOST_CELLS:]
    figure = Figure(figsize=(10.5, 2.9 * len(cells) + 0.9), layout="constrained")
    axes = figure.subplots(len(cells), 2, squeeze=False)
    found = []
    for row, (values, rows) in enumerate(cells):
        heading = [f"k = {values[-2]}, s = {values[-1]}; {counted_text(rows)}", variant_of(names, values)]
        for axis, (column, label) in zip(axes[row], _PANELS.items(), strict=True):
            found += draw_bars(axis, rows.sort("block_number"), column, "block", "{} batch-norm statistics")
            style(axis, "", label, "\n".join(filter(None, heading)))
            axis.tick_params(axis="x", labelrotation=40)
    axes[0, 0].legend(fontsize=7)
    part = f" (the last {len(cells)} of {len(every)} cells)" if len(cells) < len(every) else ""
    figure.suptitle(
        f"Change of one child by one block moved half-way to its sibling{part}\n{title}; {spread_text(found)}",
        fontsize=10,
    )
    save_figure(figure, path)


STUDY = Study(
    question="what each block of layers does when it alone is interpolated",
    options=("train_images", "test_images", "treatments", "cells", "pairs"),
    columns=COLUMNS,
    measure=measure,
    tables=tables,
    draw=draw,
)
