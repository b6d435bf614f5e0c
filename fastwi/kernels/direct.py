"""Direct 3 x 3 convolutions on a CPU, of stride 1 or 2: what Winograd's algorithm does not take.

    y[n, k, h, w] = bias[k] + sum over c, i, j of weight[k, c, i, j] x[n, c, s h + i - 1, s w + j - 1]

forward, input gradient (stride 2) and weight gradient, each image in the cache. Sums are in float32; with bf16 the
products are of bf16 where the processor has them.

Shapes: N images, C and K channels in and out, H height, W width. Activations and weights are in torch.channels_last
order.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastwi.kernels.cpu import SUFFIX, call, library, scratch
from fastwi.kernels.winograd import are_alike, is_plain

_STEP = 16  # channels are multiples of it
_FEW = 4  # channels of images, of which the first layer needs no input gradient
_MOST_VALUES = 2**17  # of an image: it stays in the second cache
_MOST_KERNELS = 64 * 128  # beyond, each image moves the sums of a weight gradient through slower caches


def supported(x_NCHW: Tensor, weight_KC33: Tensor, bias_K: Tensor | None, stride: int) -> bool:
    """Whether the kernels take this convolution, and gain by it: small layers whose channels fill vectors."""
    if not are_alike(x_NCHW, weight_KC33, bias_K):
        return False
    K, C, *kernel = weight_KC33.shape
    _, channels, H, W = x_NCHW.shape
    first = C <= _FEW and not x_NCHW.requires_grad
    if kernel != [3, 3] or channels != C or K % _STEP or not (first or (stride == 2 and C % _STEP == 0)):
        return False
    values = (H + 2) * (W + 2) * C + H * W * K // stride**2
    small = values <= _MOST_VALUES and C * K <= _MOST_KERNELS
    return small and x_NCHW.numel() > 0 and library() is not None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        bias = None if bias is None else bias.contiguous()
        ctx.save_for_backward(x, weight)
        (N, C, H, W), K = x.shape, weight.shape[0]
        ctx.geometry = (N, H, W, C, K, stride)
        shape = (N, K, (H - 1) // stride + 1, (W - 1) // stride + 1)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        work = scratch("direct_floats", *ctx.geometry[1:])
        call(f"direct_forward_{SUFFIX[x.dtype]}", x, weight, bias, y, *ctx.geometry, work)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dweight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        work = scratch("direct_floats", *ctx.geometry[1:])
        call(f"direct_backward_{SUFFIX[x.dtype]}", x, weight, dy, dx, dweight, *ctx.geometry, work)
        dbias = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dweight, dbias, None


class DirectConv2d(nn.Conv2d):
    """An nn.Conv2d of kernel 3 x 3, padding 1 and stride 1 or 2: by the kernels where they are `supported`."""

    def takes(self, x_NCHW: Tensor) -> bool:
        """Whether the kernels compute the convolution of this input."""
        return supported(x_NCHW, self.weight, self.bias, self.stride[0])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """As nn.Conv2d: [N, C, H, W] to [N, K, ceil(H / s), ceil(W / s)]."""
        if not self.takes(x_NCHW):
            return super().forward(x_NCHW)
        y: Tensor = _Convolution.apply(x_NCHW, self.weight, self.bias, self.stride[0])
        return y


def use_direct_(model: nn.Module) -> None:
    """Have the strided and the first convolutions of `model` run by these kernels, in place. Parameter names stay."""
    for module in model.modules():
        if not is_plain(module):
            continue
        if module.stride == (2, 2) or (module.stride == (1, 1) and module.in_channels <= _FEW):
            module.__class__ = DirectConv2d
