"""The mean gains of a sweep, each with its interval and n: heat maps over k x s, or a row for each other setting."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars

from fastwi.analysis.statistics import FEWEST, Estimate
from fastwi.report.drawing import draw_rows
from fastwi.report.estimates import by_end, cell_names, estimate_of, groups
from fastwi.report.figures import numbered, save_figure
from fastwi.report.summary import interval_text, value_text
from fastwi.report.tables import cells, gain_column, measured, note_of

K_LABEL, S_LABEL = "k: epochs of the parent", "s: epochs of each child"
_CELL_INCHES = (0.98, 0.52)
_LEAST_INCHES = (3.6, 2.9)  # of a panel
_MOST_INCHES = 45.0  # height of a file: browsers and viewers scale down what is higher
_MOST_ROWS = 6
_PALE = 0.3  # opacity of a cell whose interval contains 0, or that has none
_SPREAD = 10.0  # where the largest gain is this many times the typical one, a linear scale would show only it


def draw_gains(gains: polars.DataFrame, directory: Path, subject: str) -> list[Path]:
    """Draw the mean gain over the best child to heatmap.png or, where k and s have one value, to gains.png.

    As `draw_heatmap`.
    """
    if gains.select("k", "s").unique().height > 1:
        return draw_heatmap(gains, directory / "heatmap.png", subject)
    return _draw_list(gains, directory / "gains.png", subject) if measured(gains) else []


def _draw_list(gains: polars.DataFrame, path: Path, subject: str) -> list[Path]:
    """A row for each combination of the other axes, in the order of the sweep."""
    *axes, k, s = cell_names(gains)
    names = [*axes, k, s, *(["alpha"] if gains["alpha"].count() else [])]
    rows = dict(groups(gains, names))
    named = [at for at, name in enumerate(names) if name not in (k, s)] or [len(axes), len(axes) + 1]
    labels = [", ".join(value_text(values[at]) for at in named) for values in rows]
    found = {each: [estimate_of(own, gain_column(each)) for own in rows.values()] for each in measured(gains)}
    x, y = "gain in test accuracy over the best child (points)", ", ".join(names[at] for at in named)
    cell = f"k = {value_text(gains['k'][0])}, s = {value_text(gains['s'][0])}"
    title = f"Gain of the average over the best child: {subject}; {cell}"
    counted = "mean over parents, n = parents (pairs)"
    save_figure(draw_rows(labels, found, 8.0, x, y).titled(title, counted, below=note_of(gains)), path)
    return [path]


def draw_heatmap(gains: polars.DataFrame, path: Path, subject: str) -> list[Path]:
    """Draw the mean gain over the best child, in points, over k x s; one panel a treatment and other axes and alpha.

    All panels have one colour scale, centred at 0. Cells whose interval contains 0, or that have none, are pale, and
    the scale is that of the others, where there are any. Files are PNG, PDF and SVG; many panels go to several.
    Returns the PNGs' paths; none where nothing is measured. Raises UserError where a file cannot be written.
    """
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    treatments, (gains, s_name) = measured(gains), by_end(gains)
    if not treatments:
        return []
    maps: dict[tuple[str, str], dict[tuple[float, float], Estimate]] = {}
    for variant, k, s, rows in cells(gains):
        for treatment in treatments:
            estimate = estimate_of(rows, gain_column(treatment))
            here = maps.setdefault((variant, treatment), {})
            if estimate is not None:
                here[k, s] = estimate
    ks, ss = sorted(gains["k"].unique()), sorted(gains["s"].unique())
    # Axis labels and titles need room where a map has one cell.
    width = max(_CELL_INCHES[0] * len(ss) + 1.1, _LEAST_INCHES[0])
    height = max(_CELL_INCHES[1] * len(ks) + 1.2, _LEAST_INCHES[1])
    beside = len(treatments) if width < 10 else 1
    rows_of_panels = max(1, min(_MOST_ROWS, int(_MOST_INCHES / height)))
    most = (rows_of_panels * beside // len(treatments) or 1) * len(treatments)
    files = [list(maps)[first : first + most] for first in range(0, len(maps), most)]
    every = [estimate for here in maps.values() for estimate in here.values()]
    values = [e.value for e in every if e.value is not None]
    norm = _norm([e.value for e in every if e.value is not None and e.excludes_zero] or values)
    beyond = any(abs(value) > norm.vmax for value in values)
    below = f"mean over parents, n = parents (pairs); pale: no interval, which needs {FEWEST} parents, not all equal"
    if any(e.conclusive for e in every):
        below = (
            "mean over parents [95 % interval], n = parents (pairs); bold: the interval excludes 0; pale: it does not"
        )
    note = note_of(gains)
    paths = []
    for number, panels in enumerate(files, 1):
        counted = f" ({number} of {len(files)})" if len(files) > 1 else ""
        heading = f"Gain in test accuracy of the average over the best child: {subject}{counted}\n{below}"
        heading += f"\n{note}" if note else ""
        down = -(-len(panels) // beside)
        least = 0.075 * max(map(len, heading.split("\n")))  # a narrow map would cut its own heading off
        size = (max(width * beside + 1.0, least), height * down + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(down, beside, squeeze=False)
        for axis, (variant, treatment) in zip(axes.flat, panels, strict=False):
            image = _draw_map(axis, maps[variant, treatment], ks, ss, norm)
            if s_name != "s":
                axis.set_xlabel(f"{s_name}: epochs at averaging")
            where = textwrap.wrap(variant, int(13 * width))
            axis.set_title("\n".join([f"{treatment} batch-norm statistics", *where]), fontsize=8)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        bar = figure.colorbar(image, ax=axes, aspect=30, fraction=0.04, extend="both" if beyond else "neither")
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.set_label("mean gain (points, log scale)" if isinstance(norm, SymLogNorm) else "mean gain (points)")
        figure.suptitle(heading, fontsize=10)
        paths.append(numbered(path, number))
        save_figure(figure, paths[-1])
    return paths


def _draw_map(
    axis: Any, found: Mapping[tuple[float, float], Estimate], ks: Sequence[float], ss: Sequence[float], norm: Any
) -> Any:
    """Draw the estimates by k and s; returns the image. Each has its mean, interval and n, on three lines."""
    from matplotlib import colormaps

    colours = colormaps["RdBu"]
    mean_ks = np.full((len(ks), len(ss)), np.nan)
    opacity_ks = np.ones(mean_ks.shape)
    for y, x in np.ndindex(mean_ks.shape):
        estimate = found.get((ks[y], ss[x]))
        if estimate is None or estimate.value is None:
            axis.text(x, y, "not\nmeasured", ha="center", va="center", fontsize=6, color="0.45")
            continue
        mean_ks[y, x] = estimate.value
        opacity_ks[y, x] = 1.0 if estimate.excludes_zero else _PALE
        red, green, blue, _ = colours(float(norm(estimate.value)))
        dark = estimate.excludes_zero and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if dark else "black"
        bold = "bold" if estimate.excludes_zero else "normal"
        for up, text, size, weight in (
            (0.24, f"{estimate.value:+.2f}", 8, bold),
            (-0.05, interval_text(estimate) or "no interval", 6, "normal"),
            (-0.31, f"n = {estimate.n_parents} ({estimate.n_pairs})", 6, "normal"),
        ):
            axis.text(x, y + up, text, ha="center", va="center", fontsize=size, color=colour, weight=weight)
    axis.set_facecolor("0.92")
    axis.set_xticks(range(len(ss)), [f"{s:g}" for s in ss])
    axis.set_yticks(range(len(ks)), [f"{k:g}" for k in ks])
    axis.set_xlabel(S_LABEL)
    axis.set_ylabel(K_LABEL)
    return axis.imshow(
        mean_ks,
        cmap=colours,
        norm=norm,
        alpha=opacity_ks,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
    )


def _norm(means: Sequence[float]) -> Any:
    """The colour scale, symmetric about 0: linear, or logarithmic on each side where a few gains dwarf the rest."""
    from matplotlib.colors import Normalize, SymLogNorm

    sizes = np.abs(means)
    most, typical = float(sizes.max()) or 1.0, float(np.median(sizes))
    if most > _SPREAD * typical:
        return SymLogNorm(linthresh=max(typical, most / 1000), vmin=-most, vmax=most)
    return Normalize(-most, most)
