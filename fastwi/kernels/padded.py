"""Convolutions of images smaller than the stride, in bf16 on a CPU, without oneDNN's fault.

There oneDNN's weight gradient of a padded convolution is garbage, or the process crashes (seen with torch 2.11 and
2.14; float32 and fp16 are right). It is right for an image that was padded before. This file can go when no supported
torch has the fault. A convolution that a network calls as a function, not as an nn.Conv2d, still has it.

Shapes: N images, C channels, H height, W width.
"""

import copy
from types import MethodType

from torch import Tensor, fx, nn
from torch.nn import functional

Pair = tuple[int, ...]


@fx.wrap  # type: ignore[untyped-decorator]  # one call in a trace, where sizes are not known
def convolve(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """As functional.conv2d."""
    if x_NCHW.shape[-2] >= stride[0] and x_NCHW.shape[-1] >= stride[1]:
        return functional.conv2d(x_NCHW, weight, bias, stride, padding, dilation, groups)
    (rows, columns), step = padding, stride
    x_NCHW = functional.pad(x_NCHW, (columns, columns, rows, rows))
    if weight.shape[2:] == (1, 1):  # which has another fault: see fastwi.kernels.pointwise
        x_NCHW, step = x_NCHW[..., :: stride[0], :: stride[1]], (1, 1)
    return functional.conv2d(x_NCHW, weight, bias, step, 0, dilation, groups)


def _convolve(self: nn.Conv2d, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of nn.Conv2d._conv_forward."""
    assert not isinstance(self.padding, str)
    return convolve(x_NCHW, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def pad_first(model: nn.Module) -> nn.Module:
    """`model` itself, or where it has strided convolutions with padding a copy that pads small images first.

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
        and not isinstance(module.padding, str)
        and max(module.padding) > 0
    )
