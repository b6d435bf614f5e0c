"""The paper's five claims, each judged on what a sweep and its studies measured.

One function a claim (Iyer, Dziugaite, Rolnick, Linear Weight Interpolation Leads to Transient Performance Gains,
TMLR 2024). Its docstring says the estimand: what number is estimated, over which pairs, under which treatment of
batch-norm statistics. Every estimate has its 95 % interval over parents (`fastwi.analysis.statistics`). A
finding is confirmed where its whole interval lies on the claimed side, refuted where all of it lies on the other
side, else not settled. Below 5 parents, and where all are equal, there is no interval and all is not settled.

Claims are about the middle of the line: where a sweep has several alpha, rows of 0.5 count (`middle`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars

from fastwi.analysis.statistics import (
    CONFIRMED,
    NOT_SETTLED,
    REFUTED,
    SCOPES,
    Estimate,
    mean_estimate,
    spearman,
    verdict,
    verdict_text,
)
from fastwi.report.estimates import ALMOST, hard_less_easy
from fastwi.report.rows import OVER, TREATMENTS
from fastwi.report.summary import variant_text
from fastwi.report.tables import cells

NOT_MEASURED = "not measured"
_MIDDLE = 0.5
_LEARNING_RATE = "optimizer.learning_rate"
_RELATED_NEEDED = 2
_SETTINGS = {"k": "k", "s": "s", "learning_rate": "learning rate"}
_DISTANCES = {
    "distance_l2": "children's distance (L2), within cells",
    "relative_distance": "children's distance relative to the parent's norm, within cells",
}
_ALL_PAIRS, _WITHIN_CELLS = SCOPES

TITLES = {
    1: "Test accuracy shoots up at interpolation: the average beats both children.",
    2: "The gain is transient: within a few epochs of further training it is gone.",
    3: "Two quantities govern the gain.",
    4: "The gain is tied to linear mode connectivity.",
    5: "Gains and losses fall almost wholly on hard examples (by EL2N score); easy ones stay flat.",
}
"""The claims, by number."""


@dataclass(frozen=True)
class Finding:
    """One estimate that a claim rests on.

    `what` in words; `unit` of the estimate; `verdict` of this finding alone, empty where it is shown for context and
    decides nothing.
    """

    what: str
    estimate: Estimate
    unit: str
    verdict: str = ""

    @property
    def verdict_text(self) -> str:
        """The verdict, with n where that was too small to settle anything."""
        return verdict_text(self.verdict, self.estimate.n_parents)


@dataclass(frozen=True)
class Claim:
    """A claim with its verdict, what it rests on, and what must be said beside it.

    `estimand` says in words what was estimated; `studies` are the studies that would have to be run, empty where all
    that the claim needs is there; `details` are findings of single cells.
    """

    number: int
    verdict: str
    findings: tuple[Finding, ...]
    estimand: str
    notes: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    details: tuple[Finding, ...] = ()

    @property
    def title(self) -> str:
        """The claim itself."""
        return TITLES[self.number]

    @property
    def verdict_text(self) -> str:
        """The verdict, with the fewest parents of what decides it where they were too few to settle anything."""
        fewest = min((f.estimate.n_parents for f in self.findings if f.verdict), default=0)
        return verdict_text(self.verdict, fewest)


def judge(gains: polars.DataFrame, studies: Mapping[str, Mapping[str, polars.DataFrame]]) -> list[Claim]:
    """All claims for one sweep: `gains` as in gains.parquet, `studies` by name their frames by name."""
    connectivity, importance = studies.get("connectivity", {}), studies.get("importance", {})
    return [
        claim_1(gains),
        claim_2(gains),
        claim_3(gains, studies.get("governance", {}).get("correlations")),
        claim_4(connectivity.get("barrier")),
        claim_5(importance.get("split_gains"), importance.get("split_changes")),
    ]


def claim_1(gains: polars.DataFrame) -> Claim:
    """Claim 1: the average beats both children.

    Estimand, for each treatment of batch-norm statistics: the mean over parents of test accuracy of the average less
    that of the best child at interpolation, both under that treatment, in percentage points, each parent's mean over
    all its pairs in all cells. Claimed: above 0 under every treatment that was measured. `details`: the same by cell.
    """
    frame = middle(gains)
    findings, details = [], []
    for treatment in TREATMENTS:
        for over, words in OVER.items():
            estimate = _mean(frame, f"gain_{over}_{treatment}_points")
            if estimate is not None:
                decides = verdict(estimate) if over == "best" else ""
                findings.append(Finding(f"gain over {words}, {treatment} statistics", estimate, "points", decides))
    for cell in cells(frame):
        where = ", ".join(filter(None, (variant_text(cell.variant), f"k = {cell.k}, s = {cell.s}")))
        for treatment in TREATMENTS:
            estimate = cell.gains.get((treatment, "best"))
            if estimate is not None:
                details.append(Finding(f"{where}; {treatment} statistics", estimate, "points", verdict(estimate)))
    return Claim(
        1,
        _all_of(findings),
        tuple(findings),
        "Test accuracy of the average less that of its best child at interpolation, both under the same batch-norm "
        "statistics, over all cells; above 0 under every treatment confirms.",
        _counts(details),
        details=tuple(details),
    )


def claim_2(gains: polars.DataFrame) -> Claim:
    """Claim 2: within a few epochs of further training the gain is gone.

    Two estimands, own statistics, over all cells, in percentage points, each parent's mean over its pairs: test
    accuracy of the average after its last further epoch, (a) less that of the average at interpolation, claimed
    below 0: it is lost; (b) less that of the best child at interpolation, claimed below 0: nothing is left of it.
    Confirmed where both are. Never refuted: where training itself still gains, accuracy rises though what averaging
    gave is lost; only children that were trained on to the same epoch could tell. `details`: (a) and (b) after each
    further epoch.
    """
    frame = middle(gains)
    against = {"average": "the average at interpolation", "best": "the best child at interpolation"}
    findings, details = [], []
    most = int(frame["after_%"].list.len().max() or 0)  # type: ignore[arg-type]
    for name, words in against.items():
        column = polars.col(f"after_vs_{name}_points")
        last = _mean(frame.with_columns(column.list.last().alias("last")), "last")
        if last is not None:
            decides = _confirmed_or_open(last, "below")
            findings.append(Finding(f"accuracy after the last further epoch less {words}", last, "points", decides))
        for epoch in range(1, most + 1):
            there = _mean(frame.with_columns(column.list.get(epoch - 1, null_on_oob=True).alias("there")), "there")
            if there is not None:
                decides = _confirmed_or_open(there, "below")
                details.append(Finding(f"+{epoch} epoch{'s' * (epoch > 1)}, less {words}", there, "points", decides))
    notes = ["Own statistics throughout: further epochs are measured with those alone."] if findings else []
    if findings:
        notes.append(f"The average was trained on for {most} epoch{'s' * (most > 1)}.")
    return Claim(
        2,
        _all_of(findings),
        tuple(findings),
        "Test accuracy of the average after its last further epoch, less that of the average and less that of the "
        "best child at interpolation. Both below 0 confirms that the gain is gone. Never refuted: while training "
        "itself still gains, accuracy rises whether or not what averaging gave is kept.",
        tuple(notes),
        details=tuple(details),
    )


def claim_3(gains: polars.DataFrame, correlations: polars.DataFrame | None) -> Claim:
    """Claim 3: two quantities govern the gain.

    Estimand: Spearman's rank correlation of the gain over the best child (own statistics) with k, s and the learning
    rate over all pairs, and with the children's distance within cells, since it grows with k, s and the rate. A
    quantity is related where the interval excludes 0, whichever sign; confirmed where at least two are. The two
    measures of distance count as one. Never refuted: a rank correlation near 0 does not exclude a relation that
    rises and falls. `correlations` is the frame of the study governance; without it k, s and the learning rate (where
    it is an axis) are correlated here, and the distance is not measured.
    """
    found = _of_axes(middle(gains)) if correlations is None else _of_governance(correlations)
    findings = tuple(
        Finding(f"gain and {what}", estimate, "rank correlation", _related(estimate)) for what, estimate in found
    )
    related = {finding.what.split("distance")[0] for finding in findings if finding.verdict == CONFIRMED}
    decided = CONFIRMED if len(related) >= _RELATED_NEEDED else NOT_SETTLED
    undefined = [f.what.removeprefix("gain and ") for f in findings if f.estimate.value is None]
    notes = [f"{name} does not vary in this sweep: make it an axis to test it." for name in undefined]
    return Claim(
        3,
        decided if findings else NOT_MEASURED,
        findings,
        "Spearman's rank correlation of the gain over the best child (own statistics) with k, s and the learning "
        "rate over all pairs, and with the children's distance within cells. An interval that excludes 0 shows a "
        "relation; two such quantities confirm, of which one may be a distance. Never refuted: a "
        "relation that rises and falls has a rank correlation near 0.",
        tuple(notes),
        () if correlations is not None else ("governance",),
    )


def claim_4(barrier: polars.DataFrame | None) -> Claim:
    """Claim 4: the gain is tied to linear mode connectivity.

    Estimand, for each treatment of batch norm: Spearman's rank correlation over all pairs, on test images, of the
    error barrier over the line between the ends' errors with the gain at the middle over the ends' mean. Claimed:
    below 0 under every treatment (the lower the barrier, the larger the gain). Not Frankle's barrier (over the ends'
    mean) and the gain over the better end: both have the ends' own difference in them, so that they are related where
    there is no barrier at all. Beside it the mean of either barrier in points. `barrier` is the frame of the study
    connectivity.
    """
    estimand = (
        "Spearman's rank correlation over all pairs, on test images, of the error barrier between the children (over "
        "the line between their errors) with the gain at the middle over their mean. Below 0 (a lower barrier, a "
        "larger gain) under every treatment confirms."
    )
    if barrier is None:
        return Claim(4, NOT_MEASURED, (), estimand, studies=("connectivity",))
    findings = []
    test = barrier.filter(polars.col("split") == "test")
    for treatment in test["batch_norm"].unique(maintain_order=True).to_list():
        rows = test.filter(polars.col("batch_norm") == treatment)
        found = _rank(rows, "barrier_error_linear_points", "gain_mean_points")
        if found is not None:
            decides = verdict(found, 0, "below")
            words = f"error barrier and gain over the children's mean, {treatment} statistics"
            findings.append(Finding(words, found, "rank correlation", decides))
        for column, over in (("barrier_error_linear_points", "the line"), ("barrier_error_points", "the ends' mean")):
            height = _mean(rows, column)
            if height is not None:
                words = f"error barrier over {over}, on test images, {treatment} statistics"
                findings.append(Finding(words, height, "points"))
    note = (
        "Both have the error at the middle in them: where the barrier is there, they are related by definition too."
    )
    return Claim(4, _all_of(findings), tuple(findings), estimand, (note,) if findings else ())


def claim_5(split_gains: polars.DataFrame | None, split_changes: polars.DataFrame | None) -> Claim:
    """Claim 5: gains and losses fall almost wholly on the hard splits.

    Estimands in percentage points of training accuracy, pair by pair: (a) for each treatment of batch norm, the gain
    of the average over the children's mean, claimed above 0; (b) where the average was trained on, its change from
    interpolation to the last further epoch (own statistics), claimed below 0. Of either the mean over all splits, and
    that of the harder half of them less 9 times that of the easier half, which is on the claimed side where over 90 %
    of the whole falls on the harder half. Confirmed where all are, refuted where one is. Beside them hardest less
    easiest split, and the easiest split, which the claim has flat. The frames are those of the study importance.
    """
    estimand = (
        "In points of training accuracy, the gain of the average over the children's mean (above 0 claimed), and its "
        "change from interpolation to the last further epoch (below 0 claimed): over all splits, and on the harder "
        f"half of them less {ALMOST} times that on the easier half, which says that over "
        f"{100 * ALMOST // (ALMOST + 1)} % of it is there."
    )
    if split_gains is None:
        return Claim(5, NOT_MEASURED, (), estimand, studies=("importance",))
    gained, lost = [], []
    for treatment in split_gains["batch_norm"].unique(maintain_order=True).to_list():
        rows = split_gains.filter(polars.col("batch_norm") == treatment)
        gained += _contrast(rows, "gain_mean_points", "gain", f", {treatment} statistics", "above")
    if split_changes is not None and split_changes.height:
        # Each pair's own last epoch: further epochs may be an axis of the sweep.
        pair = split_changes.columns[: split_changes.columns.index("epochs_after")]
        last = split_changes.filter(polars.col("epochs_after") == polars.col("epochs_after").max().over(pair))
        lost = _contrast(last, "change_points", "change with further training", "", "below")
    findings = (*gained, *lost)
    return Claim(5, _both(findings), findings, estimand)


def middle(frame: polars.DataFrame) -> polars.DataFrame:
    """The rows of plain means and of alpha = 0.5; all rows where there are none of these."""
    if "alpha" not in frame.columns:
        return frame
    chosen = frame.filter(polars.col("alpha").is_null() | (polars.col("alpha") == _MIDDLE))
    return chosen if chosen.height else frame


def _contrast(rows: polars.DataFrame, column: str, what: str, tail: str, claim: str) -> list[Finding]:
    """What the whole and the hard half have of it, which decide; the hardest split less the easiest; the easiest."""
    rows = middle(rows)
    if not rows.height:
        return []
    splits = rows["split"].to_list()
    easy, hard = min(splits), max(splits)
    pair = rows.columns[: rows.columns.index("pair") + 1]
    sides = [rows.filter(polars.col("split") == split).select(*pair, column) for split in (hard, easy)]
    both = sides[0].join(sides[1], on=pair, how="inner", nulls_equal=True, suffix=" easy")
    there = _finite(rows, column)
    of_pairs = there.group_by(pair, maintain_order=True).agg(polars.col(column).mean())
    whole, share = _mean(of_pairs, column), hard_less_easy(there, column, ALMOST)
    difference = _mean(both.with_columns((polars.col(column) - polars.col(f"{column} easy")).alias("less")), "less")
    own = _mean(sides[1], column)
    if whole is None or share is None or difference is None or own is None:
        return []
    return [
        Finding(f"{what}, all splits{tail}", whole, "points", verdict(whole, 0, claim)),
        Finding(f"{what}, harder half of the splits less {ALMOST} times easier half{tail}", share, "points",
                verdict(share, 0, claim)),
        Finding(f"{what}, split {hard} (hardest) less split {easy} (easiest){tail}", difference, "points"),
        Finding(f"{what}, split {easy} (easiest){tail}", own, "points"),
    ]  # fmt: skip


def _of_governance(correlations: polars.DataFrame) -> list[tuple[str, Estimate]]:
    """The wanted rows of the study's frame, as estimates."""
    rows = correlations.filter(polars.col("gain") == "gain_best_own_points").to_dicts()
    wanted = {(name, _ALL_PAIRS): words for name, words in _SETTINGS.items()}
    wanted |= {(name, _WITHIN_CELLS): words for name, words in _DISTANCES.items()}
    at = [(row["quantity"], row["scope"]) for row in rows]
    return [(wanted[place], _row_estimate(row)) for place, row in zip(at, rows, strict=True) if place in wanted]


def _row_estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(
        row["spearman"], row["low"], row["high"], row["n_parents"], row["n_pairs"], 0.95, row["note"] or ""
    )


def _of_axes(frame: polars.DataFrame) -> list[tuple[str, Estimate]]:
    wanted = {"k": "k", "s": "s", _LEARNING_RATE: _SETTINGS["learning_rate"]}
    found = []
    for column, words in wanted.items():
        if column in frame.columns:
            estimate = _rank(frame, column, "gain_best_own_points")
            if estimate is not None:
                found.append((words, estimate))
    return found


def _related(estimate: Estimate) -> str:
    """Confirmed where the interval excludes 0, on either side."""
    return CONFIRMED if verdict(estimate) in (CONFIRMED, REFUTED) else NOT_SETTLED


def _confirmed_or_open(estimate: Estimate, claim: str) -> str:
    """The verdict of a claim that data of this kind cannot refute."""
    found = verdict(estimate, 0, claim)
    return NOT_SETTLED if found == REFUTED else found


def _finite(frame: polars.DataFrame, *columns: str) -> polars.DataFrame:
    """The rows where all of `columns` are measured and finite."""
    return frame.drop_nulls(columns).filter(*(polars.col(name).cast(polars.Float64).is_finite() for name in columns))


def _mean(frame: polars.DataFrame, column: str) -> Estimate | None:
    """The mean over parents; None where nothing is measured."""
    if column not in frame.columns:
        return None
    there = _finite(frame, column)
    return mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list()) if there.height else None


def _rank(frame: polars.DataFrame, x: str, y: str) -> Estimate | None:
    """The rank correlation; None for less than two pairs, which have no order."""
    there = _finite(frame, x, y)
    if there.height < 2:
        return None
    return spearman(there[x].to_numpy(), there[y].to_numpy(), there["parent_seed"].to_list())


def _decisive(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings if finding.verdict]


def _all_of(findings: Sequence[Finding]) -> str:
    """The verdict that all deciding findings share; not settled where they differ."""
    found = set(_decisive(findings))
    return NOT_MEASURED if not found else found.pop() if len(found) == 1 else NOT_SETTLED


def _both(findings: Sequence[Finding]) -> str:
    """Confirmed where every finding is, refuted where any is."""
    return REFUTED if REFUTED in _decisive(findings) else _all_of(findings)


def _counts(details: Sequence[Finding]) -> tuple[str, ...]:
    """How many cells came out how, under each treatment."""
    notes = []
    for treatment in TREATMENTS:
        found = [f.verdict for f in details if f.what.endswith(f"; {treatment} statistics")]
        if found:
            parts = ", ".join(f"{found.count(name)} {name}" for name in (CONFIRMED, REFUTED, NOT_SETTLED))
            notes.append(f"Cell by cell, {treatment} statistics: {parts}.")
    return tuple(notes)
