"""Tables and plots of benchmarks."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastwi.files import atomic_path

_OURS, _FLOOR = "#1f5fa8", "#b3261e"
_OTHERS = ("#9aa5b1", "#c08a3e", "#6b8f71", "#a35d6a", "#7d6b9e", "#4d8a99", "#b0763f", "#5c6670", "#99a04d")


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under their keys: texts, numbers, [low, high] and [median, low, high]. Longer lists are left out."""
    columns = [key for key, value in rows[0].items() if not isinstance(value, list) or len(value) <= 3]
    table = Table(title=Text(title), title_justify="left")  # Text: brackets are no markup
    for place, key in enumerate(columns):
        words = key.replace("_per_", "/").replace("_", " ")
        table.add_column(Text(words), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row[key])) for key in columns))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def cell(value: Any) -> str:
    """A value as the table has it."""
    if value is None or isinstance(value, str | bool):
        return value if isinstance(value, str) else {None: "-", True: "yes", False: "no"}[value]
    if not isinstance(value, list):
        return f"{value:,.{0 if value >= 100 or isinstance(value, int) else 2 if value >= 1 else 4}f}"
    *middle, low, high = map(cell, value)
    if not middle:
        return f"{low} - {high}"
    return middle[0] if low == high else f"{middle[0]} ({low} - {high})"


def plot(
    stem: str | Path,
    title: str,
    unit: str,
    points: Mapping[str, Mapping[Any, Sequence[float]]],
    floors: Mapping[str, float],
) -> None:
    """Draw (median, low, high) of each name: bars, or lines against a number of members. `floors` are dashed.

    Writes `stem`.png and `stem`.svg.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    bars = "" in next(iter(points.values()))
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(points)) if bars else (9, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    (_draw_bars if bars else _draw_lines)(axes, points)
    for (name, value), style in zip(floors.items(), itertools.cycle(("--", ":", "-."))):
        (axes.axvline if bars else axes.axhline)(
            value, linestyle=style, color=_FLOOR, linewidth=1, label=f"{name} floor"
        )
    (axes.set_xlabel if bars else axes.set_ylabel)(unit)
    if not bars or floors:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    # Text as text, and nothing in the file that changes from one run to the next.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastwi"}):
        for kind, extra in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            with atomic_path(f"{stem}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, **extra)  # type: ignore[arg-type]


def _draw_bars(axes: Any, points: Mapping[str, Mapping[Any, Sequence[float]]]) -> None:
    values = [each[""] for each in points.values()]
    colours = [_OURS if name.startswith("fastwi") else _OTHERS[0] for name in points]
    medians = [median for median, _, _ in values]
    axes.barh(list(points), medians, xerr=_errors(values), color=colours, error_kw={"elinewidth": 1.2})
    axes.invert_yaxis()


def _draw_lines(axes: Any, points: Mapping[str, Mapping[Any, Sequence[float]]]) -> None:
    """Both axes are logarithmic."""
    from matplotlib.ticker import LogLocator

    colours, markers = itertools.cycle(_OTHERS), itertools.cycle("osD^v<>pPX*h")
    for name, line in points.items():
        ours = name.startswith("fastwi")
        axes.errorbar(
            list(line), [median for median, _, _ in line.values()], yerr=_errors(list(line.values())), label=name,
            color=_OURS if ours else next(colours), marker=next(markers), markersize=5, elinewidth=1,
            linewidth=2.2 if ours else 1.2, zorder=3 if ours else 2,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({count for line in points.values() for count in line})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("networks trained together (M)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)


def _errors(values: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[median - low for median, low, _ in values], [high - median for median, _, high in values]]
