"""Strided 1 x 1 convolutions of few channels on a CPU, without oneDNN's copy of what the stride keeps.

oneDNN's weight gradient writes past the end of that copy where the input has fewer channels than a vector holds, and
damages the heap (uxlfoundation/oneDNN issue 6035; seen with torch 2.14). The same sum without it:

    y[n, o, h, w] = b[o] + sum_c weight[o, c] x[n, c, sh h, sw w]

Shapes: N images, C channels, H height, W width. This file can go when no supported torch has the fault.
"""

import copy

from torch import Tensor, nn
from torch.nn import functional

VECTOR_CHANNELS = 16  # of float32 in AVX-512; on AVX2 8 would do


class SampledConv2d(nn.Conv2d):
    """An nn.Conv2d with kernel 1 x 1 and no padding that samples its input first."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """As nn.Conv2d: [N, C, H, W] to [N, O, ceil(H / sh), ceil(W / sw)]."""
        rows, columns = self.stride
        return functional.conv2d(x_NCHW[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


def sample_first(model: nn.Module) -> nn.Module:
    """`model` itself, or where it has such convolutions a copy that samples first, with the same parameter names."""
    if not any(map(_is_at_risk, model.modules())):
        return model
    safe = copy.deepcopy(model)
    for module in safe.modules():
        if _is_at_risk(module):
            module.__class__ = SampledConv2d
    return safe


def _is_at_risk(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.padding in ((0, 0), "valid")
        and module.in_channels // module.groups < VECTOR_CHANNELS
    )
