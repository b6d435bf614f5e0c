"""The paper's five claims, each declared once and judged on what a sweep and its studies measured.

Source: Iyer, Dziugaite, Rolnick, Linear Weight Interpolation Leads to Transient Performance Gains, TMLR 2024. A
finding is confirmed where its whole 95 % interval over parents lies on the claimed side, refuted where all of it lies
on the other side, else not settled. Without an interval (`fastwi.analysis.statistics`) nothing is settled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from fastwi.report.estimates import ALMOST, distinct, hard_less_easy
from fastwi.report.rows import OVER, TREATMENTS
from fastwi.report.summary import count_of, variant_text
from fastwi.report.tables import cells

NOT_MEASURED = "not measured"
_MIDDLE = 0.5
_GAIN = "gain_best_own_points"
_SETTINGS = {"k": "k", "s": "s", "learning_rate": "learning rate"}
_DISTANCES = {
    "distance_l2": "children's distance (L2), within cells",
    "relative_distance": "children's distance relative to the parent's norm, within cells",
}
_RELATED_NEEDED = 2

Frames = Mapping[str, polars.DataFrame]


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


@dataclass(frozen=True)
class Found:
    """What was found for a claim. `details`: findings of single cells or epochs. `lacking`: a study to be run."""

    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()
    details: Sequence[Finding] = ()
    lacking: str = ""


@dataclass(frozen=True)
class Statement:
    """A claim as declared: the claim, what is estimated and when it is confirmed, and how.

    `find` takes the sweep's gains at the middle ("gains") and the studies' frames ("study/frame"). `decide` gives the
    verdict, of those findings that have one.
    """

    title: str
    estimand: str
    find: Callable[[Frames], Found]
    decide: Callable[[Sequence[Finding]], str]


@dataclass(frozen=True)
class Claim:
    """A claim, judged."""

    number: int
    verdict: str
    found: Found

    @property
    def statement(self) -> Statement:
        """The claim as declared."""
        return CLAIMS[self.number]

    @property
    def verdict_text(self) -> str:
        """The verdict, with the fewest parents of what decides it where they were too few to settle anything."""
        fewest = min((f.estimate.n_parents for f in self.found.findings if f.verdict), default=0)
        return verdict_text(self.verdict, fewest)


def judge(gains: polars.DataFrame, studies: Mapping[str, Frames]) -> list[Claim]:
    """All claims for one sweep: `gains` as in gains.parquet, `studies` by name their frames by name."""
    frames = {f"{study}/{name}": frame for study, found in studies.items() for name, frame in found.items()}
    frames["gains"] = middle(gains)
    claims = []
    for number, statement in CLAIMS.items():
        found = statement.find(frames)
        decisive = [finding for finding in found.findings if finding.verdict]
        claims.append(Claim(number, statement.decide(decisive) if decisive else NOT_MEASURED, found))
    return claims


def middle(frame: polars.DataFrame) -> polars.DataFrame:
    """The rows of plain means and of alpha = 0.5; all rows where there are none of these."""
    if "alpha" not in frame.columns:
        return frame
    chosen = frame.filter(polars.col("alpha").is_null() | (polars.col("alpha") == _MIDDLE))
    return chosen if chosen.height else frame


def _average_beats_both(frames: Frames) -> Found:
    gains = frames["gains"]
    findings = [
        finding
        for treatment in TREATMENTS
        for over, words in OVER.items()
        for finding in _mean(
            f"gain over {words}, {treatment} statistics", gains, f"gain_{over}_{treatment}_points",
            "above" if over == "best" else "",
        )
    ]  # fmt: skip
    details, notes = list[Finding](), []
    for cell in cells(gains):
        where = ", ".join(filter(None, (variant_text(cell.variant), f"k = {cell.k}, s = {cell.s}")))
        for treatment in TREATMENTS:
            estimate = cell.gains.get((treatment, "best"))
            if estimate is not None:
                details.append(Finding(f"{where}; {treatment} statistics", estimate, "points", verdict(estimate)))
    for treatment in TREATMENTS:
        verdicts = [f.verdict for f in details if f.what.endswith(f"; {treatment} statistics")]
        if verdicts:
            parts = ", ".join(f"{verdicts.count(name)} {name}" for name in (CONFIRMED, REFUTED, NOT_SETTLED))
            notes.append(f"Cell by cell, {treatment} statistics: {parts}.")
    return Found(findings, notes, details)


def _gain_is_transient(frames: Frames) -> Found:
    gains, findings, details = frames["gains"], list[Finding](), list[Finding]()
    most = int(gains["after_%"].list.len().max() or 0)  # type: ignore[arg-type]
    for name, words in (
        ("average", "the average at interpolation"),
        ("best", "the best child at interpolation"),
    ):
        values = polars.col(f"after_vs_{name}_points").list
        last = gains.with_columns(value=values.last())  # each pair's own: further epochs may be an axis
        findings += _mean(f"accuracy after the last further epoch less {words}", last, "value", "below", False)
        for epoch in range(1, most + 1):
            there = gains.with_columns(value=values.get(epoch - 1, null_on_oob=True))
            details += _mean(f"+{count_of(epoch, 'epoch')}, less {words}", there, "value", "below", False)
    notes = [
        "Own statistics throughout: further epochs are measured with those alone.",
        f"The average was trained on for {count_of(most, 'epoch')}.",
    ]
    return Found(findings, notes if findings else (), details)


def _two_quantities_govern(frames: Frames) -> Found:
    gains, correlations = frames["gains"], frames.get("governance/correlations")
    if correlations is None:
        columns = {"k": "k", "s": "s", "optimizer.learning_rate": _SETTINGS["learning_rate"]}
        found = [(words, _rank(gains, column, _GAIN)) for column, words in columns.items() if column in gains.columns]
    else:
        wanted = {(name, "all pairs"): words for name, words in _SETTINGS.items()}
        wanted |= {(name, "within cells"): words for name, words in _DISTANCES.items()}
        rows = correlations.filter(polars.col("gain") == _GAIN).to_dicts()
        at = [(wanted.get((row["quantity"], row["scope"])), row) for row in rows]
        found = [(words, _row_estimate(row)) for words, row in at if words is not None]
    findings = [
        Finding(f"gain and {words}", estimate, "rank correlation", _decided(estimate, "either"))
        for words, estimate in found
        if estimate is not None
    ]
    undefined = [f.what.removeprefix("gain and ") for f in findings if f.estimate.value is None]
    notes = [f"{name} does not vary in this sweep: make it an axis to test it." for name in undefined]
    return Found(findings, notes, lacking="governance" if correlations is None else "")


def _tied_to_connectivity(frames: Frames) -> Found:
    if "connectivity/barrier" not in frames:
        return Found(lacking="connectivity")
    test, findings = frames["connectivity/barrier"].filter(polars.col("split") == "test"), list[Finding]()
    for treatment in distinct(test, "batch_norm"):
        rows = test.filter(polars.col("batch_norm") == treatment)
        # Not Frankle's barrier and the gain over the better end: both have the ends' own difference in them, so that
        # they are related where there is no barrier at all.
        estimate = _rank(rows, "barrier_error_linear_points", "gain_mean_points")
        if estimate is not None:
            words = f"error barrier and gain over the children's mean, {treatment} statistics"
            findings.append(Finding(words, estimate, "rank correlation", _decided(estimate, "below")))
        for column, over in (("barrier_error_linear_points", "the line"), ("barrier_error_points", "the ends' mean")):
            findings += _mean(f"error barrier over {over}, on test images, {treatment} statistics", rows, column)
    note = (
        "Both have the error at the middle in them: where the barrier is there, they are related by definition too."
    )
    return Found(findings, [note] if findings else ())


def _falls_on_hard_examples(frames: Frames) -> Found:
    if "importance/split_gains" not in frames:
        return Found(lacking="importance")
    gains, changes = frames["importance/split_gains"], frames.get("importance/split_changes")
    findings = list[Finding]()
    for treatment in distinct(gains, "batch_norm"):
        rows = gains.filter(polars.col("batch_norm") == treatment)
        findings += _by_split("gain", f", {treatment} statistics", rows, "gain_mean_points", "above")
    if changes is not None and changes.height:
        # Each pair's own last epoch: further epochs may be an axis of the sweep.
        pair = changes.columns[: changes.columns.index("epochs_after")]
        last = changes.filter(polars.col("epochs_after") == polars.col("epochs_after").max().over(pair))
        findings += _by_split("change with further training", "", last, "change_points", "below")
    return Found(findings)


def _by_split(what: str, tail: str, rows: polars.DataFrame, column: str, side: str) -> list[Finding]:
    """What the whole and the hard half have of it, which decide; the hardest split less the easiest; the easiest."""
    rows = middle(rows)
    if not rows.height:
        return []
    easy, hard = min(distinct(rows, "split")), max(distinct(rows, "split"))
    pair = rows.columns[: rows.columns.index("pair") + 1]
    sides = [rows.filter(polars.col("split") == split).select(*pair, column) for split in (hard, easy)]
    both = sides[0].join(sides[1], on=pair, how="inner", nulls_equal=True, suffix=" easy")
    there = _finite(rows, column)
    of_pairs = there.group_by(pair, maintain_order=True).agg(polars.col(column).mean())
    share = hard_less_easy(there, column, ALMOST)
    if share is None:
        return []
    words = f"{what}, harder half of the splits less {ALMOST} times easier half{tail}"
    return [
        *_mean(f"{what}, all splits{tail}", of_pairs, column, side),
        Finding(words, share, "points", _decided(share, side)),
        *_mean(
            f"{what}, split {hard} (hardest) less split {easy} (easiest){tail}",
            both.with_columns(polars.col(column) - polars.col(f"{column} easy")), column,
        ),
        *_mean(f"{what}, split {easy} (easiest){tail}", sides[1], column),
    ]  # fmt: skip


def _mean(what: str, frame: polars.DataFrame, column: str, side: str = "", refutable: bool = True) -> list[Finding]:
    """The mean over parents in points, as a finding; none where nothing is measured."""
    there = _finite(frame, column) if column in frame.columns else frame.clear()
    if not there.height:
        return []
    estimate = mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list())
    return [Finding(what, estimate, "points", _decided(estimate, side, refutable))]


def _rank(frame: polars.DataFrame, x: str, y: str) -> Estimate | None:
    """The rank correlation; None for less than two pairs, which have no order."""
    there = _finite(frame, x, y)
    if there.height < 2:
        return None
    return spearman(there[x].to_numpy(), there[y].to_numpy(), there["parent_seed"].to_list())


def _row_estimate(row: Mapping[str, Any]) -> Estimate:
    """A row of the study governance."""
    return Estimate(
        row["spearman"], row["low"], row["high"], row["n_parents"], row["n_pairs"], 0.95, row["note"] or ""
    )


def _finite(frame: polars.DataFrame, *columns: str) -> polars.DataFrame:
    """The rows where all of `columns` are measured and finite."""
    return frame.drop_nulls(columns).filter(*(polars.col(name).cast(polars.Float64).is_finite() for name in columns))


def _decided(estimate: Estimate, side: str, refutable: bool = True) -> str:
    """The verdict on 0, for the claim that the value is `side` ("above", "below" or "either"); empty without one."""
    if not side:
        return ""
    if side == "either":
        return CONFIRMED if estimate.excludes_zero else NOT_SETTLED
    found = verdict(estimate, 0, side)
    return found if refutable or found != REFUTED else NOT_SETTLED


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
    return CONFIRMED if len(related) >= _RELATED_NEEDED else NOT_SETTLED


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
        "relation; two such quantities confirm, of which one may be a distance. Never refuted: a "
        "relation that rises and falls has a rank correlation near 0.",
        _two_quantities_govern,
        _two_related,
    ),
    4: Statement(
        "The gain is tied to linear mode connectivity.",
        "Spearman's rank correlation over all pairs, on test images, of the error barrier between the children (over "
        "the line between their errors) with the gain at the middle over their mean. Below 0 (a lower barrier, a "
        "larger gain) under every treatment confirms.",
        _tied_to_connectivity,
        _all_agree,
    ),
    5: Statement(
        "Gains and losses fall almost wholly on hard examples (by EL2N score); easy ones stay flat.",
        "In points of training accuracy, the gain of the average over the children's mean (above 0 claimed), and its "
        "change from interpolation to the last further epoch (below 0 claimed): over all splits, and on the harder "
        f"half of them less {ALMOST} times that on the easier half, which says that over "
        f"{100 * ALMOST // (ALMOST + 1)} % of it is there.",
        _falls_on_hard_examples,
        _all_hold,
    ),
}
"""The claims, by number."""
