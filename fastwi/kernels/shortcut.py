"""The option-A shortcut of CIFAR ResNets (He et al. 2016) in one pass each way, on a CPU.

    y[:, before + c, h, w] = x[:, c, stride * h, stride * w],   the channels before and after are 0

Shapes: N images, C channels, H height, W width; channels-last order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastwi.kernels.cpu import call, library


def shortcut_reference(x_NCHW: Tensor, stride: int, before: int, after: int) -> Tensor:
    """The same in torch's own functions, for any device and dtype."""
    return functional.pad(x_NCHW[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after))


class _Shortcut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, after: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        N, C, H, W = x.shape
        shape = (N, before + C + after, -(-H // stride), -(-W // stride))
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        ctx.geometry = (N, H, W, C, stride, before, shape[1], x.element_size())
        call("shortcut_forward", x, y, *ctx.geometry)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        N, H, W, C = ctx.geometry[:4]
        dx = torch.empty((N, C, H, W), dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
        call("shortcut_backward", dy, dx, *ctx.geometry)
        return dx, None, None, None


def shortcut(x_NCHW: Tensor, stride: int, before: int, after: int) -> Tensor:
    """[N, C, H, W] to [N, before + C + after, ceil(H / stride), ceil(W / stride)]: the reference, to the bit."""
    if library() is None or x_NCHW.device.type != "cpu" or x_NCHW.dim() != 4:
        return shortcut_reference(x_NCHW, stride, before, after)
    y: Tensor = _Shortcut.apply(x_NCHW, stride, before, after)
    return y
