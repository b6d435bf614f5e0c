"""Pairs of members of a population, interpolated in place once or many times."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastwi.kernels.interpolate import RowInterpolation, pair_alphas

if TYPE_CHECKING:
    from fastwi.population.population import Population


class Interpolation:
    """What `Population.interpolation` plans: each call does it, on the members as they are then."""

    def __init__(
        self,
        population: "Population",
        source: "Population",
        pairs: Sequence[tuple[int, int]],
        alpha: float | Sequence[float] | Tensor,
        momentum: str,
    ) -> None:
        """Rows b are those of `source`, of the same layout. `momentum` is a known treatment."""
        a_L, b_L = [a for a, _ in pairs], [b for _, b in pairs]
        alphas_L = torch.from_numpy(pair_alphas(alpha, len(pairs)))
        weights = {"weights_MP": alphas_L, "statistics_MQ": alphas_L}
        if momentum != "reset":
            weights["momentum_MP"] = alphas_L if momentum == "average" else (alphas_L == 1).float()
        self._matrices = [
            RowInterpolation(getattr(population, name), a_L, b_L, alpha_L, other_NP=getattr(source, name))
            for name, alpha_L in weights.items()
        ]
        self._population, self._source, self._reset = population, source, momentum == "reset"
        device = population.device
        self._a_L, self._b_L = (torch.tensor(rows, dtype=torch.int64, device=device) for rows in (a_L, b_L))
        self._is_a_L1, self._is_b_L1 = ((alphas_L == end)[:, None].to(device) for end in (0, 1))

    def __call__(self) -> None:
        """Interpolate all pairs. Asynchronous on a GPU."""
        for interpolate in self._matrices:
            interpolate()
        if self._reset:
            self._population.momentum_MP.index_fill_(0, self._a_L, 0)
        counters_MB = self._population.counters_MB
        counts_a, counts_b = counters_MB[self._a_L], self._source.counters_MB[self._b_L]
        counts = torch.where(self._is_a_L1, counts_a, torch.maximum(counts_a, counts_b))
        counters_MB.index_copy_(0, self._a_L, torch.where(self._is_b_L1, counts_b, counts))
