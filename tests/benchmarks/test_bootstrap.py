"""The bootstraps that benchmarks.coverage compares with."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.peers.bootstrap import bootstraps, rank_correlation


def test_intervals_of_a_mean(seed):
    rng = np.random.default_rng(seed)
    mean_DG = np.exp(0.3 * rng.normal(size=(3, 8)))
    found = bootstraps(mean_DG, np.mean, rng, 4000)
    drawn_RDG = mean_DG[:, rng.integers(0, 8, (4000, 8))].transpose(1, 0, 2)
    # The share in each tail of the expanded percentile interval: Student's t with 7 degrees of freedom.
    tail = stats.norm.cdf(stats.t.ppf(0.025, 7) * np.sqrt(8 / 7))
    for name, share in (("percentile", 0.025), ("widened percentile", tail)):
        expected = np.quantile(drawn_RDG.mean(axis=2), [share, 1 - share], axis=0)
        np.testing.assert_allclose(found[name], expected, rtol=0.02)
    assert np.all(found["BCa"][0] < mean_DG.mean(axis=1))
    assert np.all(found["BCa"][1] > mean_DG.mean(axis=1))


def test_equal_parents_have_intervals_of_no_width():
    for low_D, high_D in bootstraps(np.full((2, 5), 3.0), np.mean, np.random.default_rng(0), 50).values():
        assert low_D.tolist() == high_D.tolist() == [3.0, 3.0]


def test_rank_correlations_are_scipys(seed):
    x_Rn, y_Rn = np.random.default_rng(seed).integers(0, 5, (2, 3, 12)).astype(float)
    x_Rn[2] = 1
    found = rank_correlation(x_Rn, y_Rn)
    expected = [stats.spearmanr(x, y).statistic for x, y in zip(x_Rn[:2], y_Rn[:2], strict=True)]
    assert found[:2] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[2])
