"""The paper's five claims, each declared once and judged on what a sweep and its studies measured.

Source: Iyer, Dziugaite, Rolnick, Linear Weight Interpolation Leads to Transient Performance Gains, TMLR 2024; the
splits of claim 5 are those of its Figure 5. A finding is confirmed where its whole 95 % interval over parents lies on
the claimed side, refuted where all of it lies on the other side, else not settled. Without an interval
(`fastwi.analysis.statistics`) nothing is settled.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import polars

from fastwi.analysis.statistics import (
    CONFIRMED,
    NOT_SETTLED,
    REFUTED,
    Estimate,
    mean_estimate,
    spearman,
    verdict,
    verdict_text,
)
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import (
    ALMOST,
    correlation_of,
    distinct,
    estimate_of,
    hard_less_easy,
    named_texts,
    pairs_at_interpolation,
    value_of,
)
from fastwi.report.rows import OVER
from fastwi.report.summary import count_of, sentence
from fastwi.report.tables import (
    after_column,
    cells,
    gain_column,
    measured,
    measured_after,
    most_epochs,
    note_of,
    treatments_after,
)

NOT_MEASURED = "not measured"
_MIDDLE = 0.5
_TIME_DIGITS = 9  # of a part of an epoch, and of a learning rate
_SAME = 1e-6  # points: a barrier and a loss of accuracy this close are one measurement
_GAIN = "gain_best_own_points"
_CORRELATION = "rank correlation"
_BEFORE = {"average": "the average", "best": "the best child"}
_RATE = "learning_rate"
_SETTINGS = {"k": "k", "s": "s", _RATE: "learning rate"}
_DISTANCES = {
    "distance_l2": "children's distance (L2), within cells",
    "relative_distance": "children's distance relative to the parent's norm, within cells",
}

Frames = Mapping[str, polars.DataFrame]
Side = Literal["", "above", "below", "gone", "either"]
"""The side of 0 that is claimed; gone: below, and never refuted; either: not 0, and never refuted; empty: none."""


@dataclass(frozen=True)
class Finding:
    """One estimate that a claim rests on. `verdict`: its own; empty where it decides nothing."""

    what: str
    estimate: Estimate
    unit: str
    verdict: str = ""

    @property
    def verdict_text(self) -> str:
        """The verdict, with n where that was too small to settle anything."""
        return verdict_text(self.verdict, self.estimate.n_parents)

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        e = self.estimate
        values = {"what": self.what, "value": e.value, "low": e.low, "high": e.high, "unit": self.unit}
        counts = {"n_parents": e.n_parents, "n_pairs": e.n_pairs}
        return {**values, **counts, "verdict": self.verdict, "note": e.note}


class Found(NamedTuple):
    """What was found for a claim. `details`: findings of single cells or epochs."""

    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    details: Sequence[Finding] = ()


class Statement(NamedTuple):
    """A claim as declared.

    title, estimand: the claim; what is estimated and when it is confirmed. find: from the sweep's gains at the middle
    ("gains") and the studies' frames ("study/frame"). decide: the verdict, of those findings that have one. frame:
    that of a study, on which the claim rests.
    """

    title: str
    estimand: str
    find: Callable[[Frames], Found]
    decide: Callable[[Sequence[Finding]], str]
    frame: str = ""


class Claim(NamedTuple):
    """A claim, judged. `study`: the one that it rests on, if any; `lacking`: the same where it was not run."""

    number: int
    statement: Statement
    verdict: str
    found: Found
    study: str
    lacking: str

    @property
    def verdict_text(self) -> str:
        """The verdict, with the fewest parents of what decides it where they were too few to settle anything."""
        return verdict_text(self.verdict, self.fewest.n_parents if self.fewest else 0)

    @property
    def fewest(self) -> Estimate | None:
        """Of the estimates that decide it the first of those of the fewest parents; None where nothing decides."""
        decisive = [finding.estimate for finding in self.found.findings if finding.verdict]
        return min(decisive, key=lambda estimate: estimate.n_parents, default=None)


def judge(gains: polars.DataFrame, studies: Mapping[str, Frames]) -> list[Claim]:
    """All claims for one sweep: `gains` as in gains.parquet, `studies` by name their frames by name."""
    frames = {f"{study}/{name}": frame for study, found in studies.items() for name, frame in found.items()}
    frames["gains"] = middle(gains)
    claims = []
    for number, statement in CLAIMS.items():
        found = statement.find(frames)
        decisive = [finding for finding in found.findings if finding.verdict]
        decided = statement.decide(decisive) if decisive else NOT_MEASURED
        study = statement.frame.partition("/")[0]
        claims.append(Claim(number, statement, decided, found, study, "" if statement.frame in frames else study))
    return claims


def middle(frame: polars.DataFrame) -> polars.DataFrame:
    """The rows of plain means and of alpha = 0.5; all rows where there are none of these."""
    if "alpha" not in frame.columns:
        return frame
    chosen = frame.filter(polars.col("alpha").is_null() | (polars.col("alpha") == _MIDDLE))
    return chosen if chosen.height else frame


def _average_beats_both(frames: Frames) -> Found:
    gains = frames["gains"]
    findings = list[Finding]()
    notes = list[str]()
    details = list[Finding]()
    for treatment in measured(gains):
        tail = f"{treatment} statistics"
        for over, words in OVER.items():
            side: Side = "above" if over == "best" else ""
            findings += _find(f"gain over {words}, {tail}", gains, side, gain_column(treatment, over))
        of_cells = list[Finding]()
        for variant, k, s, rows in cells(gains):
            times = "k = {}, s = {}".format(*named_texts(("k", "s"), (k, s), rows))
            where = ", ".join(filter(None, [variant, times]))
            of_cells += _find(f"{where}; {tail}", rows, "above", gain_column(treatment))
        verdicts = [finding.verdict for finding in of_cells]
        if verdicts:
            parts = ", ".join(f"{verdicts.count(name)} {name}" for name in (CONFIRMED, REFUTED, NOT_SETTLED))
            notes.append(f"Cell by cell, {tail}: {parts}.")
        details += of_cells
    note = note_of(gains)
    notes += [f"{sentence(note)}."] if note else []
    return Found(findings, notes, details)


def _gain_is_transient(frames: Frames) -> Found:
    gains = frames["gains"]
    findings = list[Finding]()
    details = list[Finding]()
    most = most_epochs(gains)
    treatments = measured_after(gains)
    for treatment, (name, words) in itertools.product(treatments, _BEFORE.items()):
        values = polars.col(after_column(treatment, f"vs_{name}_points")).list
        tail = "" if treatments == [OWN] else f", {treatment} statistics"
        last = gains.with_columns(value=values.last())  # each pair's own: further epochs may be an axis
        what = f"accuracy after the last further epoch less {words} at interpolation{tail}"
        findings += _find(what, last, "gone", "value")
        for epoch in range(1, most + 1):
            there = gains.with_columns(value=values.get(epoch - 1, null_on_oob=True))
            at = f"+{count_of(epoch, 'epoch')}" if gains["k"].dtype.is_integer() else f"end {epoch} of an epoch"
            what = f"{at}, less {words} at interpolation{tail}"
            details += _find(what, there, "gone", "value")
    only = "Own statistics throughout: further epochs are measured with those alone (experiment.measure)."
    notes = [only] if treatments_after(gains) == [OWN] else []
    further = count_of(most, "epoch") if gains["k"].dtype.is_integer() else f"{most} ends of epochs"
    notes.append(f"The average was trained on for {further}.")
    return Found(findings, notes if findings else (), details)


def _two_quantities_govern(frames: Frames) -> Found:
    gains = frames["gains"]
    studied = middle(frames.get("governance/pairs", gains))
    findings = list[Finding]()
    notes = list[str]()
    # All pairs of the sweep, where they have the quantity: the study may have measured a part of them.
    axis = f"optimizer.{_RATE}"
    rates, rate = (gains, axis) if axis in gains.columns else (studied, _RATE)
    for rows, column, before in ((gains, "k", ()), (gains, "s", ("k",)), (rates, rate, ("k", "s"))):
        words = _SETTINGS[column.removeprefix("optimizer.")]
        for finding in _find(f"gain and {words}", rows, "either", column, _GAIN):
            there = _finite(rows, *before, column, _GAIN)
            counted = finding
            if there[column].n_unique() == 1:
                notes.append(f"{words} does not vary over the measured pairs: make it an axis to test it.")
            elif _follows(there, column, before):
                one = " and ".join(before)
                notes.append(f"Over the measured pairs {words} follows from {one}: it is not counted beside {one}.")
                counted = replace(finding, verdict="")
            findings.append(counted)
    if "governance/correlations" in frames:
        within = frames["governance/correlations"].filter(gain=_GAIN, scope="within cells")
        for row in within.filter(polars.col("quantity").is_in(list(_DISTANCES))).to_dicts():
            what = f"gain and {_DISTANCES[row['quantity']]}"
            findings.append(_finding(what, correlation_of(row), "either", _CORRELATION))
    return Found(findings, notes)


def _follows(rows: polars.DataFrame, column: str, others: Sequence[str]) -> bool:
    """Whether `column` has one value for all rows that share those of `others`, of which there are some."""
    # Rounded: parts of an epoch and rates that are equal may differ in their last digits.
    values = rows.select(polars.col(column, *others).cast(polars.Float64).round_sig_figs(_TIME_DIGITS))
    return bool(others) and values.n_unique() == values.select(others).n_unique()


def _tied_to_connectivity(frames: Frames) -> Found:
    barriers = frames.get("connectivity/barrier")
    findings = list[Finding]()
    if barriers is None:
        return Found()
    test = barriers.filter(split="test")
    for treatment in distinct(test, "batch_norm"):
        rows = test.filter(batch_norm=treatment)
        tail = f"{treatment} statistics"
        # Not Frankle's barrier and the gain over the better end: both have the ends' own difference in them, so that
        # they are related where there is no barrier at all.
        what = f"error barrier and gain over the children's mean, {tail}"
        tie = _find(what, rows, "below", "barrier_error_linear_points", "gain_mean_points")
        findings += [_unsettled(finding, _not_a_tie(frames, rows, treatment)) for finding in tie]
        for column, over in (("barrier_error_linear_points", "the line"), ("barrier_error_points", "the ends' mean")):
            findings += _find(f"error barrier over {over}, on test images, {tail}", rows, "", column)
    return Found(findings)


def _not_a_tie(frames: Frames, rows: polars.DataFrame, treatment: str) -> list[str]:
    """Reasons why the correlation of claim 4 says nothing about a gain."""
    reasons = list[str]()
    column = gain_column("own" if treatment == "averaged" else treatment)
    gain = value_of(estimate_of(frames["gains"], column))
    if math.isnan(gain) and "gain_best_points" in rows.columns:  # sweep.measure may be [own]
        gain = value_of(estimate_of(_finite(rows, "gain_best_points"), "gain_best_points"))
    if gain <= 0:
        reasons.append(f"claim 1 fails: the average does not gain ({gain:+.2f} points)")
    there = _finite(rows, "barrier_error_linear_points", "gain_mean_points")
    barrier = polars.col("barrier_error_linear_points")
    # Or higher there than the barrier: of an even number of places none is the middle, which the gain is taken at.
    at_middle = there.filter(barrier > _SAME, barrier + polars.col("gain_mean_points") < _SAME).height
    if 2 * at_middle > there.height:
        where = f"the barrier of {at_middle} of {count_of(there.height, 'pair')} is highest at the middle"
        reasons.append(f"{where}, where it is the gain with the other sign by definition")
    return reasons


def _unsettled(finding: Finding, reasons: Sequence[str]) -> Finding:
    """The finding; with `reasons`, which are added to its note, it is not settled."""
    if not reasons:
        return finding
    note = "; ".join(filter(None, [finding.estimate.note, *reasons]))
    return replace(finding, estimate=replace(finding.estimate, note=note), verdict=NOT_SETTLED)


def _falls_on_hard_examples(frames: Frames) -> Found:
    gains = frames.get("importance/split_gains")
    changes = frames.get("importance/split_changes")
    if gains is None:
        return Found()
    parts = []
    for treatment in distinct(gains, "batch_norm"):
        rows = gains.filter(batch_norm=treatment)
        parts.append(_by_split("gain", f", {treatment} statistics", rows, "gain_mean_points", "above"))
    early = Found()
    if changes is not None and changes.height:
        # Parts of an epoch that are equal may differ in their last digits.
        changes = changes.with_columns(polars.col("epochs_after").round(_TIME_DIGITS))
        # Each pair's own last epoch: further epochs may be an axis of the sweep.
        pair = changes.columns[: changes.columns.index("epochs_after")]
        last = changes.filter(polars.col("epochs_after") == polars.col("epochs_after").max().over(pair))
        parts.append(_by_split("change with further training", "", last, "change_points", "below"))
        first = min(changes["epochs_after"])
        if first < max(last["epochs_after"]):
            words = f"change with {count_of(first, 'epoch')} of further training"
            early = _by_split(words, "", changes.filter(epochs_after=first), "change_points", "below")
    findings = [finding for part in parts for finding in part.findings]
    details = [finding for part in parts for finding in part.details]
    return Found(findings, details=[*details, *early.findings, *early.details])


def _by_split(what: str, tail: str, rows: polars.DataFrame, column: str, side: Side) -> Found:
    """What the whole and the hard half have of it, which decide; the hardest split less the easiest; the easiest.

    In detail the hard half less the easy half.
    """
    rows = _finite(middle(rows), column)
    if not rows.height:
        return Found()
    splits = distinct(rows, "split")
    easy = min(splits)
    hard = max(splits)
    share = hard_less_easy(rows, column, ALMOST)
    halves = hard_less_easy(rows, column)
    ends = hard_less_easy(rows.filter(polars.col("split").is_in([easy, hard])), column)
    if share is None or halves is None or ends is None:
        return Found()
    pair = rows.columns[: rows.columns.index("pair") + 1]
    of_pairs = rows.group_by(pair, maintain_order=True).agg(polars.col(column).mean())
    share, halves, ends = (_counted(each, of_pairs, column) for each in (share, halves, ends))
    words = f"{what}, harder half minus {ALMOST} x easier half{tail}"
    apart = f"{what}, split {hard} (hardest) less split {easy} (easiest){tail}"
    findings = [
        *_find(f"{what}, all splits{tail}", of_pairs, side, column),
        _finding(words, share, side),
        _finding(apart, ends),
        *_find(f"{what}, split {easy} (easiest){tail}", rows.filter(split=easy), "", column),
    ]
    more = _finding(f"{what}, harder half minus easier half{tail}", halves, side)
    return Found(findings, details=[more])


def _find(what: str, frame: polars.DataFrame, side: Side, *columns: str) -> list[Finding]:
    """Of one column the mean over parents, in points; of two their rank correlation. Empty: nothing is measured."""
    there = _finite(frame, *columns) if set(columns) <= set(frame.columns) else frame.clear()
    if there.height < len(columns):  # one pair has no order
        return []
    parents = there["parent_seed"].to_list()
    x, *others = (there[name].to_numpy() for name in columns)
    estimate = spearman(x, others[0], parents) if others else mean_estimate(x, parents)
    estimate = _counted(estimate, there, *columns)
    return [_finding(what, estimate, side, _CORRELATION if others else "points")]


def _counted(estimate: Estimate, rows: polars.DataFrame, *columns: str) -> Estimate:
    """With each pair counted once where the columns are the same whatever the axes of further training are."""
    if not columns[-1].startswith(("gain_", "barrier_")):
        return estimate
    return replace(estimate, n_pairs=min(estimate.n_pairs, pairs_at_interpolation(rows, *columns)))


def _finding(what: str, estimate: Estimate, side: Side = "", unit: str = "points") -> Finding:
    """With the verdict on the claim that the value is on this `side` of 0; without a side, no verdict."""
    if not side:
        return Finding(what, estimate, unit)
    found = verdict(estimate, "below" if side in ("below", "gone") else "above")
    if found == REFUTED:
        found = {"gone": NOT_SETTLED, "either": CONFIRMED}.get(side, found)
    return Finding(what, estimate, unit, found)


def _finite(frame: polars.DataFrame, *columns: str) -> polars.DataFrame:
    """The rows where all of `columns` are measured and finite."""
    return frame.drop_nulls(columns).filter(*(polars.col(name).cast(polars.Float64).is_finite() for name in columns))


def _all_agree(findings: Sequence[Finding]) -> str:
    """The verdict that all findings share; not settled where they differ."""
    found = {finding.verdict for finding in findings}
    return found.pop() if len(found) == 1 else NOT_SETTLED


def _all_hold(findings: Sequence[Finding]) -> str:
    """Confirmed where every finding is, refuted where any is."""
    return REFUTED if any(f.verdict == REFUTED for f in findings) else _all_agree(findings)


def _two_related(findings: Sequence[Finding]) -> str:
    """Confirmed where two quantities are related; the measures of distance count as one."""
    related = {finding.what.split("distance")[0] for finding in findings if finding.verdict == CONFIRMED}
    return CONFIRMED if len(related) > 1 else NOT_SETTLED


CLAIMS = {
    1: Statement(
        "Test accuracy shoots up at interpolation: the average beats both children.",
        "Test accuracy of the average less that of its best child at interpolation, both under the same batch-norm "
        "statistics, over all cells; above 0 under every treatment confirms.",
        _average_beats_both,
        _all_agree,
    ),
    2: Statement(
        "The gain is transient: within a few epochs of further training it is gone.",
        "Test accuracy of the average after its last further epoch, less that of the average and less that of the "
        "best child at interpolation. Both below 0 confirms that the gain is gone. Never refuted: while training "
        "itself still gains, accuracy rises whether or not what averaging gave is kept.",
        _gain_is_transient,
        _all_agree,
    ),
    3: Statement(
        "Two quantities govern the gain.",
        "Spearman's rank correlation of the gain over the best child (own statistics) with k, s and the learning "
        "rate over all pairs, and with the children's distance within cells. An interval that excludes 0 shows a "
        "relation; two such quantities confirm, of which one may be a distance. A quantity that follows from those "
        "before it, as s from k where all children end at one epoch, is not counted. Never refuted: a "
        "relation that rises and falls has a rank correlation near 0.",
        _two_quantities_govern,
        _two_related,
        "governance/correlations",
    ),
    4: Statement(
        "The gain is tied to linear mode connectivity.",
        "Spearman's rank correlation over all pairs, on test images, of the error barrier between the children (over "
        "the line between their errors) with the gain at the middle over their mean. Below 0 (a lower barrier, a "
        "larger gain) under every treatment confirms. Not settled where the average does not gain (claim 1) or "
        "where most barriers are highest at the middle: there the two are one number with opposite signs.",
        _tied_to_connectivity,
        _all_agree,
        "connectivity/barrier",
    ),
    5: Statement(
        "Gains and losses fall almost wholly on hard examples (by EL2N score); easy ones stay flat.",
        "In points of training accuracy, the gain of the average over the children's mean (above 0 claimed), and its "
        "change from interpolation to the last further epoch (below 0 claimed): over all splits, and as harder half "
        f"minus {ALMOST} x easier half (above 0, of the change below 0: more than "
        f"{100 * ALMOST // (ALMOST + 1)} % of it is on the harder half).",
        _falls_on_hard_examples,
        _all_hold,
        "importance/split_gains",
    ),
}
"""The claims, by number."""
