"""Loss and error along the line between two networks: W(alpha) = (1 - alpha) A + alpha B.

Shapes: L places on the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastwi.analysis.evaluator import (
    AVERAGED,
    MEMORY_BYTES,
    OWN,
    RECOMPUTED,
    Evaluator,
    LossAndError,
    Recomputation,
    Splits,
    Values,
    check_alphas,
    check_rows,
    check_treatments,
    measure_mixtures,
)
from fastwi.errors import UserError
from fastwi.population import Population

TREATMENTS = (OWN, AVERAGED, RECOMPUTED)


@dataclass(frozen=True)
class LineResult(LossAndError):
    """Loss (nats) and error (%) by split and treatment, float64 [L], at alphas_L float64 [L], in their order.

    "own" has values at alpha 0 and 1 only, and NaN elsewhere; `rows` has it there only.
    """

    alphas_L: Values

    def place(self, treatment: str, *at: int) -> dict[str, Any] | None:
        """The alpha of one network."""
        alpha = float(self.alphas_L[at])
        return {"alpha": alpha} if treatment != OWN or alpha in (0, 1) else None


def evaluate_line(
    evaluator: Evaluator,
    population: Population,
    splits: Splits,
    alphas: ArrayLike,
    *,
    ends: tuple[int, int] = (0, 1),
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> LineResult:
    """Evaluate the networks at `alphas` on the line from member ends[0] to member ends[1] on every split.

    alphas: any finite numbers; outside 0..1 they extrapolate. Alphas 0 and 1 are the end points to the bit.
    Treatments of batch-norm statistics, any of:

    - averaged: interpolated as the weights are. Far outside 0..1 a variance can become negative: NaN there.
    - recomputed: of each network's own weights, on `recomputation`'s images, the same draws at every alpha.
    - own: those that the end points came with; at alpha 0 and 1, which must be among the alphas.

    The networks are rows of one population, made as many at a time as `memory_bytes` hold; that number has no
    effect on the result. Raises UserError for bad input.
    """
    alphas_L = check_alphas(alphas)
    check_treatments(treatments, recomputation, TREATMENTS)
    check_rows(population, ends)
    is_end_L = (alphas_L == 0) | (alphas_L == 1)
    if OWN in treatments and not is_end_L.any():
        raise UserError("own statistics are the end points'; put 0 or 1 among the alphas, or leave 'own' out")
    # At an end point the averaged statistics are its own.
    measured = [name for name in TREATMENTS[1:] if name in treatments or (name == AVERAGED and OWN in treatments)]
    here_L = is_end_L if tuple(treatments) == (OWN,) else np.full(len(alphas_L), True)
    weights_L2 = np.stack([1 - alphas_L, alphas_L], axis=1)[here_L]
    pair = population.clone_rows(ends)
    found = measure_mixtures(evaluator, pair, weights_L2, splits, measured, recomputation, memory_bytes)

    def arranged(found: dict[str, Values]) -> dict[str, Values]:
        """In the caller's order, with NaN where nothing was measured."""
        by_name = {}
        for name in treatments:
            values_L = np.full(len(alphas_L), np.nan)
            values_L[here_L] = found[AVERAGED if name == OWN else name]
            by_name[name] = np.where(is_end_L, values_L, np.nan) if name == OWN else values_L
        return by_name

    loss, error = ({split: arranged(table[split]) for split in splits} for table in (found.loss, found.error))
    return LineResult(loss, error, alphas_L)
