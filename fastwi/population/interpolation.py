"""Pairs of members of a population, interpolated in place once or many times."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastwi.kernels.interpolate import RowInterpolation, pair_alphas

if TYPE_CHECKING:
    from fastwi.population.population import Population


def planned(
    population: "Population",
    source: "Population",
    pairs: Sequence[tuple[int, int]],
    alpha: float | Sequence[float] | Tensor,
    momentum: str,
) -> Callable[[], None]:
    """What `Population.interpolation` returns: each call interpolates the members as they are then.

    Rows b are those of `source`, of the same layout. `momentum` is a known treatment.
    """
    a_rows, b_rows = [a for a, _ in pairs], [b for _, b in pairs]
    alphas_L = torch.from_numpy(pair_alphas(alpha, len(pairs)))
    weights = {"weights_MP": alphas_L, "statistics_MQ": alphas_L}
    if momentum != "reset":
        weights["momentum_MP"] = alphas_L if momentum == "average" else (alphas_L == 1).float()
    matrices = [
        RowInterpolation(getattr(population, name), a_rows, b_rows, alpha_L, other_NP=getattr(source, name))
        for name, alpha_L in weights.items()
    ]
    device = population.device
    a_L, b_L = (torch.tensor(rows, dtype=torch.int64, device=device) for rows in (a_rows, b_rows))
    is_a_L1, is_b_L1 = ((alphas_L == end)[:, None].to(device) for end in (0, 1))

    def interpolate() -> None:
        for rows in matrices:
            rows()
        if momentum == "reset":
            population.momentum_MP.index_fill_(0, a_L, 0)
        counts_a, counts_b = population.counters_MB[a_L], source.counters_MB[b_L]
        counts = torch.where(is_a_L1, counts_a, torch.maximum(counts_a, counts_b))
        population.counters_MB.index_copy_(0, a_L, torch.where(is_b_L1, counts_b, counts))

    return interpolate
