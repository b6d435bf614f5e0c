"""Strided convolutions in bf16 on a CPU, without two faults of oneDNN's (seen with torch 2.11 and 2.14).

Of padded images smaller than the stride the weight gradient is garbage, or the process crashes. It is right for an
image that was padded before. Outputs of one column are garbage in channels-last order, with one input channel a group
and a stride along rows below that along columns. float32 and fp16 are right. This file can go when no supported torch
has the faults. Convolutions that a network calls as functions, not as modules, still have them.

Shapes: N images, C channels, H height, W width.
"""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Pair = tuple[int, ...]


@fx.wrap  # type: ignore[untyped-decorator]  # one call in a trace, where sizes are not known
def convolve(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """As functional.conv2d."""
    if x_NCHW.shape[-2] < stride[0] or x_NCHW.shape[-1] < stride[1]:
        (rows, columns), padding = padding, (0, 0)
        x_NCHW = functional.pad(x_NCHW, (columns, columns, rows, rows))
        if weight.shape[2:] == (1, 1):  # which has another fault: see fastwi.kernels.pointwise
            x_NCHW, stride = x_NCHW[..., :: stride[0], :: stride[1]], (1, 1)
    if weight.shape[1] == 1 and stride[0] < stride[1]:
        # `contiguous` would leave tensors of one channel in channels-last order.
        x_NCHW, weight = (each.clone(memory_format=torch.contiguous_format) for each in (x_NCHW, weight))
    return functional.conv2d(x_NCHW, weight, bias, stride, padding, dilation, groups)


def _convolve(self: nn.Conv2d, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of nn.Conv2d._conv_forward."""
    padding: Any = (0, 0) if self.padding == "valid" else self.padding  # torch has no other names with strides
    return convolve(x_NCHW, weight, bias, self.stride, padding, self.dilation, self.groups)


def pad_first(model: nn.Module) -> nn.Module:
    """`model` itself, or where it has such convolutions a copy without the faults.

    Modules keep their types and names.
    """
    if not any(map(_is_at_risk, model.modules())):
        return model
    safe = copy.deepcopy(model)
    for module in safe.modules():
        if _is_at_risk(module):
            module._conv_forward = MethodType(_convolve, module)  # type: ignore[assignment]  # deepcopy binds it anew
    return safe


def _is_at_risk(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and module.padding_mode == "zeros"  # others pad first
        and max(module.stride) > 1
        and (module.groups == module.in_channels or module.padding not in ("valid", (0, 0)))
    )
