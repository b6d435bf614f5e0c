"""Coverage of the intervals that fastwi really uses: of 95 % intervals over few parents, how many hold the truth.

The table for more methods, distributions and numbers of parents is made by benchmarks/coverage.py.
"""

import numpy as np
import pytest

from fastwi.analysis.statistics import between_parents, mean_estimate, spearman


def test_intervals_of_five_parents_hold_the_mean_of_accuracies_where_those_of_pairs_do_not(seed):
    """Over 4,000 runs 92 % do; the standard error of 500 runs is 1.2 %."""
    rng = np.random.default_rng(seed)
    names, held, as_pairs, runs = np.repeat(np.arange(5), 3), 0, 0, 500
    for _ in range(runs):
        shared_G1 = 2.0 * rng.binomial(50, rng.beta(48, 2, size=(5, 1)))  # a parent's pairs share its draw
        values = (shared_G1 + 0.2 * rng.normal(size=(5, 3))).ravel()
        right, wrong = mean_estimate(values, names), mean_estimate(values, np.arange(15))
        held += right.low <= 96 <= right.high
        as_pairs += wrong.low <= 96 <= wrong.high
    assert held / runs >= 0.87
    assert as_pairs / runs < 0.78


@pytest.mark.parametrize("parents", [5, 10])
def test_intervals_of_a_rank_correlation_hold_it(parents, seed):
    """Over 4,000 runs 95 to 96 % do; a standard error of 300 runs is 1.3 %, and 4 of them are 5 %."""
    rng, relation, runs = np.random.default_rng(seed), 0.5, 300
    truth = 6 / np.pi * np.arcsin(relation / 2)  # of a bivariate normal distribution (Pearson 1907)
    names, held = np.repeat(np.arange(parents), 4), 0
    for _ in range(runs):
        x, y = np.zeros((2, parents, 4))
        for shape in ((parents, 1), (parents, 4)):  # what pairs of a parent share, and what they do not
            here, other = rng.normal(size=(2, *shape))
            x, y = x + here, y + relation * here + np.sqrt(1 - relation**2) * other
        found = spearman(x.ravel(), y.ravel(), names)
        held += found.low <= truth <= found.high
    assert held / runs >= 0.90


def test_intervals_over_pairs_of_parents_hold_the_mean_where_those_of_pairs_do_not(seed):
    """All pairs of 6 parents. Over 4,000 runs 95 % and more do; the standard error of 600 runs is 0.9 %."""
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(6, 1)
    held, as_pairs, runs = 0, 0, 600
    for _ in range(runs):
        own = rng.normal(size=6)
        values = own[first] + own[second] + 0.3 * rng.normal(size=len(first))
        right, wrong = (
            between_parents(values, list(zip(first, second, strict=True))),
            mean_estimate(values, np.arange(len(first))),
        )
        assert (right.value, right.n_parents, right.n_pairs) == (pytest.approx(wrong.value), 6, 15)
        held += right.low <= 0 <= right.high
        as_pairs += wrong.low <= 0 <= wrong.high
    assert held / runs >= 0.91
    assert as_pairs / runs < 0.75
