"""New members out of rows of any populations: copies and weighted averages, hundreds in one pass.

Symbols: L new members, made of T rows in all; P columns of weights, Q of statistics, B of counters.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.kernels.combine import Terms, combine_rows_, copy_rows_
from fastwi.population.population import Member, Population, require_treatment


def gather(members_L: Sequence[Member], into: Population | None = None) -> Population:
    """Copies of (population, row) after (population, row), momentum included, in fresh memory or in `into`.

    The populations have one layout and are on one device; `into` has L members, none of them among those copied.
    Fresh memory takes a CPU several times as long as the copies themselves when it is used for the first time.
    """
    used = _populations(members_L)
    rows_L2 = _rows(members_L, used)
    made = _room(used[0], len(members_L), into)
    for destination, *sources in zip(*(population._matrices() for population in (made, *used)), strict=True):
        copy_rows_(destination, sources, rows_L2[:, 0], rows_L2[:, 1])
    return made


def averages(
    members_of_L: Sequence[Sequence[Member]],
    weights_of_L: Sequence[Sequence[float]],
    momentum: str | None = "reset",
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
    it to fresh memory, whose first use takes a CPU several times as long as the averages themselves. Momentum None
    leaves that of `into` as it is: zeros cost nearly as much as averages, and evaluation does not need them.
    """
    if momentum is None and into is None:
        momentum = "reset"
    if momentum is not None:
        require_treatment(momentum)
    if not all(map(len, members_of_L)):
        raise ValueError("an average needs at least one member")
    members_T = [member for members in members_of_L for member in members]
    used = _populations(members_T)
    terms = Terms.of(list(map(len, members_of_L)), _rows(members_T, used), weights_of_L)
    made = _room(used[0], len(members_of_L), into)
    combine_rows_(made.weights_MP, [population.weights_MP for population in used], terms)
    combine_rows_(made.statistics_MQ, [population.statistics_MQ for population in used], terms)
    momenta = [population.momentum_MP for population in used]
    if momentum == "average":
        combine_rows_(made.momentum_MP, momenta, terms)
    elif momentum == "reset":
        made.momentum_MP.zero_()
    elif momentum == "keep":
        _keep_first(made.momentum_MP, momenta, terms)
    _take_largest_counters(made, used, terms)
    return made


def _populations(members: Sequence[Member]) -> list[Population]:
    """Each population that is named, once. Raises ValueError for none and for different layouts."""
    used = list(dict.fromkeys(population for population, _ in members))
    if not used:
        raise ValueError("no members are named; at least one is needed")
    for population in used:
        used[0].require_same_layout(population)
    return used


def _rows(members_T: Sequence[Member], used: Sequence[Population]) -> NDArray[np.int64]:
    """[T, 2]: the place in `used` of each member's population, and its row there."""
    places = {population: place for place, population in enumerate(used)}
    return np.array([(places[population], row) for population, row in members_T], dtype=np.int64)


def _room(like: Population, members: int, into: Population | None) -> Population:
    """`into`, or as much fresh memory. Raises ValueError where `into` is of another layout."""
    if into is not None:
        into.require_same_layout(like)
        return into
    fresh = (matrix.new_empty(members, matrix.shape[1]) for matrix in like._matrices())
    return Population(like.layout, *fresh)


def _keep_first(momentum_LP: Tensor, momenta: Sequence[Tensor], terms: Terms) -> None:
    """Each row becomes that of the first term of its sum, zero where there is none."""
    sums, first = np.unique(terms.sum_T, return_index=True)
    if len(sums) < len(momentum_LP):
        momentum_LP.zero_()
    for row, term in zip(sums, first, strict=True):
        momentum_LP[row].copy_(momenta[terms.matrix_T[term]][terms.row_T[term]])


def _take_largest_counters(made: Population, used: Sequence[Population], terms: Terms) -> None:
    """Each counter becomes the largest among the members that take part, 0 where none does."""
    first_row = np.cumsum([0, *map(len, used)])  # of each population in all their counters
    rows_T = torch.from_numpy(first_row[terms.matrix_T] + terms.row_T).to(made.device)
    counters_TB = torch.cat([population.counters_MB for population in used])[rows_T]
    sums_TB = torch.from_numpy(terms.sum_T).to(made.device)[:, None].expand_as(counters_TB)
    made.counters_MB.zero_().scatter_reduce_(0, sums_TB, counters_TB, "amax", include_self=False)
