"""Bootstrap intervals over parents, of many data sets at once: what fastwi's own intervals are measured against.

Shapes: D data sets, R resamples, G parents, n pairs. `weights_RG` says how often each parent is in each resample; all
data sets share the resamples, which changes no coverage.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Float64 = NDArray[np.float64]
Interval = tuple[Float64, Float64]
_TIED = 1e-9  # means of equal numbers differ in their last digits


def resamples(rng: np.random.Generator, count: int, parents: int) -> Float64:
    """weights_RG of `count` resamples of the parents."""
    counts = [np.bincount(rng.integers(0, parents, parents), minlength=parents) for _ in range(count)]
    return np.stack(counts).astype(np.float64)


def percentile(estimate_D: Float64, drawn_DR: Float64, without_DG: Float64) -> Interval:
    """The percentile interval, 95 %. `without_DG`: the estimates without each parent."""
    return _between(drawn_DR, 0.025)


def widened(estimate_D: Float64, drawn_DR: Float64, without_DG: Float64) -> Interval:
    """The percentile interval, as much wider as Student's t (Hesterberg 2015, the expanded percentile interval)."""
    parents = without_DG.shape[1]
    return _between(
        drawn_DR, float(stats.norm.sf(stats.t.isf(0.025, parents - 1) * np.sqrt(parents / (parents - 1))))
    )


def _between(drawn_DR: Float64, tail: float) -> Interval:
    return np.quantile(drawn_DR, tail, axis=1), np.quantile(drawn_DR, 1 - tail, axis=1)


def bca(estimate_D: Float64, drawn_DR: Float64, without_DG: Float64) -> Interval:
    """The bias-corrected and accelerated interval, 95 % (Efron 1987)."""
    count = drawn_DR.shape[1]
    estimate_D1 = estimate_D[:, None]
    below_D = ((drawn_DR < estimate_D1 - _TIED).mean(axis=1) + (drawn_DR <= estimate_D1 + _TIED).mean(axis=1)) / 2
    bias_D = stats.norm.ppf(np.clip(below_D, 1 / count, 1 - 1 / count))
    apart_DG = without_DG.mean(axis=1, keepdims=True) - without_DG
    squares_D = (apart_DG**2).sum(axis=1)
    acceleration_D = np.divide(
        (apart_DG**3).sum(axis=1), 6 * squares_D**1.5, out=np.zeros_like(squares_D), where=squares_D > _TIED**2
    )
    sorted_DR = np.sort(drawn_DR, axis=1)
    ends = []
    for z in stats.norm.ppf([0.025, 0.975]):
        share_D = stats.norm.cdf(bias_D + (bias_D + z) / (1 - acceleration_D * (bias_D + z)))
        ends.append(sorted_DR[np.arange(len(share_D)), np.round(share_D * (count - 1)).astype(int)])
    return ends[0], ends[1]


def bootstrap_t(mean_DG: Float64, weights_RG: Float64) -> Interval:
    """The studentised bootstrap of a mean, 95 %; infinite where a resample of equal values has no deviation."""
    parents = mean_DG.shape[1]
    mean_D1 = mean_DG.mean(axis=1, keepdims=True)
    centred_DG = mean_DG - mean_D1
    drawn_DR = centred_DG @ weights_RG.T / parents
    variance_DR = np.maximum(centred_DG**2 @ weights_RG.T / parents - drawn_DR**2, 0.0)
    none_DR = variance_DR <= (_TIED * np.abs(mean_DG).max(axis=1, keepdims=True)) ** 2
    t_DR = drawn_DR / np.sqrt(np.where(none_DR, 1.0, variance_DR) / (parents - 1))
    t_DR[none_DR] = np.where(np.abs(drawn_DR) <= _TIED, 0.0, np.copysign(np.inf, drawn_DR))[none_DR]
    t_DR.sort(axis=1)
    count = t_DR.shape[1]
    low_D, high_D = t_DR[:, round(0.025 * (count - 1))], t_DR[:, round(0.975 * (count - 1))]
    error_D = mean_DG.std(axis=1, ddof=1) / np.sqrt(parents)
    with np.errstate(invalid="ignore"):  # no deviation and no t: no interval
        return mean_D1[:, 0] - high_D * error_D, mean_D1[:, 0] - low_D * error_D


METHODS: dict[str, Callable[[Float64, Float64, Float64], Interval]] = {
    "percentile": percentile,
    "widened percentile": widened,
    "BCa": bca,
}
"""Those that need no more than resampled estimates."""


def spearman_of(x_n: Float64, y_n: Float64, weights_Rn: Float64) -> Float64:
    """Spearman's rank correlation [R] where pair i is there weights_Rn[r, i] times; NaN where it is undefined."""
    a_Rn, b_Rn = (_ranks(v_n, weights_Rn) for v_n in (x_n, y_n))
    total_R1 = weights_Rn.sum(axis=1, keepdims=True)
    a_Rn = a_Rn - (weights_Rn * a_Rn).sum(axis=1, keepdims=True) / total_R1
    b_Rn = b_Rn - (weights_Rn * b_Rn).sum(axis=1, keepdims=True) / total_R1
    ab_R, aa_R, bb_R = ((weights_Rn * u * v).sum(axis=1) for u, v in ((a_Rn, b_Rn), (a_Rn, a_Rn), (b_Rn, b_Rn)))
    square_R = aa_R * bb_R
    return np.divide(ab_R, np.sqrt(square_R), out=np.full(len(ab_R), np.nan), where=square_R > 0)


def _ranks(v_n: Float64, weights_Rn: Float64) -> Float64:
    """Mid-ranks [R, n] of weighted items (of an absent one: no meaning)."""
    order = np.argsort(v_n, kind="stable")
    new = np.r_[True, np.diff(v_n[order]) != 0]
    group_n = np.empty(len(v_n), dtype=np.int64)
    group_n[order] = np.cumsum(new) - 1
    sizes = np.add.reduceat(weights_Rn[:, order], np.flatnonzero(new), axis=1)
    ranks: Float64 = (np.cumsum(sizes, axis=1) - sizes / 2.0 + 0.5)[:, group_n]
    return ranks
