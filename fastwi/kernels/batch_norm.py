"""Batch norm fused with the residual sum and ReLU, on a CPU, each pass reading every activation once.

Training (Ioffe & Szegedy 2015), over the R = N * H * W values of each channel:

    y = act(weight * (x - mean) / sqrt(var + eps) + bias + residual),   act = ReLU or identity
    g = dy where y > 0
    dbias = sum g;   dweight = sum g * (x - mean) * inv;   dresidual = g
    dx = weight * inv * (g - dbias / R - (x - mean) * inv * dweight / R),   inv = 1 / sqrt(var + eps)

Statistics come from one pass (sum and sum of squares; float32 over 128 rows, float64 beyond).

Shapes: N images, C channels, H height, W width. Activations are bf16 or fp32, in torch.channels_last order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.kernels.cpu import SUFFIX, call, library, scratch

_LANES = 64  # of cpu.cpp


def supported(x_NCHW: Tensor, residual_NCHW: Tensor | None = None) -> bool:
    """Whether the kernels take these activations: CPU, bf16 or fp32, channels that divide 64 or that 64 divides."""
    channels = x_NCHW.shape[1] if x_NCHW.dim() == 4 else 0
    if channels == 0 or (_LANES % channels and channels % _LANES) or x_NCHW.numel() % _LANES:
        return False
    if x_NCHW.device.type != "cpu" or x_NCHW.dtype not in SUFFIX or x_NCHW.numel() < 2 * channels:
        return False
    # A network may also add a size or a number, which have no shape.
    shape, dtype = getattr(residual_NCHW, "shape", None), getattr(residual_NCHW, "dtype", None)
    alike = residual_NCHW is None or (shape, dtype) == (x_NCHW.shape, x_NCHW.dtype)
    return alike and library() is not None


def _channels_last(x: Any) -> Any:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _call(function: str, x: Tensor, *arguments: Any) -> None:
    """Call the library's function for x's dtype, with work space and x's sizes at the end."""
    N, C, H, W = x.shape
    call(f"{function}_{SUFFIX[x.dtype]}", *arguments, scratch("norm_floats", C), N * H * W, C)


class _Training(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight_C: Tensor,
        bias_C: Tensor,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        factor: float,
        eps: float,
        relu: bool,
        users: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, residual = _channels_last(x), _channels_last(residual)
        y, mean_C, inv_C = torch.empty_like(x), torch.empty_like(weight_C), torch.empty_like(weight_C)
        _call(
            "forward_train", x, x, residual, y, relu, weight_C, bias_C, mean_C, inv_C,
            running_mean_C, running_var_C, factor, eps,
        )  # fmt: skip
        ctx.has_residual, ctx.relu = residual is not None, relu
        # Without a residual x shows where the ReLU passed, and y need not be read again.
        ctx.save_for_backward(x, y if relu and ctx.has_residual else None, weight_C, bias_C, mean_C, inv_C)
        # One handle for each user: autograd would otherwise sum the two gradients in a pass of its own.
        return (y, y.detach()) if users == 2 else y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, y, weight_C, bias_C, mean_C, inv_C = ctx.saved_tensors
        dy = _channels_last(gradients[0])
        dy2 = _channels_last(gradients[1]) if len(gradients) == 2 else None
        dx, dweight_C, dbias_C = torch.empty_like(x), torch.empty_like(weight_C), torch.empty_like(weight_C)
        # With one user and without a ReLU the residual's gradient is dy itself.
        keep = dy2 is not None or (ctx.has_residual and ctx.relu)
        g = torch.empty_like(x) if keep else None
        _call(
            "backward", x, dy, dy2, y, x, g, dx, ctx.relu, weight_C, bias_C, mean_C, inv_C, dweight_C, dbias_C
        )  # fmt: skip
        dresidual = (dy if g is None else g) if ctx.has_residual else None
        return dx, dresidual, dweight_C, dbias_C, None, None, None, None, None, None


class FusedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the residual sum and ReLU that followed it. State and settings are the original's.

    With `users` = 2 the output is a pair of handles on the same activation, one for each of its two users.
    """

    def __init__(self, original: nn.BatchNorm2d, relu: bool) -> None:
        super().__init__(original.num_features, original.eps, original.momentum)
        self.weight, self.bias = original.weight, original.bias
        self.running_mean, self.running_var = original.running_mean, original.running_var
        self.num_batches_tracked = original.num_batches_tracked
        self.relu, self.users = relu, 1

    def forward(  # type: ignore[override]
        self, x_NCHW: Tensor, residual_NCHW: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """act(batch_norm(x) + residual); running statistics are updated in place in training mode."""
        mean_C, var_C = self.running_mean, self.running_var
        assert mean_C is not None
        assert var_C is not None
        assert self.num_batches_tracked is not None
        factor = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if factor is None:  # cumulative average, as nn.BatchNorm2d defines it
                factor = 1.0 / float(self.num_batches_tracked)
        # The kernels read float32 parameters; a network that is cast to bf16 as a whole has others. Nor do they check
        # that there are as many as x has channels, as torch does.
        fused = self.weight.dtype == torch.float32 and supported(x_NCHW, residual_NCHW)
        fused = fused and x_NCHW.shape[1] == self.num_features
        if fused and self.training:
            both: Tensor | tuple[Tensor, Tensor] = _Training.apply(
                x_NCHW, residual_NCHW, self.weight, self.bias, mean_C, var_C, factor, self.eps, self.relu, self.users
            )
            return both
        differentiable = torch.is_grad_enabled() and (x_NCHW.requires_grad or self.weight.requires_grad)
        if fused and not differentiable:
            scale_C = self.weight * torch.rsqrt(var_C + self.eps)
            shift_C = self.bias - mean_C * scale_C
            x, residual = _channels_last(x_NCHW), _channels_last(residual_NCHW)
            y = torch.empty_like(x)
            _call("forward_eval", x, x, residual, y, self.relu, scale_C, shift_C)
        else:
            y = functional.batch_norm(
                x_NCHW, mean_C, var_C, self.weight, self.bias, self.training, factor or 0.0, self.eps
            )
            y = y if residual_NCHW is None else y + residual_NCHW
            y = functional.relu(y) if self.relu else y
        return (y, y) if self.users == 2 else y
