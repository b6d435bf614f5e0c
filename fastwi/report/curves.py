"""Curves over epochs of parents, children, and averages trained on (paper, Figure 1): of a run or of a sweep."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import polars

from fastwi.config.sweep import RECOMPUTED, Point, variant_of
from fastwi.config.time import AnyTime
from fastwi.experiment.places import PointStates
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import set_title, style
from fastwi.report.estimates import counted_text, groups
from fastwi.report.figures import numbered, save_figure
from fastwi.report.rows import Measured
from fastwi.report.summary import variant_text

_MOST_PANELS = 6  # down, and across
_MOST_FILES = 24
_COLOURS = {"parents": "0.35", "children": "tab:blue", "averages": "#cc1a26"}
_FLAT = 20.0  # where the largest loss is this many times the typical one, a linear scale would show only it
_METRICS = {
    "test_accuracy": "test accuracy (%)",
    "test_loss": "test loss (nats)",
    "train_loss": "train loss (nats)",
}

_Placed: TypeAlias = tuple[Point, PointStates]


def draw_run(planned: PlannedSweep, measurements: Measured, path: Path, subject: str) -> None:
    """Draw test accuracy, test loss and train loss of a run over epochs to `path` (PNG), with a PDF beside it.

    Losses that span much have a logarithmic axis.
    """
    only = list(zip(planned.points, planned.places, strict=True))
    title = f"{subject}\nthin: single networks; thick: their means"
    _draw([[only] * len(_METRICS)], measurements, list(_METRICS), path, title)


def draw_curves(planned: PlannedSweep, measurements: Measured, path: Path, subject: str) -> list[Path]:
    """Draw test accuracy over epochs, one panel a cell: k downwards, s across; networks thin, their means thick.

    Means are over parents, of networks that are measured to their last epoch; a panel's n is that of the averages,
    and where it differs that of the others too. Dashed: cloning and averaging. Each combination of other axes and
    alpha has its files (PNG, PDF, SVG). Of many k, s or combinations a part is drawn. Returns the PNGs' paths. Raises
    UserError where a file cannot be written.
    """
    files = defaultdict[Any, dict[tuple[AnyTime, AnyTime], list[_Placed]]](lambda: defaultdict(list))
    for point, place in zip(planned.points, planned.places, strict=True):
        variant = tuple(variant_of(planned.spec, point).items())
        variant += () if point.alpha is None else (("alpha", point.alpha),)
        e = point.config.experiment
        files[variant][e.k, e.s].append((point, place))
    paths = []
    for number, (variant, cells) in enumerate(list(files.items())[:_MOST_FILES], 1):
        title = [
            f"Test accuracy of parents, children and their averages: {subject}",
            "thin: single networks; thick: means over the parents (n)",
        ]
        if variant:
            title.append(variant_text(variant))
        if len(files) > _MOST_FILES:
            title.append(f"the first {_MOST_FILES} of {len(files)} combinations are drawn")
        grid = []
        for at, name in enumerate("ks"):
            times = {cell[at]: getattr(placed[0][1], name) for cell, placed in cells.items()}
            every = sorted(times, key=times.__getitem__)
            chosen = np.unique(np.linspace(0, len(every) - 1, _MOST_PANELS).round().astype(int))
            grid.append([every[i] for i in chosen])
            if len(chosen) < len(every):
                title.append(f"{len(chosen)} of {len(every)} values of {name} are drawn")
        ks, ss = grid
        panels = [[cells.get((k, s), []) for s in ss] for k in ks]
        paths.append(numbered(path, number))
        _draw(panels, measurements, [], paths[-1], "\n".join(title))
    return paths


def _draw(
    panels: Sequence[Sequence[Sequence[_Placed]]],
    measurements: Measured,
    metrics: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Draw a panel for the points of each cell.

    The panels of a row show `metrics`; without metrics all show test accuracy, with one y axis a row.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    down, across = len(panels), len(panels[0])
    width, height = (5.0, 4.2) if metrics else (3.4, 2.6)
    figure = Figure(figsize=(max(width * across, 6.0) + 0.4, height * down + 1.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=False if metrics else "row")
    for (row, column), axis in np.ndenumerate(axes):
        points = panels[row][column]
        if not points:
            axis.set_axis_off()
            continue
        metric = metrics[column] if metrics else "test_accuracy"
        frame = _curves(points, measurements, metric, window=not metrics)
        heading = ""
        if not metrics:
            e = points[0][0].config.experiment
            whole = frame.filter(recomputed=False, whole=True)
            averages = whole.filter(group="averages")
            heading = f"k = {e.k}, s = {e.s}; {counted_text(averages)}"
            parents = {group: rows["parent_seed"].n_unique() for (group,), rows in groups(whole, ["group"])}
            other = [f"{group}: n = {n}" for group, n in parents.items() if n != averages["parent_seed"].n_unique()]
            heading += f"\n{', '.join(other)}" if other else ""
        x = "epochs since initialisation" if row == down - 1 else ""
        y = _METRICS[metric] if metrics or not any(panels[row][:column]) else ""
        if _spans_much(metric, frame):
            axis.set_yscale("log")
            y = y.replace(")", ", log scale)")
        if metric == "train_loss":
            heading = "the average has no train loss at interpolation: it is not trained yet"
        style(axis, x, y, heading, whole_x=True)
        _draw_panel(axis, points[0][1], frame)
    handles = [Line2D([], [], color=colour, lw=2.2, label=name) for name, colour in _COLOURS.items()]
    handles.append(Line2D([], [], color=_COLOURS["averages"], marker="o", ls="", label="at interpolation"))
    handles.append(
        Line2D([], [], color="0.3", marker="D", ls="", markerfacecolor="none", label="recomputed statistics")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if across < 3 else 5, fontsize=8)
    set_title(figure, title, size=10)
    save_figure(figure, path, kinds=("png", "pdf") if metrics else ("png", "pdf", "svg"))


def _curves(points: Sequence[_Placed], measurements: Measured, metric: str, window: bool) -> polars.DataFrame:
    """A row a value of a network: its group (of `_COLOURS`), statistics, parent and number, the epochs done.

    `whole`: whether all values of the network are there and finite; else they are NaN. `window`: of the parent's past
    a part alone, a quarter of the rest if there is a rest: all of it would flatten what matters.
    """
    some = points[0][1]
    rest = some.tree.time(some.after_node) - some.k
    begin = some.k - max(1, int(rest) // 4) if window and rest else 0
    values = {}
    for point, place in points:
        # From the second round on, a child's states are those of its tuple alone.
        of_tuple = point.tuple_index << 32 if len(place.rounds) > 1 else 0
        numbers = [of_tuple + noise for noise in point.config.seeds.child_noise]
        clone, keys = place.parent[-1:], place.tree.keys
        lines = []
        every = (OWN, *([RECOMPUTED] if place.recomputed else []))
        for treatment in every:
            most = place.tree.time(place.after_node)
            alone = (state for state in place.alone if place.time(state) <= most)
            lines.append(("parents", 0, treatment, (*place.parent, *alone)))
            for number, states in zip(numbers, place.children, strict=True):
                # From the clone on, so that the line begins where the parent's ends.
                lines.append(("children", number, treatment, (*clone, *states)))
        for each in place.rounds:
            for treatment in each.treatments:
                lines.append(("averages", point.tuple_index, treatment, (keys[each.average_node],)))
                if treatment != OWN and not place.recomputed:
                    at_end = zip(numbers, each.end_nodes, strict=True)
                    lines += [("children", number, treatment, (keys[node],)) for number, node in at_end]
        lines += [("averages", point.tuple_index, treatment, place.after) for treatment in every]
        for group, number, treatment, states in lines:
            for state in states:
                epoch = float(place.time(state))
                found = measurements.get(place.filed(state, treatment))
                value = float("nan") if found is None or found.diverged else getattr(found, metric)
                # None: an average that is not trained on yet has no training loss.
                if epoch >= begin and value is not None:
                    values[group, treatment != OWN, point.parent, number, epoch] = value
    names = ["group", "recomputed", "parent_seed", "pair", "epoch"]
    kinds = [polars.String, polars.Boolean, polars.Int64, polars.Int64, polars.Float64]
    types = dict(zip(names, kinds, strict=True))
    frame = polars.DataFrame(list(values), schema=types, orient="row")
    frame = frame.with_columns(value=polars.Series(list(values.values()), dtype=polars.Float64))
    return frame.with_columns(whole=polars.col("value").is_finite().all().over(names[:-1]))


def _spans_much(metric: str, frame: polars.DataFrame) -> bool:
    """Whether a few large losses would flatten the others. A loss of 0 has no logarithm."""
    if not metric.endswith("loss"):
        return False
    values: list[float] = frame["value"].filter(frame["value"].is_finite()).to_list()
    return min(values, default=0.0) > 0 and max(values) > _FLAT * median(values)


def _draw_panel(axis: Any, place: PointStates, frame: polars.DataFrame) -> None:
    from matplotlib.collections import LineCollection

    for level, (group, colour) in enumerate(_COLOURS.items(), 1):
        networks = frame.filter(group=group, recomputed=False).group_by("parent_seed", "pair", maintain_order=True)
        thin = [network.select("epoch", "value").to_numpy() for _, network in networks]
        # Thousands of pairs stay legible, and the PDF small.
        alpha = float(np.clip(8 / max(1, len(thin)), 0.08, 0.6))
        many = len(thin) > 50
        axis.add_collection(
            LineCollection(thin, colors=colour, linewidths=0.7, alpha=alpha, zorder=level, rasterized=many)
        )
        axis.plot(*_mean(frame, group), color=colour, lw=1.7, marker=".", ms=4, zorder=3 + level)
    ends = [place.tree.time(each.average_node) for each in place.rounds]
    for epoch, value in zip(*_mean(frame, "averages"), strict=True):
        if epoch in ends:
            axis.plot([epoch], [value], marker="o", ms=5, color=_COLOURS["averages"], zorder=8)
    for group, colour in _COLOURS.items():
        mean = _mean(frame, group, recomputed=True)
        if mean[0]:
            look = {"ls": ":", "ms": 3.5} if place.recomputed else {"ls": "", "ms": 6}
            axis.plot(*mean, marker="D", markerfacecolor="none", color=colour, zorder=9, **look)
    for epoch in {place.k, *ends}:
        axis.axvline(epoch, color="0.6", lw=0.8, ls="--", zorder=0)


def _mean(frame: polars.DataFrame, group: str, recomputed: bool = False) -> tuple[list[float], list[float]]:
    """Epochs and the mean over parents of each parent's mean, of networks that are whole."""
    mean = frame.filter(group=group, recomputed=recomputed, whole=True)
    for keys in (["epoch", "parent_seed"], ["epoch"]):
        mean = mean.group_by(keys, maintain_order=True).agg(polars.col("value").mean())
    mean = mean.sort("epoch")
    return mean["epoch"].to_list(), mean["value"].to_list()
