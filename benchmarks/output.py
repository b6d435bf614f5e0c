"""How every benchmark shows and keeps its results: a table, a JSON file, a chart."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastwi.files import atomic_path, write_json

_OURS = ("#0b3d78", "#1f5fa8", "#5b95d6", "#9cc3ee")
_OTHERS = ("#9aa5b1", "#c08a3e", "#6b8f71", "#a35d6a", "#7d6b9e", "#4d8a99", "#b0763f", "#5c6670", "#99a04d")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of words under columns of words; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def print_machine(machine: Mapping[str, str]) -> None:
    """Print the machine's description, one fact a line."""
    for name, value in machine.items():
        print(f"{name}: {value}")


def write_results(
    path: str | os.PathLike[str],
    benchmark: str,
    machine: Mapping[str, str],
    settings: Mapping[str, Any],
    measurements: Sequence[Mapping[str, Any]],
) -> None:
    """Write one run of a benchmark as JSON. Units are in the names of the measurements' keys."""
    write_json(
        path,
        {
            "benchmark": benchmark,
            "machine": dict(machine),
            "settings": dict(settings),
            "measurements": [dict(measurement) for measurement in measurements],
        },
    )


def plot_bars(
    path: str | os.PathLike[str],
    title: str,
    unit: str,
    bars: Mapping[str, tuple[float, float, float]],
    floor: tuple[str, float] | None = None,
) -> None:
    """Draw a bar for each name's (median, first quartile, third quartile) as a PNG; `floor` is dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    medians = [median for median, _, _ in bars.values()]
    spread = [
        [median - low for median, low, _ in bars.values()],
        [high - median for median, _, high in bars.values()],
    ]
    colours = ["#1f5fa8" if name.startswith("fastwi") else "#9aa5b1" for name in bars]
    axes.barh(list(bars), medians, xerr=spread, color=colours, error_kw={"elinewidth": 1.2})
    axes.invert_yaxis()
    if floor is not None:
        axes.axvline(floor[1], linestyle="--", color="#b3261e", linewidth=1, label=floor[0])
        axes.legend(loc="lower right", frameon=False)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def plot_lines(
    stem: str | os.PathLike[str],
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Mapping[int, tuple[float, float, float]]],
    floors: Mapping[str, float],
) -> None:
    """Draw each name's (median, first quartile, third quartile) against a count, both axes logarithmic.

    `labels` are of the two axes; `floors` are dashed. Writes `stem`.png and `stem`.svg.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    counts = sorted({count for points in lines.values() for count in points})
    greys, blues, markers = (itertools.cycle(group) for group in (_OTHERS, _OURS, "osD^v<>pPX*h"))
    for name, points in lines.items():
        ours = name.startswith("fastwi")
        xs, values = list(points), list(points.values())
        medians = [median for median, _, _ in values]
        spread = [[median - low for median, low, _ in values], [high - median for median, _, high in values]]
        axes.errorbar(
            xs, medians, yerr=spread, label=name, color=next(blues if ours else greys), marker=next(markers),
            linewidth=2.2 if ours else 1.2, markersize=5, elinewidth=1, zorder=3 if ours else 2,
        )  # fmt: skip
    for (name, value), style in zip(floors.items(), ("--", ":", "-.") * 2, strict=False):
        axes.axhline(value, linestyle=style, color="#b3261e", linewidth=1, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(_ticks())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    # Text as text, and nothing in the file that changes from one run to the next.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastwi"}):
        for kind, extra in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
            with atomic_path(Path(f"{os.fspath(stem)}.{kind}")) as temporary:
                figure.savefig(temporary, format=kind, **extra)  # type: ignore[arg-type]


def _ticks() -> Any:
    """1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1.0, 2.0, 5.0))
