"""The fused shortcut against its reference: equal to the bit, forward and backward."""

import pytest
import torch

from fastwi.kernels.shortcut import shortcut, shortcut_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "stride", "before", "after"),
    [((3, 16, 8, 8), 2, 8, 8), ((2, 5, 7, 9), 2, 1, 2), ((1, 4, 6, 5), 3, 0, 3), ((2, 8, 4, 4), 1, 4, 0)],
)
def test_equals_the_reference(shape, stride, before, after, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    mine, theirs = shortcut(x, stride, before, after), shortcut_reference(x, stride, before, after)
    assert torch.equal(mine, theirs)
    dy = torch.randn_like(theirs)
    (dx_mine,), (dx_theirs,) = torch.autograd.grad(mine, x, dy), torch.autograd.grad(theirs, x, dy)
    assert torch.equal(dx_mine, dx_theirs)
    assert dx_mine.abs().sum() > 0
