"""Frames as a sweep and its studies write them, drawn at random or with chosen effects."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars

from fastwi.report.rows import TREATMENTS


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
    rows = []
    for k, s in cells:
        for alpha in alphas:
            for parent in range(parents):
                for pair in range(pairs if parent else pairs + 2):  # parents need not have equally many
                    row: dict[str, Any] = {"k": k, "s": s, "alpha": alpha, "parent_seed": 100 + parent, "pair": pair}
                    for treatment in TREATMENTS:
                        children = rng.uniform(50, 60, 2)
                        middle = gain(k, s) if callable(gain) else gain
                        average = children.max() + middle + spread * rng.uniform(-1, 1)
                        row |= {
                            f"average_{treatment}_%": average, f"children_{treatment}_%": children.tolist(),
                            f"gain_best_{treatment}_points": average - children.max(),
                            f"gain_mean_{treatment}_points": average - children.mean(),
                        }  # fmt: skip
                    at, best = row["average_own_%"], max(row["children_own_%"])
                    later = [at + change + spread * rng.uniform(-1, 1) for change in after]
                    row["after_%"] = later
                    row["after_vs_average_points"] = [value - at for value in later]
                    row["after_vs_best_points"] = [value - best for value in later]
                    rows.append(row)
    floats = polars.List(polars.Float64)
    lists = dict.fromkeys(("after_%", "after_vs_average_points", "after_vs_best_points"), floats)
    return polars.DataFrame(rows, schema_overrides={"alpha": polars.Float64, **lists})


def barrier_frame(
    rng: np.random.Generator, slope: float, spread: float = 1.0, parents: int = 6, pairs: int = 4
) -> polars.DataFrame:
    """Barriers of 0 to 20 points on two splits, and gains that are `slope` of them, give or take `spread`."""
    rows = []
    for parent in range(parents):
        for pair in range(pairs):
            for split in ("train", "test"):
                for treatment in ("averaged", "recomputed"):
                    barrier = rng.uniform(0, 20)
                    rows.append({
                        "k": 1, "s": 1, "parent_seed": parent, "pair": pair, "split": split, "batch_norm": treatment,
                        "barrier_error_linear_points": barrier,
                        "barrier_error_points": barrier + rng.uniform(0, 3),
                        # On the training images the relation is the other way round: they must not count.
                        "gain_mean_points": (slope if split == "test" else -slope) * barrier
                        + spread * rng.uniform(-1, 1),
                    })  # fmt: skip
    return polars.DataFrame(rows)


def split_frames(
    rng: np.random.Generator, hard: float, easy: float, lost: float, parents: int = 6, pairs: int = 2
) -> tuple[polars.DataFrame, polars.DataFrame]:
    """split_gains and split_changes of four splits: gains from `easy` to `hard`, of which `lost` goes again."""
    gains, changes = [], []
    for parent in range(parents):
        for pair in range(pairs):
            head = {"k": 1, "s": 1, "alpha": None, "parent_seed": parent, "pair": pair}
            for split in range(1, 5):
                gain = easy + (hard - easy) * (split - 1) / 3
                for treatment in ("own", "recomputed"):
                    value = gain + rng.uniform(-0.1, 0.1)
                    gains.append(head | {"batch_norm": treatment, "split": split, "gain_mean_points": value})
                for epoch in (1, 2):
                    value = -lost * gain * epoch / 2 + rng.uniform(-0.1, 0.1)
                    changes.append(head | {"epochs_after": epoch, "split": split, "change_points": value})
    types = {"alpha": polars.Float64}
    return polars.DataFrame(gains, schema_overrides=types), polars.DataFrame(changes, schema_overrides=types)


def parents_mean(frame: polars.DataFrame, values: list[float]) -> float:
    """The mean over parents of each parent's mean, in plain Python."""
    by_parent: dict[int, list[float]] = {}
    for parent, value in zip(frame["parent_seed"].to_list(), values, strict=True):
        by_parent.setdefault(parent, []).append(value)
    means = [sum(found) / len(found) for found in by_parent.values()]
    return sum(means) / len(means)


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's, by counting."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])
