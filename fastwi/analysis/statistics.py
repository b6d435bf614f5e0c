"""Intervals over seeds: every estimate carries its interval and its n, and n counts PARENTS.

Children of one parent share a training past: what is drawn independently is the parent, so each interval rests on one
number a parent. The methods were chosen by their coverage for 5 to 20 parents (docs/intervals.md):

- A mean: Student's t interval of the parents' means.
- A mean over pairs of parents: the jackknife over parents, with Student's t.
- A rank correlation: the jackknife over parents (Miller 1974, The Jackknife: a review) of Fisher's z = arctanh(r),
  with Student's t. Where all parents agree, its limits are those of Clopper and Pearson (1934) for n of n: how many
  parents that differ, to the extreme, n parents could miss.

No interval is given below `FEWEST` parents, for a mean where all parents agree, or for a correlation of all parents
that differs from the one without any of them, which is the same each time. Shapes: n pairs, G parents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastwi.errors import UserError

NOTHING = "n = 1: nothing can be concluded"
FEWEST = 5
"""Parents that an interval needs. Below, an estimate is its points and n, and every verdict is not settled."""
CONFIRMED, REFUTED, NOT_SETTLED = "confirmed", "refuted", "not settled"
_LEVEL = 0.95  # of intervals
_EQUAL = 1e-9  # relative from 1 on: differences of accuracies that are equal differ in their last digits
_MOST_R = 1.0 - 1e-9  # of rank correlations: arctanh(1) is infinite
Float64 = NDArray[np.float64]
Parents = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, and what they rest on.

    value: None where it is undefined (`note` says why). low, high: None where there is no interval. n_parents:
    independent parents; this is n. n_pairs: rows of the data. points: each parent's own value, where the value is a
    mean of such.
    """

    value: float | None
    low: float | None
    high: float | None
    n_parents: int
    n_pairs: int
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


def mean_estimate(values: ArrayLike, parents: Parents) -> Estimate:
    """The mean over parents of each parent's mean, with Student's t interval of these.

    values, parents: [n], each value and the name of its parent, which counts once however many pairs it has. Raises
    UserError for lists of different lengths or of none, and for values that are not finite.
    """
    parent_n, count = _numbered(parents)
    values_n = _checked("values", values, parent_n)
    mean_G = np.bincount(parent_n, weights=values_n) / np.bincount(parent_n)
    value = float(mean_G.mean())
    low, high, note = _around(value, mean_G)
    return Estimate(value, low, high, count, len(values_n), note, tuple(mean_G.tolist()))


def between_parents(values: ArrayLike, pairs: Sequence[tuple[Any, Any]]) -> Estimate:
    """The mean over pairs of different parents, with the jackknife's interval over parents.

    values, pairs: [n], each value and the names of the two parents that it is about. A parent is in many pairs, which
    are not independent. Raises UserError as `mean_estimate` does.
    """
    parent_2n, count = _numbered([parent for pair in pairs for parent in pair])
    values_n = _checked("values", values, parent_2n[::2])
    value = float(values_n.mean())
    has_Gn = (parent_2n.reshape(-1, 2) == np.arange(count)[:, None, None]).any(axis=2)
    low = high = None
    note = _too_few(count)
    if not note:
        if has_Gn.all(axis=1).any():
            note = "undefined without one of the parents, which is in all pairs; no interval"
        else:
            without_G = np.array([values_n[~has_n].mean() for has_n in has_Gn])
            low, high, note = _around(value, count * value - (count - 1) * without_G)
    points = tuple(float(values_n[has_n].mean()) for has_n in has_Gn)
    return Estimate(value, low, high, count, len(values_n), note, points)


def spearman(
    x: ArrayLike, y: ArrayLike, parents: Parents, cells: Parents | None = None, within: bool = False
) -> Estimate:
    """Spearman's rank correlation of x and y [n] over all pairs, in -1 .. 1, ties at their mean rank.

    cells: [n], the name of each pair's cell; then it is the correlation of the cells' means, or, `within` cells, of
    what is left of x and y less these. Its interval is the jackknife's over parents; cells have the means of the
    parents that are not left out. It is undefined (value None) where x or y is constant, and has no interval where
    that is so without one parent. Raises UserError as `mean_estimate` does.
    """
    parent_n, count = _numbered(parents)
    cell_n = np.arange(len(parent_n)) if cells is None else _numbered(cells)[0]
    values = [_checked(name, each, parent_n) for name, each in (("x", x), ("y", y))]
    of_cells = _less_means if within else _means

    def without(parent: int) -> float | None:
        kept = parent_n != parent
        x_n, y_n = (each[kept] if cells is None else of_cells(each[kept], cell_n[kept]) for each in values)
        return _correlation(x_n, y_n)

    value = without(-1)
    low = high = None
    note = _too_few(count)
    if value is None:
        note = "undefined: x or y is the same for all pairs" + (f"; {NOTHING}" if count == 1 else "")
    elif not note:
        low, high, note = _jackknife(value, [without(g) for g in range(count)])
    return Estimate(value, low, high, count, len(parent_n), note)


def verdict_text(found: str, parents: int) -> str:
    """A verdict as tables show it: 'not settled (n = 2)' where there were too few parents to settle anything."""
    return f"{found} (n = {parents})" if found == NOT_SETTLED and parents < FEWEST else found


def verdict(estimate: Estimate, claim: Literal["above", "below"] = "above") -> str:
    """'confirmed', 'refuted' or 'not settled': whether the value is "above" (or "below") 0.

    Confirmed where the whole interval is on the claimed side, refuted where the whole of it is on the other; else not
    settled. An end that touches 0 settles nothing; nor do an interval of no width, or fewer than `FEWEST` parents.
    """
    low, high = estimate.low, estimate.high
    if low is None or high is None or low == high or estimate.n_parents < FEWEST or low <= 0 <= high:
        return NOT_SETTLED
    return CONFIRMED if (low > 0) == (claim == "above") else REFUTED


def _numbered(parents: Parents) -> tuple[NDArray[np.int64], int]:
    """The number of each row's parent, int64 [n] of 0 .. G - 1, and G."""
    # In the order of their first pairs, so that results do not depend on how parents are called.
    places: dict[Any, int] = {}
    return np.array([places.setdefault(parent, len(places)) for parent in parents], dtype=np.int64), len(places)


def _checked(name: str, values: ArrayLike, parent_n: NDArray[np.int64]) -> Float64:
    """The values as float64 [n]."""
    values_n = np.asarray(values, dtype=np.float64)
    if values_n.shape != parent_n.shape or not len(values_n):
        raise UserError(f"{name}: shape {values_n.shape} for {len(parent_n)} parents' names; give one of each a pair")
    if not np.isfinite(values_n).all():
        place = int(np.flatnonzero(~np.isfinite(values_n))[0])
        raise UserError(f"{name}: number {place} is {values_n[place]}; leave out pairs that diverged")
    return values_n


def _without_rounding(values_n: Float64) -> Float64:
    """The values to 10 digits of the largest: differences of equal numbers differ in their last, which ranks see."""
    largest = float(np.abs(values_n).max())
    return np.round(values_n / largest, 10) if largest else values_n


def _means(values_n: Float64, cell_n: NDArray[np.int64]) -> Float64:
    """The mean of each cell, in float32's digits: beyond them means of equal numbers may differ, which ranks see."""
    counts = np.bincount(cell_n)
    means = np.bincount(cell_n, weights=values_n)[counts > 0] / counts[counts > 0]
    return means.astype(np.float32).astype(np.float64)


def _less_means(values_n: Float64, cell_n: NDArray[np.int64]) -> Float64:
    """Each value less the mean of its cell, in units of the largest value, to 10 digits of it.

    The mean of equal numbers may differ from them in its last digit, which ranks would see.
    """
    scaled_n = values_n / (float(np.abs(values_n).max()) or 1.0)
    mean_C = np.bincount(cell_n, weights=scaled_n) / np.maximum(1, np.bincount(cell_n))
    return np.round(scaled_n - mean_C[cell_n], 10)


def _too_few(parents: int) -> str:
    """The note on so few parents; empty where they are enough for an interval."""
    if parents >= FEWEST:
        return ""
    return NOTHING if parents == 1 else f"n = {parents}: too few parents for an interval, which needs {FEWEST}"


def _around(value: float, value_G: Float64) -> tuple[float | None, float | None, str]:
    """Student's t interval around `value`, by the values (or pseudovalues) of the parents, and a note."""
    count = len(value_G)
    note = _too_few(count)
    if note or _spread(value_G) == 0:
        return None, None, note or f"all {count} parents have the same value: no spread to make an interval of"
    half = _quantile(count) * float(value_G.std(ddof=1)) / math.sqrt(count)
    return value - half, value + half, ""


def _jackknife(value: float, without: Sequence[float | None]) -> tuple[float | None, float | None, str]:
    """The interval of a correlation by those without each parent, and a note."""
    if None in without:
        return None, None, "undefined without one of the parents: x or y is the same for all others; no interval"
    count = len(without)
    without_G = np.array(without, dtype=np.float64)
    if _spread(without_G) == 0:
        if _spread(np.append(without_G, value)) > 0:
            note = f"the same without any one of {count} parents: no spread to make an interval of"
            return None, None, note
        unseen = 1.0 - ((1.0 - _LEVEL) / 2.0) ** (1.0 / count)
        note = f"all {count} parents agree: the limits are those of how many could differ unseen"
        return value - unseen * (value + 1.0), value + unseen * (1.0 - value), note
    z, z_G = (np.arctanh(np.clip(r, -_MOST_R, _MOST_R)) for r in (value, without_G))
    half = _quantile(count) * float(z_G.std()) * math.sqrt(count - 1)
    return float(np.tanh(z - half)), float(np.tanh(z + half)), ""


def _quantile(parents: int) -> float:
    from scipy import stats  # takes a second to import

    return float(stats.t.ppf((1.0 + _LEVEL) / 2.0, parents - 1))


def _spread(value_G: Float64) -> float:
    """Largest less smallest; 0 where they are equal but for rounding."""
    spread = float(np.ptp(value_G))
    return 0.0 if spread <= _EQUAL * max(1.0, float(np.abs(value_G).max())) else spread


def _correlation(x_n: Float64, y_n: Float64) -> float | None:
    """Spearman's correlation, or None where it is undefined (scipy would warn)."""
    from scipy import stats

    x_n, y_n = map(_without_rounding, (x_n, y_n))
    if np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return None
    return float(stats.spearmanr(x_n, y_n).statistic)
