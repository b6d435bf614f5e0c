"""How often 95 % intervals over few parents hold what they are intervals of.

Data sets of known truth are drawn: parents from a distribution, and for each parent a few pairs that share its draw.
Of each method the share of its intervals that hold the truth is counted: 95 % is claimed. fastwi's are those of
`fastwi.analysis.statistics`; beside them scipy's bootstraps that resample parents. Where all parents are equal fastwi
gives no interval; bootstraps give one of no width, which counts.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.runner import Report, benchmark
from fastwi.analysis.statistics import mean_estimate, spearman

Float64 = NDArray[np.float64]
Rng = np.random.Generator
Columns = tuple[NDArray[Any], ...]
"""One column of values [G parents, pairs], for their mean, or two, for their rank correlation."""

_PAIRS = 4  # of each parent
_WITHIN = 0.5  # deviation between the pairs of a parent, in units of that between parents
_CELLS = np.repeat(np.arange(4.0), 3)  # k of the cells of a 4 x 3 grid of k x s, each with one pair of each parent
WITHIN_CELLS = "within cells"
_LARGE = 20_000  # parents of the data set whose correlation is the true one
_SLACK = 1e-9  # of the comparison with the truth, for roundings


def _shared(one: Callable[..., Float64], rng: Rng, G: int) -> Columns:
    """A parent's draw, and smaller ones of the same distribution for each pair."""
    return (one(rng, size=(G, 1)) + _WITHIN * one(rng, size=(G, _PAIRS)),)


def _accuracies(rng: Rng, G: int) -> Columns:
    """Percent right of 50 images, near the upper bound: a step is 2 points, and parents tie."""
    return (2.0 * rng.binomial(50, rng.beta(48, 2, size=(G, 1)), size=(G, _PAIRS)),)


def _barriers(rng: Rng, G: int) -> Columns:
    return (np.maximum(0.0, _shared(Rng.normal, rng, G)[0] - 0.5),)


def _grid(slope: float, rng: Rng, G: int) -> Columns:
    """k and a rounded gain that rises by `slope` a step of k, on parents with levels and slopes of their own."""
    k_GC = np.tile(_CELLS, (G, 1))
    level_G1, steeper_G1 = rng.normal(size=(2, G, 1))
    gain_GC = slope * k_GC + level_G1 + 0.5 * steeper_G1 * (k_GC - 1.5)
    return k_GC, np.round(gain_GC + rng.normal(size=k_GC.shape), 1)


def _drawn(relation: float, pairs: int, rng: Rng, G: int) -> Columns:
    """A skewed quantity and a rounded gain, related between parents and between the pairs of a parent."""
    x, y = np.zeros((2, G, pairs))
    for shape, scale in (((G, 1), 1.0), ((G, pairs), 0.7)):
        here, other = scale * rng.normal(size=(2, *shape))
        x += here
        y += relation * here + np.sqrt(1 - relation**2) * other
    return np.exp(x), np.round(3 * y)


def _in_cells(relation: float, rng: Rng, G: int) -> Columns:
    """Two quantities of each pair, one pair of each parent in every cell."""
    x, y = _drawn(relation, len(_CELLS), rng, G)
    return np.log(x), y


_SPREAD = float(np.sqrt(1 + _WITHIN**2))
_BARRIER = float(-0.5 * stats.norm.cdf(-0.5 / _SPREAD) + _SPREAD * stats.norm.pdf(0.5 / _SPREAD))
MEANS: dict[str, tuple[Callable[[Rng, int], Columns], float | None]] = {
    "normal": (partial(_shared, Rng.normal), 0.0),
    "t, 3 degrees (heavy tails)": (partial(_shared, lambda rng, size: rng.standard_t(3, size)), 0.0),
    "exponential (skewed)": (partial(_shared, lambda rng, size: rng.exponential(size=size) - 1.0), 0.0),
    "lognormal (very skewed)": (partial(_shared, lambda rng, size: rng.lognormal(size=size) - np.exp(0.5)), 0.0),
    "accuracies (bounded, tied)": (_accuracies, 96.0),
    "barriers (most are 0)": (_barriers, _BARRIER),
}
"""A draw of a data set, and its true mean, by the name of the distribution."""

CORRELATIONS: dict[str, tuple[Callable[[Rng, int], Columns], float | None]] = {
    "k, none": (partial(_grid, 0.0), None),
    "k, weak": (partial(_grid, 0.5), None),
    "k, strong": (partial(_grid, 3.0), None),
    "pairs, none": (partial(_drawn, 0.0, _PAIRS), None),
    "pairs, middling": (partial(_drawn, 0.5, _PAIRS), None),
    "pairs, strong": (partial(_drawn, 0.9, _PAIRS), None),
    "one pair a parent": (partial(_drawn, 0.5, 1), None),
    WITHIN_CELLS: (partial(_in_cells, 0.5), None),
}
"""The same by what is related and how strongly. The true correlation is that of very many parents."""


@benchmark
def main(
    report: Report, parents: tuple[int, ...] = (5, 6, 8, 10, 15, 20, 30), datasets: int = 4000,
    correlations: int = 1000, resamples: int = 1000, seed: int = 0,
) -> None:  # fmt: skip
    """A table of means, and one of rank correlations."""
    warnings.simplefilter("ignore", stats.ConstantInputWarning)
    warnings.simplefilter("ignore", stats.DegenerateDataWarning)
    rng = Rng(np.random.Philox(key=seed))
    for statistic, table, count in (("mean", MEANS, datasets), ("rank correlation", CORRELATIONS, correlations)):
        rows: dict[str, dict[str, Any]] = {}
        measurements = []
        for name, (draw, truth) in table.items():
            within = name == WITHIN_CELLS
            truth = float(_statistic(draw(rng, _LARGE), within)) if truth is None else truth
            for G in parents:
                found = [intervals(draw(rng, G), rng, resamples, within) for _ in range(count)]
                for method in found[0]:
                    low_D, high_D = np.array([each[method] for each in found], dtype=np.float64).T
                    given_D = ~np.isnan(low_D) & ~np.isnan(high_D)
                    held_D = (low_D - _SLACK <= truth) & (truth <= high_D + _SLACK)
                    row: dict[str, Any] = {"statistic": statistic, "distribution": name, "parents": G}
                    row |= {"method": method, "coverage_%": round(100 * held_D[given_D].mean(), 2)}
                    measurements.append(row | {"without_interval_%": 100 * (1 - given_D.mean())})
                    case = f"{name}: {method}"
                    rows.setdefault(case, {"": case})[f"{G} parents"] = row["coverage_%"]
        report.add(f"Coverage (%) of 95 % intervals of a {statistic}", list(rows.values()), measurements)


def intervals(columns: Columns, rng: Rng, resamples: int, within: bool = False) -> dict[str, Sequence[float | None]]:
    """The ends of the 95 % intervals of the mean or the rank correlation, by the method's name.

    within: of the correlation after the mean over parents of each of a parent's pairs, its cell, was subtracted.
    The widened percentile interval is as much wider as Student's t (Hesterberg 2015: expanded percentile interval).
    Where the BCa interval is undefined, as it is of equal values, the percentile interval stands for it.
    """
    G, pairs = columns[0].shape
    x, *others = (v_GP.ravel() for v_GP in columns)
    names = np.repeat(np.arange(G), pairs)
    cells = np.tile(np.arange(pairs), G) if within else None
    ours = spearman(x, others[0], names, cells, within) if others else mean_estimate(x, names)
    whole = _statistic(columns, within)

    def of_parents(at: Any, axis: int) -> Float64:
        drawn = _statistic([v_GP[at] for v_GP in columns], within)
        return np.where(np.isnan(drawn), whole, drawn)  # an undefined resample says nothing

    tail = float(stats.norm.sf(stats.t.isf(0.025, G - 1) * np.sqrt(G / (G - 1))))
    found: dict[str, Sequence[float | None]] = {"fastwi": (ours.low, ours.high)}
    drawn = None
    for name, level in (("percentile", 0.95), ("widened percentile", 1 - 2 * tail), ("BCa", 0.95)):
        with np.errstate(all="ignore"):
            drawn = stats.bootstrap(
                (np.arange(G),), of_parents, n_resamples=0 if drawn else resamples, batch=100, vectorized=True,
                confidence_level=level, method=name.split()[-1], bootstrap_result=drawn, rng=rng,
            )  # fmt: skip
        ends = drawn.confidence_interval
        found[name] = found["percentile"] if np.isnan(ends).any() else ends
    return found


def _statistic(columns: Sequence[NDArray[Any]], within: bool = False) -> Float64:
    """Over the last two axes, parents and pairs; a correlation is NaN where one of the two is constant."""
    if within:
        columns = [np.round(v_GP - v_GP.mean(axis=-2, keepdims=True), 10) for v_GP in columns]
    flat = [v_GP.reshape(*v_GP.shape[:-2], -1) for v_GP in columns]
    if len(flat) == 1:
        return np.asarray(flat[0].mean(axis=-1))
    return np.asarray(stats.pearsonr(*(stats.rankdata(v, axis=-1) for v in flat), axis=-1).statistic)


if __name__ == "__main__":
    sys.exit(main())
