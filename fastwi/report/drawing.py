"""Figures of studies: panels that are alike in all of them, and means with what they rest on."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars

from fastwi.analysis.statistics import Estimate
from fastwi.report.estimates import distinct, estimate_of, groups, value_of

TREATMENT_COLOURS = {"averaged": "tab:blue", "own": "tab:blue", "recomputed": "tab:orange"}


class Sheet:
    """A figure of panels. It knows the estimates that it draws: the title says what they rest on."""

    def __init__(
        self,
        down: int,
        across: int,
        inches: tuple[float, float] = (1, 1),
        beyond: tuple[float, float] = (0, 0),
        figure: Any = None,
        **shared: Any,
    ) -> None:
        """inches: of a panel; beyond: of the figure beside panels. figure: one there is. shared: of `subplots`."""
        from matplotlib.figure import Figure

        size = (inches[0] * across + beyond[0], inches[1] * down + beyond[1])
        self.figure = figure or Figure(figsize=size, layout="constrained")
        self.axes = self.figure.subplots(down, across, squeeze=False, **shared)
        self._found = list[Estimate | None]()

    @classmethod
    def of(cls, count: int, across: int, inches: tuple[float, float], below: float, **shared: Any) -> "Sheet":
        """`count` panels as one list, `across` of them in a row. below: inches for the legend and the title."""
        across = min(across, count)
        sheet = cls(-(-count // across), across, inches, (0.6, below), **shared)
        axes = sheet.axes.ravel()
        for axis in axes[count:]:
            axis.set_visible(False)
        sheet.axes = axes[:count]
        return sheet

    def bars(
        self,
        axis: Any,
        rows: polars.DataFrame,
        column: str,
        by: str,
        label: str = "{} batch-norm statistics",
        hue: str = "batch_norm",
        colours: Mapping[str, str] = TREATMENT_COLOURS,
    ) -> list[Estimate | None]:
        """The estimate of `column` for each value of the column `by`, a bar for each of the column `hue`.

        label: of one of the latter, with {} in its place. Returns the estimates.
        """
        kinds = distinct(rows, hue)
        places = distinct(rows, by)
        width = 0.8 / max(1, len(kinds))
        every = list[Estimate | None]()
        for k, kind in enumerate(kinds):
            own = rows.filter(polars.col(hue) == kind)
            found = [estimate_of(own.filter(polars.col(by) == place), column) for place in places]
            x = [i + (k - (len(kinds) - 1) / 2) * width for i in range(len(places))]
            heights = list(map(value_of, found))
            axis.bar(x, heights, width, color=colours[kind], alpha=0.75, label=label.format(kind))
            for at, estimate in zip(x, found, strict=True):
                draw_spread(axis, estimate, at, "0.15")
            every += found
        axis.axhline(0, color="0.4", lw=0.8)
        axis.set_xticks(range(len(places)), list(map(str, places)), fontsize=7)
        self._found += every
        return every

    def curve(
        self,
        axis: Any,
        rows: polars.DataFrame,
        at: str,
        column: str,
        spread: bool = True,
        apart: float = 0.0,
        **look: Any,
    ) -> None:
        """The estimates of `column` along the column `at`, in its order.

        spread: what each rests on, too. apart: how far from its place each is drawn. look: of the line.
        """
        found = {place + apart: estimate_of(here, column) for (place,), here in groups(rows.sort(at), [at])}
        axis.plot(list(found), list(map(value_of, found.values())), **look)
        for place, estimate in found.items() if spread else ():
            draw_spread(axis, estimate, place, look["color"])
            self._found.append(estimate)

    def legend(self, ncols: int, size: int = 8) -> None:
        """A legend below the panels, of what they show: each label once."""
        shown = dict[str, Any]()
        for axis in self.axes.flat:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                shown.setdefault(label, handle)
        self.figure.legend(shown.values(), shown, loc="outside lower center", ncols=ncols, fontsize=size)

    def titled(self, what: str, *lines: str, below: str = "", size: int = 9) -> Any:
        """The figure with its title: what it shows; `lines` and what its estimates rest on, in one line; `below`."""
        set_title(self.figure, what, "; ".join(filter(None, [*lines, spread_text(self._found)])), below, size=size)
        return self.figure


def draw_spread(axis: Any, estimate: Estimate | None, at: float, colour: str, across: bool = False) -> None:
    """What an estimate rests on, at the place `at`: its interval as a line, or without one a dot for each parent.

    across: along x, with `at` on y.
    """
    if estimate is None:
        return
    values: Sequence[float] = estimate.points
    style: dict[str, Any] = {"ls": "", "marker": "o", "ms": 2.2, "alpha": 0.8}
    if estimate.low is not None and estimate.high is not None:
        values = (estimate.low, estimate.high)
        style = {"lw": 1.2}
    places = [at] * len(values)
    axis.plot(*((values, places) if across else (places, values)), color=colour, zorder=4, **style)


def spread_text(estimates: Iterable[Estimate | None]) -> str:
    """What `draw_spread` draws of them, for a reader of the figure."""
    found = [e for e in estimates if e is not None]
    bars = any(e.conclusive for e in found)
    dots = any(e.points and not e.conclusive for e in found)
    return "; ".join(["bars: 95 % interval over parents"] * bars + ["dots: each parent"] * dots)


def draw_rows(
    labels: Sequence[str], found: Mapping[str, Sequence[Estimate | None]], inches: float, x: str, y: str = ""
) -> Sheet:
    """A row for each label, from the top: its estimates, their spread and n. `inches`: the figure's width.

    found: the estimates of all labels, by treatment of batch norm. A mean without an interval is hollow.
    """
    height = 0.36 * len(labels)
    sheet = Sheet(1, 1, (inches, height + 1.9))
    axis = sheet.axes[0, 0]
    # A label of y that is longer than the figure is high would be cut off.
    style(axis, x, textwrap.fill(y, int((height + 1.1) / 0.06), break_long_words=False))
    for i, (treatment, estimates) in enumerate(found.items()):
        colour = TREATMENT_COLOURS[treatment]
        name = f"{treatment} batch-norm statistics"
        for row, estimate in enumerate(estimates):
            if estimate is None:
                continue
            at = row + 0.28 * (i - (len(found) - 1) / 2)
            draw_spread(axis, estimate, at, colour, across=True)
            face = colour if estimate.conclusive else "white"
            axis.plot([value_of(estimate)], [at], "o", markersize=4.5, color=colour, markerfacecolor=face, label=name)
            n = f"n = {estimate.n_parents} ({estimate.n_pairs})"
            beside = ("axes fraction", "data")
            axis.annotate(n, (1.01, at), fontsize=6, va="center", xycoords=beside, color=colour)
            name = ""  # once in the legend
        sheet._found += estimates
    axis.axvline(0, color="0.3", lw=0.9)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    sheet.figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return sheet


def looks(
    coloured: Sequence[Any], marked: Sequence[Any], names: tuple[str, str]
) -> tuple[dict[Any, Any], dict[Any, str], list[Any]]:
    """A colour for each value of one thing, a marker for each of another, and a legend's entries for them.

    names: of an entry of each, with {} in place of the value.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    colours = {v: colormaps["viridis"](0.92 * i / max(1, len(coloured) - 1)) for i, v in enumerate(coloured)}
    markers = dict(zip(marked, itertools.cycle("osD^vP*X<>")))
    each: list[tuple[str, Any, str]] = [("o", colour, names[0].format(value)) for value, colour in colours.items()]
    each += [(marker, "0.35", names[1].format(value)) for value, marker in markers.items()]
    handles = [Line2D([], [], ls="", marker=marker, color=colour, label=label) for marker, colour, label in each]
    return colours, markers, handles


def style(axis: Any, x: str = "", y: str = "", title: str = "", whole_x: bool = False) -> None:
    """Labels, title, ticks and grid, alike in all figures of studies. `whole_x`: ticks of x at whole numbers."""
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.set_title(title, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    if whole_x:
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def set_title(figure: Any, *lines: str, size: int = 9) -> None:
    """Write a figure's title: those of `lines` that are not empty. What is wider than the figure is wrapped."""
    inches = figure.bbox.width / figure.dpi  # also of a part of a figure
    most = int(inches / (0.0075 * size))  # characters
    shown = [part for line in "\n".join(lines).split("\n") for part in textwrap.wrap(line, most)]
    figure.suptitle("\n".join(shown), fontsize=size)
