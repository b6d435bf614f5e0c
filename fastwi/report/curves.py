"""Curves over epochs of parents, children, and averages trained on: of one run, and of each cell of a sweep."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastwi.config.sweep import Point, SweepSpec, axis_value, other_axes
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import style
from fastwi.report.figures import numbered, save_figure
from fastwi.report.rows import Measured
from fastwi.report.summary import count_of, variant_text

_MOST_PANELS = 6  # down, and across
_MOST_FILES = 24
_COLOURS = {"parents": "0.35", "children": "tab:blue", "averages": "#cc1a26"}
_METRICS = {
    "test_accuracy": "test accuracy (%)",
    "test_loss": "test loss (nats)",
    "train_loss": "train loss (nats)",
}


class _Line(NamedTuple):
    """A network's values over epochs done; NaN where one is not measured yet, or is not finite."""

    parent: int
    epochs: list[int]
    values: list[float]


class _Panel:
    """The curves of a cell's points: networks by group (of `_COLOURS`) and name, each once.

    `recomputed`: those with recomputed statistics, at interpolation. `window`: of the parent's past a part alone,
    about as long as a quarter of the rest: all of it would flatten what matters.
    """

    def __init__(
        self, chosen: Sequence[tuple[Point, PointStates]], measured: Measured, metric: str, window: bool = False
    ) -> None:
        e = chosen[0][0].config.experiment
        self.label, self.k, self.end = _METRICS[metric], e.k, e.k + e.s
        self.own = {group: dict[Hashable, _Line]() for group in _COLOURS}
        self.recomputed = {group: dict[Hashable, _Line]() for group in _COLOURS}
        self._begin = e.k - max(1, (e.s + e.after) // 4) if window else 0
        self._measured, self._metric = measured, metric
        for point, place in chosen:
            self._add(point, place)

    def _add(self, point: Point, place: PointStates) -> None:
        parent, noises = point.parent, point.config.seeds.child_noise
        own, clone = self.own, place.parent[-1:]
        own["parents"][parent] = self._line(parent, 1, place.parent)
        for noise, states in zip(noises, place.children, strict=True):
            # From the clone on, so that the line begins where the parent's ends.
            own["children"][parent, noise] = self._line(parent, self.k + 1 - len(clone), (*clone, *states))
        average = (place.average, *place.after)
        own["averages"][parent, point.tuple_index] = self._line(parent, self.end, average)
        for treatment in [name for name in place.treatments if name != OWN]:
            line = self._line(parent, self.end, [place.average], treatment)
            self.recomputed["averages"][parent, point.tuple_index] = line
            for noise, state in zip(noises, place.ends, strict=True):
                self.recomputed["children"][parent, noise] = self._line(parent, self.end, [state], treatment)

    def _line(self, parent: int, first: int, states: Iterable[str], treatment: str = OWN) -> _Line:
        """The values of `states`, after epochs `first` and on; none where a network has no such value at all."""
        line = _Line(parent, [], [])
        for epoch, state in enumerate(states, first):
            found = self._measured.get((state, treatment))
            value = float("nan") if found is None else getattr(found, self._metric)
            if epoch >= self._begin and value is not None:
                line.epochs.append(epoch)
                line.values.append(float("nan") if found is not None and found.diverged else value)
        return line


def draw_run(point: Point, place: PointStates, measurements: Measured, path: Path, subject: str) -> None:
    """Draw test accuracy, test loss and train loss of a run over epochs to `path` (PNG), with a PDF beside it.

    `subject`: the run, for the title. Raises UserError where a file cannot be written.
    """
    row = [_Panel([(point, place)], measurements, metric) for metric in _METRICS]
    _draw([row], (5.0, 4.2), path, subject, titled=False, kinds=("png", "pdf"))


def draw_curves(
    spec: SweepSpec,
    points: Sequence[Point],
    places: Sequence[PointStates],
    measurements: Measured,
    path: Path,
    subject: str,
) -> list[Path]:
    """Draw test accuracy over epochs, one panel a cell: k downwards, s across; networks thin, their means thick.

    Means are over parents of each parent's mean, of networks that are measured to their last epoch. Dashed lines:
    where the parent was cloned and the children were averaged. Each combination of other axes and alpha has its file:
    `path` (PNG) with PDF and SVG beside it, then `path` with -2, -3 ... Of many k, s or combinations a part is drawn;
    the title says so. Returns the PNGs' paths. Raises UserError where a file cannot be written.
    """
    axes = other_axes(spec)
    files = defaultdict[Any, Any](lambda: defaultdict(list))  # variant -> (k, s) -> points and places
    for point, place in zip(points, places, strict=True):
        variant = tuple((name, axis_value(name, point.values[at])) for name, at in axes.items())
        variant += () if point.alpha is None else (("alpha", point.alpha),)
        e = point.config.experiment
        files[variant][e.k, e.s].append((point, place))
    paths = []
    for number, (variant, cells) in enumerate(list(files.items())[:_MOST_FILES], 1):
        lines = [
            f"Test accuracy of parents, children and their averages: {subject}",
            "thin: single networks; thick: means over the parents (n)",
        ]
        if variant:
            lines.append(variant_text(variant))
        if len(files) > _MOST_FILES:
            lines.append(f"the first {_MOST_FILES} of {len(files)} combinations are drawn")
        grid = []
        for name, values in zip("ks", zip(*cells, strict=True), strict=True):
            every = sorted(set(values))
            chosen = np.unique(np.linspace(0, len(every) - 1, _MOST_PANELS).round().astype(int))
            grid.append([every[i] for i in chosen])
            if len(chosen) < len(every):
                lines.append(f"{len(chosen)} of {len(every)} values of {name} are drawn")
        ks, ss = grid
        panels = [[_cell_panel(cells.get((k, s)), measurements) for s in ss] for k in ks]
        paths.append(numbered(path, number))
        _draw(panels, (3.4, 2.6), paths[-1], "\n".join(lines))
    return paths


def _cell_panel(chosen: Sequence[tuple[Point, PointStates]] | None, measurements: Measured) -> _Panel | None:
    return _Panel(chosen, measurements, "test_accuracy", window=True) if chosen else None


def _draw(
    panels: Sequence[Sequence[_Panel | None]],
    size: tuple[float, float],
    path: Path,
    title: str,
    titled: bool = True,
    kinds: Sequence[str] = ("png", "pdf", "svg"),
) -> None:
    """Panels of `size` inches; those of one row share the y axis where they are `titled`, as cells."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    down, across = len(panels), len(panels[0])
    figure = Figure(figsize=(max(size[0] * across, 6.0) + 0.4, size[1] * down + 1.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey="row" if titled else False)
    for row, beside in enumerate(panels):
        first = next(filter(None, beside), None)
        for panel, axis in zip(beside, axes[row], strict=True):
            if panel is None:
                axis.set_axis_off()
                continue
            x = "epochs since initialisation" if row == down - 1 else ""
            y = panel.label if panel is first or not titled else ""
            style(axis, x, y, _title(panel) if titled else "", whole_x=True)
            _draw_panel(axis, panel)
    handles = [Line2D([], [], color=colour, lw=2.2, label=name) for name, colour in _COLOURS.items()]
    handles.append(Line2D([], [], color=_COLOURS["averages"], marker="o", ls="", label="at interpolation"))
    handles.append(
        Line2D([], [], color="0.3", marker="D", ls="", markerfacecolor="none", label="recomputed statistics")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if across < 3 else 5, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, kinds=kinds)


def _title(panel: _Panel) -> str:
    whole = _whole(panel.own["averages"].values())
    parents = len({line.parent for line in whole})
    return f"k = {panel.k}, s = {panel.end - panel.k}; n = {parents} ({count_of(len(whole), 'pair')})"


def _draw_panel(axis: Any, panel: _Panel) -> None:
    from matplotlib.collections import LineCollection

    for level, (name, colour) in enumerate(_COLOURS.items(), 1):
        thin = [np.column_stack([line.epochs, line.values]) for line in panel.own[name].values() if line.epochs]
        # Thousands of pairs stay legible, and the PDF small.
        alpha = float(np.clip(8 / max(1, len(thin)), 0.08, 0.6))
        many = len(thin) > 50
        axis.add_collection(
            LineCollection(thin, colors=colour, linewidths=0.7, alpha=alpha, zorder=level, rasterized=many)
        )
        mean = _mean(panel.own[name].values())
        axis.plot(*mean, color=colour, lw=1.7, marker=".", ms=4, zorder=3 + level)
    epochs, values = mean
    if epochs and epochs[0] == panel.end:
        axis.plot(epochs[:1], values[:1], marker="o", ms=5, color=_COLOURS["averages"], zorder=8)
    for name in ("children", "averages"):
        mean = _mean(panel.recomputed[name].values())
        axis.plot(*mean, marker="D", ms=6, ls="", markerfacecolor="none", color=_COLOURS[name], zorder=9)
    for epoch in {panel.k, panel.end}:
        axis.axvline(epoch, color="0.6", lw=0.8, ls="--", zorder=0)


def _whole(lines: Iterable[_Line]) -> list[_Line]:
    """The networks that are measured at every epoch."""
    return [line for line in lines if line.epochs and np.isfinite(line.values).all()]


def _mean(lines: Iterable[_Line]) -> tuple[list[int], list[float]]:
    """Epochs and the mean over parents of each parent's mean."""
    whole = _whole(lines)
    if not whole:
        return [], []
    by_parent = defaultdict[int, list[list[float]]](list)
    for line in whole:
        by_parent[line.parent].append(line.values)
    mean = np.mean([np.mean(values, axis=0) for values in by_parent.values()], axis=0)
    return whole[0].epochs, [float(y) for y in mean]
