"""Loss and error over the plane through three networks O (the parent), A and B (Garipov et al. 2018, appendix A.1).

Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018:

    u = A - O,   v = (B - O) - <B - O, u> / ||u||^2 u,   W(x, y) = O + x u / ||u|| + y v / ||v||.

O lies at (0, 0), A at (||u||, 0) and B at (<B - O, u> / ||u||, ||v||). Shapes: L places in the plane.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from fastwi.analysis.evaluator import AVERAGED, Evaluator, Measured, Recomputation, Splits, Values, check_members
from fastwi.errors import UserError
from fastwi.population import Population

_EPS = float(np.finfo(np.float32).eps)


def plane_points(three: Population) -> Values:
    """The places of the members O, A and B in their plane, float64 [3, 2]: Gram-Schmidt in float64.

    Raises UserError where two of them are equal or all three on one line, up to float32 rounding.
    """
    check_members(three, 3)
    o_P, a_P, b_P = points = [weights_P.double().cpu().numpy() for weights_P in three.weights_MP]
    # Each weight is rounded by at most half of this; closer points have no direction that means anything.
    rounding = _EPS * sum(float(np.linalg.norm(w_P)) for w_P in points)
    for first, second in itertools.combinations(range(3), 2):
        length = float(np.linalg.norm(points[second] - points[first]))
        if not np.isfinite(length):
            raise UserError(f"member {first} or member {second} has weights that are not finite; it spans no plane")
        if length <= rounding:
            raise UserError(f"member {first} and member {second} are equal; a plane needs three different networks")
    u = float(np.linalg.norm(a_P - o_P))
    u_P = (a_P - o_P) / u
    b_x = float((b_P - o_P) @ u_P)
    v = float(np.linalg.norm(b_P - o_P - b_x * u_P))
    if v <= rounding:
        raise UserError("the three members lie on one line; evaluate the line, or choose three that span a plane")
    return np.array([[0.0, 0.0], [u, 0.0], [b_x, v]])


def evaluate_plane(
    evaluator: Evaluator,
    three: Population,
    splits: Splits,
    *,
    points: tuple[int, int] = (21, 21),
    margin: float = 0.2,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
) -> Measured:
    """Evaluate a grid over the plane through the members O, A and B of `three`, such as a parent and two children.

    points: columns and rows of the grid, at least 2 each. It spans the three networks and `margin` of their extent
    more on each side. Networks are in order of y, then x; their names are `x_l2` and `y_l2`. Treatments are those of
    `evaluate_line`. Raises UserError for bad input, and where the three networks span no plane.
    """
    if min(points) < 2 or not 0 <= margin < np.inf:
        raise UserError(f"points are {points} and margin {margin}; give at least 2 a side, and a margin of 0 or more")
    points_32 = plane_points(three)
    axes = []
    for places_3, count in zip(points_32.T, points, strict=True):
        low, high = places_3.min(), places_3.max()
        beyond = margin * (high - low)
        axes.append(np.linspace(low - beyond, high + beyond, count))
    x_L, y_L = (grid.ravel() for grid in np.meshgrid(*axes))
    _, (u, _), (b_x, v) = points_32
    b_L = y_L / v
    a_L = (x_L - b_L * b_x) / u
    weights_L3 = np.stack([1 - a_L - b_L, a_L, b_L], axis=1)
    # At O, A and B themselves, rounding must not give others a part: a variance could fall below zero.
    weights_L3 = np.where(np.abs(weights_L3) < 1e-12, 0.0, weights_L3)
    names = [{"x_l2": x, "y_l2": y} for x, y in zip(x_L.tolist(), y_L.tolist(), strict=True)]
    return evaluator.measure_sums(names, three, weights_L3, splits, treatments, recomputation)
