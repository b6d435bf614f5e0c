"""How alike children, average and parent represent images, layer by layer: linear CKA on the test images.

`fastwi.analysis.linear_cka` has the estimator. A layer is a block of the network, as in the study blocks. That the
average is more like each child than they are like each other is expected of any mean; how much more is the result.
"""

import itertools
from typing import Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import (
    cell_heading,
    cell_names,
    cells_of,
    distinct,
    estimate_at_interpolation,
    estimate_table,
    groups,
    verdict_table,
)
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table

CHILDREN, AVERAGE = "children", "children and average"
PARENT, PARENT_AVERAGE = "parent and children", "parent and average"
_COLOURS = {CHILDREN: "tab:green", AVERAGE: "#cc1a26", PARENT: "0.3", PARENT_AVERAGE: "tab:purple"}

COLUMNS = {
    "similarity": {
        **AVERAGE_COLUMNS,
        "layer": Column("", "the block of the network whose output is compared", polars.String),
        "layer_number": Column("", "its place in the network, from 0", polars.Int64),
        "between": Column("", f"which networks: {', '.join(_COLOURS)}", polars.String),
        "cka": Column("1", "linear CKA on the test images, the mean over children; null: not defined"),
    }
}


def measure(bench: Bench) -> Found:
    """Compare each two networks of each chosen pair in every layer, under each treatment of batch norm."""
    rows = list[Row]()
    for pair in bench.each(bench.pairs(stored=True)):
        test, _ = bench.part(pair.config, "test")
        count = len(pair.place.ends)
        two = np.array(list(itertools.combinations(range(count), 2)))
        networks = bench.opened.states([*pair.place.ends, pair.place.average, pair.place.clone])
        for treatment, population in bench.treated(pair, networks):
            layers, cka_LMM = analysis.linear_cka(bench.evaluator(pair.config), population, test)
            for number, (layer, cka_MM) in enumerate(zip(layers, cka_LMM, strict=True)):
                found = {
                    CHILDREN: cka_MM[two[:, 0], two[:, 1]].mean(),
                    AVERAGE: cka_MM[:count, count].mean(),
                    PARENT: cka_MM[:count, count + 1].mean(),
                    PARENT_AVERAGE: cka_MM[count, count + 1],
                }
                where = {"batch_norm": treatment, "layer": layer, "layer_number": number}
                for between, cka in found.items():
                    rows.append({**pair.columns(), **where, "between": between, "cka": analysis.finite(cka)})
    return {"similarity": rows}


_CLOSER = {
    "the average is more like each child than the children are like each other": (AVERAGE, CHILDREN),
    "the average is more like the parent than the children are": (PARENT_AVERAGE, PARENT),
}


def closer(frame: polars.DataFrame, more: str, less: str) -> polars.DataFrame:
    """CKA between the networks `more` less that between `less` as `cka`, the mean over layers, for each pair.

    Layers that lack one of them are left out.
    """
    keys = frame.columns[: frame.columns.index("layer")]
    of = polars.col("between")
    cka = polars.col("cka")
    difference = cka.filter(of == more).first() - cka.filter(of == less).first()
    by_layer = frame.group_by([*keys, "layer"], maintain_order=True).agg(difference)
    return by_layer.group_by(keys, maintain_order=True).agg(cka.mean())


def tables(frames: Frames) -> list[Table]:
    """Whether the average is closer to the others, over all cells and layers, and the CKA of each layer by cell."""
    frame = frames["similarity"]
    found = [
        ((words, treatment), estimate_at_interpolation(rows, "cka"))
        for words, (more, less) in _CLOSER.items()
        for (treatment,), rows in groups(closer(frame, more, less), ["batch_norm"])
    ]
    columns = ("statement", "batch norm", "CKA higher by", "parents", "pairs", "verdict")
    title = "Linear CKA, mean over layers, paired, all cells together [95 %]"
    names = [*cell_names(frame, alpha=True), "layer"]
    by_layer = "Linear CKA of each layer's outputs on the test images"
    return [
        verdict_table(title, columns, found, 4),
        estimate_table(frame, by_layer, names, ["between", "batch_norm"], "cka", 4),
    ]


def draw(frames: Frames, title: str) -> Any:
    """Draw CKA along the layers: a line for each two networks, a row of panels a cell, a panel a treatment.

    Of many cells the first ones are drawn, and the title says so.
    """
    frame = frames["similarity"]
    names = cell_names(frame, alpha=True)
    cells, part = cells_of(frame, alpha=True, most=8)
    treatments = distinct(frame, "batch_norm")
    sheet = Sheet(len(cells), len(treatments), (5.2, 3.0), (0.6, 1.2), sharey=True)
    for row, cell in zip(sheet.axes, cells, strict=True):
        for axis, treatment in zip(row, treatments, strict=True):
            here = cell.rows.filter(batch_norm=treatment).sort("layer_number")
            for i, (between, colour) in enumerate(_COLOURS.items()):
                look: dict[str, Any] = {"color": colour, "marker": "o", "ms": 3, "lw": 1.3, "label": between}
                own = here.filter(between=between)
                sheet.curve(axis, own, "layer_number", "cka", apart=0.06 * (i - 1.5), **look)
            layers = distinct(here, "layer")
            heading = cell_heading(names, cell.values, here, f"{treatment} batch-norm statistics")
            style(axis, "", "linear CKA" if axis is row[0] else "", heading)
            axis.set_xticks(range(len(layers)), layers, fontsize=7, rotation=40)
    sheet.axes[0, 0].legend(fontsize=7)
    what = f"How alike networks represent the test images, by layer{part}"
    return sheet.titled(what, title, "means over parents", size=10)


QUESTION = "how alike children, average and parent represent images, by layer (CKA)"
OPTIONS = ("test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
