"""Frames as a sweep and its studies write them, drawn at random or with chosen effects."""

from collections.abc import Callable
from itertools import product
from statistics import fmean

import numpy as np
import polars

from fastwi.report.rows import TREATMENTS

LISTS = polars.List(polars.Float64)
PAIRS = dict.fromkeys(("k", "s", "alpha", "parent_seed", "pair"), polars.Int64) | {"alpha": polars.Float64}


def gains_frame(
    rng: np.random.Generator,
    parents: int = 6,
    pairs: int = 3,
    cells: tuple[tuple[int, int], ...] = ((1, 2), (4, 2), (4, 8)),
    gain: float | Callable[[int, int], float] = 0.0,
    spread: float = 1.0,
    after: tuple[float, ...] = (),
    alphas: tuple[float | None, ...] = (None,),
) -> polars.DataFrame:
    """Pairs whose average is `gain` points (or that of k and s) above its best child, give or take `spread`.

    `after`: accuracy after each further epoch less that at interpolation, give or take `spread`.
    """
    rows = [
        (k, s, alpha, 100 + parent, pair)
        for (k, s), alpha, parent in product(cells, alphas, range(parents))
        for pair in range(pairs if parent else pairs + 2)  # parents need not have equally many
    ]
    frame, n = polars.DataFrame(rows, schema=PAIRS, orient="row"), len(rows)
    gains = np.array([gain(k, s) if callable(gain) else gain for k, s, *_ in rows])
    averages, bests = {}, {}
    for name in TREATMENTS:
        children = rng.uniform(50, 60, (n, 2))
        bests[name] = children.max(axis=1)
        averages[name] = bests[name] + gains + spread * rng.uniform(-1, 1, n)
        frame = frame.with_columns(
            polars.Series(f"average_{name}_%", averages[name]),
            polars.Series(f"children_{name}_%", children.tolist()),
            polars.Series(f"gain_best_{name}_points", averages[name] - bests[name]),
            polars.Series(f"gain_mean_{name}_points", averages[name] - children.mean(axis=1)),
        )
    later = averages["own"][:, None] + after + spread * rng.uniform(-1, 1, (n, len(after)))
    lists = {"after_%": 0, "after_vs_average_points": averages["own"], "after_vs_best_points": bests["own"]}
    return frame.with_columns(
        polars.Series(name, (later.T - less).T.tolist(), dtype=LISTS) for name, less in lists.items()
    )


def barrier_frame(
    rng: np.random.Generator, slope: float, spread: float = 1.0, parents: int = 6, pairs: int = 4
) -> polars.DataFrame:
    """Barriers of 0 to 20 points on two splits, and gains that are `slope` of them and up to twice `spread`.

    So that of slope -1 no error at the middle is above the barrier.
    """
    rows = list(product(range(parents), range(pairs), ("train", "test"), ("averaged", "recomputed")))
    frame = polars.DataFrame(rows, schema=["parent_seed", "pair", "split", "batch_norm"], orient="row")
    frame = frame.select(polars.lit(1).alias("k"), polars.lit(1).alias("s"), polars.all())
    barriers = rng.uniform(0, 20, len(rows))
    # On the training images the relation is the other way round: they must not count.
    slopes = np.where(frame["split"] == "test", slope, -slope)
    return frame.with_columns(
        polars.Series("barrier_error_linear_points", barriers),
        polars.Series("barrier_error_points", barriers + rng.uniform(0, 3, len(rows))),
        polars.Series("gain_mean_points", slopes * barriers + spread * rng.uniform(0, 2, len(rows))),
    )


def split_frames(
    rng: np.random.Generator, hard: float, easy: float, lost: float, parents: int = 6, pairs: int = 2
) -> tuple[polars.DataFrame, polars.DataFrame]:
    """split_gains and split_changes of four splits: gains from `easy` to `hard`, of which `lost` goes again."""
    gains, changes = [], []
    for parent, pair, split in product(range(parents), range(pairs), range(1, 5)):
        cell = (1, 1, None, parent, pair)
        gain = easy + (hard - easy) * (split - 1) / 3
        gains += [(*cell, name, split, gain + rng.uniform(-0.1, 0.1)) for name in TREATMENTS]
        changes += [(*cell, e, split, -lost * gain * e / 2 + rng.uniform(-0.1, 0.1)) for e in (1, 2)]

    def frame(rows: list[tuple], **types: object) -> polars.DataFrame:
        return polars.DataFrame(rows, schema={**PAIRS, **types}, orient="row")

    whole, real, text = polars.Int64, polars.Float64, polars.String
    return (
        frame(gains, batch_norm=text, split=whole, gain_mean_points=real),
        frame(changes, epochs_after=whole, split=whole, change_points=real),
    )


def mean_over_parents(pairs: list[tuple[int, float]]) -> float:
    """The mean over parents of each parent's mean of values, of (parent, value), in plain Python."""
    return fmean(fmean(v for p, v in pairs if p == parent) for parent in dict.fromkeys(p for p, _ in pairs))


def parents_mean(frame: polars.DataFrame, values: list[float]) -> float:
    """The same, of values of the rows of a frame."""
    return mean_over_parents(list(zip(frame["parent_seed"], values, strict=True)))


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's, by counting."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])
