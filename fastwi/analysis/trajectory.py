"""Averages along one network's own trajectory: what averaging gives without a second child.

LAWA, the mean of the states after each of the last n epochs: Kaddour 2022 (Stop Wasting My Time! Saving Days of
ImageNet and BERT Training with Latest Weight Averaging), section 2; SWA of Izmailov et al. 2018 (Averaging Weights
Leads to Wider Optima and Better Generalization), Algorithm 1, is the same mean. EMA, the exponential moving average
with decay d: avg_t = d avg_(t-1) + (1 - d) w_t, here with Adam's correction for its start (Kingma, Ba 2015,
section 3), so that its weights sum to 1 at any length. `Population.combine` makes the averages.

Shapes: T states along the trajectory, oldest first.
"""

import numpy as np

from fastwi.analysis.evaluator import Values
from fastwi.errors import UserError


def lawa_weights(states: int, last: int) -> Values:
    """Weights [T] of the plain mean over the `last` of `states` states. Raises UserError for more than there are."""
    if not 1 <= last <= states:
        raise UserError(f"LAWA over the last {last} epochs: the trajectory has {states} states; give 1 to {states}")
    weights_T = np.zeros(states)
    weights_T[states - last :] = 1 / last
    return weights_T


def ema_weights(states: int, decay: float) -> Values:
    """Weights [T] of the bias-corrected moving average: proportional to decay^age, age 0 for the newest state.

    Raises UserError for no state and for a decay outside 0 <= d < 1.
    """
    if states < 1 or not 0 <= decay < 1:
        raise UserError(f"EMA of {states} states with decay {decay}; give at least 1 state, and 0 <= decay < 1")
    weights_T: Values = decay ** np.arange(states - 1, -1, -1, dtype=np.float64)
    return weights_T / weights_T.sum()
