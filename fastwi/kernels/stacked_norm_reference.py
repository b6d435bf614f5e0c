"""Batch norms of M networks in torch's own functions: what the Triton kernels are held to.

The functions have the kernels' names and arguments (fastwi.kernels.stacked_norm_triton states the equations), and
take any device and floating dtype. They compute in float32, or in float64 for such inputs, and round once. Sums are
taken of one member at a time: torch sums [M, ...] in another order for another M.

Shapes: M members, N images, H W height and width, C channels. stats_M4C: mean, inv, scale and shift.
"""

import torch
from torch import Tensor


def wide(x: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    return torch.promote_types(x.dtype, torch.float32)


def _rows(stats_M4C: Tensor) -> tuple[Tensor, ...]:
    """Mean, inv, scale and shift as [M, 1, 1, 1, C]."""
    return stats_M4C[:, None, None, None].unbind(-2)


def _sums(x_MNHWC: Tensor) -> Tensor:
    """[M, C], over images and places."""
    return torch.stack([x_NHWC.sum((0, 1, 2)) for x_NHWC in x_MNHWC])


def moments(x_MNHWC: Tensor) -> Tensor:
    """[M, 1, 3, C]: number, sum, and squares about the mean, of all rows as one tile."""
    x = x_MNHWC.to(wide(x_MNHWC))
    total_MC = _sums(x)
    count = x[0, ..., 0].numel()
    apart = x - (total_MC / count)[:, None, None, None]
    return torch.stack([torch.full_like(total_MC, count), total_MC, _sums(apart.square())], 1)[:, None]


def settle(
    moments_MT3C: Tensor | None,
    weight_MC: Tensor,
    bias_MC: Tensor,
    running_mean_MC: Tensor,
    running_var_MC: Tensor,
    factor: float | Tensor,
    eps: float,
) -> Tensor:
    """stats_M4C from moments, with the running statistics updated in place; from these without moments."""
    if moments_MT3C is None:
        mean_MC, var_MC = running_mean_MC, running_var_MC
    else:
        count_MTC, total_MTC, squares_MTC = moments_MT3C.double().unbind(2)
        rows_MC = count_MTC.sum(1)
        mean_MC = total_MTC.sum(1) / rows_MC
        apart_MTC = total_MTC / count_MTC - mean_MC[:, None]
        var_MC = (squares_MTC + count_MTC * apart_MTC.square()).sum(1) / rows_MC
        unbiased_MC = var_MC * rows_MC / (rows_MC - 1)
        share = factor[:, None] if isinstance(factor, Tensor) else factor
        running_mean_MC.copy_(running_mean_MC + (mean_MC - running_mean_MC) * share)
        running_var_MC.copy_(running_var_MC + (unbiased_MC - running_var_MC) * share)
    inverse_MC = (var_MC.double() + eps).rsqrt()
    scale_MC = weight_MC * inverse_MC
    stats_M4C = torch.stack([mean_MC.double(), inverse_MC, scale_MC, bias_MC - mean_MC * scale_MC], 1)
    return stats_M4C.to(wide(weight_MC))


def apply(x_MNHWC: Tensor, residual_MNHWC: Tensor | None, stats_M4C: Tensor, relu: bool) -> Tensor:
    """z = act(x scale + shift + residual) in x's dtype."""
    _, _, scale, shift = _rows(stats_M4C)
    z = x_MNHWC * scale + shift
    if residual_MNHWC is not None:
        z = z + residual_MNHWC
    return (z.relu() if relu else z).to(x_MNHWC.dtype)


def gradient_sums(
    dz_MNHWC: Tensor,
    dz2_MNHWC: Tensor | None,
    x_MNHWC: Tensor,
    z_MNHWC: Tensor | None,
    stats_M4C: Tensor,
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sums [M, 1, 2, C] of g and of g xhat, and g in x's dtype where `keep`."""
    mean, inverse, scale, shift = _rows(stats_M4C)
    g = dz_MNHWC.to(wide(x_MNHWC))
    if dz2_MNHWC is not None:
        g = g + dz2_MNHWC
    if relu:
        g = torch.where((x_MNHWC * scale + shift if z_MNHWC is None else z_MNHWC) > 0, g, 0)
    if keep:
        g = g.to(x_MNHWC.dtype)
    sums_M2C = torch.stack([_sums(g.to(wide(g))), _sums(g * ((x_MNHWC - mean) * inverse))], 1)
    return sums_M2C[:, None], g if keep else None


def parameter_gradients(sums_MT2C: Tensor) -> Tensor:
    """[M, 2, C]: dbias and dweight."""
    return sums_MT2C.double().sum(1).to(sums_MT2C.dtype)


def input_gradient(
    g_MNHWC: Tensor, x_MNHWC: Tensor, stats_M4C: Tensor, gradients_M2C: Tensor, relu: bool, training: bool
) -> Tensor:
    """dx from g, or from dz with `relu`. In evaluation the statistics are constants."""
    mean, inverse, scale, shift = _rows(stats_M4C)
    g = torch.where(x_MNHWC * scale + shift > 0, g_MNHWC, 0) if relu else g_MNHWC
    if training:
        dbias, dweight = gradients_M2C[:, None, None, None].unbind(-2)
        g = g - (dbias + (x_MNHWC - mean) * inverse * dweight) / x_MNHWC[0, ..., 0].numel()
    return (g * scale).to(x_MNHWC.dtype)
