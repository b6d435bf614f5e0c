"""Heat maps of a sweep: the mean gain over k x s, every cell with its interval and n."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastwi.analysis.statistics import FEWEST, Estimate
from fastwi.report.figures import numbered, save_figure
from fastwi.report.rows import OVER, TREATMENTS
from fastwi.report.summary import variant_text
from fastwi.report.tables import Cell

K_LABEL, S_LABEL = "k: epochs of the parent", "s: epochs of each child"
_CELL_INCHES = (0.98, 0.52)
_LEAST_INCHES = (3.6, 2.9)  # of a panel
_MOST_INCHES = 45.0  # height of a file: browsers and viewers scale down what is higher
_MOST_ROWS = 6
_SPREAD = 10.0  # where the largest gain is this many times the typical one, a linear scale would show only it


def draw_heatmap(found: Sequence[Cell], path: Path, subject: str, over: str = "best") -> list[Path]:
    """Draw the mean gain `over` the "best" child or the "mean" of children, in points, over k x s.

    One panel for each treatment of batch norm and each combination of other axes and alpha, with one colour scale,
    centred at 0; all `found` (from `fastwi.report.tables.cells`) is drawn. Each file is a PNG, `path`, with PDF
    and SVG beside it; panels beyond the first file's go to `path` with -2, -3 ... Returns the PNGs' paths; none where
    nothing is measured. Raises UserError where a file cannot be written.
    """
    columns = [name for name in TREATMENTS if any((name, over) in cell.gains for cell in found)]
    variants = list(dict.fromkeys(cell.variant for cell in found))
    ks, ss = sorted({cell.k for cell in found}), sorted({cell.s for cell in found})
    if not columns:
        return []
    means = [e.value for cell in found for (_, o), e in cell.gains.items() if o == over and e.value is not None]
    # Axis labels and titles need room where a map has one cell.
    width = max(_CELL_INCHES[0] * len(ss) + 1.1, _LEAST_INCHES[0])
    height = max(_CELL_INCHES[1] * len(ks) + 1.2, _LEAST_INCHES[1])
    beside = len(columns) if width < 10 else 1
    rows = max(1, min(_MOST_ROWS, int(_MOST_INCHES / height))) * beside // len(columns) or 1
    paths = []
    for first in range(0, len(variants), rows):
        part = variants[first : first + rows]
        name = numbered(path, first // rows + 1)
        panels = [(variant, treatment) for variant in part for treatment in columns]
        counted = f" ({first // rows + 1} of {-(-len(variants) // rows)})" if len(variants) > rows else ""
        _draw(found, panels, (ks, ss), _norm(means), (beside, width, height), name, subject + counted, over)
        paths.append(name)
    return paths


def _draw(
    found: Sequence[Cell], panels: Sequence[tuple[Any, str]], grid: tuple[list[int], list[int]], norm: Any,
    size: tuple[int, float, float], path: Path, subject: str, over: str,
) -> None:  # fmt: skip
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ks, ss = grid
    colours = colormaps["RdBu"]
    beside, width, height = size
    down = -(-len(panels) // beside)
    any_interval = any(e.conclusive for cell in found for (_, o), e in cell.gains.items() if o == over)
    below = "mean over parents [95 % interval], n = parents (pairs); bold: the interval excludes 0"
    if not any_interval:
        below = f"mean over parents, n = parents (pairs); intervals need {FEWEST} parents, not all equal"
    heading = f"Gain in test accuracy of the average over {OVER[over]}: {subject}\n{below}"
    # A narrow map would cut its own heading off.
    figure = Figure(
        figsize=(max(width * beside + 1.0, 0.075 * max(map(len, heading.split("\n")))), height * down + 0.8),
        layout="constrained",
    )
    axes = figure.subplots(down, beside, squeeze=False)
    image: Any = None
    for axis, (variant, treatment) in zip(axes.flat, panels, strict=False):
        here = {(c.k, c.s): c for c in found if c.variant == variant}
        mean_ks = np.full((len(ks), len(ss)), np.nan)
        for row, k in enumerate(ks):
            for column, s in enumerate(ss):
                cell = here.get((k, s))
                estimate = cell.gains.get((treatment, over)) if cell else None
                if estimate is None or estimate.value is None:
                    axis.text(column, row, "not\nmeasured", ha="center", va="center", fontsize=6, color="0.45")
                    continue
                mean_ks[row, column] = estimate.value
                red, green, blue, _ = colours(float(norm(estimate.value)))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                _annotate(axis, column, row, estimate, dark)
        axis.set_facecolor("0.92")
        image = axis.imshow(mean_ks, cmap=colours, norm=norm, aspect="auto", origin="lower", interpolation="nearest")
        axis.set_xticks(range(len(ss)), [str(s) for s in ss])
        axis.set_yticks(range(len(ks)), [str(k) for k in ks])
        axis.set_xlabel(S_LABEL)
        axis.set_ylabel(K_LABEL)
        where = textwrap.wrap(variant_text(variant), int(13 * width))
        axis.set_title("\n".join([f"{treatment} batch-norm statistics", *where]), fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=axes, aspect=30, fraction=0.04)
    log = type(norm).__name__ == "SymLogNorm"
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.set_label("mean gain (points, log scale)" if log else "mean gain (points)")
    figure.suptitle(heading, fontsize=10)
    save_figure(figure, path)


def _annotate(axis: Any, x: int, y: int, estimate: Estimate, dark: bool) -> None:
    """Mean, interval, n: on three lines, in white where the cell is dark."""
    colour = "white" if dark else "black"
    interval = f"[{estimate.low:+.2f}, {estimate.high:+.2f}]" if estimate.conclusive else "no interval"
    axis.text(x, y + 0.24, f"{estimate.value:+.2f}", ha="center", va="center", fontsize=8, color=colour,
              weight="bold" if estimate.excludes_zero else "normal")  # fmt: skip
    axis.text(x, y - 0.05, interval, ha="center", va="center", fontsize=6, color=colour)
    axis.text(x, y - 0.31, f"n = {estimate.n_parents} ({estimate.n_pairs})", ha="center", va="center", fontsize=6,
              color=colour)  # fmt: skip


def _norm(means: Sequence[float]) -> Any:
    """The colour scale, symmetric about 0: linear, or logarithmic on each side where a few gains dwarf the rest."""
    from matplotlib.colors import Normalize, SymLogNorm

    sizes = np.abs(means)
    most, typical = float(sizes.max()) or 1.0, float(np.median(sizes))
    if most > _SPREAD * typical:
        return SymLogNorm(linthresh=max(typical, most / 1000), vmin=-most, vmax=most)
    return Normalize(-most, most)
