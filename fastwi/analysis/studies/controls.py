"""What a referee would set beside the average: every contrast paired within a pair, test accuracy in points.

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

What is the mean over children (child_longer, lawa, ema) is so because each child has a trajectory of its own.

Shapes: C children, T states along a trajectory, L averages of it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import polars

from fastwi.analysis.columns import pair_types
from fastwi.analysis.ensemble import ensemble_control
from fastwi.analysis.evaluator import RECOMPUTED
from fastwi.analysis.studies.chosen import (
    STUDY_COLUMNS,
    ChosenPair,
    all_pairs,
    chosen_pairs,
    recomputed,
)
from fastwi.analysis.studies.opened import OpenedSweep
from fastwi.analysis.studies.pairs import Tell
from fastwi.analysis.trajectory import ema_weights, lawa_weights, trajectory_averages
from fastwi.config.analysis import AnalysisOptions
from fastwi.experiment.tree import OWN, MeasurementKey
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

COLUMNS = STUDY_COLUMNS | {
    "control": ("", "what the average is compared with"),
    "value": ("", "value of the axis, alpha, learning rate or decay; null where there is none"),
    "epochs": ("epochs", "epochs averaged over, or trained; null where there is no such number"),
    "average_%": ("%", "test accuracy of the average"),
    "control_%": ("%", "test accuracy of the control"),
    "effect_points": ("points", "the first less the second"),
    "pairs_without": ("", "pairs for which the sweep has no such control"),
    "pairs": ("", "pairs that were looked at"),
    "add": ("", "lines of a sweep file that add the control"),
}
"""Unit and meaning of the columns of both frames."""

_TYPES: dict[str, Any] = {
    "control": polars.String, "value": polars.String, "epochs": polars.Int64, "batch_norm": polars.String,
    "average_%": polars.Float64, "control_%": polars.Float64, "effect_points": polars.Float64,
}  # fmt: skip
_ABSENT_TYPES: dict[str, Any] = {"control": polars.String, "pairs_without": polars.Int64, "pairs": polars.Int64,
                                 "add": polars.String}  # fmt: skip

_Row = tuple[str, str | None, int | None, str, float, float]  # as _TYPES has it, without the effect


def controls(opened: OpenedSweep, options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Frames:

    - controls: one row a pair and control: axes, k, s, alpha, parent_seed, pair, control, value (of an axis or
      alpha), epochs (averaged over, or trained on; null elsewhere), batch_norm, test accuracies of the average and
      of the control (%), and effect_points, the first less the second.
    - absent: controls that the sweep has for some pairs or none, and the lines of a sweep file that add them.

    All accuracies are on the sweep's own test images, so that what is computed here pairs with what the sweep
    measured; `options.test_images` has no part in it. Recomputed statistics are the sweep's own recomputation at the
    epoch of the average. Raises UserError where a state at k + s is missing.
    """
    pairs = chosen_pairs(opened, options)
    index = _Index(opened)
    again = RECOMPUTED in options.treatments
    rows: list[dict[str, Any]] = []
    having: dict[str, int] = dict.fromkeys(ADD, 0)
    for done, pair in enumerate(pairs):
        tell(done, len(pairs))
        found = [
            *_children(opened, pair),
            *_ensemble(opened, pair, again),
            *_trajectory(opened, index, pair, again),
            *_children_on(opened, index, pair),
            *_dropped_rate(opened, index, pair),
            *_alphas(opened, index, pair),
            *_after_axes(opened, index, pair),
        ]
        for name in {row[0] for row in found} | {row[3] for row in found if row[0] == "best_child"}:
            if name in having:
                having[name] += 1
        rows += [
            {
                **pair.columns(), "control": control, "value": value, "epochs": epochs, "batch_norm": batch_norm,
                "average_%": average, "control_%": other, "effect_points": average - other,
            }
            for control, value, epochs, batch_norm, average, other in found
        ]  # fmt: skip
    tell(len(pairs), len(pairs))
    absent = [
        {"control": name, "pairs_without": len(pairs) - count, "pairs": len(pairs), "add": ADD[name]}
        for name, count in having.items()
        # The pairs of an axis's first value are compared with the others', so they alone can have the comparison.
        if (count == 0 if name in (*AFTER_AXES, "alpha", "dropped_rate") else count < len(pairs))
    ]
    return {
        "controls": polars.DataFrame(rows, schema=pair_types(opened.planned.spec) | _TYPES),
        "absent": polars.DataFrame(absent, schema=_ABSENT_TYPES),
    }


class _Index:
    """The sweep's points by what they have in common.

    `longest`: by schedule and a child's first state, the longest path of that child at its own rates. `siblings`:
    points that differ on one axis only. `all_alphas`: points that differ in alpha only. `same`: points whose children
    start from one state under the same noise, whatever the axes are. `lost`: the states that diverged.
    """

    def __init__(self, opened: OpenedSweep) -> None:
        self.longest: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self.siblings: dict[tuple[Any, ...], list[ChosenPair]] = {}
        self.all_alphas: dict[tuple[Any, ...], list[ChosenPair]] = {}
        self.same: dict[tuple[Any, ...], list[ChosenPair]] = {}
        self.lost = opened.lost()
        for pair in all_pairs(opened):
            place = pair.place
            for whole in place.children:
                # Beyond s children may be trained on at a lower rate: that is another trajectory.
                path = whole if pair.config.experiment.children_rate_factor == 1 else whole[: pair.s]
                if path and len(path) > len(self.longest.get(self.child(pair, path), ())):
                    self.longest[self.child(pair, path)] = path
            for axis, _ in pair.variant:
                self.siblings.setdefault(self.beside(pair, axis), []).append(pair)
            self.all_alphas.setdefault(self.beside_alpha(pair), []).append(pair)
            clone = place.clone
            key = (clone, pair.k, pair.s, pair.config.seeds.child_noise, pair.point.alpha)
            self.same.setdefault(key, []).append(pair)

    def paths(self, pair: ChosenPair) -> list[tuple[str, ...]]:
        """The longest path of each of the pair's children, at its own rates; empty where s is 0."""
        if not pair.s:
            return [() for _ in pair.place.ends]
        return [self.longest[self.child(pair, path)] for path in pair.place.children]

    @staticmethod
    def child(pair: ChosenPair, path: tuple[str, ...]) -> tuple[Any, ...]:
        """What all paths of one child share; axes of `experiment` don't change how children are trained."""
        return (tuple(each for each in pair.variant if not each[0].startswith("experiment.")), path[0])

    @staticmethod
    def place(pair: ChosenPair) -> tuple[Any, ...]:
        """k, s, parent and tuple."""
        return pair.k, pair.s, pair.point.parent, pair.point.tuple_index

    def beside_alpha(self, pair: ChosenPair) -> tuple[Any, ...]:
        """What all pairs share that differ from this one in alpha only."""
        return (pair.variant, *self.place(pair))

    def beside(self, pair: ChosenPair, axis: str) -> tuple[Any, ...]:
        """What all pairs share that differ from this one on `axis` only."""
        others = tuple(each for each in pair.variant if each[0] != axis)
        return (axis, others, *self.place(pair), pair.point.alpha)


def _accuracy(opened: OpenedSweep, key: MeasurementKey) -> float | None:
    found = opened.measured.get(key)
    return None if found is None or found.diverged else found.test_accuracy


def _children(opened: OpenedSweep, pair: ChosenPair) -> Iterator[_Row]:
    for name, treatment in zip((OWN, RECOMPUTED), pair.place.treatments, strict=False):
        average, *children = (_accuracy(opened, (s, treatment)) for s in (pair.place.average, *pair.place.ends))
        there = [accuracy for accuracy in children if accuracy is not None]
        if average is not None and len(there) == len(children):
            yield "mean_child", None, None, name, average, sum(there) / len(there)
            yield "best_child", None, None, name, average, max(there)


def _ensemble(opened: OpenedSweep, pair: ChosenPair, again: bool) -> Iterator[_Row]:
    test, engine = opened.resident_splits(pair.config)[1], opened.resources.engine(pair.config)
    for treatment, networks in _treated(opened, pair, opened.states([*pair.place.ends, pair.place.average]), again):
        count = networks.members - 1
        found = ensemble_control(engine, networks.select(slice(0, count)), networks.select(slice(count, None)), test)
        average, ensemble = (float(scores.accuracy_M[0]) for scores in (found.average, found.ensemble))
        yield "ensemble", None, None, treatment, average, ensemble


def _trajectory(opened: OpenedSweep, index: _Index, pair: ChosenPair, again: bool) -> Iterator[_Row]:
    """Averages along each child's own trajectory to C s epochs, where the tree has it whole for all children."""
    length = len(pair.place.ends) * pair.s
    paths = [path[:length] for path in index.paths(pair)]
    whole = all(len(path) == length and index.lost.isdisjoint(path) and opened.has(path) for path in paths)
    if not pair.s or not whole:
        return
    test, engine = opened.resident_splits(pair.config)[1], opened.resources.engine(pair.config)
    lasts = range(2, length + 1)
    weights_LT = np.stack(
        [lawa_weights(length, 1), *(lawa_weights(length, last) for last in lasts), ema_weights(length, EMA_DECAY)]
    )
    accuracies: dict[str, list[Any]] = {}
    for path in paths:
        averages = trajectory_averages(opened.states(path), weights_LT)
        for treatment, networks in _treated(opened, pair, averages, again):
            accuracies.setdefault(treatment, []).append(engine.evaluate(networks, test).accuracy_M)
    for treatment, networks in _treated(opened, pair, opened.states([pair.place.average]), again):
        average = float(engine.evaluate(networks, test).accuracy_M[0])
        mean_L = [float(value) for value in np.mean(accuracies[treatment], axis=0)]
        yield "child_longer", None, length, treatment, average, mean_L[0]
        for last, accuracy in zip(lasts, mean_L[1:-1], strict=True):
            yield "lawa", None, last, treatment, average, accuracy
        yield "ema", f"{EMA_DECAY:g}", length, treatment, average, mean_L[-1]


def _children_on(opened: OpenedSweep, index: _Index, pair: ChosenPair) -> Iterator[_Row]:
    """The children trained on, in this point or in one of a larger s, against the average trained on."""
    paths = index.paths(pair)
    for epochs, state in enumerate(pair.place.after, 1):
        at = pair.s + epochs - 1
        if not pair.s or any(len(path) <= at for path in paths):
            return
        average, mean = _accuracy(opened, (state, OWN)), _mean_accuracy(opened, (path[at] for path in paths))
        if average is not None and mean is not None:
            yield "children_on", None, epochs, OWN, average, mean


def _dropped_rate(opened: OpenedSweep, index: _Index, pair: ChosenPair) -> Iterator[_Row]:
    """Children of the same parent state and noise that ended with a lower learning rate."""
    average, rate = _accuracy(opened, (pair.place.average, OWN)), _rate(opened, pair)
    if not pair.s or average is None or not rate:
        return
    factor = pair.config.experiment.children_rate_factor
    if factor < 1:
        for epochs, states in enumerate(zip(*(path[pair.s :] for path in pair.place.children), strict=True), 1):
            mean = _mean_accuracy(opened, states)
            if mean is not None:
                yield "dropped_rate", f"{factor:g}", epochs, OWN, average, mean
    clone = pair.place.clone
    same = index.same[clone, pair.k, pair.s, pair.config.seeds.child_noise, pair.point.alpha]
    seen: set[tuple[str, ...]] = set()
    for other in same:
        their_rate, mean = _rate(opened, other), _mean_accuracy(opened, other.place.ends)
        schedule_only = all(name.startswith("schedule.") for name, _ in set(other.variant) ^ set(pair.variant))
        if mean is None or their_rate is None or not schedule_only or other.place.ends in seen:
            continue
        seen.add(other.place.ends)
        if their_rate < rate:
            yield "dropped_rate", f"{their_rate / rate:g}", None, OWN, average, mean


def _mean_accuracy(opened: OpenedSweep, states: Iterable[str]) -> float | None:
    """The mean of the states' measured accuracies, own statistics; None where one is missing."""
    found = [_accuracy(opened, (state, OWN)) for state in states]
    there = [accuracy for accuracy in found if accuracy is not None]
    return sum(there) / len(there) if len(there) == len(found) else None


def _rate(opened: OpenedSweep, pair: ChosenPair) -> float | None:
    found = opened.measured.get((pair.place.ends[0], OWN))
    return None if found is None else found.learning_rate


def _alphas(opened: OpenedSweep, index: _Index, pair: ChosenPair) -> Iterator[_Row]:
    if pair.point.alpha != 0.5:
        return
    for other in index.all_alphas[index.beside_alpha(pair)]:
        for name, mine, theirs in zip((OWN, RECOMPUTED), pair.place.treatments, other.place.treatments, strict=False):
            average = _accuracy(opened, (pair.place.average, mine))
            accuracy = _accuracy(opened, (other.place.average, theirs))
            if other.point.alpha != 0.5 and average is not None and accuracy is not None:
                yield "alpha", f"{other.point.alpha:g}", None, name, average, accuracy


def _after_axes(opened: OpenedSweep, index: _Index, pair: ChosenPair) -> Iterator[_Row]:
    """The average trained on under other values of an axis, where this pair has the axis's first."""
    for axis, value in pair.variant:
        if axis not in AFTER_AXES:
            continue
        first, *others = index.siblings[index.beside(pair, axis)]
        if dict(first.variant)[axis] != value:
            continue
        for other in others:
            for epochs, (mine, theirs) in enumerate(zip(pair.place.after, other.place.after, strict=True), 1):
                average, accuracy = _accuracy(opened, (mine, OWN)), _accuracy(opened, (theirs, OWN))
                if average is not None and accuracy is not None:
                    yield axis, str(dict(other.variant)[axis]), epochs, OWN, average, accuracy


def _treated(
    opened: OpenedSweep, pair: ChosenPair, networks: Population, again: bool
) -> Iterator[tuple[str, Population]]:
    """The networks with their own statistics, and with recomputed ones where they are wanted."""
    yield OWN, networks
    if again:
        yield RECOMPUTED, recomputed(opened, networks, pair.config, pair.k + pair.s)
