"""3 x 3 convolutions on a CPU: by Winograd's algorithm, and direct ones, which also have stride 2 and few channels.

    y[n, k, h, w] = bias[k] + sum over c, i, j of weight[k, c, i, j] x[n, c, s h + i - 1, s w + j - 1]

Forward, input gradient and weight gradient, in float32 or bf16.

Winograd's F(4 x 4, 3 x 3) has a quarter of the products (Lavin & Gray 2016, section 4; points 0, 1, -1, 2, -2). All
arithmetic is in float32. Against float64 the error is some 2e-6 of the output's standard deviation, where a direct
float32 convolution's is 4e-7; bf16 adds one rounding of the result.

Direct: each image in the cache. Sums are in float32; with bf16 the products are of bf16 where the processor has them.

Shapes: N images, C and K channels in and out, H height, W width. Activations and weights are in torch.channels_last
order.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastwi.kernels.cpu import SUFFIX, call, library, scratch

_STEP = 16  # channels are multiples of it
_TILE = 4  # of winograd.cpp
_MOST_BF16 = 256 * 256  # kernels; beyond, reading them counts in Winograd's: 36 float32 values for 9 of bf16
_FEW = 4  # channels of images, of which the first layer needs no input gradient
_MOST_VALUES = 2**17  # of an image of a direct convolution: it stays in the second cache
_MOST_KERNELS = 64 * 128  # beyond, each image moves the sums of a weight gradient through slower caches


def kernel_for(x_NCHW: Tensor, weight_KC33: Tensor, bias_K: Tensor | None = None, stride: int = 1) -> str | None:
    """ "winograd" or "direct", which takes this convolution and gains by it; None where neither does."""
    tensors = [x_NCHW, weight_KC33, *([] if bias_K is None else [bias_K])]
    alike = {(t.dtype, t.device.type) for t in tensors} == {(x_NCHW.dtype, "cpu")} and x_NCHW.dtype in SUFFIX
    if not alike or x_NCHW.dim() != 4 or not x_NCHW.numel():
        return None
    K, C, *kernel = weight_KC33.shape
    _, channels, H, W = x_NCHW.shape
    if kernel != [3, 3] or channels != C or K % _STEP or library() is None:
        return None
    if stride == 1 and C % _STEP == 0:
        tiles = -(-H // _TILE) * -(-W // _TILE)
        filled = 2 * tiles * 36 <= H * W * 9  # the image, by tiles
        return "winograd" if filled and (x_NCHW.dtype == torch.float32 or C * K <= _MOST_BF16) else None
    first = C <= _FEW and not x_NCHW.requires_grad
    values = (H + 2) * (W + 2) * C + H * W * K // stride**2
    small = values <= _MOST_VALUES and C * K <= _MOST_KERNELS
    return "direct" if small and (first or (stride == 2 and C % _STEP == 0)) else None


def _winograd(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, flipped: bool) -> None:
    (N, C, H, W), K = x.shape, y.shape[1]
    work = scratch("winograd_floats", H, W, C, K)
    call(f"winograd_convolve_{SUFFIX[x.dtype]}", x, weight, bias, y, N, H, W, C, K, flipped, work)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, kernel: str) -> Tensor:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, weight)
        (N, C, H, W), K = x.shape, weight.shape[0]
        ctx.kernel, ctx.sizes = kernel, (N, H, W, C, K, stride)
        shape = (N, K, (H - 1) // stride + 1, (W - 1) // stride + 1)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if kernel == "winograd":
            _winograd(x, weight, bias, y, flipped=False)
        else:
            work = scratch("direct_floats", *ctx.sizes[1:])
            call(f"direct_forward_{SUFFIX[x.dtype]}", x, weight, bias, y, *ctx.sizes, work)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx, dweight = (
            torch.empty_like(each) if wanted else None
            for each, wanted in zip((x, weight), ctx.needs_input_grad, strict=False)
        )
        if ctx.kernel == "direct":
            work = scratch("direct_floats", *ctx.sizes[1:])
            call(f"direct_backward_{SUFFIX[x.dtype]}", x, weight, dy, dx, dweight, *ctx.sizes, work)
        else:
            if dx is not None:
                _winograd(dy, weight, None, dx, flipped=True)
            if dweight is not None:
                *sizes, _ = ctx.sizes
                work = scratch("winograd_floats", *sizes[1:])
                call(f"winograd_weight_gradient_{SUFFIX[x.dtype]}", x, dy, dweight, *sizes, work)
        dbias = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None, None


class OwnConv2d(nn.Conv2d):
    """An nn.Conv2d of kernel 3 x 3, padding 1 and stride 1 or 2: by a kernel of this file where one takes it."""

    def kernel(self, x_NCHW: Tensor) -> str | None:
        """The kernel that computes the convolution of this input; None: torch's."""
        return kernel_for(x_NCHW, self.weight, self.bias, self.stride[0])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """As nn.Conv2d: [N, C, H, W] to [N, K, ceil(H / s), ceil(W / s)]."""
        kernel = self.kernel(x_NCHW)
        if kernel is None:
            return super().forward(x_NCHW)
        y: Tensor = _Convolution.apply(x_NCHW, self.weight, self.bias, self.stride[0], kernel)
        return y


def use_own_convolutions_(model: nn.Module) -> None:
    """Have the convolutions of `model` run by these kernels where they can be, in place. Parameter names stay."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.stride in ((1, 1), (2, 2))
            and module.dilation == (1, 1)
            and module.padding in ((1, 1), "same")
            and module.padding_mode == "zeros"
            and module.groups == 1
        ):
            module.__class__ = OwnConv2d
