"""Soups of all children of a parent: the uniform average, and the greedy one.

Wortsman et al. 2022, Model soups, section 2 (`fastwi.analysis.soups`). A set is all children of one parent in one
cell of the sweep; after rounds of averaging, the children of one average. Networks are chosen on training images that
the sweep left out, and measured on test images.
"""

from typing import Any

import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair, require_one_line
from fastwi.config.sweep import RECOMPUTED
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import cell_names, cells_of, estimate_of, groups, verdict_table
from fastwi.report.study import LINE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import LEVEL, Table, value_text

BEST, UNIFORM, GREEDY = "best", "uniform", "greedy"
COLUMNS = {
    "soups": {
        **{name: column for name, column in LINE_COLUMNS.items() if name != "pair"},
        "pair": Column(
            "", "0: all children of the parent are one set; after rounds each tuple is one, from 0", polars.Int64
        ),
        "soup": Column("", "best: the child best on held-out images; uniform: all; greedy: chosen", polars.String),
        "children": Column("", "networks in the average", polars.Int64),
        "of_children": Column("", "networks in the set", polars.Int64),
        "held_out_accuracy_%": Column("%", "accuracy on the held-out training images"),
        "test_accuracy_%": Column("%", "accuracy on the test images"),
        "test_loss_nats": Column("nats", "mean cross-entropy on the test images"),
        "gain_points": Column("points", "test accuracy less that of the best child"),
    }
}


def measure(bench: Bench) -> Found:
    """Average all children of each parent in each cell, and choose greedily among them, under each treatment.

    Raises UserError where the sweep left no training image out, and as `require_one_line` does.
    """
    sets: dict[Any, dict[str, Pair]] = {}
    lines: dict[Any, Pair] = {}
    for pair in bench.pairs():
        parent = (*pair.variant, pair.cell, pair.point.parent)
        require_one_line(pair, lines.setdefault((*parent, pair.point.tuple_index), pair))
        children = sets.setdefault((*parent, _number(pair)), {})
        children.update((end, pair) for end in pair.place.ends)
    rows = list[Row]()
    for children in bench.each(list(sets.values())):
        pair = next(iter(children.values()))
        members = bench.opened.states(list(children))
        held_out = bench.held_out(pair.config)
        test, _ = bench.part(pair.config, "test")
        everyone = range(members.members)
        how = bench.how(pair)
        evaluator = how["evaluator"]
        for treatment in bench.options.treatments:
            on = how["recomputation"] if treatment == RECOMPUTED else None
            chosen = analysis.greedy_soup(evaluator, members, held_out, on)
            made = {BEST: chosen[:1], UNIFORM: everyone, GREEDY: chosen}
            networks = analysis.uniform_soups(members, list(made.values()))
            networks = networks if on is None else evaluator.recompute(networks, on)
            there, here = (evaluator.scores(networks, images) for images in (held_out, test))
            for i, (name, own) in enumerate(made.items()):
                rows.append({
                    **pair.columns(), "pair": _number(pair), "batch_norm": treatment, "soup": name,
                    "children": len(own), "of_children": members.members,
                    "held_out_accuracy_%": there.accuracy_M[i],
                    "test_accuracy_%": here.accuracy_M[i], "test_loss_nats": analysis.finite(here.loss_M[i]),
                    "gain_points": here.accuracy_M[i] - here.accuracy_M[0],
                })  # fmt: skip
    return {"soups": rows}


def _number(pair: Pair) -> int:
    """The number of the pair's set. After a round its children start from an average of their own."""
    return pair.point.tuple_index if pair.config.experiment.rounds > 1 else 0


def tables(frames: Frames) -> list[Table]:
    """The gain of each soup over the child that is best on held-out images, with the verdict that it is above 0."""
    frame = frames["soups"]
    names = [*cell_names(frame), "soup", "batch_norm"]
    found = []
    for values, rows in groups(frame.filter(polars.col("soup") != BEST), names):
        taken, of = (sum(rows[name]) / rows.height for name in ("children", "of_children"))
        found.append(([*map(value_text, values), f"{taken:.1f} of {of:.1f}"], estimate_of(rows, "gain_points")))
    columns = (*names, "children", f"gain (points){LEVEL}", "parents", "sets", "above 0")
    title = "Test accuracy of soups less that of the child best on held-out images, in points; children: mean number"
    return [verdict_table(title, columns, found)]


def draw(frames: Frames, title: str) -> Any:
    """Draw the gain of each soup, a panel a cell; of many cells the first ones."""
    frame = frames["soups"].filter(polars.col("soup") != BEST)
    cells, part = cells_of(frame, most=8)
    sheet = Sheet.of(len(cells), 2, (5.4, 2.6), below=0.9)
    for axis, cell in zip(sheet.axes, cells, strict=True):
        sheet.bars(axis, cell.rows, "gain_points", "soup")
        style(axis, "", "test accuracy gain (points)", cell.heading)
    sheet.axes[0].legend(fontsize=7)
    return sheet.titled(f"Soups less the best child{part}", title, size=10)


QUESTION = "what uniform and greedy averages of all children of a parent gain over the best of them"
OPTIONS = ("test_images", "treatments", "cells", "pairs", "held_out_images")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
