"""Weighted averages of members: hundreds in one pass, each of a few rows of any populations.

Symbols: L averages of T terms in all; P columns of weights, Q of statistics, B of counters.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fastwi.kernels.combine import Terms, combine_rows_
from fastwi.population.population import Member, Population, require_treatment


def averages(
    members_of_L: Sequence[Sequence[Member]],
    weights_of_L: Sequence[Sequence[float]],
    momentum: str = "reset",
    into: Population | None = None,
) -> Population:
    """Average l is the sum over i of weights_of_L[l][i] x members_of_L[l][i], a row of any population.

    The populations have one layout and are on one device; every average has at least one member. Weights: any finite
    values; they need not sum to 1. Weights and statistics are summed in float64, in the order given, and rounded
    once, the same on every machine (see `fastwi.kernels.combine`); counters are the maximum over the members that
    take part (weight not zero). A member of weight zero takes no part even where it has diverged. `momentum`: "reset"
    to zero, the same "average", or "keep" that of the first member that takes part. Negative weights can make a
    variance negative: recompute statistics then.

    The averages are written to `into`, a population of L members that none of them is made of, and returned. Without
    it to fresh memory, whose first use by a CPU takes several times as long as the averages themselves.
    """
    require_treatment(momentum)
    used = list(dict.fromkeys(population for members in members_of_L for population, _ in members))
    if not used or not all(map(len, members_of_L)):
        raise ValueError("averages needs at least one average, and at least one member for each")
    numbers = {population: number for number, population in enumerate(used)}
    terms = Terms.of([[(numbers[p], row) for p, row in members] for members in members_of_L], weights_of_L)
    made = _fresh(used[0], len(members_of_L)) if into is None else into
    for population in used:
        made.require_same_layout(population)
    combine_rows_(made.weights_MP, [p.weights_MP for p in used], terms)
    combine_rows_(made.statistics_MQ, [p.statistics_MQ for p in used], terms)
    if momentum == "average":
        combine_rows_(made.momentum_MP, [p.momentum_MP for p in used], terms)
    elif into is not None:
        made.momentum_MP.zero_()
    if momentum == "keep":
        for average, first in zip(*np.unique(terms.sum_T, return_index=True), strict=True):
            giver = used[terms.matrix_T[first]]
            made.momentum_MP[average].copy_(giver.momentum_MP[terms.row_T[first]])
    _take_largest_counters(made, used, terms)
    return made


def _fresh(like: Population, members: int) -> Population:
    """Memory for averages. Zeros of momentum cost a CPU nothing before they are used."""
    return Population(
        like.layout,
        like.weights_MP.new_empty(members, like.layout.P),
        like.momentum_MP.new_zeros(members, like.layout.P),
        like.statistics_MQ.new_empty(members, like.layout.Q),
        like.counters_MB.new_empty(members, like.layout.B),
    )


def _take_largest_counters(made: Population, used: Sequence[Population], terms: Terms) -> None:
    """Each counter becomes the largest among the members that take part, 0 where none does."""
    first_row = np.cumsum([0, *map(len, used)])  # of each population in all their counters
    rows_T = torch.from_numpy(first_row[terms.matrix_T] + terms.row_T).to(made.device)
    counters_TB = torch.cat([population.counters_MB for population in used])[rows_T]
    sums_TB = torch.from_numpy(terms.sum_T).to(made.device)[:, None].expand_as(counters_TB)
    made.counters_MB.zero_().scatter_reduce_(0, sums_TB, counters_TB, "amax", include_self=False)
