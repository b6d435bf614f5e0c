"""The layers of `fastwi.kernels.stacked` by halo tiles: what a backward pass would compute twice is handed over.

Within a residual block, y = conv(z), y2 = conv(act(norm(y))) and z2 = act(norm2(y2) + z), in bf16:

    a norm's backward gives g, the gradient of its output, to the convolution before it, which makes dy of g on its
    way to shared memory (Link); else dy would be a pass of its own over g and y;
    the convolution that reads a block's end z makes it, on its way to shared memory, and stores it for z's other
    reader, the residual sum. Its backward adds the gradient by that reader to its own and passes the ReLU: its dx is
    g of the norm that made z, with its sums (End). That norm's two passes over activations fall away.

All are set up while the layers are called, and used where the other side was there: autograd sees ordinary gradients
otherwise. A tensor carries its Link or End as an attribute, so a copy of it carries none.

Bytes a value of y, in bf16: forward 4 within a block, and 8 at its begin; backward 8 and 12.

Shapes: those of fastwi.kernels.stacked.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastwi.kernels import stacked_norm as norms
from fastwi.kernels.halo import backward as gradients_by_halo
from fastwi.kernels.halo import conv as forward_by_halo
from fastwi.kernels.stacked import require_shape_of, stacked_conv
from fastwi.kernels.stacked_geometry import Geometry
from fastwi.kernels.stacked_norm import Norm, Place


@dataclass(eq=False)
class Link:
    """Of a convolution's output y that one batch norm alone reads: what makes dy of g, left by its backward."""

    stats_M4C: Tensor | None = None
    made_M2C: Tensor | None = None
    """Sums of g and of g xhat."""

    def leave(self, stats_M4C: Tensor, made_M2C: Tensor) -> None:
        """Say that the gradient of y that autograd passes on is g."""
        self.stats_M4C, self.made_M2C = stats_M4C, made_M2C


@dataclass(eq=False)
class End:
    """Of a block's end z = act(batch_norm(x) + ...), with two readers."""

    x: Tensor
    stats_M4C: Tensor
    summand: Tensor | None
    z: Tensor | None
    """To be made of x and the summand by the convolution that reads it, where that is known to come first."""
    residual: Tensor | None = None
    """The gradient of z by the sum that reads it, left by that sum's backward."""
    g: Tensor | None = None
    """The gradient of the batch norm's output, left by the backward of the convolution that reads z."""
    sums: Tensor | None = None
    """Its partial sums [M, T, 2, C]."""


class _Conv(torch.autograd.Function):
    """A convolution, with or without a batch norm in its prologue. `before` and `end` are x's."""

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
        link: Link | None,
        before: Link | None,
        end: End | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = x.contiguous()
        stats = None if norm is None else norm.settle(x, moments)
        ctx.norm, ctx.relu, ctx.place = norm, norm is not None and norm.relu, place
        if end is not None and end.z is not None:
            more = (end.stats_M4C, True, statistics, end.summand, end.z)
            y, moments_out = forward_by_halo.forward(end.x, weight, geometry, *more)
            end.z = end.summand = None
        else:
            y, moments_out = forward_by_halo.forward(x, weight, geometry, stats, ctx.relu, statistics)
        ctx.link, ctx.before, ctx.end = link, before, end
        ctx.save_for_backward(x, weight, stats, None if link is None else y)
        ctx.set_materialize_grads(False)
        if moments_out is not None:
            ctx.mark_non_differentiable(moments_out)
        return y, moments_out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return (None,) * 12
        x, weight, stats, y = ctx.saved_tensors
        dbias = dweight = dw = made_of_y = norm_of_y = norm_of_x = residual = None
        relu, end = ctx.relu, ctx.end
        if ctx.link is not None and ctx.link.made_M2C is not None:
            norm_of_y, made_of_y = gradients_by_halo.NormOf(y, ctx.link.stats_M4C), ctx.link.made_M2C
        if stats is not None:
            norm_of_x = gradients_by_halo.NormOf(x, stats)
        elif end is not None and end.residual is not None:
            norm_of_x, residual, relu = gradients_by_halo.NormOf(end.x, end.stats_M4C), end.residual, True
        dx, sums, partial = gradients_by_halo.gradients(
            gradients[0].contiguous(), norm_of_y, made_of_y, x, stats, relu, weight, residual, norm_of_x
        )
        if stats is not None:
            assert sums is not None
            made, dweight, dbias = norms.parameter_gradients(sums, ctx.norm)
            if ctx.before is not None:
                ctx.before.leave(stats, made)
            else:
                dx = norms.input_gradient(dx, x, stats, made, False, ctx.norm.training)
        elif residual is not None:
            end.g, end.sums = dx, sums
        if ctx.needs_input_grad[3]:
            dw = norms.weight_gradient(partial, ctx.place, weight.dtype)
        return dx, dweight, dbias, dw, *(None,) * 8


class _BatchNorm(torch.autograd.Function):
    """z = act(batch_norm(x) + residual). `link` is x's, `before` the residual's End, `end` z's own."""

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
        link: Link | None,
        before: End | None,
        later: bool,
        ends: list[End],
    ) -> tuple[Tensor, ...]:
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        stats = norm.settle(x, moments)
        later = later and users == 2 and norm.relu and norm.training
        z: Tensor = torch.empty_like(x) if later else norms.apply(x, residual, stats, norm.relu)
        ctx.norm, ctx.has_residual, ctx.link, ctx.before = norm, residual is not None, link, before
        ctx.end = None
        if users == 2 and norm.relu and norm.training:
            # By `data` z is written without autograd, which would take it for a change of what is saved here.
            ctx.end = End(x.detach(), stats, residual if later else None, z.data if later else None)
        ends += [ctx.end] * (ctx.end is not None)
        ctx.save_for_backward(x, z if norm.relu and ctx.has_residual else None, stats)
        ctx.set_materialize_grads(False)
        return (z, z.detach()) if users == 2 else (z,)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, z, stats = ctx.saved_tensors
        relu, end = ctx.norm.relu, ctx.end
        dz, dz2, *_ = *(g.contiguous() for g in gradients if g is not None), None, None
        if dz is None:
            return (None,) * 11
        if end is not None and end.g is not None:  # both gradients are in it
            g, sums, masked = end.g, end.sums, True
        else:
            masked = dz2 is not None or (relu and (ctx.has_residual or ctx.link is not None))
            sums, kept = norms.gradient_sums(dz, dz2, x, z, stats, relu, masked)
            g = dz if kept is None else kept
        if end is not None:  # nothing is left for another backward pass
            end.g = end.sums = end.residual = None
        made, dweight, dbias = norms.parameter_gradients(sums, ctx.norm)
        dx = g if ctx.needs_input_grad[0] else None
        if dx is not None and ctx.link is not None:
            ctx.link.leave(stats, made)
        elif dx is not None:
            dx = norms.input_gradient(g, x, stats, made, relu and not masked, ctx.norm.training)
        if ctx.before is not None:
            ctx.before.residual = g
        return dx, g if ctx.needs_input_grad[1] else None, dweight, dbias, *(None,) * 7


def conv(
    x_MNHWI: Tensor,
    weight_MOHWI: Tensor,
    stride: int,
    padding: int,
    norm: Norm | None = None,
    moments: Tensor | None = None,
    statistics: bool = False,
    place: Place | None = None,
    *,
    sole: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`stacked_conv`. `sole`: one batch norm alone will read y, and nothing else."""
    if not gradients_by_halo.takes(x_MNHWI, weight_MOHWI, stride, padding):
        return stacked_conv(x_MNHWI, weight_MOHWI, stride, padding, norm, moments, statistics, place)
    geometry = Geometry(x_MNHWI.shape, weight_MOHWI.shape, stride, padding)
    link = Link() if sole and statistics else None
    before = None if norm is None else getattr(x_MNHWI, "link", None)
    end = getattr(x_MNHWI, "end", None) if norm is None else None
    parameters = (None, None) if norm is None else (norm.weight_MC, norm.bias_MC)
    y, moments_out = _Conv.apply(
        x_MNHWI, *parameters, weight_MOHWI, norm, geometry, moments, statistics, place, link, before, end
    )
    y.link = link
    return y, moments_out


def batch_norm(
    x_MNHWC: Tensor,
    residual_MNHWC: Tensor | None,
    norm: Norm,
    moments: Tensor | None = None,
    users: int = 1,
    *,
    later: bool = False,
) -> Any:
    """`stacked_batch_norm`. `later`: of two users a call of `conv` whose kernel takes z comes first, and makes z."""
    require_shape_of(x_MNHWC, residual_MNHWC)
    link = None if residual_MNHWC is x_MNHWC else getattr(x_MNHWC, "link", None)
    ends: list[End] = []
    made = _BatchNorm.apply(
        x_MNHWC, residual_MNHWC, norm.weight_MC, norm.bias_MC, norm, moments, users, link,
        getattr(residual_MNHWC, "end", None), later, ends,
    )  # fmt: skip
    for z in made if ends else ():
        z.end = ends[0]
    return made if users == 2 else made[0]
