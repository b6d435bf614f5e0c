"""Intervals over parents: against scipy and formulas; ties and constants. Coverage is in test_coverage.py."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fastwi.analysis.statistics import (
    NOTHING,
    Estimate,
    between_parents,
    mean_estimate,
    spearman,
    verdict,
    verdict_text,
)
from fastwi.errors import UserError


def clustered(rng, parents: int, pairs: int, spread: float = 1.0, noise: float = 0.3):
    """Values and parents of a normal model: a parent's own offset and each pair's noise on top; the mean is 0."""
    parent_n = np.repeat(np.arange(parents), pairs)
    return spread * rng.normal(size=parents)[parent_n] + noise * rng.normal(size=len(parent_n)), parent_n


def test_a_mean_counts_each_parent_once():
    found = mean_estimate([1.0, 2.0, 6.0, 10.0, 10.0], ["a", "a", "a", "b", "b"])
    assert (found.value, found.n_parents, found.n_pairs) == (6.5, 2, 5)  # (3 + 10) / 2
    assert found.points == (3.0, 10.0)


@pytest.mark.parametrize("parents", [1, 2, 3, 4])
def test_few_parents_have_points_and_no_interval(parents, seed):
    """Not even where all agree, and whatever is asked of them."""
    values, parent_n = clustered(np.random.default_rng(seed), parents, 5)
    estimates = [
        mean_estimate(values, parent_n),
        mean_estimate([7.0] * parents, range(parents)),
        spearman(values, values, parent_n),
    ]
    for found in estimates:
        assert (found.low, found.high, found.n_parents) == (None, None, parents)
        assert found.note.startswith(f"n = {parents}: too few" if parents > 1 else NOTHING)
        assert not found.excludes_zero
        assert verdict_text(verdict(found), parents) == f"not settled (n = {parents})"
    assert estimates[0].points == pytest.approx([values[parent_n == p].mean() for p in range(parents)])
    assert mean_estimate([*range(5)], range(5)).conclusive
    assert NOTHING in spearman([1, 1], [1, 3], [0, 0]).note
    assert verdict_text("not settled", 5) == "not settled"
    assert verdict_text("confirmed", 2) == "confirmed"


def test_a_mean_over_pairs_of_parents_is_the_jackknife_s(seed):
    pairs = [(a, b) for a in "uvwxyz" for b in "uvwxyz" if a < b]
    values = np.random.default_rng(seed).normal(size=len(pairs))
    found = between_parents(values, pairs)
    without = [np.mean([v for v, pair in zip(values, pairs, strict=True) if out not in pair]) for out in "uvwxyz"]
    error = math.sqrt(5 / 6 * sum((each - np.mean(without)) ** 2 for each in without))
    half = stats.t.ppf(0.975, 5) * error
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (found.n_parents, found.n_pairs) == (6, 15)
    assert found.points[0] == pytest.approx(values[:5].mean())
    assert "no spread" in between_parents(np.ones(15), pairs).note
    star = between_parents(values[:5], pairs[:5])  # u is in all
    assert (star.low, star.high) == (None, None)
    assert verdict(star) == "not settled"
    few = between_parents([1.0, 2.0, 4.0], [("a", "b"), ("a", "c"), ("b", "c")])
    assert (few.value, few.low, few.n_parents) == (pytest.approx(7 / 3), None, 3)


def test_student_s_interval_against_scipy(seed):
    values, parents = clustered(np.random.default_rng(seed), 6, 3)
    found = mean_estimate(values, parents)
    means = values.reshape(6, 3).mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(0.95)))
    assert found.value == pytest.approx(means.mean())


@pytest.mark.parametrize("scope", ["all pairs", "cell means", "within cells"])
def test_their_intervals_leave_out_whole_parents(scope, seed):
    """The jackknife by hand, with parents of 1 to 19 pairs, on the scale of Fisher's z.

    It leaves a parent out of the cells' means too.
    """
    rng, within = np.random.default_rng(seed), scope == "within cells"
    parents = np.repeat(np.arange(7), rng.integers(1, 20, 7))
    cells = rng.permutation(len(parents)) % (3 if within else 12)
    x = rng.integers(0, 9, len(parents)) + 100 * cells * within
    y = x + rng.integers(0, 9, len(parents))

    def by_hand(rows: list[int]) -> float:
        both_n2, cell_n = np.stack([x, y], 1)[rows], cells[rows]
        means = {cell: both_n2[cell_n == cell].mean(0) for cell in cell_n}
        if scope == "cell means":
            both_n2 = np.array([*means.values()])
        elif within:
            both_n2 = both_n2 - [means[cell] for cell in cell_n]
        return stats.spearmanr(np.round(both_n2, 9)).statistic

    every = list(range(len(parents)))
    z = [math.atanh(by_hand([i for i in every if parents[i] != left])) for left in range(7)]
    error = math.sqrt(6 / 7 * sum((each - sum(z) / 7) ** 2 for each in z))
    middle, reach = math.atanh(by_hand(every)), stats.t.isf(0.025, 6) * error
    found = spearman(x, y, parents, None if scope == "all pairs" else cells, within)
    assert (found.low, found.high) == pytest.approx((math.tanh(middle - reach), math.tanh(middle + reach)), rel=1e-9)
    assert found.value == pytest.approx(by_hand(every), rel=1e-12)
    assert (found.n_parents, found.n_pairs, found.note) == (7, len(parents), "")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_perfect_order_is_no_certainty(sign):
    """All parents agree; a parent that differs may be among those that were not seen: 0.025 = (1 - p)^n."""
    for parents in (5, 6, 20):
        found = spearman(range(parents), [sign * 2.0**i for i in range(parents)], range(parents))
        assert found.value == pytest.approx(sign, abs=1e-15)
        reach = 2 * (1 - 0.025 ** (1 / parents))
        assert sorted([abs(found.value - found.low), abs(found.high - found.value)]) == pytest.approx([0, reach])
        assert verdict(found) == ("not settled" if parents == 5 else "confirmed" if sign > 0 else "refuted")
        assert f"all {parents} parents agree" in found.note


def test_parents_agree_only_where_the_correlation_is_theirs():
    """Without any one parent it is 0.8 and with all of them 0.83: there is no spread to make an interval of."""
    found = spearman(range(6), [1, 0, 3, 2, 5, 4], range(6))
    assert found.value == pytest.approx(29 / 35)
    assert not found.conclusive
    assert "no spread" in found.note


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_order_that_is_perfect_without_one_parent_has_an_interval(sign):
    """Of the 6 others r is exactly 1, and arctanh(1) is infinite."""
    found = spearman(range(7), [sign * y for y in (0, 1, 2, 3, 4, 5, -1)], range(7))
    assert (found.low, found.high) == pytest.approx((-1, 1))
    assert verdict(found) == "not settled"


def test_what_rests_on_one_parent_alone_has_no_interval():
    found = spearman([1, 1, 1, 1, 1, 2], [3, 1, 4, 1, 5, 9], [0, 1, 2, 3, 4, 5])
    assert found.value is not None
    assert not found.conclusive
    assert "undefined without one of the parents" in found.note


def test_constants_are_undefined_without_a_warning():
    for x, y in (([2.0] * 6, range(6)), (range(6), [0.1] * 6)):
        found = spearman(x, y, range(6))
        assert (found.value, found.low, found.high, found.conclusive) == (None, None, None, False)
        assert found.note == "undefined: x or y is the same for all pairs"
        assert verdict(found) == "not settled"


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-300, 1e17 / 3])
def test_parents_that_are_all_equal_settle_nothing(constant):
    """An interval of no width would be certain of what n equal values, of few that there are, cannot show."""
    found = mean_estimate([constant] * 14, [0] * 3 + [1] * 4 + list(range(2, 9)))
    assert found.value == pytest.approx(constant, rel=1e-15)
    assert (found.low, found.high) == (None, None)
    assert found.note == "all 9 parents have the same value: no spread to make an interval of"
    assert not found.excludes_zero


def test_equal_differences_are_equal_whatever_their_last_digits():
    before = np.array([0.1, 3.3, 17.7, 55.3, 71.1, 98.6])
    after = before + 1.2
    assert np.ptp(after - before) > 0  # of rounding alone
    assert not mean_estimate(after - before, range(6)).conclusive
    assert spearman(after - before, range(6), range(6)).value is None  # and ties of ranks
    nothing = np.array([0.1 + 0.2 - 0.3, *[0.0] * 5])
    assert np.ptp(nothing) > 0
    assert not mean_estimate(nothing, range(6)).conclusive


def test_what_is_the_same_within_each_cell_has_no_order_there():
    """The mean of three times 0.1 is not 0.1 in its last digit."""
    x, cells = [0.1] * 3 + [1.0] * 3, [0] * 3 + [1] * 3
    assert np.mean(x[:3]) != 0.1
    assert spearman(x, range(6), [0, 1, 2] * 2, cells, within=True).value is None
    assert spearman(x, range(6), [0, 1, 2] * 2).value is not None


def test_names_of_parents_do_not_matter(seed):
    values, parents = clustered(np.random.default_rng(seed), 7, 2)
    named = [f"parent {9 - p}" for p in parents]
    assert mean_estimate(values, parents) == mean_estimate(values, named)
    assert spearman(values, values**2, parents) == spearman(values, values**2, named)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.1, 1.0, "confirmed", "refuted"),
        (-1.0, -0.1, "refuted", "confirmed"),
        (-0.1, 0.1, "not settled", "not settled"),
        (0.0, 1.0, "not settled", "not settled"),
        (-1.0, 0.0, "not settled", "not settled"),
        (None, None, "not settled", "not settled"),
        (1.0, 1.0, "not settled", "not settled"),
    ],
)
def test_verdicts(low, high, above, below):
    estimate = Estimate(0.5, low, high, 10, 20)
    assert (verdict(estimate), verdict(estimate, "below")) == (above, below)
    assert estimate.excludes_zero == (above != "not settled")
    assert verdict(replace(estimate, n_parents=4)) == "not settled"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_estimate([], []), "values: shape"),
        (lambda: mean_estimate([1.0, 2.0], [0]), r"values: shape \(2,\) for 1 parents"),
        (lambda: mean_estimate([1.0, math.nan], [0, 1]), "values: number 1 is nan"),
        (lambda: spearman([1.0], [1.0, 2.0], [0]), "y: shape"),
        (lambda: spearman([1.0, math.inf], [1.0, 2.0], [0, 1]), "x: number 1 is inf"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
