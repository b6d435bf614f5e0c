"""Differentiable layers of M networks at once, on activations [M, N, H, W, C]: Triton on a GPU, torch elsewhere.

    y, moments = stacked_conv(x, w, 1, 1, statistics=True)
    y2, moments2 = stacked_conv(y, w2, 1, 1, norm, moments, statistics=True)  # conv(act(batch_norm(y)))
    z = stacked_batch_norm(y2, residual, norm2, moments2)

Here batch norm's statistics are made by the first convolution, and its gradients' sums by the second one's input
gradient. act(batch_norm(y)) is stored where a convolution would read it many times, else made as it is read
(`stores_activation`). Bytes a value of y in bf16: 24 or 20, against 28 for a convolution and a batch norm apart.

Shapes: M members, N images, H W height and width, C channels (I in, O out), T tiles. Weights are [M, O, KH, KW, I],
views of the population's rows: each member's values dense, the member stride any.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastwi.kernels import stacked_conv as conv
from fastwi.kernels import stacked_norm as norms
from fastwi.kernels.stacked_geometry import Geometry, stores_activation
from fastwi.kernels.stacked_norm import Norm, Place


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight_MC: Tensor,
        bias_MC: Tensor,
        norm: Norm,
        moments: Tensor | None,
        users: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        stats = norm.settle(x, moments)
        z: Tensor = norms.apply(x, residual, stats, norm.relu)
        ctx.norm, ctx.has_residual = norm, residual is not None
        # Without a residual x shows where the ReLU passed, and z need not be kept.
        ctx.save_for_backward(x, z if norm.relu and ctx.has_residual else None, stats)
        ctx.set_materialize_grads(False)
        # One handle for each user: autograd would otherwise sum the two gradients in a pass of its own.
        return (z, z.detach()) if users == 2 else z

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, z, stats = ctx.saved_tensors
        relu = ctx.norm.relu
        dz, dz2, *_ = *(g.contiguous() for g in gradients if g is not None), None, None
        if dz is None:
            return (None,) * 7
        # With one user, g is dz itself without a ReLU, and with a ReLU but no residual it is cheap to compute again.
        keep = dz2 is not None or (ctx.has_residual and relu)
        sums, kept = norms.gradient_sums(dz, dz2, x, z, stats, relu, keep)
        g = dz if kept is None else kept
        made, dweight, dbias = norms.parameter_gradients(sums, ctx.norm)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = norms.input_gradient(g, x, stats, made, relu and not keep, ctx.norm.training)
        dresidual = g if ctx.needs_input_grad[1] else None
        return dx, dresidual, dweight, dbias, None, None, None


class _NormConv(torch.autograd.Function):
    """A convolution, with or without a batch norm in its prologue."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_MC: Tensor | None,
        bias_MC: Tensor | None,
        weight: Tensor,
        norm: Norm | None,
        geometry: Geometry,
        moments: Tensor | None,
        statistics: bool,
        place: Place | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = x.contiguous()
        stats = None if norm is None else norm.settle(x, moments)
        ctx.norm, ctx.relu, ctx.geometry, ctx.place = norm, norm is not None and norm.relu, geometry, place
        a = norms.apply(x, None, stats, ctx.relu) if stats is not None and stores_activation(geometry) else None
        read, prologue = (x, stats) if a is None else (a, None)
        y, moments_out = conv.forward(read, weight, geometry, prologue, ctx.relu, statistics)
        ctx.save_for_backward(x, weight, stats, a)
        ctx.set_materialize_grads(False)
        if moments_out is not None:
            ctx.mark_non_differentiable(moments_out)
        return y, moments_out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 9
        x, weight, stats, a = ctx.saved_tensors
        dy, dx, dw, dbias, dweight = gradients[0].contiguous(), None, None, None, None
        if any(ctx.needs_input_grad[:3]):
            dx, sums = conv.input_gradient(dy, weight, ctx.geometry, x, stats, ctx.relu)
            if sums is not None:
                made, dweight, dbias = norms.parameter_gradients(sums, ctx.norm)
                dx = norms.input_gradient(dx, x, stats, made, False, ctx.norm.training)
        if ctx.needs_input_grad[3]:
            read, prologue = (x, stats) if a is None else (a, None)
            partial = conv.weight_gradient(read, dy, ctx.geometry, prologue, ctx.relu)
            dw = norms.weight_gradient(partial, ctx.place, weight.dtype)
        return dx, dweight, dbias, dw, None, None, None, None, None


class _Shortcut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, after: int) -> Tensor:
        ctx.sizes = x.shape, stride, before
        sampled = x[:, :, ::stride, ::stride]
        y = x.new_zeros((*sampled.shape[:-1], before + x.shape[-1] + after))
        y[..., before : before + x.shape[-1]] = sampled
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (dy,), (shape, stride, before) = gradients, ctx.sizes
        dx = dy.new_zeros(shape)
        dx[:, :, ::stride, ::stride] = dy[..., before : before + shape[-1]]
        return dx, None, None, None


def stacked_shortcut(x_MNHWC: Tensor, stride: int, before: int, after: int) -> Tensor:
    """The option-A shortcut (fastwi.kernels.shortcut) of all members, two launches each way."""
    y: Tensor = _Shortcut.apply(x_MNHWC, stride, before, after)
    return y


def stacked_conv(
    x_MNHWI: Tensor,
    weight_MOHWI: Tensor,
    stride: int,
    padding: int,
    norm: Norm | None = None,
    moments: Tensor | None = None,
    statistics: bool = False,
    place: Place | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y [M, N, OH, OW, O] in x's dtype: each member's convolution of x, or of act(batch_norm(x)) with a `norm`.

    Weights are float32, or x's dtype. `moments` are x's, where the convolution that made x made them; else they take
    a pass over x. With `statistics` the second result is y's moments [M, T, 3, O], without gradient. The weights'
    gradient goes to `place`, where one is given, as [M, O, KH, KW, I].

    Raises ValueError for shapes that don't fit together.
    """
    geometry = Geometry(x_MNHWI.shape, weight_MOHWI.shape, stride, padding)
    parameters = (None, None) if norm is None else (norm.weight_MC, norm.bias_MC)
    y, moments_out = _NormConv.apply(x_MNHWI, *parameters, weight_MOHWI, norm, geometry, moments, statistics, place)
    return y, moments_out


def require_shape_of(x: Tensor, residual: Tensor | None) -> None:
    """Raise ValueError for a residual of another shape than x's."""
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"a residual of shape {tuple(residual.shape)} for activations {tuple(x.shape)}")


def stacked_batch_norm(
    x_MNHWC: Tensor, residual_MNHWC: Tensor | None, norm: Norm, moments: Tensor | None = None, users: int = 1
) -> Any:
    """z = act(batch_norm(x) + residual) in x's dtype; in training the running statistics are updated in place.

    `moments` are x's, where the convolution made them. With `users` = 2 the output is a pair of handles on the same
    activation, one for each of its two users, whose gradients are then summed on the way.

    Raises ValueError in training on fewer than 2 values a channel, and for shapes that don't fit together.
    """
    require_shape_of(x_MNHWC, residual_MNHWC)
    return _BatchNorm.apply(x_MNHWC, residual_MNHWC, norm.weight_MC, norm.bias_MC, norm, moments, users)
