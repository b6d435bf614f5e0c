"""Curves over epochs of parents, children, and averages trained on: of one run, and of each cell of a sweep."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastwi.config.sweep import Point, SweepSpec, axis_value, other_axes
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.report.figures import numbered, save_figure
from fastwi.report.rows import Measured
from fastwi.report.summary import count_of, variant_text

_MOST_PANELS = 6  # down, and across
_MOST_FILES = 24
_COLOURS = {"parents": "0.35", "children": "tab:blue", "averages": "#cc1a26"}
_METRICS = {
    "test_accuracy": "test accuracy (%)", "test_loss": "test loss (nats)", "train_loss": "train loss (nats)",
}  # fmt: skip


class _Line(NamedTuple):
    """A network's values over epochs done; NaN where one is not measured yet, or is not finite."""

    parent: int
    epochs: list[int]
    values: list[float]


class _Panel(NamedTuple):
    """Networks by group and name, each once; groups are those of `_COLOURS`, own and recomputed statistics apart."""

    k: int
    end: int  # epochs done at interpolation
    label: str
    own: dict[str, dict[Hashable, _Line]]
    recomputed: dict[str, dict[Hashable, _Line]]


def draw_run(point: Point, place: PointStates, measurements: Measured, path: Path, subject: str) -> None:
    """Draw test accuracy, test loss and train loss of a run over epochs to `path` (PNG), with a PDF beside it.

    `subject`: the run, for the title. Raises UserError where a file cannot be written.
    """
    row = [_gather([(point, place)], measurements, metric) for metric in _METRICS]
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
    files: dict[tuple[Any, ...], dict[tuple[int, int], list[int]]] = {}
    for i, point in enumerate(points):
        variant = tuple((name, axis_value(name, point.values[at])) for name, at in axes.items())
        variant += () if point.alpha is None else (("alpha", point.alpha),)
        e = point.config.experiment
        files.setdefault(variant, {}).setdefault((e.k, e.s), []).append(i)
    paths = []
    for number, (variant, cells) in enumerate(list(files.items())[:_MOST_FILES], 1):
        notes = [variant_text(variant)] if variant else []
        if len(files) > _MOST_FILES:
            notes.append(f"the first {_MOST_FILES} of {len(files)} combinations are drawn")
        grid = []
        for name, every in (("k", sorted({k for k, _ in cells})), ("s", sorted({s for _, s in cells}))):
            chosen = np.unique(np.linspace(0, len(every) - 1, _MOST_PANELS).round().astype(int))
            grid.append([every[i] for i in chosen])
            if len(grid[-1]) < len(every):
                notes.append(f"{len(grid[-1])} of {len(every)} values of {name} are drawn")
        panels = [
            [
                _gather([(points[i], places[i]) for i in cells[k, s]], measurements, "test_accuracy", window=True)
                if (k, s) in cells
                else None
                for s in grid[1]
            ]
            for k in grid[0]
        ]
        title = (
            f"Test accuracy of parents, children and their averages: {subject}\n"
            "thin: single networks; thick: means over the parents (n)"
        )
        paths.append(numbered(path, number))
        _draw(panels, (3.4, 2.6), paths[-1], "\n".join([title, *notes]))
    return paths


def _gather(
    chosen: Sequence[tuple[Point, PointStates]], measurements: Measured, metric: str, window: bool = False
) -> _Panel:
    """The curves of a cell's points. `window`: of the parent's past a part alone, about as long as a quarter of the
    rest: all of it would flatten what matters."""
    e = chosen[0][0].config.experiment
    end, last = e.k + e.s, e.k + e.s + e.after
    begin = e.k - max(1, (last - e.k) // 4) if window else 0
    panel = _Panel(e.k, end, _METRICS[metric], {name: {} for name in _COLOURS}, {"children": {}, "averages": {}})

    def line(parent: int, first: int, keys: Iterable[MeasurementKey]) -> _Line:
        """The values at `keys`, after epochs `first` and on; none where a network has no such value by its nature."""
        found = [(epoch, measurements.get(key)) for epoch, key in enumerate(keys, first) if epoch >= begin]
        found = [(epoch, m) for epoch, m in found if m is None or getattr(m, metric) is not None]
        values = [float("nan") if m is None or m.diverged else getattr(m, metric) for _, m in found]
        return _Line(parent, [epoch for epoch, _ in found], values)

    for point, place in chosen:
        start, noises = place.parent[-1:], point.config.seeds.child_noise
        panel.own["parents"][point.parent] = line(point.parent, 1, ((state, OWN) for state in place.parent))
        for noise, states in zip(noises, place.children, strict=True):
            # From the clone on, so that the line begins where the parent's ends.
            keys = ((state, OWN) for state in (*start, *states))
            panel.own["children"][point.parent, noise] = line(point.parent, e.k + 1 - len(start), keys)
        keys = ((state, OWN) for state in (place.average, *place.after))
        panel.own["averages"][point.parent, point.tuple_index] = line(point.parent, end, keys)
        for treatment in [name for name in place.treatments if name != OWN]:
            named = [("averages", place.average, point.tuple_index)]
            named += [("children", *each) for each in zip(place.ends, noises, strict=True)]
            for group, state, number in named:
                panel.recomputed[group][point.parent, number] = line(point.parent, end, [(state, treatment)])
    return panel


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
    for row, (beside, here) in enumerate(zip(panels, axes, strict=True)):
        first = True
        for panel, axis in zip(beside, here, strict=True):
            if panel is None:
                axis.set_axis_off()
                continue
            _draw_panel(axis, panel, titled)
            if row == down - 1:
                axis.set_xlabel("epochs since initialisation", fontsize=8)
            if first or not titled:
                axis.set_ylabel(panel.label, fontsize=8)
                first = False
    handles = [Line2D([], [], color=colour, lw=2.2, label=name) for name, colour in _COLOURS.items()]
    handles.append(Line2D([], [], color=_COLOURS["averages"], marker="o", ls="", label="at interpolation"))
    handles.append(
        Line2D([], [], color="0.3", marker="D", ls="", markerfacecolor="none", label="recomputed statistics")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if across < 3 else 5, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, kinds=kinds)


def _draw_panel(axis: Any, panel: _Panel, titled: bool) -> None:
    for level, (name, colour) in enumerate(_COLOURS.items(), 1):
        _draw_lines(axis, panel.own[name], colour, level)
        axis.plot(*_mean(panel.own[name]), color=colour, lw=1.7, marker=".", ms=4, zorder=3 + level)
    epochs, values = _mean(panel.own["averages"])
    if epochs and epochs[0] == panel.end:
        axis.plot(epochs[:1], values[:1], marker="o", ms=5, color=_COLOURS["averages"], zorder=8)
    for name, group in panel.recomputed.items():
        axis.plot(*_mean(group), marker="D", ms=6, ls="", markerfacecolor="none", color=_COLOURS[name], zorder=9)
    for epoch in {panel.k, panel.end}:
        axis.axvline(epoch, color="0.6", lw=0.8, ls="--", zorder=0)
    if titled:
        whole = _whole(panel.own["averages"])
        n = f"n = {len({line.parent for line in whole})} ({count_of(len(whole), 'pair')})"
        axis.set_title(f"k = {panel.k}, s = {panel.end - panel.k}; {n}", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _whole(group: Mapping[Hashable, _Line]) -> list[_Line]:
    """The networks that are measured at every epoch."""
    return [line for line in group.values() if line.epochs and np.isfinite(line.values).all()]


def _mean(group: Mapping[Hashable, _Line]) -> tuple[list[int], list[float]]:
    """Epochs and the mean over parents of each parent's mean."""
    whole = _whole(group)
    if not whole:
        return [], []
    by_parent: dict[int, list[list[float]]] = {}
    for line in whole:
        by_parent.setdefault(line.parent, []).append(line.values)
    mean = np.mean([np.mean(values, axis=0) for values in by_parent.values()], axis=0)
    return whole[0].epochs, [float(y) for y in mean]


def _draw_lines(axis: Any, group: Mapping[Hashable, _Line], colour: str, level: int) -> None:
    from matplotlib.collections import LineCollection

    lines = [np.column_stack([line.epochs, line.values]) for line in group.values() if line.epochs]
    # Thousands of pairs stay legible, and the PDF small.
    alpha = float(np.clip(8 / max(1, len(lines)), 0.08, 0.6))
    axis.add_collection(
        LineCollection(lines, colors=colour, linewidths=0.7, alpha=alpha, zorder=level, rasterized=len(lines) > 50)
    )
