"""Loss and error along the line between two networks: W(alpha) = (1 - alpha) A + alpha B.

Shapes: L places on the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
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
    check_rows,
    check_treatments,
    measure,
)
from fastwi.errors import UserError
from fastwi.population import Population

TREATMENTS = (OWN, AVERAGED, RECOMPUTED)


@dataclass(frozen=True)
class LineResult(LossAndError):
    """Loss (nats) and error (%) by split and treatment, float64 [L], at alphas_L float64 [L], in their order.

    "own" has values at alpha 0 and 1 only, and NaN elsewhere.
    """

    alphas_L: Values

    def rows(self) -> list[dict[str, Any]]:
        """One row for each treatment and alpha; "own" at the end points only. Units are in the names."""
        treatments = next(iter(self.loss.values()))
        return [
            {"alpha": float(alpha), "batch_norm": treatment, **self.columns(treatment, place)}
            for treatment in treatments
            for place, alpha in enumerate(self.alphas_L)
            if treatment != OWN or alpha in (0, 1)
        ]


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
    treatments of batch-norm statistics, any of:
      averaged    interpolated as the weights are. Far outside 0..1 a variance can become negative: NaN there.
      recomputed  of each network's own weights, on `recomputation`'s images, the same draws at every alpha.
      own         those that the end points came with; at alpha 0 and 1, which must be among the alphas.
    The networks are rows of one population, made as many at a time as `memory_bytes` hold; that number has no
    effect on the result. Raises UserError for bad input.
    """
    alphas_L = np.array(alphas, dtype=np.float64)
    if alphas_L.ndim != 1 or not len(alphas_L) or not np.isfinite(alphas_L).all():
        raise UserError(f"alphas are of shape {alphas_L.shape}; give a sequence of one or more finite numbers")
    check_treatments(treatments, recomputation, TREATMENTS)
    check_rows(population, ends)
    is_end_L = (alphas_L == 0) | (alphas_L == 1)
    if OWN in treatments and not is_end_L.any():
        raise UserError("own statistics are the end points'; put 0 or 1 among the alphas, or leave 'own' out")
    pair = population.clone_rows(ends).to(evaluator.device)

    def evaluate(alphas_L: Values, treatments: Sequence[str]) -> LossAndError:
        weights_L2 = np.stack([1 - alphas_L, alphas_L], axis=1)
        return measure(
            evaluator, len(alphas_L), lambda first, last: pair.combine(torch.from_numpy(weights_L2[first:last])),
            splits, treatments, recomputation, memory_bytes,
        )  # fmt: skip

    between = [treatment for treatment in treatments if treatment != OWN]
    found = evaluate(alphas_L, between) if between else LossAndError({s: {} for s in splits}, {s: {} for s in splits})
    if OWN in treatments:
        # At an end point the averaged statistics are its own: what was measured is not measured again.
        measured = AVERAGED in between
        ends_found = found if measured else evaluate(alphas_L[is_end_L], (AVERAGED,))
        for table, ends_table in ((found.loss, ends_found.loss), (found.error, ends_found.error)):
            for split in splits:
                values_L = ends_table[split][AVERAGED]
                own_L = np.full(len(alphas_L), np.nan)
                own_L[is_end_L] = values_L[is_end_L] if measured else values_L
                table[split][OWN] = own_L
    # In the caller's order.
    loss, error = (
        {split: {treatment: table[split][treatment] for treatment in treatments} for split in splits}
        for table in (found.loss, found.error)
    )
    return LineResult(loss, error, alphas_L)
