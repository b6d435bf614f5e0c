"""Tables and plots of benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = dict[str, dict[Any, Sequence[float]]]
"""(median, low, high) of each name: at a number of members on a line, or as a bar at ""."""

_OURS, _FLOOR = "#1f5fa8", "#b3261e"
_OTHERS = ("#9aa5b1", "#c08a3e", "#6b8f71", "#a35d6a", "#7d6b9e", "#4d8a99", "#b0763f", "#5c6670", "#99a04d")
_MARKERS = "osD^v<>pPX*h"


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under their keys: texts, numbers, [low, high] and [median, low, high]."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[key.replace("_per_", "/").replace("_", " ") for key in keys]]
    lines += [[cell(row[key]) if key in row else "" for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for first, *others in lines:
        numbers = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *numbers]).rstrip())


def cell(value: Any) -> str:
    """A value as the table has it."""
    if value is None or isinstance(value, str | bool):
        return value if isinstance(value, str) else {None: "-", True: "yes", False: "no"}[value]
    if not isinstance(value, list):
        if 0 < abs(value) < 1e-3:
            return f"{value:.1e}"
        return f"{value:,.{0 if value >= 100 or isinstance(value, int) else 2 if value >= 1 else 4}f}"
    *middle, low, high = map(cell, value)
    if not middle:
        return f"{low} - {high}"
    return middle[0] if low == high else f"{middle[0]} ({low} - {high})"


def plot(stem: Path, title: str, unit: str, points: Points) -> None:
    """Draw bars, or lines against a number of members, into `stem`.png and `stem`.svg."""
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from fastwi.report.figures import save_figure

    bars = "" in next(iter(points.values()))
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(points)) if bars else (9, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    for place, (name, line) in enumerate(points.items()):
        values = np.array(list(line.values()))
        errors = np.maximum(0, (values[:, 1:] - values[:, :1]) * (-1, 1)).T  # a mean may lie outside the quartiles
        color = _OTHERS[place % len(_OTHERS)]
        if name.startswith("fastwi"):
            color = _OURS
        elif "floor" in name:
            color = _FLOOR
        if bars:
            axes.barh(name, values[:, 0], xerr=errors, color=color, error_kw={"elinewidth": 1.2})
        else:
            axes.errorbar(
                list(line), values[:, 0], yerr=errors, label=name, color=color, elinewidth=1, markersize=5,
                marker=_MARKERS[place % len(_MARKERS)], linestyle="--" if color == _FLOOR else "-",
                linewidth=2.2 if color == _OURS else 1.2,
            )  # fmt: skip
    if bars:
        axes.invert_yaxis()
        axes.set_xlabel(unit)
    else:
        counts = sorted({members for line in points.values() for members in line})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("networks trained together (M)")
        axes.set_ylabel(unit)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    with rc_context({"svg.fonttype": "none"}):  # text as text
        save_figure(figure, stem.with_suffix(".png"), dpi=150, kinds=("png", "svg"))
