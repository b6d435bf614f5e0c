"""The equation of interpolation, written plainly: what every kernel and benchmark is held to."""

from collections.abc import Sequence

import torch
from torch import Tensor


def interpolate_reference(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """(1 - alpha) a + alpha b, in the form that loses least.

        a + alpha (b - a)          where alpha < 1/2 b - (1 - alpha) (b - a)    elsewhere a itself where alpha
        = 0 and b itself where alpha = 1, whatever the other holds (infinities and NaN too)

    a, b: any one shape and floating dtype; alpha: float32, broadcastable to them, any finite value. Computed
    in float32 (float64 for float64 inputs) and rounded once, to the dtype of `a`.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    a_wide, b_wide, weight = a.to(wide), b.to(wide), alpha.to(wide)
    step = b_wide - a_wide
    mixed = torch.where(weight < 0.5, a_wide + weight * step, b_wide - (1 - weight) * step)
    return torch.where(weight == 0, a_wide, torch.where(weight == 1, b_wide, mixed)).to(a.dtype)


def interpolate_rows_reference(
    x_MP: Tensor,
    a_L: Sequence[int],
    b_L: Sequence[int],
    alpha_L: Sequence[float],
    c_L: Sequence[int] | None = None,
    other_NP: Tensor | None = None,
) -> Tensor:
    """A copy of `x_MP` in which row c_L[l] is the interpolation of rows a_L[l] and b_L[l], for all l.

    Every read sees the rows as they were. `other_NP` holds the rows b where it is given; c defaults to a.
    """
    alpha_L1 = torch.tensor(list(alpha_L), dtype=torch.float32, device=x_MP.device)[:, None]
    source_NP = x_MP if other_NP is None else other_NP
    result_MP = x_MP.clone()
    result_MP[list(a_L if c_L is None else c_L)] = interpolate_reference(
        x_MP[list(a_L)], source_NP[list(b_L)], alpha_L1
    )
    return result_MP
