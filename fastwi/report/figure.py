"""The picture of one run, in the shape of the paper's Figure 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastwi.report.heatmap import save_figure
from fastwi.report.rows import ACCURACY, Row

_PANELS = ((ACCURACY, "test accuracy (%)"), ("test_loss", "test loss (nats)"), ("train_loss", "train loss (nats)"))


def _series(rows: Sequence[Row], network: str, value: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one network; the interpolation's own-statistics value comes first for the average."""
    chosen = [r for r in rows if r["network"] == network and value in r and r["batch_norm"] == "own"]
    chosen = [r for r in chosen if r["stage"] != "interpolation" or network == "average"]
    return [r["epoch"] for r in chosen], [r[value] for r in chosen]


def draw_run(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw test accuracy, test loss and train loss of every network over epochs to `path` (PNG) and a PDF beside.

    Dashed lines stand where the parent was cloned and where the children were averaged; hollow markers are
    networks with recomputed batch-norm statistics. Raises UserError where the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    names = list(dict.fromkeys(r["network"] for r in rows))
    colours = dict(
        zip(
            [n for n in names if n.startswith("child")],
            [colormaps["tab10"](i % 10) for i in range(len(names))],
            strict=False,
        )
    )
    colours |= {"parent": (0.35, 0.35, 0.35), "average": (0.80, 0.10, 0.15)}
    marks = sorted({r["epoch"] for r in rows if r["stage"] == "interpolation"})
    cloned = [r["epoch"] for r in rows if r["stage"] == "parent"]
    for axis, (value, label) in zip(axes, _PANELS, strict=True):
        for name in names:
            x, y = _series(rows, name, value)
            if name.startswith("child") and cloned and (x or y):
                parent_x, parent_y = _series(rows, "parent", value)
                x, y = parent_x[-1:] + x, parent_y[-1:] + y
            strong = name == "average"
            axis.plot(x, y, marker="o", markersize=3.5 if strong else 2.5, lw=1.8 if strong else 1.2,
                      color=colours[name], label=name, zorder=3 if strong else 2)  # fmt: skip
        _recomputed(axis, rows, value, colours)
        for epoch in (*cloned[-1:], *marks):
            axis.axvline(epoch, color="0.6", lw=0.8, ls="--", zorder=0)
        axis.set_xlabel("epochs since initialisation")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[:8], labels[:8], fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path, dpi=130, kinds=("png", "pdf"))


def _recomputed(axis: Any, rows: Sequence[Row], value: str, colours: dict[str, Any]) -> None:
    for row in rows:
        if row["batch_norm"] == "recomputed" and value in row:
            label = "recomputed statistics" if row["network"] == "average" else None
            axis.plot([row["epoch"]], [row[value]], marker="D", ls="", markersize=5, markerfacecolor="none",
                      color=colours[row["network"]], label=label, zorder=4)  # fmt: skip
