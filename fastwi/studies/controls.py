"""The average against controls that could explain its gain: paired within each pair, test accuracy in points.

- mean_child, best_child: the children themselves. ensemble: the children's mean probabilities (Lakshminarayanan et
  al. 2017, section 2.4).
- child_longer: a child trained as long as all C children together, C s epochs. lawa, ema: averages along its epochs,
  over the last `epochs` (LAWA: Kaddour 2022, Stop Wasting My Time!, section 2; SWA of Izmailov et al. 2018 is the
  same mean) or with decay `EMA_DECAY` an epoch. All three are means over the children.
- children_on: the children trained on, against the average trained on, after the same `epochs`.
- dropped_rate: children whose learning rate dropped to `value` times that of the average's children: at k + s, after
  `epochs` more (experiment.children_rate_factor); or before k + s, by another schedule of the same sweep (`epochs` is
  null). Against the average at interpolation.
- alpha: the average at another weight of the second child, against that at 1/2.
- experiment.momentum, experiment.batch_norm, schedule.at_average: the average trained on for `epochs` under the
  axis's other value, against that under its first.

Shapes: C children, T states along a trajectory, L averages of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars
from numpy.typing import NDArray

from fastwi import analysis
from fastwi.analysis.columns import Column, types_of
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair, all_pairs
from fastwi.analysis.statistics import Estimate
from fastwi.config.sweep import RECOMPUTED
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import draw_rows
from fastwi.report.effects import effects_table
from fastwi.report.estimates import (
    cell_names,
    estimate_at_interpolation,
    estimate_of,
    estimate_table,
    groups,
    verdict_table,
)
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, count_of
from fastwi.report.tables import shown_epochs

EMA_DECAY = 0.8
"""Decay an epoch of the moving average along a child's trajectory."""

AFTER_AXES = ("experiment.momentum", "experiment.batch_norm", "schedule.at_average")
"""Axes that change how networks train on from the interpolation, and nothing before."""

ADD = {
    "lawa": "axes.experiment.s with some s and its double (s times the children of an average), sweep.keep: all",
    "children_on": "experiment.continue_children: true (children_rate_factor: 1) with experiment.after above 0, or "
    "larger values of axes.experiment.s",
    "dropped_rate": "experiment.continue_children: true and experiment.children_rate_factor: 0.1 with "
    "experiment.after above 0",
    "alpha": "sweep.alphas: [0.25, 0.5, 0.75]",
    "experiment.momentum": "axes.experiment.momentum: [reset, average, keep], experiment.after above 0",
    "experiment.batch_norm": "axes.experiment.batch_norm: [average, recompute], experiment.after above 0",
    "schedule.at_average": "axes.schedule.at_average: [keep, anneal], experiment.after above 0",
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


class _Control(NamedTuple):
    """Accuracies (%) of the average and of a control; None where one is not measured, and the row is left out."""

    control: str
    value: str | None
    epochs: int | None
    batch_norm: str
    average: float | None
    other: float | None


def measure(bench: Bench) -> Found:
    """Compare the average of each chosen pair with every control that the sweep has for it.

    controls: one row a pair and control. absent: controls that the sweep has for some pairs or none. Accuracies are
    on the sweep's own test images; statistics are recomputed as the sweep does at the epoch of the average.
    """
    pairs = bench.pairs()
    compared = _Compared(bench)
    rows = list[Row]()
    having = Counter[str]()
    for pair in bench.each(pairs):
        seen = set[str]()
        for row in compared.with_all(pair):
            if row.average is None or row.other is None:
                continue
            seen |= {row.control, *([row.batch_norm] if row.control == "best_child" else [])}
            accuracies = {"average_%": row.average, "control_%": row.other}
            effect = {"effect_points": row.average - row.other}
            rows.append({**pair.columns(), **row._asdict(), **accuracies, **effect})
        having.update(seen)
    # Some controls compare the pairs of one value of an axis with the others: only those can have them.
    enough = {name: 1 if name in (*AFTER_AXES, "alpha", "dropped_rate") else len(pairs) for name in ADD}
    absent = [
        {"control": name, "pairs_without": len(pairs) - having[name], "pairs": len(pairs), "add": add}
        for name, add in ADD.items()
        if having[name] < enough[name]
    ]
    return {"controls": rows, "absent": polars.DataFrame(absent, schema=types_of(COLUMNS["absent"]))}


class _Compared:
    """The sweep's averages beside their controls; the sweep's points by what they have in common.

    `longest`: by schedule and a child's first state, the longest path of that child at its own rates. `siblings`:
    points that differ on one axis, or in alpha, only. `same`: points whose children start from one state under the
    same noise, whatever the axes are.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.opened = bench, bench.opened
        self.lost = self.opened.lost()
        self.longest: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self.siblings: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        self.same: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
        for pair in all_pairs(self.opened):
            # Beyond s children may be trained on at other rates, or in another round: that is another trajectory.
            paths = pair.place.children if _goes_on(pair) else pair.place.children_in(pair.place.rounds[0])
            for path in paths if pair.whole else ():
                # Trained on, it may end within an epoch.
                path = tuple(state for state in path if isinstance(pair.place.time(state), int))
                if path and len(path) > len(self.longest.get(_child(pair, path), ())):
                    self.longest[_child(pair, path)] = path
            for axis in ("alpha", *dict(pair.variant)):
                self.siblings[_beside(pair, axis)].append(pair)
            self.same[_start(pair)].append(pair)

    def with_all(self, pair: Pair) -> Iterator[_Control]:
        """The average of a pair beside each control that the sweep has."""
        yield from self._children(pair)
        yield from self._networks(pair)
        yield from self._children_on(pair)
        yield from self._dropped_rate(pair)
        yield from self._alphas(pair)
        yield from self._after_axes(pair)

    def _accuracy(self, *states: str, treatment: Any = OWN) -> float | None:
        """The mean of the states' measured accuracies; None where one is missing or diverged."""
        found = [self.bench.accuracy(state, treatment) for state in states]
        there = [accuracy for accuracy in found if accuracy is not None]
        return sum(there) / len(there) if len(there) == len(found) else None

    def _rate(self, pair: Pair) -> float | None:
        """The learning rate at the start of the children's last epoch; None where it is not measured."""
        found = self.opened.measured.get((pair.place.ends[0], OWN))
        return None if found is None else found.learning_rate

    def _paths(self, pair: Pair) -> list[tuple[str, ...]]:
        """The longest path of each of the pair's children, at its own rates; empty where s is 0 or a part, or after
        rounds.
        """
        one = pair.s and pair.whole and pair.config.experiment.rounds == 1
        return [self.longest[_child(pair, path)] if one else () for path in pair.place.children]

    def _children(self, pair: Pair) -> Iterator[_Control]:
        for name, treatment in zip((OWN, RECOMPUTED), pair.place.treatments, strict=False):
            average = self._accuracy(pair.place.average, treatment=treatment)
            each = [self._accuracy(state, treatment=treatment) for state in pair.place.ends]
            best = max((accuracy for accuracy in each if accuracy is not None), default=0.0)
            mean = self._accuracy(*pair.place.ends, treatment=treatment)
            yield _Control("mean_child", None, None, name, average, mean)
            yield _Control("best_child", None, None, name, average, None if mean is None else best)

    def _networks(self, pair: Pair) -> Iterator[_Control]:
        """The ensemble; and averages along each child's own trajectory to C s epochs, where all have it whole."""
        import torch

        opened = self.opened
        evaluator = self.bench.evaluator(pair.config)
        test = opened.resident_splits(pair.config)[1]
        count = len(pair.place.ends)
        length = count * int(pair.s)
        averages = {}
        for treatment, networks in self.bench.treated(pair, opened.states([*pair.place.ends, pair.place.average])):
            ensemble = analysis.ensemble_scores(evaluator, networks[:count], test).accuracy_M
            averages[treatment] = float(evaluator.scores(networks[count:], test).accuracy_M[0])
            yield _Control("ensemble", None, None, treatment, averages[treatment], float(ensemble[0]))
        paths = [path[:length] for path in self._paths(pair)]
        whole = all(len(path) == length and self.lost.isdisjoint(path) and opened.has(path) for path in paths)
        if not pair.s or not pair.whole or not whole:
            return
        weights_LT = torch.from_numpy(trajectory_weights(length))
        accuracies: dict[str, list[Any]] = defaultdict(list)
        for path in paths:
            for treatment, networks in self.bench.treated(pair, opened.states(path).combine(weights_LT)):
                accuracies[treatment].append(evaluator.scores(networks, test).accuracy_M)
        for treatment, average in averages.items():
            last_epoch, *means, ema = np.mean(accuracies[treatment], axis=0).tolist()
            yield _Control("child_longer", None, length, treatment, average, last_epoch)
            for epochs, mean in enumerate(means, 2):
                yield _Control("lawa", None, epochs, treatment, average, mean)
            yield _Control("ema", f"{EMA_DECAY:g}", length, treatment, average, ema)

    def _children_on(self, pair: Pair) -> Iterator[_Control]:
        """The children trained on by the average's rates, in this point or one of a larger s."""
        experiment = pair.config.experiment
        here = experiment.continue_children and experiment.children_rate_factor == 1
        paths = pair.place.children if here else self._paths(pair)
        if not here and pair.config.schedule.at_average != "keep":
            return
        for epochs, state in _whole_epochs(pair, pair.place.after if pair.s and pair.whole else ()):
            at = int(pair.place.end - pair.k) + epochs - 1
            for name, treatment in _measured_at(pair, state) if all(len(path) > at for path in paths) else ():
                mean = self._accuracy(*(path[at] for path in paths), treatment=treatment)
                yield _Control("children_on", None, epochs, name, self._accuracy(state, treatment=treatment), mean)

    def _dropped_rate(self, pair: Pair) -> Iterator[_Control]:
        """Children from the same state under the same noise that ended with a lower rate."""
        average = self._accuracy(pair.place.average)
        factor = pair.config.experiment.children_rate_factor
        dropped = pair.place.children_on if pair.s and factor < 1 else ()
        by_epoch = {states[0]: states for states in zip(*dropped, strict=True)}
        for epochs, first in _whole_epochs(pair, list(by_epoch)):
            states = by_epoch[first]
            yield _Control("dropped_rate", f"{factor:g}", epochs, OWN, average, self._accuracy(*states))
        rate = self._rate(pair)
        if not pair.s or not rate:
            return
        seen = set[tuple[str, ...]]()
        for other in self.same[_start(pair)]:
            their_rate = self._rate(other)
            different = set(other.variant) ^ set(pair.variant)
            schedule_only = all(name.startswith("schedule.") for name, _ in different)
            if their_rate is None or not schedule_only or other.place.ends in seen:
                continue
            seen.add(other.place.ends)
            if their_rate < rate:
                mean = self._accuracy(*other.place.ends)
                yield _Control("dropped_rate", f"{their_rate / rate:g}", None, OWN, average, mean)

    def _alphas(self, pair: Pair) -> Iterator[_Control]:
        """The average at other alphas, where this pair has 1/2."""
        others = self.siblings[_beside(pair, "alpha")] if pair.point.alpha == 0.5 else []
        for other in others:
            treatments = zip((OWN, RECOMPUTED), pair.place.treatments, other.place.treatments, strict=False)
            for name, mine, theirs in treatments if other.point.alpha != 0.5 else ():
                average = self._accuracy(pair.place.average, treatment=mine)
                accuracy = self._accuracy(other.place.average, treatment=theirs)
                yield _Control("alpha", f"{other.point.alpha:g}", None, name, average, accuracy)

    def _after_axes(self, pair: Pair) -> Iterator[_Control]:
        """The average trained on under other values of an axis, where this pair has the axis's first."""
        for axis, value in pair.variant:
            first, *others = self.siblings[_beside(pair, axis)]
            if axis not in AFTER_AXES or dict(first.variant)[axis] != value:
                continue
            for other in others:
                value = str(dict(other.variant)[axis])
                both = dict(zip(pair.place.after, other.place.after, strict=True))
                for epochs, mine in _whole_epochs(pair, pair.place.after):
                    for name, treatment in _measured_at(pair, mine):
                        accuracies = (self._accuracy(state, treatment=treatment) for state in (mine, both[mine]))
                        yield _Control(axis, value, epochs, name, *accuracies)


def _whole_epochs(pair: Pair, states: Sequence[str]) -> list[tuple[int, str]]:
    """Those of `states` that are whole epochs after the interpolation, each behind their number."""
    further = zip(pair.place.further(states), states, strict=True)
    return [(epochs, state) for epochs, state in further if isinstance(epochs, int)]


def trajectory_weights(states: int) -> NDArray[np.float64]:
    """Weights of averages along a trajectory of T states, oldest first, [T + 1, T]; each row sums to 1.

    LAWA over the last 1 to T states; and the moving average avg_t = d avg_(t-1) + (1 - d) w_t, d = `EMA_DECAY`, with
    Adam's correction for its start (Kingma, Ba 2015, section 3).
    """
    age_T = np.arange(states - 1, -1, -1, dtype=np.float64)
    last_T1 = np.arange(1, states + 1)[:, None]
    ema_T = EMA_DECAY**age_T
    return np.vstack([(age_T < last_T1) / last_T1, ema_T / ema_T.sum()])


def _goes_on(pair: Pair) -> bool:
    """Whether children that are trained on beyond s go on as before."""
    experiment = pair.config.experiment
    return experiment.children_rate_factor == experiment.rounds == 1 and pair.config.schedule.at_average == "keep"


def _measured_at(pair: Pair, state: str) -> Iterator[tuple[str, str]]:
    """The batch-norm statistics that are measured at a state after the interpolation, and their treatment's name."""
    yield OWN, OWN
    if pair.place.recomputed:
        yield RECOMPUTED, pair.place.filed(state, RECOMPUTED)[1]


def _child(pair: Pair, path: tuple[str, ...]) -> tuple[Any, ...]:
    """What all paths of one child share; axes of `experiment` don't change how children are trained."""
    return tuple(each for each in pair.variant if not each[0].startswith("experiment.")), path[0]


def _beside(pair: Pair, axis: str) -> tuple[Any, ...]:
    """What all pairs share that differ from this one on `axis`, or in "alpha", only."""
    point = pair.point
    others = tuple(each for each in pair.variant if each[0] != axis)
    alpha = None if axis == "alpha" else point.alpha
    return axis, others, pair.k, pair.s, point.parent, point.tuple_index, alpha


def _start(pair: Pair) -> tuple[Any, ...]:
    """What all pairs share whose children start from one state under the same noise; after rounds, in the last."""
    starts = pair.place.rounds[-1].start_nodes
    return starts, pair.k, pair.s, pair.config.seeds.child_noise, pair.point.alpha


_WORDS = {
    "mean_child": "the children's mean",
    "best_child": "the best child",
    "ensemble": "the children's ensemble",
    "child_longer": "one child trained as long as all together",
    "lawa": "LAWA of one child at equal cost",
    "ema": "EMA of one child at equal cost (decay {value})",
    "children_on": "the children trained on, after the average is trained on as long ({epochs})",
    "dropped_rate": "children with a dropped learning rate ({value} times, {epochs})",
    "alpha": "the average at another alpha (alpha {value})",
    **{axis: axis + ": {value}, after {epochs} of further training" for axis in AFTER_AXES},
}
_BY_CELL = ("mean_child", "best_child", "ensemble", "child_longer", "lawa", "ema")
_BEFORE = "before averaging"
_LAWA = ("last 2 epochs", "its second half", "all its epochs")


class Effect(NamedTuple):
    """A control under one treatment, over all cells: average less control, in points."""

    label: str
    batch_norm: str
    estimate: Estimate


def effects(frame: polars.DataFrame) -> list[Effect]:
    """The paired effect of each control with its interval over parents, over all cells together.

    A pair that is compared at interpolation counts once, however many values the axes of its further training have.
    """
    found = list[Effect]()
    for (label, treatment), rows in groups(_labelled(frame), ["label", "batch_norm"]):
        at_once = rows["control"][0] in (*_BY_CELL, "alpha") or _BEFORE in label
        estimate = (estimate_at_interpolation if at_once else estimate_of)(rows, "effect_points")
        found += [Effect(label, treatment, estimate)] if estimate else []
    return found


def _labelled(frame: polars.DataFrame) -> polars.DataFrame:
    """The rows with the control in words as `label`, in the order of `_WORDS`.

    Averages along a trajectory are shown over its last 2 epochs, its second half, all of it, and over the number of
    epochs that is best for the pair in hindsight, which favours the control.
    """
    found = []
    kept = [*frame.columns[: frame.columns.index("control") + 1], "batch_norm", "effect_points"]

    def add(label: str, rows: polars.DataFrame) -> None:
        found.append(rows.select(kept).with_columns(label=polars.lit(label)))

    for name, words in _WORDS.items():
        rows = frame.filter(control=name)
        if name == "lawa":
            longest = polars.col("epochs").max().over(kept[:-1])
            for text, epochs in zip(_LAWA, (2, (longest // 2).clip(2), longest), strict=True):
                add(f"{words}, {text}", rows.filter(epochs=epochs))
            best = rows.group_by(kept[:-1], maintain_order=True).agg(polars.col("effect_points").min())
            add(f"{words}, best number of epochs in hindsight", best)
            continue
        if name in ("children_on", "dropped_rate"):
            rows = rows.sort("epochs", maintain_order=True)
        for (value, epochs), chosen in groups(rows, ["value", "epochs"]):
            add(words.format(value=value, epochs=_epochs_text(name, epochs)), chosen)
    return polars.concat(found)


def _epochs_text(name: str, epochs: int | None) -> str:
    if epochs is None:
        return _BEFORE
    text = count_of(epochs, "epoch")
    return f"for {text} more" if name == "dropped_rate" else text


def tables(frames: Frames) -> list[Table]:
    """The effects over all cells with the verdict on 'the average is better', some by cell, and what is absent."""
    frame = frames["controls"]
    title = "The average's test accuracy less the control's, paired, in points"
    rows = [((label, treatment), estimate) for label, treatment, estimate in effects(frame)]
    columns = ("average against", "batch norm", "effect", "parents", "pairs", "average is better")
    by_cell = _labelled(frame.filter(polars.col("control").is_in(_BY_CELL)))
    by_cell = by_cell.filter(~polars.any_horizontal(polars.col("label").str.ends_with(text) for text in _LAWA))
    cells = [*cell_names(frame, alpha=True), "batch_norm"]
    absent_cell = "not in this sweep"
    lacking = []
    for name, without, count, line in frames["absent"].rows():
        said = absent_cell if without == count else f"not for {without} of {count} pairs"
        lacking.append((_WORDS.get(name, name).partition(" (")[0].partition(": {")[0], said, line))
    absent = Table("Controls that are not in this sweep", ("control", "", "what adds it"), tuple(lacking))
    return [
        verdict_table(f"{title}, all cells together [95 %]", columns, rows),
        estimate_table(by_cell, f"{title}, by cell", cells, ["label"], "effect_points", absent=absent_cell),
        *_what_is_left(frame, cells),
        *([absent] if lacking else []),
    ]


def _what_is_left(frame: polars.DataFrame, cells: list[str]) -> list[Table]:
    """What further training leaves of the gain over the children's mean, by cell and epochs; what axes change in it.

    Both sides train on by the same rates, so that what is left is of averaging and not of more training or annealing.
    """
    later = frame.filter(control="children_on")
    if not later.height:
        return []
    shown = shown_epochs(max(later["epochs"], default=0))
    begun = frame.filter(control="mean_child").join(later, on=cells, how="semi", nulls_equal=True)
    rows = polars.concat(
        [begun.with_columns(epochs=polars.lit(0, polars.Int64)), later.filter(polars.col("epochs").is_in(shown))]
    )
    title = "What is left of the gain: the average less its children, all trained on for as many epochs, in points"
    table = estimate_table(rows, title, cells, ["epochs"], "effect_points", heading="+{}")
    pair = frame.columns[: frame.columns.index("control")]
    last = later.filter(polars.col("epochs") == polars.col("epochs").max().over(pair))
    by_pair = last.pivot("batch_norm", index=pair, values="effect_points")
    ends = {f"left of the gain at the end, {name}": name for name in by_pair.columns[len(pair) :]}
    return list(filter(None, [table, effects_table(by_pair, ends)]))


def draw(frames: Frames, title: str) -> Any:
    """Draw a forest plot: the effect of each control with its interval over parents, all cells together."""
    found = effects(frames["controls"])
    labels = list(dict.fromkeys(effect.label for effect in found))
    values = {(effect.batch_norm, effect.label): effect.estimate for effect in found}
    rows = {name: [values.get((name, label)) for label in labels] for name in (OWN, RECOMPUTED)}
    x = "average less control: test accuracy (points); to the right the average is better"
    what = "The average against controls, paired, all cells together"
    return draw_rows(labels, rows, 9.5, x).titled(what, title, "n = parents (pairs)")


QUESTION = "what else could explain the gain: control comparisons"
OPTIONS = ("treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
