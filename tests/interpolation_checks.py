"""What an interpolation is held to, in every test of one."""

import torch
from torch import Tensor


def assert_interpolated(result: Tensor, a: Tensor, b: Tensor, alpha: Tensor) -> None:
    """Each value is within the rounding of float32 arithmetic and of one store in the result's dtype."""
    a, b, alpha = a.double(), b.double(), alpha.double()
    exact = (1 - alpha) * a + alpha * b
    arithmetic = 4 * torch.finfo(torch.float32).eps * (1 + alpha.abs()) * (a.abs() + b.abs())
    store = torch.finfo(result.dtype).eps * exact.abs() + torch.finfo(result.dtype).smallest_normal
    worst = ((result.double() - exact).abs() / (arithmetic + store)).max()
    assert worst <= 1, f"{worst:.2f} times the tolerance"
