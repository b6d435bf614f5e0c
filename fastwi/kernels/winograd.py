"""3 x 3 convolutions on a CPU with a quarter of the products: Winograd's F(4 x 4, 3 x 3).

    y[n, k, h, w] = bias[k] + sum over c, i, j of weight[k, c, i, j] x[n, c, h + i - 1, w + j - 1]

by Lavin & Gray 2016 (section 4; points 0, 1, -1, 2, -2): forward, input gradient and weight gradient. Activations and
weights are float32 or bf16; all arithmetic is in float32. Against float64 the error is some 2e-6 of the output's
standard deviation, where a direct float32 convolution's is 4e-7; bf16 adds one rounding of the result.

Shapes: N images, C and K channels in and out, H height, W width. Activations and weights are in torch.channels_last
order.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fastwi.kernels.cpu import SUFFIX, call, library, scratch

_STEP = 16  # channels are multiples of it
_TILE = 4  # of winograd.cpp
_MOST_BF16 = 256 * 256  # beyond, reading the kernels counts: 36 float32 values for 9 of bf16


def supported(x_NCHW: Tensor, weight_KC33: Tensor, bias_K: Tensor | None = None) -> bool:
    """Whether the kernels take this convolution, and gain by it: where tiles of 4 x 4 fill the image well enough."""
    if not are_alike(x_NCHW, weight_KC33, bias_K):
        return False
    K, C, *kernel = weight_KC33.shape
    _, channels, H, W = x_NCHW.shape
    if kernel != [3, 3] or channels != C or C % _STEP or K % _STEP or x_NCHW.numel() == 0:
        return False
    if x_NCHW.dtype == torch.bfloat16 and C * K > _MOST_BF16:
        return False
    tiles = -(-H // _TILE) * -(-W // _TILE)
    return 2 * tiles * 36 <= H * W * 9 and library() is not None


def are_alike(x_NCHW: Tensor, *others: Tensor | None) -> bool:
    """Whether the C++ kernels read these: x and the others are on a CPU, and all in float32 or all in bf16."""
    tensors = [t for t in (x_NCHW, *others) if t is not None]
    kinds = {(t.dtype, t.device.type) for t in tensors}
    return x_NCHW.dim() == 4 and x_NCHW.dtype in SUFFIX and kinds == {(x_NCHW.dtype, "cpu")}


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, channels: int, flipped: bool) -> Tensor:
    N, C, H, W = x.shape
    y = torch.empty((N, channels, H, W), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    call(
        f"winograd_convolve_{SUFFIX[x.dtype]}", x, weight, bias, y, N, H, W, C, channels, flipped,
        scratch("winograd_floats", H, W, C, channels),
    )  # fmt: skip
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        ctx.save_for_backward(x, weight)
        bias = None if bias is None else bias.contiguous()
        return _convolve(x, weight, bias, weight.shape[0], flipped=False)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        (N, C, H, W), K = x.shape, weight.shape[0]
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _convolve(dy, weight, None, C, flipped=True)
        if ctx.needs_input_grad[1]:
            dweight = torch.empty_like(weight)
            work = scratch("winograd_floats", H, W, C, K)
            call(f"winograd_weight_gradient_{SUFFIX[x.dtype]}", x, dy, dweight, N, H, W, C, K, work)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3))
        return dx, dweight, dbias


class WinogradConv2d(nn.Conv2d):
    """An nn.Conv2d of kernel 3 x 3, stride 1, padding 1: by Winograd's algorithm where that is `supported`."""

    def takes(self, x_NCHW: Tensor) -> bool:
        """Whether the kernels compute the convolution of this input."""
        return supported(x_NCHW, self.weight, self.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """As nn.Conv2d: [N, C, H, W] to [N, K, H, W]."""
        if not self.takes(x_NCHW):
            return super().forward(x_NCHW)
        y: Tensor = _Convolution.apply(x_NCHW, self.weight, self.bias)
        return y


def use_winograd_(model: nn.Module) -> None:
    """Have the convolutions of `model` that can be run by Winograd's algorithm, in place. Parameter names stay."""
    for module in model.modules():
        if is_plain(module) and module.stride == (1, 1):
            module.__class__ = WinogradConv2d


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `module` is a convolution of kernel 3 x 3 and padding 1, with any stride and nothing special."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.dilation == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.padding_mode == "zeros"
        and module.groups == 1
    )
