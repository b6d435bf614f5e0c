"""The loss over the plane through a parent and two of its children (Garipov et al. 2018, appendix A.1).

Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018. O is the parent where it was cloned, A
and B its children; distances in the plane are L2 distances of weights (`fastwi.analysis.plane`).
"""

from typing import Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.statistics import NOTHING
from fastwi.report.drawing import set_title, style
from fastwi.report.estimates import cell_names, distinct, variant_of
from fastwi.report.study import LINE_COLUMNS, MEASURED_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, value_text

POINTS = {"parent": (1.0, 0.0, 0.0), "A": (0.0, 1.0, 0.0), "B": (0.0, 0.0, 1.0), "average": (0.0, 0.5, 0.5)}
"""The networks that are shown in the plane, as weights of O, A and B."""

_PLACE = {
    "x_l2": Column("L2 distance of weights", "place along the way from the parent to A; the parent is at 0"),
    "y_l2": Column("L2 distance of weights", "place across it, on B's side; the parent and A are at 0"),
    **{name: column for name, column in MEASURED_COLUMNS.items() if name.startswith("test")},
}
COLUMNS = {
    "plane": LINE_COLUMNS | _PLACE,
    "points": {
        **LINE_COLUMNS,
        "point": Column("", "which network: parent, A, B, or the average of A and B", polars.String),
        **_PLACE,
    },
}


def measure(bench: Bench) -> Found:
    """Measure a grid of `alphas` x `alphas` networks over the plane of one pair, and the pair, on the test images.

    The pair is the first of the first of `cells`; of the largest k, and of its largest s, where none is given. Null
    where a variance is negative. Raises UserError where parent, A and B span no plane (s = 0).
    """
    options, pairs = bench.options, bench.lines()
    chosen = pairs[0] if options.cells else max(pairs, key=lambda pair: (pair.k, pair.s))
    grid, at = list[Row](), list[Row]()
    weights_43 = np.array(list(POINTS.values()))
    size = (options.alphas, options.alphas)
    for pair, how in bench.each_line([chosen], lambda pair: options.alphas**2 + len(POINTS), ["test"]):
        three = bench.opened.states((pair.place.clone, *pair.place.ends))
        found = analysis.evaluate_plane(three=three, points=size, **how)
        grid += [{**pair.columns(), **row} for row in found.rows()]
        places = (weights_43 @ analysis.plane_points(three)).tolist()
        names = [{"point": name, "x_l2": x, "y_l2": y} for name, (x, y) in zip(POINTS, places, strict=True)]
        evaluator = how.pop("evaluator")
        found = evaluator.measure_sums(names, three, weights_43, **how)
        at += [{**pair.columns(), **row} for row in found.rows()]
    return {"plane": grid, "points": at}


def tables(frames: Frames) -> list[Table]:
    """The networks that span the plane, and their average: one row a network and treatment. One pair: n = 1."""
    points = frames["points"]
    body = []
    names = [*cell_names(points), "parent_seed", "pair"]
    for row in points.iter_rows(named=True):
        texts = [value_text(row[name]) for name in names] + [row["point"], row["batch_norm"]]
        texts += [f"{row[name]:.3f}" for name in ("x_l2", "y_l2")]
        measured = (row["test_loss_nats"], row["test_error_%"])
        body.append([*texts, *("not defined" if value is None else f"{value:.4f}" for value in measured)])
    columns = (*names, "network", "batch_norm", "x (L2)", "y (L2)", "test loss (nats)", "test error (%)")
    title = f"The networks that span the plane, and the average of A and B. {NOTHING}"
    return [Table(title, columns, tuple(map(tuple, body)))]


_LEVELS = 24
_ABOVE = 4.0  # times the largest loss of the four networks: what lies above would take the colours of all the rest
_LEAST = 1e-6  # nats: a loss of exactly 0 has no logarithm


def draw(frames: Frames, title: str) -> Any:
    """Draw contours of the test loss over the plane, on a logarithmic scale, one panel a treatment of batch norm.

    The scale ends at `_ABOVE` times the largest loss of the four networks; the title says what lies above it.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    plane = frames["plane"]
    points = frames["points"]
    treatments = distinct(plane, "batch_norm")
    width, height = (float(np.ptp(plane[name].to_numpy())) for name in ("x_l2", "y_l2"))
    figure = Figure(figsize=(5.2 * len(treatments) + 0.4, 2.6 + 4.4 * min(1.5, height / width)), layout="constrained")
    axes = figure.subplots(1, len(treatments), squeeze=False)[0]
    notes = set[str]()
    for axis, treatment in zip(axes, treatments, strict=True):
        here = points.filter(batch_norm=treatment)
        places, triangles = _triangulated(plane.filter(batch_norm=treatment), here)
        loss = places["test_loss_nats"].clip(_LEAST)
        if loss.null_count():
            axis.set_facecolor("0.85")
            notes.add("grey: a batch-norm variance is negative, and the loss is not defined")
        if not triangles.mask.all():
            losses: list[float] = loss.drop_nulls().to_list()
            low = min(losses)
            most = max(losses)
            named: list[float] = here["test_loss_nats"].drop_nulls().to_list()
            high = max(min(most, _ABOVE * max(named, default=most)), 1.001 * low)
            beyond = most > high
            if beyond:
                notes.add(f"the darkest colour: {high:.3g} nats or more, up to {most:.3g}")
            image = axis.tricontourf(
                triangles, loss.fill_null(low), np.geomspace(low, high, _LEVELS), norm=LogNorm(low, high),
                cmap="viridis_r", extend="max" if beyond else "neither",
            )  # fmt: skip
            bar = figure.colorbar(image, ax=axis, ticks=np.geomspace(low, high, 5), location="bottom", shrink=0.8)
            bar.ax.xaxis.set_major_formatter("{x:.3g}")
            bar.ax.minorticks_off()
            bar.set_label("test loss (nats, log scale)", fontsize=8)
        for row in here.iter_rows(named=True):
            axis.plot(row["x_l2"], row["y_l2"], marker="*" if row["point"] == "average" else "o", ms=7, color="white",
                      markeredgecolor="black", ls="")  # fmt: skip
            label = axis.annotate(row["point"], (row["x_l2"], row["y_l2"]), xytext=(5, 5), textcoords="offset points",
                                  fontsize=8)  # fmt: skip
            label.set_path_effects([withStroke(linewidth=2.0, foreground="white")])  # legible on dark colours
        axis.set_aspect("equal")
        style(axis, "L2 distance of weights, from the parent towards A", "L2 distance of weights, across",
              f"{treatment} batch-norm statistics")  # fmt: skip
        axis.grid(visible=False)
    first = plane.row(0, named=True)
    names = cell_names(plane)
    set_title(
        figure,
        "Test loss over the plane through the parent and its children A and B",
        title,
        f"k = {first['k']}, s = {first['s']}; parent {first['parent_seed']}, pair {first['pair']} (n = 1)",
        variant_of(names, [first[name] for name in names]),
        *sorted(notes),
    )
    return figure


def _triangulated(grid: polars.DataFrame, named: polars.DataFrame) -> tuple[polars.DataFrame, Any]:
    """The grid's networks and the named ones, and the triangles between them.

    A coarse grid misses the named networks: contours of the grid alone would contradict their losses. Masked:
    triangles at a network without a loss.
    """
    from matplotlib.tri import Triangulation

    columns = ["x_l2", "y_l2", "test_loss_nats"]
    places = polars.concat([named.select(columns), grid.select(columns)])
    triangles = Triangulation(places["x_l2"].to_numpy(), places["y_l2"].to_numpy())
    undefined = places["test_loss_nats"].is_null().to_numpy()
    triangles.set_mask(undefined[triangles.triangles].any(axis=1))
    return places, triangles


QUESTION = "the loss over the plane through parent, A and B"
OPTIONS = ("alphas", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
