"""Networks that share no past: the barrier between them before and after their units are matched.

Pairs of different parents are of the first child of each, in one cell of the sweep. The control is pairs of children
of one parent, where matching is expected to change little. Weight and activation matching: Ainsworth et al. 2023
(`fastwi.analysis.matching`). REPAIR and variance collapse: Jordan et al. 2023 (`fastwi.analysis.repair`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import SPLITS, Bench
from fastwi.analysis.pairs import Pair
from fastwi.errors import UserError
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import (
    cell_names,
    cells_of,
    estimate_table,
    estimate_tables,
    estimates_by,
    groups,
    variant_of,
    verdict_table,
)
from fastwi.report.study import Found, Frames, Row, Study
from fastwi.report.summary import LEVEL, Table

MIDDLE = 0.5
STRANGERS, SIBLINGS = "different parents", "one parent"
MATCHINGS = ("none", "weights", "activations")
REPAIRS = ("none", "repair")
_NAMES: dict[str, Column] = {
    **{name: PAIR_COLUMNS[name] for name in ("k", "s")},
    "relation": Column("", f"{STRANGERS}, the first child of each; or {SIBLINGS}, two children", polars.String),
    "parent_seed": Column("", "initialisation seed of A's parent", polars.Int64),
    "other_seed": Column("", "initialisation seed of B's parent", polars.Int64),
    "pair": Column("", f"which pair of the parent's children, from 0; 0 for {STRANGERS}", polars.Int64),
    "matching": Column("", "how B's units were put in order: none, by weights or by activations", polars.String),
    "repair": Column("", "repair: statistics of units as interpolated from the ends'; or none", polars.String),
}
COLUMNS = {
    "barrier": {
        **_NAMES,
        "split": Column("", "images that were measured on, without augmentation: train or test", polars.String),
        "barrier_error_points": Column("points", "largest error on the line less the mean of the ends' errors"),
        "barrier_error_linear_points": Column("points", "largest excess of the error over the ends' line"),
        "barrier_loss_nats": Column("nats", "largest loss on the line less the mean of the ends' losses"),
        "barrier_loss_linear_nats": Column("nats", "largest excess of the loss over the ends' line"),
        "middle_error_%": Column("%", "error at alpha = 0.5"),
        "middle_loss_nats": Column("nats", "loss at alpha = 0.5"),
        "moved_%": Column("%", "share of B's units that are in another place than before"),
        "weights_cosine": Column("1", "cosine of the weights of A and B"),
    },
    "layers": {
        **_NAMES,
        "layer": Column("", "node of the layer in the network's graph", polars.String),
        "layer_number": Column("", "its place among the layers compared, from 0", polars.Int64),
        "variance_ratio": Column("1", "variance of its units at alpha = 0.5 over the mean of the ends'"),
    },
}


@dataclass(frozen=True)
class _Cell:
    """The networks of one cell, the pairs of them by number, and what names each pair."""

    pair: Pair
    networks: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    names: tuple[Row, ...]


def measure(bench: Bench) -> Found:
    """Match and interpolate all pairs of parents, and the chosen pairs of siblings, of each cell.

    The barriers are over `alphas` evenly spaced places and 0.5. `pairs` counts siblings. Raises UserError for a sweep
    of one parent, and for a network whose units cannot be permuted.
    """
    opened, options = bench.opened, bench.options
    if len(opened.planned.spec.options.parents) < 2:
        raise UserError("sweep.parents: has one parent, and this study is of pairs of parents; sweep 2 or more")
    cells = _cells(bench.lines())
    opened.require(state for cell in cells for state in cell.networks)
    symmetries: dict[Any, analysis.Symmetry] = {}
    alphas_L = np.unique([*np.linspace(0, 1, options.alphas), MIDDLE])
    barriers, layers = list[Row](), list[Row]()
    bench.begin(len(MATCHINGS) * sum(len(cell.rows) for cell in cells))
    for cell in cells:
        config = cell.pair.config
        images = bench.matching_images(config)
        few_NCHW = next(analysis.images_of(images, 8))
        kind = opened.resources.architecture(config)
        if kind not in symmetries:
            symmetries[kind] = analysis.Symmetry.of(opened.resources.network(config), few_NCHW)
        symmetry = symmetries[kind]
        members = opened.states(cell.networks)
        symmetry.check(members, few_NCHW)
        unmoved = symmetry.identity(len(cell.rows))
        orders = {
            "none": unmoved,
            "weights": analysis.match_weights(symmetry, members, cell.rows),
            "activations": analysis.match_activations(symmetry, members, cell.rows, images),
        }
        splits = bench.splits(config)
        evaluator, on = bench.evaluator(config), bench.recomputation(cell.pair)
        for matching, order in orders.items():
            lines = analysis.MatchedLines(evaluator, symmetry, members, cell.rows, order, images, on)
            moved_R = 100 * (np.concatenate(order, 1) != np.concatenate(unmoved, 1)).mean(1)
            for repair in REPAIRS:
                for number, (layer, ratio_R) in enumerate(lines.collapse(repair == "repair").items()):
                    named = {"matching": matching, "repair": repair, "layer": layer, "layer_number": number}
                    for name, ratio in zip(cell.names, ratio_R.tolist(), strict=True):
                        layers.append({**name, **named, "variance_ratio": analysis.finite(ratio)})
            for row, name in enumerate(cell.names):
                named = {**name, "matching": matching, "moved_%": moved_R[row], "weights_cosine": lines.cosine(row)}
                for repair in REPAIRS:
                    found = lines.measure(row, alphas_L, splits, repair == "repair")
                    barriers += [{**named, "repair": repair, **_barrier(found, split)} for split in SPLITS]
                bench.passed()
    return {"barrier": barriers, "layers": layers}


def _barrier(line: "analysis.Measured", split: str) -> Row:
    found = analysis.barrier_of(line, split)
    at_middle = line.column("alpha") == MIDDLE
    values = {
        "barrier_error_points": found.error, "barrier_error_linear_points": found.error_linear,
        "barrier_loss_nats": found.loss, "barrier_loss_linear_nats": found.loss_linear,
        "middle_error_%": line.error[split]["averaged"][at_middle][0],
        "middle_loss_nats": line.loss[split]["averaged"][at_middle][0],
    }  # fmt: skip
    return {"split": split} | {name: analysis.finite(value) for name, value in values.items()}


def _cells(lines: Sequence[Pair]) -> list[_Cell]:
    """The cells of these pairs of siblings."""
    by_cell: dict[Any, list[Pair]] = {}
    for line in lines:
        by_cell.setdefault(line.point.values, []).append(line)
    cells = []
    for siblings in by_cell.values():
        first: dict[int, Pair] = {}
        for line in siblings:
            first.setdefault(line.point.parent, line)
        ends, names = [], []
        for a, b in itertools.combinations(first.values(), 2):
            ends.append((a.place.ends[0], b.place.ends[0]))
            names.append({**a.columns(), "relation": STRANGERS, "other_seed": b.point.parent, "pair": 0})
        for line in siblings:
            ends.append((line.place.ends[0], line.place.ends[1]))
            names.append({**line.columns(), "relation": SIBLINGS, "other_seed": line.point.parent})
        networks = tuple(dict.fromkeys(itertools.chain.from_iterable(ends)))
        rows = tuple((networks.index(a), networks.index(b)) for a, b in ends)
        cells.append(_Cell(siblings[0], networks, rows, tuple(names)))
    return cells


_TABLES = {
    "barrier_error_points": ("Test error barrier over the mean of the ends' errors, in points", 2),
    "barrier_loss_nats": ("Test loss barrier over the mean of the ends' losses, in nats", 4),
}


def tables(frames: Frames) -> list[Table]:
    """Barriers and variance ratios by matching, and whether matching lowers the error barrier."""
    barrier = frames["barrier"].filter(split="test")
    names = [*cell_names(barrier), "relation", "repair"]
    by, heading = ["matching"], "matching: {}"
    found = estimate_tables(barrier, _TABLES, names, by, heading=heading)
    title = "Variance of units at alpha = 0.5 over the mean of the ends', mean over layers"
    variance = estimate_table(frames["layers"], title, names, by, "variance_ratio", 3, heading)
    return [*found, _lowered(barrier), variance]


def _lowered(barrier: polars.DataFrame) -> Table:
    names = [*cell_names(barrier), "relation", "repair"]
    keys = [*names, "parent_seed", "other_seed", "pair"]
    before = barrier.filter(matching="none").select(*keys, before="barrier_error_points")
    after = barrier.filter(polars.col("matching") != "none").join(before, on=keys)
    after = after.with_columns(lowered=polars.col("before") - polars.col("barrier_error_points"))
    found = estimates_by(after, [*names, "matching"], "lowered")
    columns = (*names, "matching", f"lower by (points){LEVEL}", "parents", "pairs", "above 0")
    return verdict_table("Test error barrier without matching less that with it, in points", columns, found)


_LOOKS = {"none": "-", "repair": "--"}
_REPAIRED = {"none": "without REPAIR", "repair": "with REPAIR"}
_COLOURS = {"none": "tab:blue", "weights": "tab:orange", "activations": "tab:green"}


def draw(frames: Frames, title: str) -> Any:
    """Draw the error barriers of both relations, and the variance ratios by layer of pairs of different parents.

    A row of panels a cell; of many cells the last ones.
    """
    names = cell_names(frames["barrier"])
    cells, part = cells_of(frames["barrier"].filter(split="test"), most=4, last=True)
    of_layers = dict(groups(frames["layers"], names))
    sheet = Sheet(len(cells), 3, (11 / 3, 3.0), (0, 0.9))
    for row, cell in zip(sheet.axes, cells, strict=True):
        *_, k, s = cell.values
        for axis, relation in zip(row, (STRANGERS, SIBLINGS), strict=False):
            rows = cell.rows.filter(relation=relation).with_columns(polars.col("repair").replace(_REPAIRED))
            sheet.bars(axis, rows, "barrier_error_points", "repair", "matching: {}", "matching", _COLOURS)
            heading = [f"{relation}: k = {k}, s = {s}", variant_of(names, cell.values)]
            style(axis, "", "test error barrier (points)", "\n".join(filter(None, heading)))
        layers = of_layers[cell.values].filter(relation=STRANGERS)
        for (matching, repair), own in groups(layers, ["matching", "repair"]):
            look: dict[str, Any] = {"color": _COLOURS[matching], "ls": _LOOKS[repair], "lw": 1.3}
            sheet.curve(row[2], own, "layer_number", "variance_ratio", spread=False, **look)
        row[2].axhline(1, color="0.6", lw=0.8, zorder=0)
        style(row[2], "layer", "variance ratio at alpha = 0.5", f"{STRANGERS}; dashed: with repair", whole_x=True)
    next(axis for axis in sheet.axes.flat if axis.containers).legend(fontsize=7)  # a parent may be alone in its cell
    return sheet.titled(f"Barriers before and after matching{part}", title, size=10)


QUESTION = "the barrier between networks of different parents, before and after their units are matched"
OPTIONS = ("alphas", "train_images", "test_images", "cells", "pairs", "matching_images")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
