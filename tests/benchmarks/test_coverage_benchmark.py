"""benchmarks.coverage: its bootstraps are scipy's, its table and file hold what was counted."""

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from benchmarks.peers.bootstrap import METHODS, bootstrap_t, resamples, spearman_of


@pytest.mark.parametrize(("mine", "theirs"), [("percentile", "percentile"), ("BCa", "BCa")])
def test_bootstraps_of_a_mean_are_scipys(mine, theirs, seed):
    """Up to the draw of 20,000 resamples: an end's standard error is about 1/60 of the interval's width."""
    rng = np.random.default_rng(seed)
    mean_DG = np.exp(0.3 * rng.normal(size=(3, 8)))
    weights_RG = resamples(rng, 20_000, 8)
    estimate_D = mean_DG.mean(axis=1)
    without_DG = (8 * estimate_D[:, None] - mean_DG) / 7
    low_D, high_D = METHODS[mine](estimate_D, mean_DG @ weights_RG.T / 8, without_DG)
    for mean_G, low, high in zip(mean_DG, low_D, high_D, strict=True):
        expected = stats.bootstrap((mean_G,), np.mean, method=theirs, n_resamples=20_000, rng=rng).confidence_interval
        assert (low, high) == pytest.approx(tuple(expected), abs=(expected.high - expected.low) / 8)


def test_bootstrap_t_by_hand(seed):
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=7)
    weights_RG = resamples(rng, 201, 7)
    ts = []
    for weights in weights_RG.astype(int):
        drawn = np.repeat(values, weights)
        ts.append((drawn.mean() - values.mean()) / (drawn.std() / np.sqrt(6)))
    ts.sort()
    low, high = bootstrap_t(values[None, :], weights_RG)
    error = values.std(ddof=1) / np.sqrt(7)
    # Of 201 resamples the 6th and the 196th are the quantiles.
    assert low[0] == pytest.approx(values.mean() - ts[195] * error, rel=1e-9)
    assert high[0] == pytest.approx(values.mean() - ts[5] * error, rel=1e-9)


def test_weighted_rank_correlations_are_scipys(seed):
    rng = np.random.default_rng(seed)
    x, y, weights = rng.integers(0, 5, 12), rng.integers(0, 5, 12), rng.integers(0, 3, (1, 12))
    rows = np.repeat(np.arange(12), weights[0])
    expected = stats.spearmanr(x[rows], y[rows]).statistic
    assert spearman_of(x * 1.0, y * 1.0, weights * 1.0)[0] == pytest.approx(expected, abs=1e-12)


def test_table_and_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coverage, "_LARGE", 50)
    words = ["--parents", "5,6", "--datasets", "20", "--correlations", "2", "--resamples", "100"]
    assert coverage.main([*words, "--out", str(tmp_path / "coverage.json")]) == 0
    assert "barriers (most are 0): fastwi" in capsys.readouterr().out
    told = json.loads((tmp_path / "coverage.json").read_text())
    assert len(told["measurements"]) == 2 * (len(coverage.MEANS) * 5 + len(coverage.CORRELATIONS) * 4)
    assert all(0 <= row["coverage_%"] <= 100 for row in told["measurements"])
