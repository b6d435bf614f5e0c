"""`python -m benchmarks.coverage`: how often 95 % intervals over few parents hold what they are intervals of.

Data sets of known truth are drawn: parents from a distribution, and for each parent a few pairs that share its draw.
Of each method the share of its intervals that hold the truth is counted: 95 % is claimed. fastwi's are those that it
uses everywhere (`fastwi.analysis.statistics`); beside them bootstraps that resample parents. Where all parents are
equal fastwi gives no interval; bootstraps give one of no width, which counts.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.options import numbers, parse
from benchmarks.output import print_machine, print_table, write_results
from benchmarks.peers.bootstrap import METHODS, Float64, bootstrap_t, resamples, spearman_of
from fastwi.analysis.statistics import mean_estimate, spearman
from fastwi.cli import run_command

_PARENTS = (5, 6, 8, 10, 15, 20, 30)
_PAIRS = 4  # of each parent
_WITHIN = 0.5  # deviation between the pairs of a parent, in units of that between parents
_CELLS = np.repeat(np.arange(4.0), 3)  # k of the cells of a 4 x 3 grid of k x s, each with one pair of each parent
_LARGE = 4000  # parents of the data sets whose correlation is the true one
_SLACK = 1e-9  # of the comparison with the truth, for roundings

Draw = Callable[[np.random.Generator, int], tuple[Float64, Float64]]


@dataclass(frozen=True)
class Means:
    """A distribution of pairs' values: `draw(rng, datasets, parents)` is [D, G, pairs], and its `truth` the mean."""

    draw: Callable[[np.random.Generator, int, int], Float64]
    truth: float


def _shared(one: Callable[[np.random.Generator, tuple[int, ...]], Float64]) -> Means:
    """A parent's draw, and smaller ones of the same distribution for each pair; their mean is 0."""

    def draw(rng: np.random.Generator, datasets: int, parents: int) -> Float64:
        return one(rng, (datasets, parents, 1)) + _WITHIN * one(rng, (datasets, parents, _PAIRS))

    return Means(draw, 0.0)


def _accuracies(rng: np.random.Generator, datasets: int, parents: int) -> Float64:
    """Percent right of 50 images, near the upper bound: a step is 2 points, and parents tie."""
    right = rng.beta(48, 2, size=(datasets, parents, 1))
    return 100.0 * rng.binomial(50, right, size=(datasets, parents, _PAIRS)) / 50


def _barriers(rng: np.random.Generator, datasets: int, parents: int) -> Float64:
    """Heights that are 0 or above, more than half of them 0."""
    shape = (datasets, parents)
    return np.maximum(0.0, -0.5 + rng.normal(size=(*shape, 1)) + _WITHIN * rng.normal(size=(*shape, _PAIRS)))


_SPREAD = float(np.sqrt(1 + _WITHIN**2))
MEANS = {
    "normal": _shared(lambda rng, shape: rng.normal(size=shape)),
    "t, 3 degrees (heavy tails)": _shared(lambda rng, shape: rng.standard_t(3, size=shape)),
    "exponential (skewed)": _shared(lambda rng, shape: rng.exponential(size=shape) - 1.0),
    "lognormal (very skewed)": _shared(lambda rng, shape: np.exp(rng.normal(size=shape)) - np.exp(0.5)),
    "accuracies (bounded, tied)": Means(_accuracies, 96.0),
    "barriers (most are 0)": Means(
        _barriers, float(-0.5 * stats.norm.cdf(-0.5 / _SPREAD) + _SPREAD * stats.norm.pdf(0.5 / _SPREAD))
    ),
}
"""What means are taken of, by name."""


def _grid(slope: float) -> Draw:
    """k and a rounded gain that rises by `slope` a step of k, on parents with levels and slopes of their own."""

    def draw(rng: np.random.Generator, parents: int) -> tuple[Float64, Float64]:
        k_GC = np.tile(_CELLS, (parents, 1))
        level_G1, steeper_G1 = rng.normal(size=(2, parents, 1))
        gain_GC = slope * k_GC + level_G1 + 0.5 * steeper_G1 * (k_GC - 1.5)
        return k_GC, np.round(gain_GC + rng.normal(size=k_GC.shape), 1)

    return draw


def _drawn(relation: float, pairs: int = _PAIRS) -> Draw:
    """A skewed quantity and a rounded gain, related between parents and between the pairs of a parent."""

    def draw(rng: np.random.Generator, parents: int) -> tuple[Float64, Float64]:
        x, y = np.zeros((2, parents, pairs))
        for shape, scale in (((parents, 1), 1.0), ((parents, pairs), 0.7)):
            here, other = scale * rng.normal(size=(2, *shape))
            x = x + here
            y = y + relation * here + np.sqrt(1 - relation**2) * other
        return np.exp(x), np.round(3 * y)

    return draw


def _within(relation: float) -> Draw:
    """Two quantities that move with the cell, less each cell's mean, as the study governance has them."""

    def draw(rng: np.random.Generator, parents: int) -> tuple[Float64, Float64]:
        x, y = _drawn(relation, len(_CELLS))(rng, parents)
        return np.log(x) - np.log(x).mean(axis=0), np.round(y - y.mean(axis=0), 10)

    return draw


CORRELATIONS = {
    "k, none": _grid(0.0),
    "k, weak": _grid(0.5),
    "k, strong": _grid(3.0),
    "pairs, none": _drawn(0.0),
    "pairs, middling": _drawn(0.5),
    "pairs, strong": _drawn(0.9),
    "one pair a parent": _drawn(0.5, 1),
    "within cells": _within(0.5),
}
"""Pairs of columns [G, pairs], by name: with which quantity, and how strongly related."""


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--parents", type=numbers, default=_PARENTS, help="default 5,6,8,10,15,20,30")
    parser.add_argument("--datasets", type=int, default=4000, help="of each distribution of a mean (default 4000)")
    parser.add_argument("--correlations", type=int, default=1000, help="data sets of each correlation (default 1000)")
    parser.add_argument("--resamples", type=int, default=1000, help="of each bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    short = {"parents": (5, 20), "datasets": 200, "correlations": 20, "resamples": 200}
    arguments = parse(parser, argv, short)
    rng = np.random.Generator(np.random.Philox(key=arguments.seed))
    measurements = []
    for name, means in MEANS.items():
        for parents in arguments.parents:
            measurements += mean_coverage(name, means, rng, parents, arguments.datasets, arguments.resamples)
    for name, draw in CORRELATIONS.items():
        truth = true_correlation(draw, rng)
        for parents in arguments.parents:
            measurements += correlation_coverage(
                name, draw, truth, rng, parents, arguments.correlations, arguments.resamples
            )
    for statistic in ("mean", "rank correlation"):
        print_table(*table([row for row in measurements if row["statistic"] == statistic]))
    import torch

    from benchmarks.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "short")}
        write_results(arguments.out, "coverage", machine, settings, measurements)
    return 0


def mean_coverage(
    name: str, means: Means, rng: np.random.Generator, parents: int, datasets: int, count: int
) -> list[dict[str, Any]]:
    """A row for each method: coverage of the mean over `datasets` data sets, with `count` resamples."""
    values_DGP = means.draw(rng, datasets, parents)
    mean_DG = values_DGP.mean(axis=2)
    names = np.repeat(np.arange(parents), values_DGP.shape[2])
    found = [mean_estimate(values_GP.ravel(), names) for values_GP in values_DGP]
    intervals = {"fastwi": _ends(found)}
    weights_RG = resamples(rng, count, parents)
    estimate_D = mean_DG.mean(axis=1)
    drawn_DR = mean_DG @ weights_RG.T / parents
    without_DG = (parents * estimate_D[:, None] - mean_DG) / (parents - 1)
    intervals |= {method: ends(estimate_D, drawn_DR, without_DG) for method, ends in METHODS.items()}
    intervals["bootstrap t"] = bootstrap_t(mean_DG, weights_RG)
    return _rows("mean", name, parents, means.truth, intervals)


def true_correlation(draw: Draw, rng: np.random.Generator) -> float:
    """The correlation over very many parents."""
    return float(np.mean([stats.spearmanr(*(v.ravel() for v in draw(rng, _LARGE))).statistic for _ in range(5)]))


def correlation_coverage(
    name: str, draw: Draw, truth: float, rng: np.random.Generator, parents: int, datasets: int, count: int
) -> list[dict[str, Any]]:
    """A row for each method: coverage of Spearman's rank correlation."""
    weights_RG = np.vstack([resamples(rng, count, parents), 1.0 - np.eye(parents), np.ones((1, parents))])
    found, estimates = [], []
    for _ in range(datasets):
        x_GP, y_GP = draw(rng, parents)
        names = np.repeat(np.arange(parents), x_GP.shape[1])
        found.append(spearman(x_GP.ravel(), y_GP.ravel(), names))
        estimates.append(spearman_of(x_GP.ravel(), y_GP.ravel(), weights_RG[:, names]))
    all_DR = np.stack(estimates)
    drawn_DR, without_DG, estimate_D = all_DR[:, :count], all_DR[:, count:-1], all_DR[:, -1]
    # An undefined resample says nothing: the estimate stands for it.
    drawn_DR, without_DG = (np.where(np.isnan(v), estimate_D[:, None], v) for v in (drawn_DR, without_DG))
    intervals = {"fastwi": _ends(found)}
    intervals |= {method: ends(estimate_D, drawn_DR, without_DG) for method, ends in METHODS.items()}
    return _rows("rank correlation", name, parents, truth, intervals)


def table(measurements: list[dict[str, Any]]) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Title, columns and rows: coverage in % of each method and number of parents."""
    counts = list(dict.fromkeys(row["parents"] for row in measurements))
    cells = {(row["distribution"], row["method"], row["parents"]): row for row in measurements}
    rows = [
        (f"{name}: {method}", *(f"{cells[name, method, parents]['coverage_%']:.1f}" for parents in counts))
        for name, method in dict.fromkeys((row["distribution"], row["method"]) for row in measurements)
    ]
    title = f"Coverage (%) of 95 % intervals of a {measurements[0]['statistic']}, by number of parents"
    return title, ("distribution: method", *map(str, counts)), rows


def _ends(estimates: list[Any]) -> tuple[Float64, Float64]:
    """Lower and upper ends, NaN where there is no interval."""
    low_D, high_D = np.array([(e.low, e.high) for e in estimates], dtype=np.float64).T
    return low_D, high_D


def _rows(
    statistic: str, name: str, parents: int, truth: float, intervals: dict[str, tuple[Float64, Float64]]
) -> list[dict[str, Any]]:
    rows = []
    for method, (low_D, high_D) in intervals.items():
        given_D = ~np.isnan(low_D) & ~np.isnan(high_D)
        held_D = (low_D - _SLACK <= truth) & (truth <= high_D + _SLACK)
        width = float(np.median((high_D - low_D)[given_D]))
        rows.append(
            {
                "statistic": statistic, "distribution": name, "parents": parents, "method": method,
                "coverage_%": round(100 * float(held_D[given_D].mean()), 2),
                "without_interval_%": round(100 * float(1 - given_D.mean()), 2),
                "infinite_%": round(100 * float((np.isinf(low_D) | np.isinf(high_D)).mean()), 2),
                "median_width": round(width, 4) if np.isfinite(width) else None,
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
