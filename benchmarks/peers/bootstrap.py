"""Bootstrap intervals of 95 % over parents, which fastwi's own intervals are measured against.

Shapes: D data sets, R resamples, G parents.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float64 = NDArray[np.float64]
Interval = tuple[Float64, Float64]
_TIED = 1e-9  # means of equal numbers differ in their last digits


def bootstraps(
    data: NDArray[Any], statistic: Callable[..., Any], rng: np.random.Generator, resamples: int
) -> dict[str, Interval]:
    """scipy's intervals of `statistic(data, axis)` over the last axis of `data`, by the method's name.

    The widened percentile interval is as much wider as Student's t (Hesterberg 2015: expanded percentile interval).
    Where the BCa interval is undefined, as it is of equal values, the percentile interval stands for it.
    """
    parents = data.shape[-1]
    tail = float(stats.norm.sf(stats.t.isf(0.025, parents - 1) * np.sqrt(parents / (parents - 1))))
    drawn = None
    found: dict[str, Interval] = {}
    for name, method, level in (
        ("percentile", "percentile", 0.95),
        ("widened percentile", "percentile", 1 - 2 * tail),
        ("BCa", "BCa", 0.95),
    ):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            drawn = stats.bootstrap(
                (data,), statistic, n_resamples=0 if drawn else resamples, batch=100, vectorized=True, axis=-1,
                confidence_level=level, method=method, bootstrap_result=drawn, rng=rng,
            )  # fmt: skip
        low, high = (np.atleast_1d(np.asarray(end, dtype=np.float64)) for end in drawn.confidence_interval)
        if found:
            low, high = (
                np.where(np.isnan(end), known, end)
                for end, known in zip((low, high), found["percentile"], strict=True)
            )
        found[name] = low, high
    return found


def bootstrap_t(mean_DG: Float64, rng: np.random.Generator, resamples: int) -> Interval:
    """The studentised bootstrap of a mean; infinite where a resample of equal values has no deviation."""
    parents = mean_DG.shape[1]
    drawn_RG = rng.integers(0, parents, (resamples, parents))
    weights_RG = np.stack([np.bincount(drawn_G, minlength=parents) for drawn_G in drawn_RG]).astype(np.float64)
    mean_D1 = mean_DG.mean(axis=1, keepdims=True)
    centred_DG = mean_DG - mean_D1
    drawn_DR = centred_DG @ weights_RG.T / parents
    variance_DR = np.maximum(centred_DG**2 @ weights_RG.T / parents - drawn_DR**2, 0.0)
    none_DR = variance_DR <= (_TIED * np.abs(mean_DG).max(axis=1, keepdims=True)) ** 2
    t_DR = drawn_DR / np.sqrt(np.where(none_DR, 1.0, variance_DR) / (parents - 1))
    t_DR[none_DR] = np.where(np.abs(drawn_DR) <= _TIED, 0.0, np.copysign(np.inf, drawn_DR))[none_DR]
    t_DR.sort(axis=1)
    low_D, high_D = (t_DR[:, round(share * (resamples - 1))] for share in (0.025, 0.975))
    error_D = mean_DG.std(axis=1, ddof=1) / np.sqrt(parents)
    with np.errstate(invalid="ignore"):  # no deviation and no t: no interval
        return mean_D1[:, 0] - high_D * error_D, mean_D1[:, 0] - low_D * error_D


def rank_correlation(x_n: Float64, y_n: Float64, axis: int = -1) -> Float64:
    """Spearman's rank correlation along the last axis; NaN where one of the two is constant."""
    a, b = (stats.rankdata(v, axis=-1) for v in (x_n, y_n))
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    square = (a * a).sum(axis=-1) * (b * b).sum(axis=-1)
    return np.divide((a * b).sum(axis=-1), np.sqrt(square), out=np.full_like(square, np.nan), where=square > 0)
