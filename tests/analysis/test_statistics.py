"""Intervals over parents: against scipy, brute force and formulas; coverage by simulation; ties and constants."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastwi.analysis.statistics import (
    NOTHING,
    Estimate,
    kendall,
    mean_estimate,
    paired_difference,
    spearman,
    verdict,
    verdict_text,
)
from fastwi.analysis.statistics import _expanded_tail as expanded_tail
from fastwi.errors import UserError

CORRELATIONS = [(spearman, stats.spearmanr), (kendall, stats.kendalltau)]


def clustered(rng, parents: int, pairs: int, spread: float = 1.0, noise: float = 0.3):
    """Values and parents of a normal model: a parent's own offset and each pair's noise on top; the mean is 0."""
    parent_n = np.repeat(np.arange(parents), pairs)
    return spread * rng.normal(size=parents)[parent_n] + noise * rng.normal(size=len(parent_n)), parent_n


def test_a_mean_counts_each_parent_once():
    found = mean_estimate([1.0, 2.0, 6.0, 10.0, 10.0], ["a", "a", "a", "b", "b"])
    assert (found.value, found.n_parents, found.n_pairs, found.confidence) == (6.5, 2, 5, 0.95)  # (3 + 10) / 2
    assert found.points == (3.0, 10.0)


@pytest.mark.parametrize("parents", [2, 3, 4])
def test_few_parents_have_points_and_no_interval(parents, seed):
    """Not even where all agree, and whatever is asked of them."""
    values, parent_n = clustered(np.random.default_rng(seed), parents, 5)
    estimates = [
        mean_estimate(values, parent_n),
        mean_estimate(values, parent_n, method="t", confidence=0.5),
        mean_estimate([7.0] * parents, range(parents)),
        paired_difference(values + 9, values, parent_n),
        spearman(values, values, parent_n),
        kendall(values, values, parent_n),
    ]
    for found in estimates:
        assert (found.low, found.high, found.n_parents) == (None, None, parents)
        assert f"n = {parents}: too few" in found.note
        assert not found.excludes_zero
        assert verdict_text(verdict(found, -100.0), parents) == f"not settled (n = {parents})"
    assert estimates[0].points == pytest.approx([values[parent_n == p].mean() for p in range(parents)])
    assert mean_estimate([*range(5)], range(5)).conclusive
    assert verdict_text("not settled", 5) == "not settled"
    assert verdict_text("confirmed", 2) == "confirmed"


def test_the_interval_is_scipy_s_percentile_interval_of_the_parents_at_the_widened_level(seed):
    values, parents = clustered(np.random.default_rng(seed), 9, 4)
    found = mean_estimate(values, parents, resamples=4000, seed=7)
    means = values.reshape(9, 4).mean(axis=1)
    reference = stats.bootstrap(
        (means,), np.mean, n_resamples=4000, method="percentile", confidence_level=1 - 2 * expanded_tail(9, 0.95),
        rng=np.random.Generator(np.random.Philox(key=7)),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx(tuple(reference), rel=1e-12, abs=1e-12)
    assert found.note == ""


def test_the_widened_level_gives_student_s_interval_where_the_bootstrap_is_normal():
    # z(tail) * sqrt((G - 1) / G) * s / sqrt(G), the normal percentile interval, must be t * s / sqrt(G).
    for parents in (2, 5, 10, 100):
        z = stats.norm.isf(expanded_tail(parents, 0.95))
        assert z * math.sqrt((parents - 1) / parents) == pytest.approx(stats.t.isf(0.025, parents - 1), rel=1e-9)
    assert expanded_tail(10**6, 0.95) == pytest.approx(0.025, rel=1e-4)


def test_few_parents_against_all_their_resamples():
    # 6 parents: 6^6 equally likely resamples; the interval is a quantile pair of those, up to the draw of 9,999.
    means = [0.0, 1.0, 3.0, 4.5, 7.0, 20.0]
    every = np.array([np.mean(drawn) for drawn in itertools.product(means, repeat=6)])
    found = mean_estimate(means, range(6), confidence=0.8)
    tail = expanded_tail(6, 0.8)
    spread = 4 * math.sqrt(tail * (1 - tail) / 9999)  # of the share of 9,999 draws below a quantile
    assert np.quantile(every, tail - spread) <= found.low <= np.quantile(every, tail + spread)
    assert np.quantile(every, 1 - tail - spread) <= found.high <= np.quantile(every, 1 - tail + spread)


def test_student_s_interval_against_scipy(seed):
    values, parents = clustered(np.random.default_rng(seed), 6, 3)
    found = mean_estimate(values, parents, method="t", confidence=0.9)
    means = values.reshape(6, 3).mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.9)))
    assert found.value == pytest.approx(means.mean())


def test_coverage_on_a_clustered_normal_model():
    # A fixed seed: the model is the test's own. Over 4,000 runs: 0.944, 0.956 and 0.667.
    rng, runs = np.random.default_rng(11), 400
    hits = {"parents": 0, "t": 0, "pairs": 0}
    for _ in range(runs):
        values, parents = clustered(rng, 8, 4)
        options = {"resamples": 600, "seed": int(rng.integers(2**32))}
        by_parents = mean_estimate(values, parents, **options)
        by_t = mean_estimate(values, parents, method="t")
        by_pairs = mean_estimate(values, np.arange(len(values)), **options)  # the mistake that parents mend
        for name, found in (("parents", by_parents), ("t", by_t), ("pairs", by_pairs)):
            hits[name] += found.low <= 0 <= found.high
    # 4 standard errors at 0.94 are 0.05
    assert 0.89 <= hits["parents"] / runs <= 0.99
    assert 0.90 <= hits["t"] / runs <= 0.99
    assert hits["pairs"] / runs <= 0.78


def test_a_paired_difference_is_free_of_what_its_pairs_share(seed):
    rng = np.random.default_rng(seed)
    before, parents = clustered(rng, 10, 2, spread=30.0)
    gain = rng.normal(1.0, 0.1, size=20)
    found = paired_difference(before + gain, before, parents)
    assert found.value == pytest.approx(gain.mean(), abs=1e-12)
    assert found.high - found.low < 0.4
    assert verdict(found) == "confirmed"
    same = mean_estimate((before + gain) - before, parents)
    assert found == same


@pytest.mark.parametrize(("mine", "theirs"), CORRELATIONS)
def test_rank_correlations_are_scipy_s_with_ties(mine, theirs, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 40), rng.integers(0, 4, 40)
    found = mine(x, y, np.repeat(np.arange(10), 4), resamples=200)
    assert found.value == pytest.approx(theirs(x, y).statistic, rel=1e-12)
    assert found.low < found.value < found.high
    assert (found.n_parents, found.n_pairs) == (10, 40)


@pytest.mark.parametrize(("mine", "theirs"), CORRELATIONS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_their_resamples_are_those_of_whole_parents(mine, theirs, data):
    # Ties, and parents of 1 to 3 pairs. The reference resamples rows of the table, as one would by hand.
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=6, max_size=8))
    parents = np.repeat(np.arange(len(sizes)), sizes)
    x = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(parents), max_size=len(parents))))
    y = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(parents), max_size=len(parents))))
    found = mine(x, y, parents, resamples=100, seed=3)
    if found.value is None:
        assert np.ptp(x) == 0 or np.ptp(y) == 0
        return
    drawn = np.random.Generator(np.random.Philox(key=3)).integers(0, len(sizes), (100, len(sizes)))
    values = []
    for chosen in drawn:
        rows = np.concatenate([np.flatnonzero(parents == parent) for parent in chosen])
        if np.ptp(x[rows]) and np.ptp(y[rows]):
            values.append(theirs(x[rows], y[rows]).statistic)
    if len(values) < 90:
        assert not found.conclusive
        assert "too many ties" in found.note
        return
    tail = expanded_tail(len(sizes), 0.95)
    expected = np.quantile(values, [tail, 1 - tail])
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mine", "theirs"), CORRELATIONS)
def test_a_rising_transform_changes_nothing_and_a_falling_one_the_sign(mine, theirs, seed):
    rng = np.random.default_rng(seed)
    x, parents = clustered(rng, 8, 3)
    y = x + rng.normal(size=24)
    plain = mine(x, y, parents, resamples=500)
    assert mine(np.exp(x), y**3, parents, resamples=500) == plain
    turned = mine(x, -y, parents, resamples=500)
    assert (turned.value, turned.low) == pytest.approx((-plain.value, -plain.high), abs=1e-12)


@pytest.mark.parametrize("mine", [spearman, kendall])
def test_perfect_order(mine):
    rising = mine(range(6), [1, 4, 9, 16, 25, 36], range(6))
    assert rising.value == pytest.approx(1.0, abs=1e-15)
    assert rising.low == rising.high == rising.value


@pytest.mark.parametrize("mine", [spearman, kendall])
def test_constants_are_undefined_without_a_warning(mine):
    for x, y in (([2.0] * 6, range(6)), (range(6), [0.1] * 6)):
        found = mine(x, y, range(6))
        assert (found.value, found.low, found.high, found.conclusive) == (None, None, None, False)
        assert found.note == "undefined: x or y is the same for all pairs"
        assert verdict(found) == "not settled"
        assert str(found) == f"undefined (n = 6 parents, 6 pairs); {found.note}"


@pytest.mark.parametrize("method", ["percentile", "t"])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-300, 1e17 / 3])
def test_a_constant_s_interval_is_itself(constant, method):
    found = mean_estimate([constant] * 14, [0] * 3 + [1] * 4 + list(range(2, 9)), method=method)
    assert found.value == found.low == found.high == constant


def test_one_parent_concludes_nothing():
    estimates = [
        mean_estimate([1.0, 2.0, 3.0], [5, 5, 5]),
        mean_estimate([1.0], ["p"], method="t"),
        paired_difference([2.0, 2.0], [1.0, 1.0], [0, 0]),
        spearman([1, 2, 3], [1, 3, 2], [0, 0, 0]),
        kendall([1, 2, 3], [1, 3, 2], [0, 0, 0]),
    ]
    for found in estimates:
        assert (found.low, found.high, found.conclusive, found.n_parents) == (None, None, False, 1)
        assert found.note == NOTHING == "n = 1: nothing can be concluded"
        assert verdict(found, -100.0) == "not settled"
    assert estimates[0].value == 2.0
    assert NOTHING in spearman([1, 1], [1, 3], [0, 0]).note


def test_results_are_the_same_each_time_and_the_seed_decides(seed):
    rng = np.random.default_rng(seed)
    values, parents = clustered(rng, 9, 3)
    other = rng.normal(size=27)
    state = np.random.get_state()[1].copy()
    for call in (lambda **o: mean_estimate(values, parents, **o), lambda **o: spearman(values, other, parents, **o)):
        first = call(resamples=300)
        assert call(resamples=300) == first
        assert call(resamples=300, seed=1) != first
    assert np.array_equal(np.random.get_state()[1], state)  # NumPy's own generator is left alone


def test_names_of_parents_do_not_matter(seed):
    values, parents = clustered(np.random.default_rng(seed), 7, 2)
    named = [f"parent {9 - p}" for p in parents]
    assert mean_estimate(values, parents, resamples=200) == mean_estimate(values, named, resamples=200)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.6, 1.0, "confirmed", "refuted"),
        (-1.0, 0.4, "refuted", "confirmed"),
        (0.4, 0.6, "not settled", "not settled"),
        (0.5, 1.0, "not settled", "not settled"),
        (-1.0, 0.5, "not settled", "not settled"),
        (None, None, "not settled", "not settled"),
    ],
)
def test_verdicts(low, high, above, below):
    estimate = Estimate(0.5, low, high, 10, 20, 0.95)
    assert verdict(estimate, 0.5) == above
    assert verdict(estimate, 0.5, claim="below") == below
    with pytest.raises(UserError, match="claim: 'left'"):
        verdict(estimate, claim="left")


def test_in_words():
    assert str(Estimate(1.234567, 0.5, 2.0, 10, 30, 0.95)) == "+1.235 [+0.5, +2] (95 %, n = 10 parents, 30 pairs)"
    assert str(mean_estimate([1.5, 2.5], [0, 0])) == f"+2 (n = 1 parents, 2 pairs); {NOTHING}"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_estimate([], []), "values: shape"),
        (lambda: mean_estimate([1.0, 2.0], [0]), r"values: shape \(2,\) for 1 parents"),
        (lambda: mean_estimate([1.0, math.nan], [0, 1]), "values: number 1 is nan"),
        (lambda: mean_estimate(["a"], [0]), "values: not numbers"),
        (lambda: mean_estimate([1.0, 2.0], [0, 1], method="BCa"), "method: 'BCa' is none of"),
        (lambda: mean_estimate([1.0, 2.0], [0, 1], confidence=95.0), "confidence: 95.0"),
        (lambda: mean_estimate([1.0, 2.0], [0, 1], resamples=10), "resamples: 10"),
        (lambda: mean_estimate([1.0, 2.0], [0, 1], seed=-1), "seed: -1"),
        (lambda: spearman([1.0], [1.0, 2.0], [0]), "y: shape"),
        (lambda: paired_difference([1.0, math.inf], [1.0, 2.0], [0, 1]), "after: number 1 is inf"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as refusal:
        call()
    assert "\n" not in str(refusal.value)
