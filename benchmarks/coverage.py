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

_PAIRS = 4  # of each parent
_WITHIN = 0.5  # deviation between the pairs of a parent, in units of that between parents
_CELLS = np.repeat(np.arange(4.0), 3)  # k of the cells of a 4 x 3 grid of k x s, each with one pair of each parent
_LARGE = 4000  # parents of the data sets whose correlation is the true one
_SLACK = 1e-9  # of the comparison with the truth, for roundings


def _shared(one: Callable[..., Float64], rng: Rng, D: int, G: int) -> Float64:
    """A parent's draw, and smaller ones of the same distribution for each pair."""
    return one(rng, size=(D, G, 1)) + _WITHIN * one(rng, size=(D, G, _PAIRS))


def _accuracies(rng: Rng, D: int, G: int) -> Float64:
    """Percent right of 50 images, near the upper bound: a step is 2 points, and parents tie."""
    return 100.0 * rng.binomial(50, rng.beta(48, 2, size=(D, G, 1)), size=(D, G, _PAIRS)) / 50


def _barriers(rng: Rng, D: int, G: int) -> Float64:
    return np.maximum(0.0, _shared(Rng.normal, rng, D, G) - 0.5)


_SPREAD = float(np.sqrt(1 + _WITHIN**2))
MEANS: dict[str, tuple[Callable[[Rng, int, int], Float64], float]] = {
    "normal": (partial(_shared, Rng.normal), 0.0),
    "t, 3 degrees (heavy tails)": (partial(_shared, lambda rng, size: rng.standard_t(3, size)), 0.0),
    "exponential (skewed)": (partial(_shared, lambda rng, size: rng.exponential(size=size) - 1.0), 0.0),
    "lognormal (very skewed)": (
        partial(_shared, lambda rng, size: rng.lognormal(size=size) - np.exp(0.5)),
        0.0,
    ),
    "accuracies (bounded, tied)": (_accuracies, 96.0),
    "barriers (most are 0)": (
        _barriers,
        float(-0.5 * stats.norm.cdf(-0.5 / _SPREAD) + _SPREAD * stats.norm.pdf(0.5 / _SPREAD)),
    ),
}
"""Distributions of pairs' values by name: a draw (rng, D data sets, G parents) of [D, G, pairs], and its mean."""


def _grid(slope: float, rng: Rng, parents: int) -> tuple[Float64, Float64]:
    """k and a rounded gain that rises by `slope` a step of k, on parents with levels and slopes of their own."""
    k_GC = np.tile(_CELLS, (parents, 1))
    level_G1, steeper_G1 = rng.normal(size=(2, parents, 1))
    gain_GC = slope * k_GC + level_G1 + 0.5 * steeper_G1 * (k_GC - 1.5)
    return k_GC, np.round(gain_GC + rng.normal(size=k_GC.shape), 1)


def _drawn(relation: float, pairs: int, rng: Rng, parents: int) -> tuple[Float64, Float64]:
    """A skewed quantity and a rounded gain, related between parents and between the pairs of a parent."""
    x, y = np.zeros((2, parents, pairs))
    for shape, scale in (((parents, 1), 1.0), ((parents, pairs), 0.7)):
        here, other = scale * rng.normal(size=(2, *shape))
        x += here
        y += relation * here + np.sqrt(1 - relation**2) * other
    return np.exp(x), np.round(3 * y)


def _within(relation: float, rng: Rng, parents: int) -> tuple[Float64, Float64]:
    """Two quantities that move with the cell, less each cell's mean, as the study governance has them."""
    x, y = _drawn(relation, len(_CELLS), rng, parents)
    return np.log(x) - np.log(x).mean(axis=0), np.round(y - y.mean(axis=0), 10)


CORRELATIONS = {
    "k, none": partial(_grid, 0.0),
    "k, weak": partial(_grid, 0.5),
    "k, strong": partial(_grid, 3.0),
    "pairs, none": partial(_drawn, 0.0, _PAIRS),
    "pairs, middling": partial(_drawn, 0.5, _PAIRS),
    "pairs, strong": partial(_drawn, 0.9, _PAIRS),
    "one pair a parent": partial(_drawn, 0.5, 1),
    "within cells": partial(_within, 0.5),
}
"""Draws (rng, parents) of two columns [G, pairs], by name: with which quantity, and how strongly related."""


@benchmark
def main(
    report: Report, parents: tuple[int, ...] = (5, 6, 8, 10, 15, 20, 30), datasets: int = 4000,
    correlations: int = 1000, resamples: int = 1000, seed: int = 0,
) -> None:  # fmt: skip
    """A table of means, and one of rank correlations."""
    warnings.simplefilter("ignore", stats.ConstantInputWarning)
    warnings.simplefilter("ignore", stats.DegenerateDataWarning)
    rng = np.random.Generator(np.random.Philox(key=seed))
    means = []
    for name, (draw, truth) in MEANS.items():
        for G in parents:
            methods = _of_means(draw(rng, datasets, G), rng, resamples)
            means += [_row("mean", name, G, method, truth, *ends) for method, ends in methods.items()]
    ranks = []
    for name, draw_one in CORRELATIONS.items():
        # The true correlation: over very many parents.
        truth = float(np.mean([_rank_correlation(*draw_one(rng, _LARGE)) for _ in range(5)]))
        for G in parents:
            drawn = [_of_ranks(*draw_one(rng, G), rng, resamples) for _ in range(correlations)]
            for method in drawn[0]:
                ends = np.concatenate([each[method] for each in drawn], axis=1)
                ranks.append(_row("rank correlation", name, G, method, truth, *ends))
    for rows in (means, ranks):
        shown: dict[str, dict[str, Any]] = {}
        for row in rows:
            case = f"{row['distribution']}: {row['method']}"
            shown.setdefault(case, {"": case})[f"{row['parents']} parents"] = row["coverage_%"]
        report.add(f"Coverage (%) of 95 % intervals of a {rows[0]['statistic']}", list(shown.values()), rows)


def _of_means(values_DGP: Float64, rng: Rng, resamples: int) -> dict[str, Float64]:
    """Intervals [2, D] of the mean of each data set, by method."""
    parents = np.repeat(np.arange(values_DGP.shape[1]), values_DGP.shape[2])
    ours = [mean_estimate(values_GP.ravel(), parents) for values_GP in values_DGP]
    return {"fastwi": _ends(ours), **bootstraps(values_DGP.mean(axis=2), np.mean, rng, resamples)}


def _of_ranks(x_GP: Float64, y_GP: Float64, rng: Rng, resamples: int) -> dict[str, Float64]:
    """Intervals [2, 1] of Spearman's rank correlation of one data set, by method."""
    parents = np.repeat(np.arange(len(x_GP)), x_GP.shape[1])
    whole = _rank_correlation(x_GP, y_GP)

    def of_parents(at: Any, axis: int) -> Float64:
        drawn = _rank_correlation(x_GP[at], y_GP[at])
        return np.where(np.isnan(drawn), whole, drawn)  # an undefined resample says nothing

    ours = _ends([spearman(x_GP.ravel(), y_GP.ravel(), parents)])
    return {"fastwi": ours, **bootstraps(np.arange(len(x_GP)), of_parents, rng, resamples)}


def _rank_correlation(x_GP: Float64, y_GP: Float64) -> Float64:
    """Spearman's, over the last two axes; NaN where one of the two is constant."""
    x, y = (stats.rankdata(v.reshape(*v.shape[:-2], -1), axis=-1) for v in (x_GP, y_GP))
    return np.asarray(stats.pearsonr(x, y, axis=-1).statistic)


def bootstraps(data: NDArray[Any], statistic: Callable[..., Any], rng: Rng, resamples: int) -> dict[str, Float64]:
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
        with np.errstate(all="ignore"):
            drawn = stats.bootstrap(
                (data,), statistic, n_resamples=0 if drawn else resamples, batch=100, vectorized=True, axis=-1,
                confidence_level=level, method=method, bootstrap_result=drawn, rng=rng,
            )  # fmt: skip
        ends = np.array(drawn.confidence_interval, dtype=np.float64).reshape(2, -1)
        found[name] = np.where(np.isnan(ends), found.get("percentile", ends), ends)
    return found


def _ends(estimates: Sequence[Any]) -> Float64:
    """Lower and upper ends, NaN where there is no interval."""
    return np.array([(e.low, e.high) for e in estimates], dtype=np.float64).T


def _row(
    statistic: str, name: str, parents: int, method: str, truth: float, low_D: Float64, high_D: Float64
) -> dict[str, Any]:
    given_D = ~np.isnan(low_D) & ~np.isnan(high_D)
    held_D = (low_D - _SLACK <= truth) & (truth <= high_D + _SLACK)
    return {
        "statistic": statistic, "distribution": name, "parents": parents, "method": method,
        "coverage_%": round(100 * held_D[given_D].mean(), 2), "without_interval_%": 100 * (1 - given_D.mean()),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
