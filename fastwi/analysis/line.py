"""Loss and error on the line between two networks, W(alpha) = (1 - alpha) A + alpha B, and its barriers.

Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020, section 2:
with E(alpha) the error at W(alpha), over 30 evenly spaced alphas,

    barrier = max over alpha of E(alpha)  -  (E(0) + E(1)) / 2,
    linear barrier = max over alpha of [E(alpha) - (1 - alpha) E(0) - alpha E(1)].

Neither bounds the other. Where the error changes evenly the second is zero, and the first is half the difference
of the end points. The same group's later code (github.com/gsaltintas/lmc, lmc/utils/lmc_utils.py) takes the excess of
the second at the alpha of the largest error, over 11 alphas with statistics recomputed at each: the barrier "at".

Shapes: L places on the line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastwi.analysis.evaluator import (
    AVERAGED,
    Evaluator,
    Measured,
    Recomputation,
    Splits,
    check_alphas,
    check_members,
)
from fastwi.errors import UserError
from fastwi.population import Population


@dataclass(frozen=True)
class Barrier:
    """The barriers of one line on one split, under one treatment of batch-norm statistics.

    Errors in percentage points, losses in nats; NaN where a value on the line is NaN. `alpha_of_error`,
    `alpha_of_loss`: where the largest value is (the first of several), `error_at` and `loss_at`: the excess over the
    ends' line there. `alphas`: places that they are taken over.
    """

    split: str
    treatment: str
    alphas: int
    error: float
    error_linear: float
    error_at: float
    alpha_of_error: float
    loss: float
    loss_linear: float
    loss_at: float
    alpha_of_loss: float

    def row(self) -> dict[str, Any]:
        """The barriers as a row of a table, units in the names."""
        return {
            "split": self.split,
            "batch_norm": self.treatment,
            "error_barrier_%": self.error,
            "error_barrier_linear_%": self.error_linear,
            "error_barrier_at_%": self.error_at,
            "loss_barrier_nats": self.loss,
            "loss_barrier_linear_nats": self.loss_linear,
            "loss_barrier_at_nats": self.loss_at,
            "alpha_of_largest_error": self.alpha_of_error,
            "alpha_of_largest_loss": self.alpha_of_loss,
            "alphas": self.alphas,
        }


def evaluate_line(
    evaluator: Evaluator,
    pair: Population,
    splits: Splits,
    alphas: ArrayLike,
    *,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
) -> Measured:
    """Evaluate the networks at `alphas` on the line from member 0 of `pair` to member 1, on every split.

    alphas: any finite numbers; 0 and 1 are the end points to the bit. treatments of batch-norm statistics: "averaged"
    are interpolated as the weights are (NaN where a variance becomes negative); "recomputed" are of each network's
    own weights, on `recomputation`'s images, the same draws at every alpha. Raises UserError for bad input.
    """
    alphas_L = check_alphas(alphas)
    check_members(pair, 2)
    weights_L2 = np.stack([1 - alphas_L, alphas_L], axis=1)
    names = [{"alpha": alpha} for alpha in alphas_L.tolist()]
    return evaluator.measure_sums(names, pair, weights_L2, splits, treatments, recomputation)


def barrier_of(
    line: Measured, split: str, treatment: str = AVERAGED, counted_L: NDArray[np.bool_] | None = None
) -> Barrier:
    """The barriers of a line that was evaluated before, over the places in 0..1 (and in `counted_L`).

    Raises UserError where the line lacks the split, the treatment, or alpha 0 or 1.
    """
    if treatment not in line.loss.get(split, {}):
        known = ", ".join(f"{name} {key}" for name, found in line.loss.items() for key in found)
        raise UserError(f"the line has no {split} {treatment}; it has: {known}")
    alphas_L = line.column("alpha")
    inside_L = (alphas_L >= 0) & (alphas_L <= 1)
    if counted_L is not None:
        inside_L &= counted_L
    alphas_L = alphas_L[inside_L]
    if not {0.0, 1.0} <= set(alphas_L.tolist()):
        raise UserError("a barrier needs both end points; put 0 and 1 among the line's alphas")
    found = list[float]()
    for table in (line.error, line.loss):
        values_L = table[split][treatment][inside_L]
        first, last = values_L[alphas_L == 0][0], values_L[alphas_L == 1][0]
        largest = int(np.argmax(values_L))  # numpy takes NaN for the largest, so that it is not overlooked
        # Exact where the ends are equal, and at both ends: a flat line has no barrier, not one of rounding.
        from_first_L, from_last_L = first + alphas_L * (last - first), last - (1 - alphas_L) * (last - first)
        excess_L = values_L - np.where(alphas_L < 0.5, from_first_L, from_last_L)
        linear, at = float(np.max(excess_L)), float(excess_L[largest])
        found += [float(values_L[largest] - (first + last) / 2), linear, at, float(alphas_L[largest])]
    return Barrier(split, treatment, len(alphas_L), *found)


def barrier_between(
    evaluator: Evaluator,
    pair: Population,
    splits: Splits,
    *,
    alphas: int = 30,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
) -> list[Barrier]:
    """The barriers of the line between two networks, one a split and treatment: see `evaluate_line`.

    `alphas` evenly spaced places from 0 to 1, both ends among them. Raises UserError for bad input.
    """
    if alphas < 2:
        raise UserError(f"alphas is {alphas}; a barrier needs at least the two end points")
    places_L = np.linspace(0, 1, alphas)
    line = evaluate_line(evaluator, pair, splits, places_L, treatments=treatments, recomputation=recomputation)
    return [barrier_of(line, split, treatment) for split in splits for treatment in treatments]
