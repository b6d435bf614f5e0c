"""Strided convolutions on a CPU without three faults of oneDNN's (seen with torch 2.11 to 2.14).

Kernels of 1 x 1, with fewer input channels than a vector holds: the weight gradient writes past the end of a copy of
what the stride keeps, and damages the heap (uxlfoundation/oneDNN issue 6035). The input is sampled before.

In bf16, of padded images smaller than the stride: the weight gradient is garbage, or the process crashes. It is right
for an image that was padded before. And outputs of one column are garbage in channels-last order, with one input
channel a group and a stride along rows below that along columns. float32 and fp16 are right.

This file can go when no supported torch has the faults. Convolutions that a network calls as functions, not as
modules, still have them.

Shapes: N images, C channels, H height, W width.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Pair = tuple[int, ...]
VECTOR_CHANNELS = 16  # of float32 in AVX-512; on AVX2 8 would do


@fx.wrap  # type: ignore[untyped-decorator]  # one call in a trace, where sizes are not known
def convolve(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """As functional.conv2d."""
    if x_NCHW.shape[-2] < stride[0] or x_NCHW.shape[-1] < stride[1]:
        (rows, columns), padding = padding, (0, 0)
        x_NCHW = functional.pad(x_NCHW, (columns, columns, rows, rows))
    if weight.shape[2:] == (1, 1) and padding == (0, 0):
        x_NCHW, stride = x_NCHW[..., :: stride[0], :: stride[1]], (1, 1)
    if weight.shape[1] == 1 and stride[0] < stride[1]:
        # `contiguous` would leave tensors of one channel in channels-last order.
        x_NCHW, weight = (each.clone(memory_format=torch.contiguous_format) for each in (x_NCHW, weight))
    return functional.conv2d(x_NCHW, weight, bias, stride, padding, dilation, groups)


def _convolve(self: nn.Conv2d, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of nn.Conv2d._conv_forward."""
    padding: Any = (0, 0) if self.padding == "valid" else self.padding  # torch has no other names with strides
    return convolve(x_NCHW, weight, bias, self.stride, padding, self.dilation, self.groups)


def without_faults(model: nn.Module, bf16: bool) -> nn.Module:
    """`model` itself, or where it has such convolutions a copy without the faults.

    Modules keep their types and names.
    """
    if not any(_is_at_risk(module, bf16) for module in model.modules()):
        return model
    safe = copy.deepcopy(model)
    for module in safe.modules():
        if _is_at_risk(module, bf16):
            module._conv_forward = MethodType(_convolve, module)  # type: ignore[assignment]  # deepcopy binds it again
    return safe


def _is_at_risk(module: nn.Module, bf16: bool) -> bool:
    if not isinstance(module, nn.Conv2d) or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return False
    if "_conv_forward" in vars(module):  # a user's, or this file's
        return False
    unpadded = module.padding in ("valid", (0, 0))
    sampled = module.kernel_size == (1, 1) and unpadded and module.in_channels // module.groups < VECTOR_CHANNELS
    in_bf16 = module.groups == module.in_channels or not unpadded
    in_bf16 = in_bf16 and module.padding_mode == "zeros"  # others pad first
    return max(module.stride) > 1 and (sampled or (bf16 and in_bf16))
