"""Intervals over seeds: every estimate carries its interval and its n, and n counts PARENTS.

Children of one parent share a training past, so their results are dependent; what is drawn independently is the
parent. So each interval resamples parents and keeps the pairs of a parent together: the cluster bootstrap.

Method. scipy.stats.bootstrap resamples; the interval is the percentile interval at a widened level ('expanded
percentile': Hesterberg 2015, What Teachers Should Know about the Bootstrap): with G parents, the level at which the
normal quantile times sqrt((G - 1) / G) is Student's t quantile. The plain percentile interval is too narrow by that
factor and misses the t tail: with 5 parents its '95 %' holds the mean of normal data in 85 % of cases. BCa is
no mend for few parents (it corrects for bias and skewness, not for this) and is undefined for constant data.

A mean's bootstrap interval never leaves the range of the parents' own values. So for G < 6 parents none can hold
95 %: the centre of a symmetric distribution is outside of that range in 2^(1 - G) of all cases. `Estimate.note` says
so then. method="t" gives Student's interval for a mean, which has no such bound but takes the parents' means to be
normal.

Shapes: n pairs (rows of the data), G parents, R resamples.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fastwi.errors import UserError

NOTHING = "n = 1: nothing can be concluded"
FEWEST = 5
"""Parents that an interval needs. Below, an estimate is its points and n, and every verdict is not settled."""
CONFIRMED, REFUTED, NOT_SETTLED = "confirmed", "refuted", "not settled"
METHODS = ("percentile", "t")
CLAIMS = ("above", "below")
_RESAMPLES = 9999
_NUMBERS_AT_ONCE = 2_000_000  # of weights [R, n], to bound memory
_MOST_UNDEFINED = 0.1  # of resamples; beyond, what is left of them is no fair sample
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, and what they rest on.

    Attributes:
        value: the estimate; None where it is undefined (`note` says why).
        low, high: the interval; None where there is none.
        n_parents: independent parents. This is n.
        n_pairs: rows of the data, several a parent.
        confidence: level of the interval, in 0..1.
        note: one sentence on what must be said beside the numbers, or empty.
        points: each parent's own value, where the value is a mean of such.
    """

    value: float | None
    low: float | None
    high: float | None
    n_parents: int
    n_pairs: int
    confidence: float
    note: str = ""
    points: tuple[float, ...] = ()

    @property
    def conclusive(self) -> bool:
        """Whether there is an interval at all; without one nothing can be concluded."""
        return self.low is not None and self.high is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 is outside of it."""
        return verdict(self) != NOT_SETTLED

    def __str__(self) -> str:
        counted = f"n = {self.n_parents} parents, {self.n_pairs} pairs"
        if self.value is None:
            return f"undefined ({counted}); {self.note}"
        if self.low is None or self.high is None:
            return f"{self.value:+.4g} ({counted}); {self.note}"
        interval = f"{self.value:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"
        tail = f"; {self.note}" if self.note else ""
        return f"{interval} ({100 * self.confidence:g} %, {counted}){tail}"


def mean_estimate(
    values: ArrayLike,
    parents: Sequence[Any] | NDArray[Any],
    *,
    confidence: float = 0.95,
    method: str = "percentile",
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean over parents of each parent's mean, with its interval.

    values: [n]; parents: [n], the parent of each value (numbers or names). Each parent counts once, however many
    pairs it has: pairs more of one parent are no more evidence about other parents.

    Raises UserError for lists of different lengths, for none, and for values that are not finite.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is none of {', '.join(METHODS)}")
    (values_n,), parent_n, count = _columns({"values": values}, parents)
    mean_G = np.bincount(parent_n, weights=values_n) / np.bincount(parent_n)
    # A common constant stays itself to the bit: means of equal numbers may differ in their last digit.
    for g in range(count):
        mine = values_n[parent_n == g]
        if mine.min() == mine.max():
            mean_G[g] = mine[0]
    value = float(mean_G[0]) if mean_G.min() == mean_G.max() else float(mean_G.mean())
    _check(confidence, resamples, seed)
    points = tuple(float(mean) for mean in mean_G)
    if count < FEWEST:
        return Estimate(value, None, None, count, len(values_n), confidence, _too_few(count), points)
    if method == "t":
        half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * mean_G.std(ddof=1) / math.sqrt(count))
        return Estimate(value, value - half, value + half, count, len(values_n), confidence, "", points)

    def means(weights_RG: Float64) -> Float64:
        return weights_RG @ mean_G / count

    most = 1.0 - 2.0 ** (1 - count)
    few = f"n = {count}: few; such an interval holds the mean in at most {100 * most:.4g} % of cases"
    note = few if most < confidence else ""
    return replace(_estimate(value, means, count, len(values_n), confidence, resamples, seed, note), points=points)


def paired_difference(
    after: ArrayLike, before: ArrayLike, parents: Sequence[Any] | NDArray[Any], **options: Any
) -> Estimate:
    """`mean_estimate` of after - before, pair by pair: such as an average's accuracy less its children's mean.

    after, before: [n], of the same pair at the same place. `options` are those of `mean_estimate`.
    Raises UserError as that does.
    """
    (after_n, before_n), _, _ = _columns({"after": after, "before": before}, parents)
    return mean_estimate(after_n - before_n, parents, **options)


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    parents: Sequence[Any] | NDArray[Any],
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Spearman's rank correlation of x and y [n] over all pairs, in -1 .. 1, ties at their mean rank.

    It is undefined (value None) where x or y is constant. Resamples in which it is undefined are left out; where they
    are more than 1 in 10 there is no interval.
    Raises UserError as `mean_estimate` does.
    """
    (x_n, y_n), parent_n, count = _columns({"x": x, "y": y}, parents)
    value = _correlation_or_none(stats.spearmanr, x_n, y_n)

    def correlations(weights_RG: Float64) -> Float64:
        weights_Rn = weights_RG[:, parent_n]
        return _weighted_pearson(_weighted_ranks(x_n, weights_Rn), _weighted_ranks(y_n, weights_Rn), weights_Rn)

    return _correlation(value, correlations, count, len(x_n), confidence, resamples, seed)


def kendall(
    x: ArrayLike,
    y: ArrayLike,
    parents: Sequence[Any] | NDArray[Any],
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Kendall's tau-b of x and y [n] over all pairs, in -1 .. 1; all else as `spearman`. Takes n^2 numbers."""
    (x_n, y_n), parent_n, count = _columns({"x": x, "y": y}, parents)
    value = _correlation_or_none(stats.kendalltau, x_n, y_n)
    sign_x_nn, sign_y_nn = (np.sign(v_n[:, None] - v_n[None, :]) for v_n in (x_n, y_n))

    def correlations(weights_RG: Float64) -> Float64:
        weights_Rn = weights_RG[:, parent_n]

        def total(matrix_nn: Float64) -> Float64:
            return ((weights_Rn @ matrix_nn) * weights_Rn).sum(axis=1)

        # Copies of one pair are tied in x and in y, and so count in none of the three sums, as tau-b has it.
        return _ratio(total(sign_x_nn * sign_y_nn), total(np.abs(sign_x_nn)) * total(np.abs(sign_y_nn)))

    return _correlation(value, correlations, count, len(x_n), confidence, resamples, seed)


def verdict_text(found: str, parents: int) -> str:
    """A verdict as tables show it: 'not settled (n = 2)' where there were too few parents to settle anything."""
    return f"{found} (n = {parents})" if found == NOT_SETTLED and parents < FEWEST else found


def verdict(estimate: Estimate, threshold: float = 0.0, claim: str = "above") -> str:
    """'confirmed', 'refuted' or 'not settled': whether the value is above (or below) `threshold`.

    Confirmed where the whole interval is on the claimed side, refuted where the whole of it is on the other; else,
    and without an interval, not settled. An end that touches the threshold settles nothing.
    Raises UserError for another claim than "above" or "below".
    """
    if claim not in CLAIMS:
        raise UserError(f"claim: {claim!r} is none of {', '.join(CLAIMS)}")
    if estimate.low is None or estimate.high is None:
        return NOT_SETTLED
    above, below = estimate.low > threshold, estimate.high < threshold
    if claim == "below":
        above, below = below, above
    return CONFIRMED if above else REFUTED if below else NOT_SETTLED


def _columns(columns: dict[str, ArrayLike], parents: Sequence[Any] | NDArray[Any]) -> tuple[list[Float64], Any, int]:
    """The columns as float64, the place 0 .. G - 1 of each row's parent, and G."""
    arrays = []
    for name, column in columns.items():
        try:
            array = np.asarray(column, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: not numbers ({error}); give one number a pair") from error
        if array.ndim != 1 or len(array) == 0 or len(array) != len(parents):
            raise UserError(f"{name}: shape {array.shape} for {len(parents)} parents' names; give one of each a pair")
        if not np.isfinite(array).all():
            place = int(np.flatnonzero(~np.isfinite(array))[0])
            raise UserError(f"{name}: number {place} is {array[place]}; leave out pairs that diverged, and say so")
        arrays.append(array)
    # Parents keep the order of their first pair, so that results do not depend on how they are called.
    places: dict[Any, int] = {}
    parent_n = np.array([places.setdefault(parent, len(places)) for parent in parents], dtype=np.int64)
    return arrays, parent_n, len(places)


def _check(confidence: float, resamples: int, seed: int) -> None:
    """Raise UserError for options that give no interval."""
    if not 0.0 < confidence < 1.0:
        raise UserError(f"confidence: {confidence}; give a number between 0 and 1, such as 0.95")
    if resamples < 100:
        raise UserError(f"resamples: {resamples}; an interval needs at least 100")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed: {seed}; give a number from 0 to 2^64 - 1")


def _correlation(
    value: float | None,
    statistic: Callable[[Float64], Float64],
    parents: int,
    pairs: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """`_estimate` of a rank correlation, where it is defined and there are parents enough."""
    _check(confidence, resamples, seed)
    if value is None:
        note = "undefined: x or y is the same for all pairs" + (f"; {NOTHING}" if parents == 1 else "")
    elif parents < FEWEST:
        note = _too_few(parents)
    else:
        return _estimate(value, statistic, parents, pairs, confidence, resamples, seed)
    return Estimate(value, None, None, parents, pairs, confidence, note)


def _estimate(
    value: float,
    statistic: Callable[[Float64], Float64],
    parents: int,
    pairs: int,
    confidence: float,
    resamples: int,
    seed: int,
    note: str = "",
) -> Estimate:
    """The interval of a statistic of weights [R, G]: how often each parent is in each resample."""
    _check(confidence, resamples, seed)

    def without(note: str) -> Estimate:
        return Estimate(value, None, None, parents, pairs, confidence, note)

    def of_drawn(drawn_RG: NDArray[np.int64], axis: int = -1) -> Float64:
        drawn = np.atleast_2d(np.moveaxis(drawn_RG, axis, -1)).astype(np.int64)
        starts_R1 = parents * np.arange(len(drawn))[:, None]
        weights_RG = np.bincount((drawn + starts_R1).ravel(), minlength=parents * len(drawn)).reshape(-1, parents)
        return statistic(weights_RG.astype(np.float64)).reshape(drawn_RG.shape[:-1])

    with warnings.catch_warnings():  # undefined resamples are counted below; of them scipy would warn
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        distribution_R = stats.bootstrap(
            (np.arange(parents),), of_drawn, n_resamples=resamples, batch=max(1, _NUMBERS_AT_ONCE // pairs),
            vectorized=True, method="percentile", rng=np.random.Generator(np.random.Philox(key=seed)),
        ).bootstrap_distribution  # fmt: skip
    defined = distribution_R[np.isfinite(distribution_R)]
    undefined = 1.0 - len(defined) / resamples
    if undefined > _MOST_UNDEFINED:
        return without(f"too many ties: undefined in {100 * undefined:.0f} % of resamples, so no interval")
    tail = _expanded_tail(parents, confidence)
    low, high = (float(end) for end in np.quantile(defined, [tail, 1.0 - tail]))
    # Sums of one number in another order differ in the last digit; the value of constant data is its own interval.
    scale = 8 * np.finfo(np.float64).eps * max(abs(low), abs(high), abs(value))
    low, high = (value if abs(end - value) <= scale else end for end in (low, high))
    return Estimate(value, low, high, parents, pairs, confidence, note)


def _too_few(parents: int) -> str:
    return NOTHING if parents == 1 else f"n = {parents}: too few parents for an interval, which needs {FEWEST}"


def _expanded_tail(parents: int, confidence: float) -> float:
    """The share of resamples beyond each end of the interval (Hesterberg 2015, expanded percentile)."""
    quantile = stats.t.ppf((1.0 + confidence) / 2.0, parents - 1) * math.sqrt(parents / (parents - 1.0))
    return float(stats.norm.sf(quantile))


def _correlation_or_none(correlation: Callable[..., Any], x_n: Float64, y_n: Float64) -> float | None:
    """A scipy correlation, or None where it is undefined (scipy would warn)."""
    if np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return None
    return float(correlation(x_n, y_n).statistic)


def _weighted_ranks(v_n: Float64, weights_Rn: Float64) -> Float64:
    """Mid-ranks [R, n] of v_n where item i is there weights_Rn[r, i] times (of an absent item: no meaning)."""
    order = np.argsort(v_n, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(v_n[order]) != 0])
    group_n = np.empty(len(v_n), dtype=np.int64)
    group_n[order] = np.cumsum(np.r_[False, np.diff(v_n[order]) != 0])
    sizes = np.add.reduceat(weights_Rn[:, order], starts, axis=1)
    ranks: Float64 = (np.cumsum(sizes, axis=1) - sizes / 2.0 + 0.5)[:, group_n]
    return ranks


def _weighted_pearson(a_Rn: Float64, b_Rn: Float64, weights_Rn: Float64) -> Float64:
    """Pearson's correlation [R] with integer weights; NaN where a or b is constant over the weighted items."""
    total_R1 = weights_Rn.sum(axis=1, keepdims=True)
    # Mid-ranks and weights are multiples of 1/2: sums are exact, and a constant's deviations exactly zero.
    a_Rn = a_Rn - (weights_Rn * a_Rn).sum(axis=1, keepdims=True) / total_R1
    b_Rn = b_Rn - (weights_Rn * b_Rn).sum(axis=1, keepdims=True) / total_R1
    products = ((weights_Rn * u * v).sum(axis=1) for u, v in ((a_Rn, b_Rn), (a_Rn, a_Rn), (b_Rn, b_Rn)))
    ab_R, aa_R, bb_R = products
    return _ratio(ab_R, aa_R * bb_R)


def _ratio(above_R: Float64, square_R: Float64) -> Float64:
    """above / sqrt(square), NaN where square is 0."""
    ratio_R = np.full(len(above_R), np.nan)
    np.divide(above_R, np.sqrt(square_R), out=ratio_R, where=square_R > 0)
    return np.clip(ratio_R, -1.0, 1.0)
