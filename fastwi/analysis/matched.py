"""The lines between networks whose units are in a given order, with REPAIR and without.

Shapes: R pairs, L places on a line.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastwi.analysis.evaluator import AVERAGED, Evaluator, Measured, Recomputation, Splits, Values
from fastwi.analysis.repair import moments_of, rescaled, variance_ratios
from fastwi.analysis.symmetry import Order, Symmetry
from fastwi.data.resident import ResidentDataset
from fastwi.population import Population

MIDDLE = 0.5


class MatchedLines:
    """The lines of pairs of networks, from A to B with B's units in one order.

    images: on which units' moments are measured. recomputation: REPAIR of networks with batch norm.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        symmetry: Symmetry,
        members: Population,
        pairs: Sequence[tuple[int, int]],
        orders: Sequence[Order],
        images: ResidentDataset,
        recomputation: Recomputation,
    ) -> None:
        self._evaluator, self._symmetry, self._images = evaluator, symmetry, images
        self._recomputation = recomputation
        a, b = (members.clone_rows([pair[i] for pair in pairs]) for i in (0, 1))
        both = (a, symmetry.permute(b, orders))
        rows = range(len(pairs))
        self._ends = Population.gather([(each, row) for each in both for row in rows])
        self._pairs = [(row, len(pairs) + row) for row in rows]
        self._moments = moments_of(symmetry, self._ends, images)
        self._has_batch_norm = any(layer.kind == "batch norm" for layer in symmetry.layers)

    def measure(self, row: int, alphas_L: Values, splits: Splits, repair: bool) -> Measured:
        """Loss and error of pair `row` at each of `alphas_L`, its statistics averaged or repaired."""

        def build(first: int, last: int) -> Population:
            return self._networks([row] * (last - first), alphas_L[first:last], repair)

        names = [{"alpha": alpha} for alpha in alphas_L.tolist()]
        return self._evaluator.measure(names, build, splits, (AVERAGED,), None, copies=4)

    def collapse(self, repair: bool) -> dict[str, NDArray[np.float64]]:
        """The variance ratios at alpha = 0.5 of each pair, by layer, float64 [R] each (see `variance_ratios`)."""
        rows = range(len(self._pairs))
        middle = self._networks(rows, np.full(len(rows), MIDDLE), repair)
        return variance_ratios(moments_of(self._symmetry, middle, self._images), self._moments, self._pairs)

    def cosine(self, row: int) -> float:
        """Of the weights of A and B."""
        a_P, b_P = (self._ends.weights_MP[m].double() for m in self._pairs[row])
        return float(a_P @ b_P / (a_P.norm() * b_P.norm()))

    def _networks(self, rows: Sequence[int], alphas_L: Values, repair: bool) -> Population:
        """The network at alphas_L[l] on the line of pair rows[l], for each l."""
        pairs = [self._pairs[row] for row in rows]
        weights = [(1 - alpha, alpha) for alpha in alphas_L.tolist()]
        found = Population.averages([[(self._ends, a), (self._ends, b)] for a, b in pairs], weights)
        if not repair:
            return found
        if self._has_batch_norm:
            return self._evaluator.recompute(found, self._recomputation)
        return rescaled(self._symmetry, found, self._moments, pairs, alphas_L.tolist(), self._images)
