"""The plane through a parent and two children, as a map of the test loss."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars

from fastwi.report.heatmap import save_figure
from fastwi.report.studies.cells import cell_names, titled, variant_of
from fastwi.report.summary import Table
from fastwi.report.sweep import value_text

_LEVELS = 24
_SPREAD = 1000.0  # times the lowest loss: beyond it the map is cut off, or it would show nothing else
_LEAST = 1e-6  # nats


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """The networks that span the plane, and their average: one row a network and treatment. One pair: n = 1."""
    points = frames["points"]
    names = [*cell_names(points), "parent_seed", "pair"]
    body = []
    for row in points.iter_rows(named=True):
        measured = [row["test_loss_nats"], row["test_error_%"]]
        body.append(
            [*(value_text(row[name]) for name in names), row["point"], row["batch_norm"],
             f"{row['x_l2']:.3f}", f"{row['y_l2']:.3f}",
             *("not defined" if value is None else f"{value:.4f}" for value in measured)]
        )  # fmt: skip
    columns = (*names, "network", "batch_norm", "x (L2)", "y (L2)", "test loss (nats)", "test error (%)")
    return [titled("The networks that span the plane, and the average of A and B", columns, body, 1)]


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw contours of the test loss over the plane, on a logarithmic scale, one panel a treatment of batch norm.

    White: not defined, or more than 1,000 times the lowest loss. Writes PNG (`path`), PDF and SVG; raises UserError
    where that fails.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    plane, points = frames["plane"], frames["points"]
    treatments = plane["batch_norm"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(5.2 * len(treatments) + 0.4, 4.6), layout="constrained")
    axes = figure.subplots(1, len(treatments), squeeze=False)[0]
    for axis, treatment in zip(axes, treatments, strict=True):
        own = plane.filter(polars.col("batch_norm") == treatment).sort("y_l2", "x_l2")
        x_X, y_Y = own["x_l2"].unique().sort().to_numpy(), own["y_l2"].unique().sort().to_numpy()
        # A loss of exactly 0 has no logarithm.
        loss_YX = own["test_loss_nats"].fill_null(float("nan")).to_numpy().reshape(len(y_Y), len(x_X)).clip(_LEAST)
        if np.isfinite(loss_YX).any():
            low, high = float(np.nanmin(loss_YX)), float(np.nanmax(loss_YX))
            high = max(min(high, _SPREAD * low), low * 1.001)
            levels = np.geomspace(low, high, _LEVELS)
            image = axis.contourf(x_X, y_Y, np.ma.masked_invalid(loss_YX), levels, norm=LogNorm(low, high),
                                  cmap="viridis_r")  # fmt: skip
            bar = figure.colorbar(image, ax=axis, ticks=np.geomspace(low, high, 5), location="bottom", shrink=0.8)
            bar.ax.xaxis.set_major_formatter("{x:.3g}")
            bar.ax.minorticks_off()
            bar.set_label("test loss (nats, log scale)", fontsize=8)
        for row in points.filter(polars.col("batch_norm") == treatment).iter_rows(named=True):
            axis.plot(row["x_l2"], row["y_l2"], marker="*" if row["point"] == "average" else "o", ms=7, color="white",
                      markeredgecolor="black", ls="")  # fmt: skip
            axis.annotate(row["point"], (row["x_l2"], row["y_l2"]), xytext=(5, 5), textcoords="offset points",
                          fontsize=8)  # fmt: skip
        axis.set_aspect("equal")
        axis.set_xlabel("L2 distance of weights, from the parent towards A", fontsize=8)
        axis.set_ylabel("L2 distance of weights, across", fontsize=8)
        axis.set_title(f"{treatment} statistics", fontsize=8)
        axis.tick_params(labelsize=7)
    names = cell_names(plane)
    first = plane.row(0, named=True)
    cell = f"k = {first['k']}, s = {first['s']}; parent {first['parent_seed']}, pair {first['pair']} (n = 1)"
    variant = variant_of(names, [first[name] for name in names])
    figure.suptitle("\n".join(filter(None, [title, cell, variant])), fontsize=10)
    save_figure(figure, path)
