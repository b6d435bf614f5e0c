"""Intervals over seeds: every estimate carries its interval and its n, and n counts PARENTS.

Children of one parent share a training past, so their results are dependent; what is drawn independently is the
parent. So each interval rests on one number a parent. The methods were chosen by their coverage for 5 to 20 parents
(`benchmarks/coverage.py`; docs/intervals.md has the table):

- A mean: Student's t interval of the parents' means. Percentile and BCa bootstrap are too narrow for few parents.
- A rank correlation: the jackknife over parents (Miller 1974, The Jackknife: a review). Leave each parent out, take
  the standard error of Fisher's z = arctanh(r), and Student's t with one degree of freedom less than parents.

No interval is given below `FEWEST` parents, or where all parents agree, so that its width would be zero. A mean has
no interval then. A rank correlation has a least and a greatest value, and so limits as those of Clopper and Pearson
(1934) for n of n: how many parents that differ, to the extreme, n parents could miss.

Shapes: n pairs (rows of the data), G parents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastwi.errors import UserError

NOTHING = "n = 1: nothing can be concluded"
FEWEST = 5
"""Parents that an interval needs. Below, an estimate is its points and n, and every verdict is not settled."""
CONFIRMED, REFUTED, NOT_SETTLED = "confirmed", "refuted", "not settled"
CLAIMS = ("above", "below")
SCOPES = ("all pairs", "within cells")
"""What a rank correlation is taken over; within cells: after the mean of each cell was subtracted."""
_EQUAL = 1e-9  # relative from 1 on: differences of accuracies that are equal differ in their last digits
_MOST_R = 1.0 - 1e-9  # of rank correlations: arctanh(1) is infinite
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
        note: one sentence to be shown beside the numbers, or empty.
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


def mean_estimate(values: ArrayLike, parents: Sequence[Any] | NDArray[Any], *, confidence: float = 0.95) -> Estimate:
    """The mean over parents of each parent's mean, with Student's t interval of these.

    values: [n]; parents: [n], the parent of each value (numbers or names). Each parent counts once, however many
    pairs it has: pairs more of one parent are no more evidence about other parents.

    Raises UserError for lists of different lengths, for none, and for values that are not finite.
    """
    _check(confidence)
    (values_n,), parent_n, count = _columns({"values": values}, parents)
    mean_G = np.bincount(parent_n, weights=values_n) / np.bincount(parent_n)
    value = float(mean_G.mean())
    low = high = None
    note = _too_few(count)
    if not note and _spread(mean_G) == 0:
        note = f"all {count} parents have the same value: no spread to make an interval of"
    elif not note:
        half = _quantile(count, confidence) * float(mean_G.std(ddof=1)) / math.sqrt(count)
        low, high = value - half, value + half
    points = tuple(float(mean) for mean in mean_G)
    return Estimate(value, low, high, count, len(values_n), confidence, note, points)


def spearman(
    x: ArrayLike, y: ArrayLike, parents: Sequence[Any] | NDArray[Any], *, confidence: float = 0.95
) -> Estimate:
    """Spearman's rank correlation of x and y [n] over all pairs, in -1 .. 1, ties at their mean rank.

    Its interval is the jackknife's over parents. It is undefined (value None) where x or y is constant, and has no
    interval where that is so without one parent. Raises UserError as `mean_estimate` does.
    """
    _check(confidence)
    (x_n, y_n), parent_n, count = _columns({"x": x, "y": y}, parents)

    def estimate(
        value: float | None, note: str = "", low: float | None = None, high: float | None = None
    ) -> Estimate:
        return Estimate(value, low, high, count, len(x_n), confidence, note)

    value = _correlation(x_n, y_n)
    if value is None:
        return estimate(None, "undefined: x or y is the same for all pairs" + (f"; {NOTHING}" if count == 1 else ""))
    if count < FEWEST:
        return estimate(value, _too_few(count))
    without = [_correlation(x_n[parent_n != g], y_n[parent_n != g]) for g in range(count)]
    if None in without:
        return estimate(value, "undefined without one of the parents: x or y is the same for all others; no interval")
    without_G = np.array(without, dtype=np.float64)
    if _spread(np.append(without_G, value)) == 0:
        unseen = 1.0 - ((1.0 - confidence) / 2.0) ** (1.0 / count)
        note = f"all {count} parents agree: the limits are those of how many could differ unseen"
        return estimate(value, note, value - unseen * (value + 1.0), value + unseen * (1.0 - value))
    z, z_G = (np.arctanh(np.clip(r, -_MOST_R, _MOST_R)) for r in (value, without_G))
    half = _quantile(count, confidence) * float(z_G.std()) * math.sqrt(count - 1)
    return estimate(value, "", float(np.tanh(z - half)), float(np.tanh(z + half)))


def verdict_text(found: str, parents: int) -> str:
    """A verdict as tables show it: 'not settled (n = 2)' where there were too few parents to settle anything."""
    return f"{found} (n = {parents})" if found == NOT_SETTLED and parents < FEWEST else found


def verdict(estimate: Estimate, threshold: float = 0.0, claim: str = "above") -> str:
    """'confirmed', 'refuted' or 'not settled': whether the value is above (or below) `threshold`.

    Confirmed where the whole interval is on the claimed side, refuted where the whole of it is on the other; else not
    settled. An end that touches the threshold settles nothing; nor do an interval of no width, or fewer than `FEWEST`
    parents. Raises UserError for another claim than "above" or "below".
    """
    if claim not in CLAIMS:
        raise UserError(f"claim: {claim!r} is not one of {', '.join(CLAIMS)}")
    if estimate.low is None or estimate.high is None or estimate.n_parents < FEWEST:
        return NOT_SETTLED
    if estimate.low == estimate.high:
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
            raise UserError(f"{name}: number {place} is {array[place]}; leave out pairs that diverged")
        arrays.append(array)
    # Parents keep the order of their first pair, so that results do not depend on how they are called.
    places: dict[Any, int] = {}
    parent_n = np.array([places.setdefault(parent, len(places)) for parent in parents], dtype=np.int64)
    return arrays, parent_n, len(places)


def _check(confidence: float) -> None:
    """Raise UserError for a level that is none."""
    if not 0.0 < confidence < 1.0:
        raise UserError(f"confidence: {confidence}; give a number between 0 and 1, such as 0.95")


def _too_few(parents: int) -> str:
    """The note on so few parents; empty where they are enough for an interval."""
    if parents >= FEWEST:
        return ""
    return NOTHING if parents == 1 else f"n = {parents}: too few parents for an interval, which needs {FEWEST}"


def _quantile(parents: int, confidence: float) -> float:
    from scipy import stats  # takes a second to import

    return float(stats.t.ppf((1.0 + confidence) / 2.0, parents - 1))


def _spread(value_G: Float64) -> float:
    """Largest less smallest; 0 where they are equal but for rounding."""
    spread = float(np.ptp(value_G))
    return 0.0 if spread <= _EQUAL * max(1.0, float(np.abs(value_G).max())) else spread


def _correlation(x_n: Float64, y_n: Float64) -> float | None:
    """Spearman's correlation, or None where it is undefined (scipy would warn)."""
    from scipy import stats

    if np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return None
    return float(stats.spearmanr(x_n, y_n).statistic)
