"""Barriers on the line between two networks (Frankle, Dziugaite, Roy, Carbin 2020, section 2).

Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020: with E(alpha) the error of the network at
(1 - alpha) A + alpha B,

    barrier = max over alpha of E(alpha)  -  (E(0) + E(1)) / 2,

over 30 evenly spaced alphas. Its linear variant takes the excess over the straight line between the end points:

    linear barrier = max over alpha of [E(alpha) - (1 - alpha) E(0) - alpha E(1)].

Neither bounds the other. Where the error changes evenly the second is zero, and the first is half the difference
of the end points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastwi.analysis.evaluator import AVERAGED, MEMORY_BYTES, Evaluator, Recomputation, Splits, Values
from fastwi.analysis.line import LineResult, evaluate_line
from fastwi.errors import UserError
from fastwi.population import Population

ALPHAS = 30


@dataclass(frozen=True)
class Barrier:
    """The barriers of one line on one split, under one treatment of batch-norm statistics.

    Errors in percentage points, losses in nats; NaN where a value on the line is NaN. `alpha_of_error` and
    `alpha_of_loss`: where the largest error and loss are (the first, where several are).
    """

    split: str
    treatment: str
    error: float
    error_linear: float
    loss: float
    loss_linear: float
    alpha_of_error: float
    alpha_of_loss: float
    alphas: int

    def row(self) -> dict[str, Any]:
        """The barriers as a row of a table, units in the names."""
        return {
            "split": self.split,
            "batch_norm": self.treatment,
            "error_barrier_%": self.error,
            "error_barrier_linear_%": self.error_linear,
            "loss_barrier_nats": self.loss,
            "loss_barrier_linear_nats": self.loss_linear,
            "alpha_of_largest_error": self.alpha_of_error,
            "alpha_of_largest_loss": self.alpha_of_loss,
            "alphas": self.alphas,
        }


def barrier_of(line: LineResult, split: str, treatment: str = AVERAGED) -> Barrier:
    """The barriers of a line that was evaluated before; places outside 0..1 have no part in them.

    Raises UserError where the line lacks the split, the treatment, or alpha 0 or 1.
    """
    if treatment not in line.loss.get(split, {}):
        known = ", ".join(f"{name} {key}" for name, found in line.loss.items() for key in found)
        raise UserError(f"the line has no {split} {treatment}; it has: {known}")
    inside = (line.alphas_L >= 0) & (line.alphas_L <= 1)
    alphas_L = line.alphas_L[inside]
    if not {0.0, 1.0} <= set(alphas_L.tolist()):
        raise UserError("a barrier needs both end points; put 0 and 1 among the line's alphas")
    if treatment == "own":
        raise UserError("own statistics exist at the end points only; ask for averaged or recomputed")
    error_L, loss_L = line.error[split][treatment][inside], line.loss[split][treatment][inside]
    error, error_linear, alpha_of_error = _barriers(alphas_L, error_L)
    loss, loss_linear, alpha_of_loss = _barriers(alphas_L, loss_L)
    return Barrier(
        split, treatment, error, error_linear, loss, loss_linear, alpha_of_error, alpha_of_loss, len(alphas_L)
    )


def barrier_between(
    evaluator: Evaluator,
    population: Population,
    splits: Splits,
    *,
    ends: tuple[int, int] = (0, 1),
    alphas: int = ALPHAS,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Barrier]:
    """Evaluate the line between two members and return its barriers, one a split and treatment.

    `alphas` evenly spaced places from 0 to 1, both ends among them. See `evaluate_line` for the rest. Raises
    UserError for bad input.
    """
    if alphas < 2:
        raise UserError(f"alphas is {alphas}; a barrier needs at least the two end points")
    line = evaluate_line(
        evaluator, population, splits, np.linspace(0, 1, alphas),
        ends=ends, treatments=treatments, recomputation=recomputation, memory_bytes=memory_bytes,
    )  # fmt: skip
    return [barrier_of(line, split, treatment) for split in splits for treatment in treatments]


def _barriers(alphas_L: Values, values_L: Values) -> tuple[float, float, float]:
    """The barrier, its linear variant, and the alpha of the largest value."""
    first, last = values_L[alphas_L == 0][0], values_L[alphas_L == 1][0]
    largest = int(np.argmax(values_L))  # numpy takes NaN for the largest, so that it is not overlooked
    linear = np.max(values_L - (1 - alphas_L) * first - alphas_L * last)
    return float(values_L[largest] - (first + last) / 2), float(linear), float(alphas_L[largest])
