"""Loss and error over the plane through three networks (Garipov et al. 2018, appendix A.1, 'the plane').

Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018. From an origin O (the parent), A and B:

    u = A - O,   v = (B - O) - <B - O, u> / ||u||^2 u,   W(x, y) = O + x u / ||u|| + y v / ||v||.

So O lies at (0, 0), A at (||u||, 0) and B at (<B - O, u> / ||u||, ||v||); distances in the plane are L2 distances of
weights.

Shapes: X columns and Y rows of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastwi.analysis.evaluator import (
    AVERAGED,
    MEMORY_BYTES,
    Evaluator,
    LossAndError,
    Recomputation,
    Splits,
    Values,
    check_rows,
    measure_mixtures,
)
from fastwi.errors import UserError
from fastwi.population import Population

_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Plane:
    """An orthonormal frame of the plane through members O, A, B.

    u_P, v_P: float64 [P], of length 1 and orthogonal. points_32: float64 [3, 2], the coordinates of O, A and B.
    """

    u_P: Values
    v_P: Values
    points_32: Values

    def weights_L3(self, x_L: Values, y_L: Values) -> Values:
        """The weights of O, A and B that sum to the network at (x, y), float64 [L, 3]; they sum to 1."""
        _, (u, _), (b_x, v) = self.points_32
        b_L = y_L / v
        a_L = (x_L - b_L * b_x) / u
        weights_L3 = np.stack([1 - a_L - b_L, a_L, b_L], axis=1)
        # At O, A and B themselves, rounding must not give others a part: a variance could fall below zero.
        return np.where(np.abs(weights_L3) < 1e-12, 0.0, weights_L3)


@dataclass(frozen=True)
class PlaneResult(LossAndError):
    """Loss (nats) and error (%) by split and treatment, float64 [Y, X], at (x_X[i], y_Y[j]).

    points_32: coordinates of O, A and B. All coordinates are L2 distances of weights.
    """

    x_X: Values
    y_Y: Values
    points_32: Values

    def place(self, treatment: str, *at: int) -> dict[str, Any]:
        """The coordinates of one network."""
        return {"x_l2": float(self.x_X[at[1]]), "y_l2": float(self.y_Y[at[0]])}


def plane_through(population: Population, members: tuple[int, int, int] = (0, 1, 2)) -> Plane:
    """The frame of the plane through three members' weights: Gram-Schmidt in float64.

    Raises UserError where two of them are equal or all three on one line, up to float32 rounding.
    """
    check_rows(population, members)
    o_P, a_P, b_P = points = [population.weights_MP[m].double().cpu().numpy() for m in members]
    # Each weight is rounded by at most half of this; closer points have no direction that means anything.
    rounding = _EPS * sum(float(np.linalg.norm(w_P)) for w_P in points)
    names = [f"member {m}" for m in members]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        length = float(np.linalg.norm(points[second] - points[first]))
        if not np.isfinite(length):
            raise UserError(f"{names[first]} or {names[second]} has weights that are not finite; it spans no plane")
        if length <= rounding:
            raise UserError(f"{names[first]} and {names[second]} are equal; a plane needs three different networks")
    u = float(np.linalg.norm(a_P - o_P))
    u_P = (a_P - o_P) / u
    b_x = float((b_P - o_P) @ u_P)
    v_P = b_P - o_P - b_x * u_P
    v = float(np.linalg.norm(v_P))
    if v <= rounding:
        raise UserError(f"{', '.join(names)} lie on one line; evaluate the line, or choose three that span a plane")
    # Once more, so that v is orthogonal to float64 rounding where B is almost on the line.
    v_P -= (v_P @ u_P) * u_P
    v_P /= np.linalg.norm(v_P)
    return Plane(u_P, v_P, np.array([[0.0, 0.0], [u, 0.0], [b_x, v]]))


def evaluate_plane(
    evaluator: Evaluator,
    population: Population,
    splits: Splits,
    *,
    members: tuple[int, int, int] = (0, 1, 2),
    points: tuple[int, int] = (21, 21),
    margin: float = 0.2,
    treatments: Sequence[str] = (AVERAGED,),
    recomputation: Recomputation | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> PlaneResult:
    """Evaluate a grid over the plane through the origin, A and B: `members`, such as a parent and two children.

    points: columns and rows of the grid, at least 2 each. It spans the three networks and `margin` of their extent
    more on each side. Treatments are those of `evaluate_line` without "own". Raises UserError for bad input, and
    where the three networks span no plane.
    """
    if min(points) < 2 or not 0 <= margin < np.inf:
        raise UserError(f"points are {points} and margin {margin}; give at least 2 a side, and a margin of 0 or more")
    plane = plane_through(population, members)
    axes = []
    for place, count in enumerate(points):
        low, high = plane.points_32[:, place].min(), plane.points_32[:, place].max()
        beyond = margin * (high - low)
        axes.append(np.linspace(low - beyond, high + beyond, count))
    x_X, y_Y = axes
    x_YX, y_YX = np.meshgrid(x_X, y_Y)
    weights_L3 = plane.weights_L3(x_YX.ravel(), y_YX.ravel())
    three = population.clone_rows(members)
    found = measure_mixtures(evaluator, three, weights_L3, splits, treatments, recomputation, memory_bytes)
    return PlaneResult(*found.arrange(lambda values_L: values_L.reshape(x_YX.shape)), x_X, y_Y, plane.points_32)
