"""Verdicts that are known by hand, and estimates held to plain Python."""

import math
import re
from itertools import product

import numpy as np
import polars
import pytest
from drawn_results import barrier_frame, gains_frame, parents_mean, rank_correlation, split_frames

from fastwi.analysis.statistics import NOTHING
from fastwi.report.claims import CLAIMS, CONFIRMED, NOT_MEASURED, NOT_SETTLED, REFUTED, Claim, judge, middle

CLOSE = 1e-9  # of numbers below 100, in sums of some tens of terms: float64 is good for 1e-12


STUDIES = {
    "correlations": "governance", "pairs": "governance", "barrier": "connectivity", "split_gains": "importance",
    "split_changes": "importance",
}  # fmt: skip


def claim(number: int, gains: polars.DataFrame | None = None, **frames: polars.DataFrame) -> Claim:
    """One claim, judged on these frames; what it rests on is in `found`."""
    studies: dict = {}
    for name, frame in frames.items():
        studies.setdefault(STUDIES[name], {})[name] = frame
    frame = gains_frame(np.random.default_rng(0)) if gains is None else gains
    return judge(frame, studies)[number - 1]


@pytest.mark.parametrize(("gain", "expected"), [(3.0, CONFIRMED), (-3.0, REFUTED)])
def test_claim_1_by_hand(seed, gain, expected):
    found = claim(1, gains_frame(np.random.default_rng(seed), gain=gain))
    assert found.verdict == expected
    assert {f.verdict for f in found.found.details} == {expected}
    assert len(found.found.details) == 3 * 2
    assert any(f"3 {expected}" in note for note in found.found.notes)


def test_claim_1_is_not_settled_where_parents_or_treatments_differ(seed):
    frame = gains_frame(np.random.default_rng(seed), gain=5.0)
    sign = polars.when(polars.col("parent_seed") % 2 == 0).then(1).otherwise(-1)
    both_ways = frame.with_columns(polars.col("gain_best_own_points", "gain_best_recomputed_points") * sign)
    assert claim(1, both_ways).verdict == NOT_SETTLED
    one_treatment = frame.with_columns(-polars.col("gain_best_recomputed_points"))
    found = claim(1, one_treatment)
    assert found.verdict == NOT_SETTLED
    assert sorted(f.verdict for f in found.found.findings if f.verdict) == [CONFIRMED, REFUTED]


def test_claim_1_estimates(seed):
    frame = gains_frame(np.random.default_rng(seed), gain=lambda k, s: float(k - s))
    found = claim(1, frame)
    expected = {}
    for treatment in ("own", "recomputed"):
        pairs = zip(frame[f"average_{treatment}_%"], frame[f"children_{treatment}_%"].to_list(), strict=True)
        expected[f"gain over the best child, {treatment} statistics"] = [a - max(c) for a, c in pairs]
    for finding in found.found.findings:
        assert (finding.estimate.n_parents, finding.estimate.n_pairs, finding.unit) == (6, frame.height, "points")
        if finding.what in expected:
            assert finding.estimate.value == pytest.approx(parents_mean(frame, expected.pop(finding.what)), abs=CLOSE)
        e = finding.estimate
        assert e.low < e.value < e.high
        facts = (e.value, e.low, e.high, e.n_parents, e.n_pairs, finding.verdict)
        assert tuple(map(finding.facts.get, ("value", "low", "high", "n_parents", "n_pairs", "verdict"))) == facts
    assert not expected
    assert len(found.found.details) == 3 * 2
    for finding in found.found.details:
        k, s, name = re.fullmatch(r"k = (\d+), s = (\d+); (\w+) statistics", finding.what).groups()
        rows = frame.filter(k=int(k), s=int(s))
        gains = rows[f"gain_best_{name}_points"].to_list()
        assert finding.estimate.value == pytest.approx(parents_mean(rows, gains), abs=CLOSE)
        assert finding.verdict == (CONFIRMED if int(k) > int(s) else REFUTED)
    assert [f"1 {CONFIRMED}" in note and f"2 {REFUTED}" in note for note in found.found.notes] == [True, True]


def test_a_pair_counts_once_whatever_comes_after_it(seed):
    """Axes of further training change nothing at interpolation; others do."""
    later = ("schedule.at_average", "trajectory.window", *(f"experiment.{name}" for name in (
        "momentum", "batch_norm", "after", "continue_children", "children_rate_factor", "continue_parent"
    )))  # fmt: skip
    frame = gains_frame(np.random.default_rng(seed))
    for number in (1, 3):
        once = [finding.estimate for finding in claim(number, frame).found.findings]
        for axis in (*later, "schedule.name", "experiment.child_momentum"):
            parts = [frame.select(polars.lit(value).alias(axis), polars.all()) for value in "ab"]
            twice = [finding.estimate for finding in claim(number, polars.concat(parts)).found.findings]
            assert [each.n_pairs for each in twice] == [(1 + (axis not in later)) * each.n_pairs for each in once]
            assert [each.value for each in twice] == pytest.approx([each.value for each in once])
    barriers = barrier_frame(np.random.default_rng(seed), -1.0)
    once = [finding.estimate for finding in claim(4, frame, barrier=barriers).found.findings]
    for axis, times in ((later[0], 1), ("schedule.name", 2)):
        both = polars.concat([barriers.select(polars.lit(value).alias(axis), polars.all()) for value in "ab"])
        found = [finding.estimate for finding in claim(4, frame, barrier=both).found.findings]
        assert [each.n_pairs for each in found] == [times * each.n_pairs for each in once]


def test_the_middle_is_one_half_and_the_plain_mean(seed):
    frame = gains_frame(np.random.default_rng(seed), alphas=(None, 0.25, 0.5, 0.75))
    assert middle(frame)["alpha"].unique().sort().to_list() == [None, 0.5]
    assert middle(frame.filter(polars.col("alpha") == 0.75))["alpha"].unique().to_list() == [0.75]


def test_only_the_middle_of_the_line_counts(seed):
    frame = gains_frame(np.random.default_rng(seed), gain=3.0, alphas=(0.25, 0.5, 0.75))
    frame = frame.with_columns(
        polars.when(polars.col("alpha") != 0.5).then(-50.0).otherwise(polars.col(name)).alias(name)
        for name in ("gain_best_own_points", "gain_best_recomputed_points")
    )
    found = claim(1, frame)
    assert found.verdict == CONFIRMED
    assert found.found.findings[0].estimate.n_pairs == frame.height // 3


@pytest.mark.parametrize(
    ("gain", "after", "expected"),
    [
        (4.0, (-2.0, -8.0), CONFIRMED),  # below the average and below the best child
        (4.0, (-8.0, -2.0), NOT_SETTLED),  # the last epoch decides: 2 points above the best child
        (4.0, (1.0, 2.0), NOT_SETTLED),  # no loss at all, but training itself may have gained more
        (0.0, (-1.0, 0.0), NOT_SETTLED),
    ],
)
def test_claim_2_by_hand(seed, gain, after, expected):
    frame = gains_frame(np.random.default_rng(seed), gain=gain, after=after, spread=0.5)
    if not gain:
        sign = polars.when(polars.col("parent_seed") % 2 == 0).then(1.0).otherwise(-1.0)
        frame = frame.with_columns(
            polars.concat_list(sign, sign).alias(name) for name in ("after_vs_average_points", "after_vs_best_points")
        )
    found = claim(2, frame)
    assert found.verdict == expected
    assert len(found.found.findings) == 2
    # Less the average after each epoch, then less the best child.
    assert [finding.verdict for finding in found.found.details] == [
        CONFIRMED if gain and each + above < 0 else NOT_SETTLED for above in (0.0, gain) for each in after
    ]


def test_claim_2_under_both_statistics(seed):
    """Both decide; where they differ nothing is settled."""
    frame = gains_frame(np.random.default_rng(seed), gain=4.0, after=(-8.0,), spread=0.5)
    columns = [name for name in frame.columns if name.startswith("after_")]
    for shift, expected in ((0.0, CONFIRMED), (20.0, NOT_SETTLED)):
        again = [(polars.col(name) + shift).alias(name.replace("after_", "after_recomputed_", 1)) for name in columns]
        found = claim(2, frame.with_columns(again))
        assert found.verdict == expected
        assert len(found.found.findings) == len(found.found.details) == 4
        own, recomputed = (finding.estimate.value for finding in found.found.findings[::2])
        assert recomputed == pytest.approx(own + shift)
        assert "recomputed" in found.found.findings[-1].what


def test_claim_2_estimates(seed):
    frame = gains_frame(np.random.default_rng(seed), gain=1.0, after=(-1.0, 0.5, -2.0))
    found = claim(2, frame)
    before = frame["average_own_%"].to_list(), [max(c) for c in frame["children_own_%"].to_list()]
    findings = [*found.found.findings, *found.found.details]
    for finding, (base, at) in zip(findings, [*product(before, [-1]), *product(before, range(3))], strict=True):
        values = [after[at] - b for after, b in zip(frame["after_%"].to_list(), base, strict=True)]
        assert finding.estimate.value == pytest.approx(parents_mean(frame, values), abs=CLOSE)


@pytest.mark.parametrize(
    ("gain", "expected"), [(lambda k, s: 3.0 * k + 5.0 * s, CONFIRMED), (lambda k, s: 3.0 * k, NOT_SETTLED)]
)
def test_claim_3_by_hand(seed, gain, expected):
    """Two quantities or one; k and s are not crossed with s where only k may matter."""
    cells = ((1, 2), (4, 2), (4, 8)) if expected == CONFIRMED else ((1, 2), (4, 2))
    frame = gains_frame(np.random.default_rng(seed), gain=gain, cells=cells)
    found = claim(3, frame)
    assert found.verdict == expected
    assert found.lacking == "governance"
    for finding in found.found.findings:
        x = frame[finding.what.removeprefix("gain and ")].to_list()
        if finding.estimate.value is not None:
            assert finding.estimate.value == pytest.approx(
                rank_correlation(x, frame["gain_best_own_points"].to_list()), abs=CLOSE
            )
    assert [note.partition(" ")[0] for note in found.found.notes] == ([] if expected == CONFIRMED else ["s"])
    tied = claim(3, frame.with_columns(gain_best_own_points=polars.lit(1.0)))  # undefined, but k varies
    assert not any(note.startswith("k ") for note in tied.found.notes)


def test_claim_3_counts_one_of_quantities_that_follow_from_each_other(seed):
    """All children end at epoch 10; the rate follows from that, or from k and s, unless it is an axis too."""
    cells = ((1, 9), (4, 6), (6, 4))
    frame = gains_frame(np.random.default_rng(seed), gain=lambda k, s: 3.0 * k, cells=cells)
    found = claim(3, frame)
    assert found.verdict == NOT_SETTLED
    assert {f.what: f.verdict for f in found.found.findings} == {"gain and k": CONFIRMED, "gain and s": ""}
    assert [note for note in found.found.notes if "s follows from k" in note] == found.found.notes
    k, s = polars.col("k"), polars.col("s")
    grid = gains_frame(np.random.default_rng(seed), gain=lambda k, s: 3.0 * k, cells=((1, 2), (4, 2), (1, 8), (4, 8)))
    rates = (frame, 0.1 / k, False), (grid, 0.1 / (k + s), False), (grid, (k + polars.col("pair") % 2) / 10, True)
    for gains, rate, counted in rates:
        pairs = gains.with_columns(learning_rate=rate)
        axis = pairs.rename({"learning_rate": "optimizer.learning_rate"})
        for each in (claim(3, gains, pairs=pairs), claim(3, axis)):
            verdicts = {finding.what: finding.verdict for finding in each.found.findings}
            assert verdicts["gain and learning rate"] == (CONFIRMED if counted else "")
            assert any("learning rate follows from k and s" in note for note in each.found.notes) != counted
            assert each.verdict == (CONFIRMED if counted else NOT_SETTLED)


def test_claim_3_takes_the_distances_of_governance(seed):
    """And k and s of the whole sweep, of which the study may have measured a part."""
    rows = [
        {"gain": gain, "quantity": quantity, "scope": scope, "spearman": value, "low": value - 0.1,
         "high": value + 0.1, "n_parents": 7, "n_pairs": 21, "note": ""}
        for gain in ("gain_best_own_points", "gain_mean_own_points")
        for quantity, value in (("k", 0.5), ("distance_l2", -0.6), ("s", 0.05), ("kl_nats", 0.9))
        for scope in ("all pairs", "within cells")
    ]  # fmt: skip
    frame = gains_frame(
        np.random.default_rng(seed), gain=lambda k, s: 3.0 * k, cells=((1, 2), (4, 2), (1, 8), (4, 8))
    )
    part = frame.filter(k=1).with_columns(learning_rate=0.1)
    elsewhere = part.with_columns(alpha=0.25, learning_rate=polars.int_range(polars.len()) / 10)  # does not count
    part = polars.concat([part, elsewhere])
    found = claim(3, frame, correlations=polars.DataFrame(rows), pairs=part)
    assert found.verdict == CONFIRMED
    assert {f.what: (f.verdict, f.estimate.n_parents) for f in found.found.findings} == {
        "gain and k": (CONFIRMED, 6), "gain and s": (NOT_SETTLED, 6), "gain and learning rate": (NOT_SETTLED, 6),
        "gain and children's distance (L2), within cells": (CONFIRMED, 7),
    }  # fmt: skip
    assert [note.partition(" does not")[0] for note in found.found.notes] == ["learning rate"]
    assert found.lacking == ""
    # Two measures of distance are one quantity.
    distances = [{**row, "quantity": name} for row in rows[2:4] for name in ("distance_l2", "relative_distance")]
    found = claim(3, gains_frame(np.random.default_rng(seed)), correlations=polars.DataFrame(distances), pairs=part)
    assert [f.verdict for f in found.found.findings[-2:]] == [CONFIRMED, CONFIRMED]
    assert found.verdict == NOT_SETTLED


@pytest.mark.parametrize(("slope", "expected"), [(-1.0, CONFIRMED), (1.0, REFUTED)])
def test_claim_4_by_hand(seed, slope, expected):
    frame = barrier_frame(np.random.default_rng(seed), slope)
    found = claim(4, gains_frame(np.random.default_rng(seed), gain=3.0), barrier=frame)
    assert found.verdict == expected
    rows = frame.filter(polars.col("split") == "test", polars.col("batch_norm") == "averaged")
    barriers, gains = rows["barrier_error_linear_points"].to_list(), rows["gain_mean_points"].to_list()
    correlation, height, frankle = (finding.estimate for finding in found.found.findings[:3])
    assert correlation.value == pytest.approx(rank_correlation(barriers, gains), abs=CLOSE)
    assert height.value == pytest.approx(parents_mean(rows, barriers), abs=CLOSE)
    assert frankle.value == pytest.approx(parents_mean(rows, rows["barrier_error_points"].to_list()), abs=CLOSE)
    assert (correlation.n_parents, correlation.n_pairs) == (6, rows.height)


@pytest.mark.parametrize(("gain", "at_middle", "reasons"), [
    (-3.0, 0, ["claim 1 fails"]),
    (3.0, 13, ["the barrier of 13 of 24 pairs is highest at the middle"]),
    (-3.0, 24, ["claim 1 fails", "the barrier of 24 of 24 pairs"]),
    (3.0, 12, []),
])  # fmt: skip
def test_claim_4_needs_a_gain_and_barriers_that_are_not_that_gain(seed, gain, at_middle, reasons):
    """The first pairs' barriers are highest at the middle: there they are the gain with the other sign."""
    frame = barrier_frame(np.random.default_rng(seed), -1.0, spread=5.0).with_row_index("row")
    number = polars.col("row").rank("ordinal").over("split", "batch_norm")
    by_definition = polars.when(number <= at_middle).then(-polars.col("barrier_error_linear_points"))
    frame = frame.with_columns(gain_mean_points=by_definition.otherwise(polars.col("gain_mean_points")))
    found = claim(4, gains_frame(np.random.default_rng(seed), gain=gain), barrier=frame)
    assert found.verdict == (NOT_SETTLED if reasons else CONFIRMED)
    for finding in (finding for finding in found.found.findings if finding.verdict):
        assert finding.verdict == found.verdict
        assert finding.estimate.value < -0.8  # it is kept
        known = ("claim 1 fails", "the barrier of")
        assert sum(text in finding.facts["note"] for text in known) == len(reasons)
        assert all(reason in finding.facts["note"] for reason in reasons)


def test_claim_4_where_the_middle_is_none_of_the_places(seed):
    """As of the default's 30: the error at the middle, which the gain is of, may be above the barrier."""
    frame = barrier_frame(np.random.default_rng(seed), -1.0)
    frame = frame.with_columns(gain_mean_points=-1.001 * polars.col("barrier_error_linear_points"))
    found = claim(4, gains_frame(np.random.default_rng(seed), gain=3.0), barrier=frame)
    assert found.verdict == NOT_SETTLED
    assert all("24 of 24 pairs" in finding.estimate.note for finding in found.found.findings if finding.verdict)


@pytest.mark.parametrize("gain", [-3.0, 3.0])
def test_claim_4_checks_the_gain_that_the_sweep_did_not_measure(seed, gain):
    """With sweep.measure: [own] the study alone has it under recomputed statistics."""
    none = polars.lit(None, polars.Float64)
    gains = gains_frame(np.random.default_rng(seed), gain=3.0).with_columns(gain_best_recomputed_points=none)
    frame = barrier_frame(np.random.default_rng(seed), -1.0).with_columns(gain_best_points=polars.lit(gain))
    found = claim(4, gains, barrier=frame)
    notes = {f.what.rpartition(", ")[2]: f.estimate.note for f in found.found.findings if f.verdict}
    assert notes == {
        "averaged statistics": "",
        "recomputed statistics": "" if gain > 0 else "claim 1 fails: the average does not gain (-3.00 points)",
    }
    assert found.verdict == (CONFIRMED if gain > 0 else NOT_SETTLED)


def test_pairs_without_a_barrier_are_not_related_by_definition(seed):
    """No barrier and no gain: both are 0."""
    frame = barrier_frame(np.random.default_rng(seed), -1.0)
    none = polars.col("pair") < 3
    rounded = 2e-16  # as a flat line may leave
    columns = ("barrier_error_linear_points", "gain_mean_points")
    frame = frame.with_columns(
        polars.when(none).then(rounded).otherwise(polars.col(name)).alias(name) for name in columns
    )
    found = claim(4, gains_frame(np.random.default_rng(seed), gain=3.0), barrier=frame).found.findings
    assert all("by definition" not in finding.estimate.note for finding in found)


@pytest.mark.parametrize(
    ("hard", "easy", "lost", "expected"),
    [
        (8.0, -1.4, 1.0, CONFIRMED),  # the easier half has about 0
        (0.0, 8.0, 1.0, REFUTED),
        (8.0, -1.4, -1.0, REFUTED),
        (8.0, 7.0, 1.0, REFUTED),  # more on the hard splits, but far from almost all of it
    ],
)
def test_claim_5_by_hand(seed, hard, easy, lost, expected):
    gains, changes = split_frames(np.random.default_rng(seed), hard, easy, lost)
    found = claim(5, split_gains=gains, split_changes=changes)
    assert found.verdict == expected
    own = gains.filter(polars.col("batch_norm") == "own")
    assert found.found.findings[0].estimate.value == pytest.approx(
        parents_mean(own, own["gain_mean_points"].to_list()), abs=CLOSE
    )
    sides = [
        gains.filter(polars.col("split") == split, polars.col("batch_norm") == "own") for split in (4, 1)
    ]  # rows are in one order
    difference = [a - b for a, b in zip(*(side["gain_mean_points"] for side in sides), strict=True)]
    assert found.found.findings[2].estimate.value == pytest.approx(parents_mean(sides[0], difference), abs=CLOSE)
    assert {f.estimate.n_pairs for f in found.found.findings} == {6 * 2}
    easiest = parents_mean(sides[1], sides[1]["gain_mean_points"].to_list())
    assert found.found.findings[3].estimate.value == pytest.approx(easiest, abs=CLOSE)
    assert [f.what.count("split 1 (easiest)") for f in found.found.findings[:4]] == [0, 0, 1, 1]
    quarters = [own.filter(polars.col("split") == split)["gain_mean_points"] for split in range(1, 5)]
    share = [(c + d) / 2 - 9 * (a + b) / 2 for a, b, c, d in zip(*quarters, strict=True)]
    assert found.found.findings[1].estimate.value == pytest.approx(parents_mean(sides[0], share), abs=CLOSE)
    last = [
        changes.filter(polars.col("split") == split, polars.col("epochs_after") == 2)["change_points"]
        for split in (4, 1)
    ]
    expected_change = parents_mean(sides[0], [a - b for a, b in zip(*last, strict=True)])
    assert found.found.findings[-2].estimate.value == pytest.approx(expected_change, abs=CLOSE)


def test_claim_5_without_further_epochs(seed):
    gains, changes = split_frames(np.random.default_rng(seed), 8.0, -1.4, 1.0)
    found = claim(5, split_gains=gains, split_changes=changes.clear())
    assert found.verdict == CONFIRMED
    middle_alone = [gains.with_columns(alpha=0.5), gains.with_columns(alpha=0.25, gain_mean_points=-50.0)]
    assert claim(5, split_gains=polars.concat(middle_alone), split_changes=changes.clear()).found == found.found
    # Almost all of it is on the hard half, and it is a loss.
    gains, changes = split_frames(np.random.default_rng(seed), -0.1, -4.0, 1.0)
    found = claim(5, split_gains=gains, split_changes=changes.clear())
    assert [finding.verdict for finding in found.found.findings[:2]] == [REFUTED, CONFIRMED]
    assert found.verdict == REFUTED


def test_claim_5_in_detail(seed):
    """More on the hard half than on the easy one, which decides nothing, and the first further epoch."""
    gains, changes = split_frames(np.random.default_rng(seed), 8.0, 2.0, 1.0)
    found = claim(5, split_gains=gains, split_changes=changes)
    assert found.verdict == REFUTED  # not almost all of it
    details = {finding.what: finding for finding in found.found.details}
    more = {name: finding for name, finding in details.items() if "harder half minus easier half" in name}
    assert {finding.verdict for finding in more.values()} == {CONFIRMED}
    # Gains of 2, 4, 6 and 8: the halves' means are 7 and 3. Half of it is lost in each of two epochs.
    tails = ("gain", "gain", "change with further training", "change with 1 epoch of further training")
    assert [name.partition(",")[0] for name in more] == list(tails)
    assert [finding.estimate.value for finding in more.values()] == pytest.approx([4, 4, -4, -2], abs=0.2)
    first = details["change with 1 epoch of further training, all splits"]
    assert (first.estimate.value, first.verdict) == (pytest.approx(-2.5, abs=0.1), CONFIRMED)
    one = claim(5, split_gains=gains, split_changes=changes.filter(epochs_after=1)).found.details
    assert len(one) == 3  # the first further epoch is the last


@pytest.mark.parametrize("parents", [1, 2, 4])
def test_few_parents_settle_nothing(seed, parents):
    """Whatever they say. The verdict itself has the n."""
    rng = np.random.default_rng(seed)
    frame = gains_frame(rng, parents=parents, gain=lambda k, s: 9.0 + 3 * k + 5 * s, after=(-60.0,))
    splits, changes = split_frames(rng, 8.0, -1.4, 1.0, parents=parents)
    found = judge(
        frame,
        {"connectivity": {"barrier": barrier_frame(rng, -1.0, parents=parents)},
         "importance": {"split_gains": splits, "split_changes": changes}},
    )  # fmt: skip
    assert {each.verdict_text for each in found} == {f"not settled (n = {parents})"}
    for finding in (finding for each in found for finding in (*each.found.findings, *each.found.details)):
        assert finding.verdict_text in ("", f"not settled (n = {parents})")
        assert finding.estimate.low is None
        assert (NOTHING in finding.estimate.note) == (parents == 1)


def test_claim_2_says_only_where_it_is_so_that_further_epochs_have_own_statistics_alone(seed):
    """Without batch norm recomputed statistics repeat them."""
    frame = gains_frame(np.random.default_rng(seed), after=(-1.0,))
    same = {
        f"after_recomputed_{name}": polars.col(f"after_{name}")
        for name in ("%", "vs_average_points", "vs_best_points")
    }
    same |= {name.replace("own", "recomputed"): polars.col(name) for name in frame.columns if "own" in name}
    for gains, alone in ((frame, True), (frame.with_columns(**same), False)):
        notes = claim(2, gains).found.notes
        assert any("with those alone" in note for note in notes) == alone
        assert len(claim(2, gains).found.findings) == 2


def test_the_n_beside_a_verdict_is_the_fewest(seed):
    frame = gains_frame(np.random.default_rng(seed), gain=5.0)
    few = polars.when(polars.col("parent_seed") < 103).then(polars.col("gain_best_recomputed_points"))
    found = claim(1, frame.with_columns(few))
    assert [f.verdict_text for f in found.found.findings if f.verdict] == [CONFIRMED, "not settled (n = 3)"]
    assert found.verdict_text == "not settled (n = 3)"
    assert found.fewest == next(f.estimate for f in found.found.findings if f.estimate.n_parents == 3)


def test_nothing_measured(seed):
    found = judge(gains_frame(np.random.default_rng(seed), after=(1.0,)).clear(), {})
    assert [each.number for each in found] == list(CLAIMS)
    assert {each.verdict for each in found} == {NOT_MEASURED}
    assert [each.lacking for each in found[2:]] == ["governance", "connectivity", "importance"]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_not_finite_is_left_out(seed, value):
    frame = barrier_frame(np.random.default_rng(seed), -1.0)
    gains = polars.when(polars.col("pair") > 0).then(polars.col("gain_mean_points")).otherwise(value)
    damaged = frame.with_columns(gain_mean_points=gains)
    assert claim(4, barrier=damaged).found.findings[0].estimate.n_pairs == 6 * 3


def test_claim_3_has_a_row_for_the_learning_rate(seed):
    frame = gains_frame(np.random.default_rng(seed))
    rates = polars.Series(
        "optimizer.learning_rate", np.random.default_rng(seed + 1).choice([0.1, 0.01], frame.height)
    )
    found = claim(3, frame.insert_column(0, rates)).found.findings
    assert [finding.what for finding in found] == ["gain and k", "gain and s", "gain and learning rate"]
    expected = rank_correlation(rates.to_list(), frame["gain_best_own_points"].to_list())
    assert found[2].estimate.value == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("number", [2, 5])
def test_the_last_further_epoch_is_each_pairs_own(seed, number):
    """Further epochs may be an axis of the sweep: half of the pairs have 1, at which their values are 100 lower."""
    rng = np.random.default_rng(seed)
    if number == 2:
        frames = [gains_frame(rng, after=(0.0, 50.0), spread=0.1, parents=6) for _ in range(2)]
        lists = ("after_%", "after_vs_average_points", "after_vs_best_points")
        frames[0] = frames[0].with_columns((polars.col(name).list.head(1) - 100.0) for name in lists)
        frame = polars.concat(frames)
        found = claim(2, frame).found.findings[0]
        values = [after[-1] for after in frame["after_vs_average_points"]]
    else:
        gains, changes = split_frames(rng, 8.0, -1.4, 1.0)
        early = polars.col("pair") == 0
        changes = changes.filter(~early | (polars.col("epochs_after") == 1))
        changes = changes.with_columns(change_points=polars.col("change_points") - 100 * early.cast(polars.Float64))
        found = claim(5, split_gains=gains, split_changes=changes).found.findings[-4]
        last = polars.col("epochs_after") == polars.when(early).then(1).otherwise(2)
        frame = changes.filter(last)
        values = frame["change_points"].to_list()
    assert found.estimate.value == pytest.approx(parents_mean(frame, values), abs=CLOSE)


def test_claim_5_takes_parts_of_an_epoch_as_equal_that_differ_by_rounding(seed):
    """2 - 4/3 and 3 - 7/3 epochs differ in their last digits."""
    gains, changes = split_frames(np.random.default_rng(seed), 8.0, -1.4, 1.0)
    first = polars.when(polars.col("parent_seed") < 3).then(2 - 4 / 3).otherwise(3 - 7 / 3)
    epochs = polars.when(polars.col("epochs_after") == 1).then(first).otherwise(first + 1)
    changes = changes.with_columns(epochs_after=epochs)
    early = [f for f in claim(5, split_gains=gains, split_changes=changes).found.details if "with 0.66" in f.what]
    assert [finding.estimate.n_parents for finding in early] == [6] * 5


def test_pairs_that_lack_a_split_do_not_count(seed):
    gains, changes = split_frames(np.random.default_rng(seed), 8.0, -1.4, 1.0)
    lost = (polars.col("pair") == 0) & (polars.col("split") == 3)
    found = claim(5, split_gains=gains.filter(~lost), split_changes=changes).found.findings[1]
    assert found.what.startswith("gain, harder half")
    assert found.estimate.n_pairs == 6
