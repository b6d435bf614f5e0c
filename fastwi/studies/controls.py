"""The average against controls that could explain its gain: paired within each pair, test accuracy in points.

Controls, by name in the frame (`effect_points` is the average's accuracy less the control's):

- mean_child, best_child: the children themselves, own and recomputed batch-norm statistics.
- ensemble: the children's mean probabilities (Lakshminarayanan et al. 2017, section 2.4), at twice the cost of use.
- child_longer: a child trained for as long as all children together, C s epochs: the same cost of training.
- lawa, ema: averages along that longer child's own epochs (`fastwi.analysis.trajectory`): over the last `epochs`
  epochs, of 2 to C s; and the moving average with decay `EMA_DECAY` an epoch.
- children_on: the mean of children trained on, against the average trained on, after the same `epochs`.
- dropped_rate: the mean of children whose learning rate dropped to `value` times the average's children's: either
  before k + s, by another schedule of the same sweep (`epochs` is null), or at k + s, after `epochs` further epochs
  (experiment.children_rate_factor). Against the average at interpolation, which has no such epochs.
- alpha: the average at another weight of the second child, against that at 1/2.
- experiment.momentum, experiment.batch_norm: the average trained on for `epochs` under the axis's other value,
  against that under its first.

child_longer, lawa and ema are means over the children, each with a trajectory of its own.

Shapes: C children, T states along a trajectory, L averages of it.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import recomputed
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, all_pairs, chosen_pairs
from fastwi.analysis.statistics import Estimate, mean_estimate, verdict, verdict_text
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import (
    TREATMENT_COLOURS,
    cell_names,
    draw_spread,
    groups,
    shown,
    spread_text,
    style,
    titled,
)
from fastwi.report.figures import save_figure
from fastwi.report.study import AVERAGE_COLUMNS, Frames, Study
from fastwi.report.summary import Table, value_text

if TYPE_CHECKING:
    from fastwi.population import Population

EMA_DECAY = 0.8
"""Decay an epoch of the moving average along a child's trajectory."""

AFTER_AXES = ("experiment.momentum", "experiment.batch_norm")
"""Axes that change how the average trains on, and nothing before."""

ADD = {
    "lawa": "axes.experiment.s with some s and its double (s times the children of an average), sweep.keep: all",
    "children_on": "experiment.continue_children: true (children_rate_factor: 1) with experiment.after above 0, or "
    "larger values of axes.experiment.s",
    "dropped_rate": "experiment.continue_children: true and experiment.children_rate_factor: 0.1 with "
    "experiment.after above 0",
    "alpha": "sweep.alphas: [0.25, 0.5, 0.75]",
    "experiment.momentum": "axes.experiment.momentum: [reset, average, keep], experiment.after above 0",
    "experiment.batch_norm": "axes.experiment.batch_norm: [average, recompute], experiment.after above 0",
    "recomputed": "sweep.measure: [own, recomputed]",
}
"""What to write into the sweep file for controls that a sweep lacks."""

_CONTROL = Column("", "what the average is compared with", polars.String)
COLUMNS = {
    "controls": {
        **{name: column for name, column in AVERAGE_COLUMNS.items() if name != "batch_norm"},
        "control": _CONTROL,
        "value": Column("", "value of the axis, alpha, learning rate or decay; null: none", polars.String),
        "epochs": Column("epochs", "epochs averaged over, or trained; null: no such number", polars.Int64),
        "batch_norm": AVERAGE_COLUMNS["batch_norm"],
        "average_%": Column("%", "test accuracy of the average"),
        "control_%": Column("%", "test accuracy of the control"),
        "effect_points": Column("points", "the first less the second"),
    },
    "absent": {
        "control": _CONTROL,
        "pairs_without": Column("", "pairs for which the sweep has no such control", polars.Int64),
        "pairs": Column("", "pairs that were looked at", polars.Int64),
        "add": Column("", "lines of a sweep file that add the control", polars.String),
    },
}


class _Row(NamedTuple):
    control: str
    value: str | None
    epochs: int | None
    batch_norm: str
    average: float
    other: float


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Compare the average of each chosen pair with every control that the sweep has for it.

    controls: one row a pair and control. absent: controls that the sweep has for some pairs or none.
    All accuracies are on the sweep's own test images, as the sweep measured them. Recomputed statistics are the
    sweep's own recomputation at the epoch of the average.
    """
    pairs, compared = chosen_pairs(opened, options), _Compared(opened, RECOMPUTED in options.treatments)
    rows: list[dict[str, Any]] = []
    having = dict.fromkeys(ADD, 0)
    for done, pair in enumerate(pairs):
        progress(done, len(pairs))
        found = list(compared.with_all(pair))
        for name in {row.control for row in found} | {row.batch_norm for row in found if row.control == "best_child"}:
            if name in having:
                having[name] += 1
        rows += [
            {
                **pair.columns(), **row._asdict(), "average_%": row.average, "control_%": row.other,
                "effect_points": row.average - row.other,
            }
            for row in found
        ]  # fmt: skip
    progress(len(pairs), len(pairs))
    absent = polars.DataFrame(
        [
            {"control": name, "pairs_without": len(pairs) - count, "pairs": len(pairs), "add": ADD[name]}
            for name, count in having.items()
            # Some controls compare the pairs of one value of an axis with the others': only those can have them.
            if (count == 0 if name in (*AFTER_AXES, "alpha", "dropped_rate") else count < len(pairs))
        ],
        schema={name: column.type for name, column in COLUMNS["absent"].items()},
    )
    return {**opened.frames({"controls": COLUMNS["controls"]}, controls=rows), "absent": absent}


class _Compared:
    """The sweep's averages beside their controls; the sweep's points by what they have in common.

    `longest`: by schedule and a child's first state, the longest path of that child at its own rates. `siblings`:
    points that differ on one axis, or in alpha, only. `same`: points whose children start from one state under the
    same noise, whatever the axes are.
    """

    def __init__(self, opened: OpenedSweep, again: bool) -> None:
        """`again`: with recomputed statistics too, where that is computed here."""
        self.opened, self.again, self.lost = opened, again, opened.lost()
        self.longest: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self.siblings: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        self.same: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        for pair in all_pairs(opened):
            for whole in pair.place.children:
                # Beyond s children may be trained on at a lower rate: that is another trajectory.
                path = whole if pair.config.experiment.children_rate_factor == 1 else whole[: pair.s]
                if path and len(path) > len(self.longest.get(_child(pair, path), ())):
                    self.longest[_child(pair, path)] = path
            for axis in ("alpha", *dict(pair.variant)):
                self.siblings[_beside(pair, axis)].append(pair)
            self.same[_start(pair)].append(pair)

    def with_all(self, pair: Pair) -> Iterator[_Row]:
        """The average of a pair beside each control that the sweep has."""
        yield from self._children(pair)
        yield from self._ensemble(pair)
        yield from self._trajectory(pair)
        yield from self._children_on(pair)
        yield from self._dropped_rate(pair)
        yield from self._alphas(pair)
        yield from self._after_axes(pair)

    def _accuracy(self, *states: str, treatment: Any = OWN) -> float | None:
        """The mean of the states' measured accuracies; None where one is missing or diverged."""
        found = [self.opened.measured.get((state, treatment)) for state in states]
        there = [m.test_accuracy for m in found if m is not None and not m.diverged]
        return sum(there) / len(there) if len(there) == len(found) else None

    def _rate(self, pair: Pair) -> float | None:
        found = self.opened.measured.get((pair.place.ends[0], OWN))
        return None if found is None else found.learning_rate

    def _paths(self, pair: Pair) -> list[tuple[str, ...]]:
        """The longest path of each of the pair's children, at its own rates; empty where s is 0."""
        return [self.longest[_child(pair, path)] if pair.s else () for path in pair.place.children]

    def _treated(self, pair: Pair, networks: "Population") -> "Iterator[tuple[str, Population]]":
        """The networks with their own statistics, and with recomputed ones where they are wanted."""
        yield OWN, networks
        if self.again:
            yield RECOMPUTED, recomputed(self.opened, networks, pair.config, pair.k + pair.s)

    def _children(self, pair: Pair) -> Iterator[_Row]:
        for name, treatment in zip((OWN, RECOMPUTED), pair.place.treatments, strict=False):
            states = (pair.place.average, *pair.place.ends)
            found = [self._accuracy(state, treatment=treatment) for state in states]
            average, *children = [accuracy for accuracy in found if accuracy is not None] or [0.0]
            if len(children) == len(pair.place.ends):
                yield _Row("mean_child", None, None, name, average, sum(children) / len(children))
                yield _Row("best_child", None, None, name, average, max(children))

    def _ensemble(self, pair: Pair) -> Iterator[_Row]:
        opened, config = self.opened, pair.config
        test, engine = opened.resident_splits(config)[1], opened.resources.engine(config)
        for treatment, networks in self._treated(pair, opened.states([*pair.place.ends, pair.place.average])):
            count = networks.members - 1
            children, average = networks[:count], networks[count:]
            found = analysis.ensemble_control(engine, children, average, test)
            accuracies = (float(scores.accuracy_M[0]) for scores in (found.average, found.ensemble))
            yield _Row("ensemble", None, None, treatment, *accuracies)

    def _trajectory(self, pair: Pair) -> Iterator[_Row]:
        """Averages along each child's own trajectory to C s epochs, where all children have it whole."""
        opened, length = self.opened, len(pair.place.ends) * pair.s
        paths = [path[:length] for path in self._paths(pair)]
        whole = all(len(path) == length and self.lost.isdisjoint(path) and opened.has(path) for path in paths)
        if not pair.s or not whole:
            return
        test, engine = opened.resident_splits(pair.config)[1], opened.resources.engine(pair.config)
        lawa = [analysis.lawa_weights(length, last) for last in range(1, length + 1)]
        weights_LT = np.stack([*lawa, analysis.ema_weights(length, EMA_DECAY)])
        accuracies: dict[str, list[Any]] = defaultdict(list)
        for path in paths:
            averages = analysis.trajectory_averages(opened.states(path), weights_LT)
            for treatment, networks in self._treated(pair, averages):
                accuracies[treatment].append(engine.evaluate(networks, test).accuracy_M)
        for treatment, networks in self._treated(pair, opened.states([pair.place.average])):
            average = float(engine.evaluate(networks, test).accuracy_M[0])
            last_epoch, *means, ema = (float(value) for value in np.mean(accuracies[treatment], axis=0))
            yield _Row("child_longer", None, length, treatment, average, last_epoch)
            for epochs, mean in enumerate(means, 2):
                yield _Row("lawa", None, epochs, treatment, average, mean)
            yield _Row("ema", f"{EMA_DECAY:g}", length, treatment, average, ema)

    def _children_on(self, pair: Pair) -> Iterator[_Row]:
        """The children trained on, in this point or in one of a larger s, against the average trained on."""
        paths = self._paths(pair)
        for epochs, state in enumerate(pair.place.after, 1):
            at = pair.s + epochs - 1
            if not pair.s or any(len(path) <= at for path in paths):
                return
            average, mean = self._accuracy(state), self._accuracy(*(path[at] for path in paths))
            if average is not None and mean is not None:
                yield _Row("children_on", None, epochs, OWN, average, mean)

    def _dropped_rate(self, pair: Pair) -> Iterator[_Row]:
        """Children of the same parent state and noise that ended with a lower learning rate."""
        average, rate = self._accuracy(pair.place.average), self._rate(pair)
        if not pair.s or average is None or not rate:
            return
        factor = pair.config.experiment.children_rate_factor
        if factor < 1:
            for epochs, states in enumerate(zip(*(path[pair.s :] for path in pair.place.children), strict=True), 1):
                mean = self._accuracy(*states)
                if mean is not None:
                    yield _Row("dropped_rate", f"{factor:g}", epochs, OWN, average, mean)
        seen: set[tuple[str, ...]] = set()
        for other in self.same[_start(pair)]:
            their_rate, mean = self._rate(other), self._accuracy(*other.place.ends)
            schedule_only = all(name.startswith("schedule.") for name, _ in set(other.variant) ^ set(pair.variant))
            if mean is None or their_rate is None or not schedule_only or other.place.ends in seen:
                continue
            seen.add(other.place.ends)
            if their_rate < rate:
                yield _Row("dropped_rate", f"{their_rate / rate:g}", None, OWN, average, mean)

    def _alphas(self, pair: Pair) -> Iterator[_Row]:
        for other in self.siblings[_beside(pair, "alpha")] if pair.point.alpha == 0.5 else ():
            for name, mine, theirs in zip(
                (OWN, RECOMPUTED), pair.place.treatments, other.place.treatments, strict=False
            ):
                average = self._accuracy(pair.place.average, treatment=mine)
                accuracy = self._accuracy(other.place.average, treatment=theirs)
                if other.point.alpha != 0.5 and average is not None and accuracy is not None:
                    yield _Row("alpha", f"{other.point.alpha:g}", None, name, average, accuracy)

    def _after_axes(self, pair: Pair) -> Iterator[_Row]:
        """The average trained on under other values of an axis, where this pair has the axis's first."""
        for axis, value in pair.variant:
            if axis not in AFTER_AXES:
                continue
            first, *others = self.siblings[_beside(pair, axis)]
            for other in others if dict(first.variant)[axis] == value else ():
                for epochs, (mine, theirs) in enumerate(zip(pair.place.after, other.place.after, strict=True), 1):
                    average, accuracy = self._accuracy(mine), self._accuracy(theirs)
                    if average is not None and accuracy is not None:
                        yield _Row(axis, str(dict(other.variant)[axis]), epochs, OWN, average, accuracy)


def _child(pair: Pair, path: tuple[str, ...]) -> tuple[Any, ...]:
    """What all paths of one child share; axes of `experiment` don't change how children are trained."""
    return tuple(each for each in pair.variant if not each[0].startswith("experiment.")), path[0]


def _beside(pair: Pair, axis: str) -> tuple[Any, ...]:
    """What all pairs share that differ from this one on `axis`, or in "alpha", only."""
    point, others = pair.point, tuple(each for each in pair.variant if each[0] != axis)
    alpha = None if axis == "alpha" else point.alpha
    return axis, others, pair.k, pair.s, point.parent, point.tuple_index, alpha


def _start(pair: Pair) -> tuple[Any, ...]:
    """What all pairs share whose children start from one state under the same noise."""
    return pair.place.clone, pair.k, pair.s, pair.config.seeds.child_noise, pair.point.alpha


_WORDS = {
    "mean_child": "the children's mean",
    "best_child": "the best child",
    "ensemble": "the children's ensemble",
    "child_longer": "one child trained as long as all together",
    "lawa": "LAWA of one child at equal cost",
    "ema": "EMA of one child at equal cost",
    "children_on": "the children trained on, after the average is trained on as long",
    "dropped_rate": "children with a dropped learning rate",
    "alpha": "the average at another alpha",
}
_BY_CELL = ("mean_child", "best_child", "ensemble", "child_longer", "lawa", "ema")
_LAWA = ("last 2 epochs", "its second half", "all its epochs")


class Effect(NamedTuple):
    """A control under one treatment, over all cells (`cell` is empty) or in one: average less control, in points."""

    label: str
    batch_norm: str
    cell: tuple[str, ...]
    estimate: Estimate


def effects(frame: polars.DataFrame, by_cell: bool = False) -> list[Effect]:
    """The paired effect of each control with its interval over parents, over all cells together or in each.

    Averages along a trajectory are shown over its last 2 epochs, its second half, all of it, and over the number of
    epochs that is best for the pair in hindsight, which favours the control.
    """
    names = [*(cell_names(frame) if by_cell else []), "batch_norm"]
    return [
        Effect(
            label, values[-1], tuple(map(value_text, values[:-1])),
            mean_estimate(chosen["effect_points"].to_numpy(), chosen["parent_seed"].to_list()),
        )
        for label, rows in _labelled(frame)
        for values, chosen in groups(rows, names)
    ]  # fmt: skip


def _labelled(frame: polars.DataFrame) -> Iterator[tuple[str, polars.DataFrame]]:
    """Each control's label and rows, in the order of `_WORDS`."""

    def count(epochs: int, kind: str = "") -> str:
        return f"{epochs} {kind}epoch{'s' * (epochs != 1)}"

    for name in (*_WORDS, *AFTER_AXES):
        rows, word = frame.filter(polars.col("control") == name), _WORDS.get(name, name)
        if not rows.height:
            continue
        if name == "lawa":
            yield from _lawa(frame, rows, word)
        elif name in AFTER_AXES:
            for (value, epochs), chosen in groups(rows, ["value", "epochs"]):
                yield f"{name}: {value}, after {count(epochs, 'further ')}", chosen
        elif name == "children_on":
            for (epochs,), chosen in groups(rows.sort("epochs"), ["epochs"]):
                yield f"{word} ({count(epochs)})", chosen
        elif name == "dropped_rate":
            for (value, epochs), chosen in groups(rows.sort("epochs"), ["value", "epochs"]):
                when = "before averaging" if epochs is None else f"for {count(epochs)} more"
                yield f"{word} ({value} times, {when})", chosen
        elif name in ("ema", "alpha"):
            for (value,), chosen in groups(rows, ["value"]):
                yield f"{word} ({'decay' if name == 'ema' else name} {value})", chosen
        else:
            yield word, rows


def _lawa(frame: polars.DataFrame, rows: polars.DataFrame, word: str) -> Iterator[tuple[str, polars.DataFrame]]:
    keys = [*frame.columns[: frame.columns.index("control")], "batch_norm"]
    longest = polars.col("epochs").max().over(keys)
    for text, epochs in zip(_LAWA, (2, (longest // 2).clip(2), longest), strict=True):
        yield f"{word}, {text}", rows.filter(polars.col("epochs") == epochs)
    hindsight = rows.group_by(keys, maintain_order=True).agg(polars.col("effect_points").min())
    yield f"{word}, best number of epochs in hindsight", hindsight


def tables(frames: Frames) -> list[Table]:
    """The effects over all cells with the verdict on 'the average is better', some by cell, and what is absent."""
    frame = frames["controls"]
    title = "The average's test accuracy less the control's, paired, in points [95 %]"
    body, found = [], effects(frame)
    for effect in found:
        estimate, n = effect.estimate, effect.estimate.n_parents
        body.append([
            effect.label, effect.batch_norm, shown(estimate, n), str(n), str(estimate.n_pairs),
            verdict_text(verdict(estimate), n),
        ])  # fmt: skip
    columns = ("average against", "batch norm", "effect", "parents", "pairs", "average is better")
    most = max((effect.estimate.n_parents for effect in found), default=0)
    notes = [effect.estimate.note for effect in found]
    whole = titled(f"{title}, all cells together", columns, body, most, notes)
    rows = []
    for name, without, count, line in frames["absent"].rows():
        said = "not in this sweep" if without == count else f"not for {without} of {count} pairs"
        rows.append((_WORDS.get(name, name), said, line))
    absent = Table("Controls that are not in this sweep", ("control", "", "what adds it"), tuple(rows))
    return [whole, _by_cell(frame, title), *([absent] if rows else [])]


def _by_cell(frame: polars.DataFrame, title: str) -> Table:
    """One row a cell and treatment, one column for each control that needs no number of epochs."""
    every = effects(frame.filter(polars.col("control").is_in(_BY_CELL)), by_cell=True)
    labels = [label for label in dict.fromkeys(effect.label for effect in every) if not label.endswith(_LAWA)]
    rows: dict[tuple[str, ...], dict[str, Estimate]] = {}
    for effect in every:
        rows.setdefault((*effect.cell, effect.batch_norm), {})[effect.label] = effect.estimate
    body, most = [], 0
    for names, estimates in rows.items():
        parents = max(estimate.n_parents for estimate in estimates.values())
        pairs = max(estimate.n_pairs for estimate in estimates.values())
        most = max(most, parents)
        cells = [shown(estimates[label], parents) if label in estimates else "not in this sweep" for label in labels]
        body.append([*names, str(parents), str(pairs), *cells])
    columns = (*cell_names(frame), "batch norm", "parents", "pairs", *labels)
    return titled(f"{title}, by cell", columns, body, most)


def draw(frames: Frames, path: Path, title: str) -> None:
    """Draw a forest plot: the effect of each control with its interval over parents, all cells together."""
    from matplotlib.figure import Figure

    found = effects(frames["controls"])
    labels = list(dict.fromkeys(effect.label for effect in found))
    figure = Figure(figsize=(9.5, 0.36 * len(labels) + 1.9), layout="constrained")
    axis = figure.subplots()
    for treatment, offset in ((OWN, -0.14), (RECOMPUTED, 0.14)):
        here, colour = [effect for effect in found if effect.batch_norm == treatment], TREATMENT_COLOURS[treatment]
        for effect in here:
            y, estimate = labels.index(effect.label) + offset, effect.estimate
            draw_spread(axis, estimate, y, colour, across=True)
            axis.plot([estimate.value or 0.0], [y], marker="o", ls="", markersize=4.5, color=colour,
                      label=f"{treatment} batch-norm statistics" if effect is here[0] else None,
                      markerfacecolor=colour if estimate.conclusive else "white")  # fmt: skip
            axis.annotate(f"n = {estimate.n_parents} ({estimate.n_pairs})", (1.01, y), fontsize=6, va="center",
                          xycoords=("axes fraction", "data"), color=colour)  # fmt: skip
    axis.axvline(0, color="0.3", lw=0.9)
    style(axis, "average less control: test accuracy (points); to the right the average is better")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(
        f"The average against controls, paired, all cells together\n{title}; n = parents (pairs); "
        f"{spread_text(effect.estimate for effect in found)}", fontsize=9,
    )  # fmt: skip
    save_figure(figure, path)


STUDY = Study(
    question="what else could explain the gain: control comparisons",
    options=("treatments", "cells", "pairs"),
    columns=COLUMNS,
    measure=measure,
    tables=tables,
    draw=draw,
)
