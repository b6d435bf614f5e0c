"""The accuracy curves behind each cell of a sweep: parent, children, and the average trained on."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.sweeppoints import Point
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.report.heatmap import save_figure
from fastwi.report.summary import variant_text

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

_MOST_PANELS = 6  # down, and across
_MOST_FILES = 24
_PARENT, _CHILD, _AVERAGE = "0.35", "tab:blue", "#cc1a26"


class _Line(NamedTuple):
    """A network's test accuracies in % over epochs done; NaN where one is not measured yet."""

    parent: int
    epochs: list[int]
    accuracies: list[float]


@dataclass
class _Curves:
    """One panel: its networks by name, each once."""

    end: int  # epochs done at interpolation
    parents: dict[Hashable, _Line] = field(default_factory=dict)
    children: dict[Hashable, _Line] = field(default_factory=dict)
    averages: dict[Hashable, _Line] = field(default_factory=dict)
    recomputed: dict[str, dict[Hashable, _Line]] = field(default_factory=lambda: {"children": {}, "average": {}})


def draw_curves(
    spec: SweepSpec,
    points: Sequence[Point],
    places: Sequence[PointStates],
    measurements: "Mapping[MeasurementKey, Measurement]",
    path: Path,
    title: str,
) -> list[Path]:
    """Draw test accuracy over epochs, one panel a cell: k downwards, s across; networks thin, their means thick.

    Means are over parents of each parent's mean, over networks that are measured to their last epoch. Dashed lines
    stand where the parent was cloned and where the children were averaged; hollow diamonds are means under
    recomputed batch-norm statistics. Each combination of other axes and alpha has its file: `path` (PNG) with PDF and
    SVG beside it, then `path` with -2, -3 ... Of many k, s or combinations, a part is drawn; the title says so.
    Returns the PNGs' paths. Raises UserError where a file cannot be written.
    """
    axes = other_axes(spec)
    files: dict[tuple[Any, ...], dict[tuple[int, int], list[int]]] = {}
    for i, point in enumerate(points):
        variant = tuple((name, axis_value(name, point.values[at])) for name, at in axes.items())
        variant += () if point.alpha is None else (("alpha", point.alpha),)
        e = point.config.experiment
        files.setdefault(variant, {}).setdefault((e.k, e.s), []).append(i)
    paths = []
    for number, (variant, panels) in enumerate(list(files.items())[:_MOST_FILES], 1):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        notes = [variant_text(variant)] if variant else []
        if len(files) > _MOST_FILES:
            notes.append(f"the first {_MOST_FILES} of {len(files)} combinations are drawn")
        grid = []
        for name, every in (("k", sorted({k for k, _ in panels})), ("s", sorted({s for _, s in panels}))):
            chosen = np.unique(np.linspace(0, len(every) - 1, _MOST_PANELS).round().astype(int))
            grid.append([every[i] for i in chosen])
            if len(grid[-1]) < len(every):
                notes.append(f"{len(grid[-1])} of {len(every)} values of {name} are drawn")
        drawn = {
            (k, s): _gather([(points[i], places[i]) for i in panels[k, s]], measurements)
            for k in grid[0]
            for s in grid[1]
            if (k, s) in panels
        }
        _draw(drawn, grid[0], grid[1], target, "\n".join([title, *notes]))
        paths.append(target)
    return paths


def _gather(
    chosen: Sequence[tuple[Point, PointStates]], measurements: "Mapping[MeasurementKey, Measurement]"
) -> _Curves:
    """The curves of a cell's points, each network once."""
    e = chosen[0][0].config.experiment
    curves = _Curves(e.k + e.s)

    def curve(parent: int, first: int, keys: Sequence[MeasurementKey]) -> _Line:
        found = [measurements.get(key) for key in keys]
        accuracies = [float("nan") if each is None or each.diverged else each.test_accuracy for each in found]
        return _Line(parent, list(range(first, first + len(keys))), accuracies)

    for point, place in chosen:
        start = place.parent[-1:]
        curves.parents[point.parent] = curve(point.parent, 1, [(state, OWN) for state in place.parent])
        for noise, states in zip(point.config.seeds.child_noise, place.children, strict=True):
            # From the clone on, so that the line begins where the parent's ends.
            keys = [(state, OWN) for state in (*start, *states)]
            curves.children[point.parent, noise] = curve(point.parent, e.k + 1 - len(start), keys)
        keys = [(state, OWN) for state in (place.average, *place.after)]
        curves.averages[point.parent, point.tuple_index] = curve(point.parent, curves.end, keys)
        for treatment in [name for name in place.treatments if name != OWN]:
            named = [("average", place.average, point.tuple_index)]
            named += [("children", *each) for each in zip(place.ends, point.config.seeds.child_noise, strict=True)]
            for group, state, number in named:
                found = curve(point.parent, curves.end, [(state, treatment)])
                curves.recomputed[group][point.parent, number] = found
    return curves


def _draw(
    drawn: Mapping[tuple[int, int], _Curves], ks: Sequence[int], ss: Sequence[int], path: Path, title: str
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(max(3.4 * len(ss), 6.0) + 0.4, 2.6 * len(ks) + 1.3), layout="constrained")
    axes = figure.subplots(len(ks), len(ss), squeeze=False)
    for row, k in enumerate(ks):
        for column, s in enumerate(ss):
            axis = axes[row, column]
            if (k, s) in drawn:
                _panel(axis, drawn[k, s], k)
            else:
                axis.set_axis_off()
            if row == len(ks) - 1:
                axis.set_xlabel("epochs since initialisation", fontsize=8)
            if column == 0:
                axis.set_ylabel("test accuracy (%)", fontsize=8)
    handles = [
        Line2D([], [], color=colour, lw=2.2, label=label)
        for colour, label in ((_PARENT, "parents"), (_CHILD, "children"), (_AVERAGE, "averages"))
    ]
    handles.append(Line2D([], [], color=_AVERAGE, marker="o", ls="", label="at interpolation"))
    handles.append(
        Line2D([], [], color="0.3", marker="D", ls="", markerfacecolor="none", label="recomputed statistics")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(ss) < 3 else 5, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _panel(axis: Any, curves: _Curves, k: int) -> None:
    """One cell. The parent's past runs out of the frame: it would flatten all that matters."""
    groups = ((curves.parents, _PARENT, 1), (curves.children, _CHILD, 2), (curves.averages, _AVERAGE, 3))
    for group, colour, level in groups:
        _lines(axis, group, colour, level)
        axis.plot(*_mean(group), color=colour, lw=1.7, marker=".", ms=4, zorder=3 + level)
    epochs, accuracies = _mean(curves.averages)
    axis.plot(epochs[:1], accuracies[:1], marker="o", ms=5, color=_AVERAGE, zorder=8)
    for name, colour in (("children", _CHILD), ("average", _AVERAGE)):
        axis.plot(
            *_mean(curves.recomputed[name]), marker="D", ms=6, ls="", markerfacecolor="none", color=colour, zorder=9
        )
    for epoch in {k, curves.end}:
        axis.axvline(epoch, color="0.6", lw=0.8, ls="--", zorder=0)
    lines = [line for group, _, _ in groups for line in group.values() if line.epochs]
    last = max(line.epochs[-1] for line in lines)
    axis.set_xlim(max(0, k - max(1, (last - k) // 4)) - 0.3, last + 0.3)
    lines += [line for group in curves.recomputed.values() for line in group.values()]
    shown = np.array([y for line in lines for x, y in zip(line.epochs, line.accuracies, strict=True) if x >= k])
    shown = shown[np.isfinite(shown)]
    if len(shown):
        room = max(0.06 * float(np.ptp(shown)), 0.1)
        axis.set_ylim(shown.min() - room, shown.max() + room)
    whole = _whole(curves.averages)
    parents = len({line.parent for line in whole})
    axis.set_title(
        f"k = {k}, s = {curves.end - k}; n = {parents} ({len(whole)} pair{'s' * (len(whole) != 1)})", fontsize=8
    )
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    axis.xaxis.get_major_locator().set_params(integer=True)


def _whole(group: Mapping[Hashable, _Line]) -> list[_Line]:
    """The networks that are measured at every epoch."""
    return [line for line in group.values() if line.epochs and np.isfinite(line.accuracies).all()]


def _mean(group: Mapping[Hashable, _Line]) -> tuple[list[int], list[float]]:
    """Epochs and the mean over parents of each parent's mean."""
    whole = _whole(group)
    if not whole:
        return [], []
    by_parent: dict[int, list[list[float]]] = {}
    for line in whole:
        by_parent.setdefault(line.parent, []).append(line.accuracies)
    mean = np.mean([np.mean(accuracies, axis=0) for accuracies in by_parent.values()], axis=0)
    return whole[0].epochs, [float(y) for y in mean]


def _lines(axis: Any, group: Mapping[Hashable, _Line], colour: str, level: int) -> None:
    from matplotlib.collections import LineCollection

    lines = [np.column_stack([line.epochs, line.accuracies]) for line in group.values() if line.epochs]
    # Thousands of pairs stay legible, and the PDF small.
    alpha = float(np.clip(8 / max(1, len(lines)), 0.08, 0.6))
    axis.add_collection(
        LineCollection(lines, colors=colour, linewidths=0.7, alpha=alpha, zorder=level, rasterized=len(lines) > 50)
    )
