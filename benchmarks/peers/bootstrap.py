"""Bootstrap intervals of 95 % over parents, which fastwi's own intervals are measured against."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float64 = NDArray[np.float64]


def bootstraps(
    data: NDArray[Any], statistic: Callable[..., Any], rng: np.random.Generator, resamples: int
) -> dict[str, Float64]:
    """scipy's intervals [2, data sets] of `statistic(data, axis)` over the last axis of `data`, by the method's name.

    The widened percentile interval is as much wider as Student's t (Hesterberg 2015: expanded percentile interval).
    Where the BCa interval is undefined, as it is of equal values, the percentile interval stands for it.
    """
    parents = data.shape[-1]
    tail = float(stats.norm.sf(stats.t.isf(0.025, parents - 1) * np.sqrt(parents / (parents - 1))))
    drawn = None
    found: dict[str, Float64] = {}
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
        ends = np.array(drawn.confidence_interval, dtype=np.float64).reshape(2, -1)
        found[name] = np.where(np.isnan(ends), found.get("percentile", ends), ends)
    return found


def rank_correlation(x_n: Float64, y_n: Float64, axis: int = -1) -> Float64:
    """Spearman's rank correlation along the last axis; NaN where one of the two is constant."""
    a, b = (stats.rankdata(v, axis=-1) for v in (x_n, y_n))
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    square = (a * a).sum(axis=-1) * (b * b).sum(axis=-1)
    return np.divide((a * b).sum(axis=-1), np.sqrt(square), out=np.full_like(square, np.nan), where=square > 0)
