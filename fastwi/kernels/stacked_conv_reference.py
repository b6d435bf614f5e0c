"""Convolutions of M networks in torch's own functions, member by member: what the Triton kernels are held to.

The functions have the kernels' names and arguments (fastwi.kernels.stacked_conv_triton states the equations), and
take any device and floating dtype. Sums are in float32, or in float64 for such inputs.
"""

import contextlib

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from fastwi.kernels import stacked_norm_reference as norm
from fastwi.kernels.stacked_geometry import Geometry


def _exact(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """float32 is float32, and the same each time: cuDNN's convolutions are in TF32 otherwise."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def forward(
    x_MNHWI: Tensor, weight_MOHWI: Tensor, geometry: Geometry, stats_M4I: Tensor | None, relu: bool, statistics: bool
) -> tuple[Tensor, Tensor | None]:
    """y [M, N, OH, OW, CO] in x's dtype and, where asked for, its moments [M, 1, 3, CO]."""
    a_MNHWI = x_MNHWI if stats_M4I is None else norm.apply(x_MNHWI, None, stats_M4I, relu)
    # Not in bf16 itself: on a CPU without instructions for it torch rounds every partial sum.
    wide = norm.wide(x_MNHWI)
    weight_MOIHW = weight_MOHWI.to(x_MNHWI.dtype).to(wide).permute(0, 1, 4, 2, 3)
    with _exact(x_MNHWI.device):
        y_MNOHW = torch.stack(
            [
                functional.conv2d(
                    a_NHWI.to(wide).permute(0, 3, 1, 2), w_OIHW, None, geometry.stride, geometry.padding
                )
                for a_NHWI, w_OIHW in zip(a_MNHWI, weight_MOIHW, strict=True)
            ]
        )
    y_MNHWO = y_MNOHW.permute(0, 1, 3, 4, 2)
    y_MNHWO = y_MNHWO.to(x_MNHWI.dtype).contiguous()
    return y_MNHWO, norm.moments(y_MNHWO) if statistics else None


def input_gradient(
    dy_MNPQO: Tensor,
    weight_MOHWI: Tensor,
    geometry: Geometry,
    x_MNHWI: Tensor | None,
    stats_M4I: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor | None]:
    """dx [M, N, H, W, CI] in dy's dtype, and None; with a prologue, g and the sums [M, 1, 2, CI] of g and g xhat."""
    _, N, H, W, CI = geometry.x_shape
    wide = norm.wide(dy_MNPQO)
    weight_MOIHW = weight_MOHWI.to(dy_MNPQO.dtype).to(wide).permute(0, 1, 4, 2, 3)
    with _exact(dy_MNPQO.device):
        dx_MNIHW = torch.stack(
            [
                conv2d_input(
                    (N, CI, H, W), w_OIHW, dy_NPQO.to(wide).permute(0, 3, 1, 2), geometry.stride, geometry.padding
                )
                for dy_NPQO, w_OIHW in zip(dy_MNPQO, weight_MOIHW, strict=True)
            ]
        )
    dx_MNHWI = dx_MNIHW.to(dy_MNPQO.dtype).permute(0, 1, 3, 4, 2).contiguous()
    if stats_M4I is None:
        return dx_MNHWI, None
    assert x_MNHWI is not None
    sums_M12I, g_MNHWI = norm.gradient_sums(dx_MNHWI, None, x_MNHWI, None, stats_M4I, relu, True)
    assert g_MNHWI is not None
    return g_MNHWI, sums_M12I


def weight_gradient(
    x_MNHWI: Tensor,
    dy_MNPQO: Tensor,
    geometry: Geometry,
    stats_M4I: Tensor | None,
    relu: bool,
    out_MOHWI: Tensor | None = None,
) -> Tensor:
    """dw [M, CO, KH, KW, CI] in float32 (float64 for such inputs), written to `out_MOHWI` where it is given."""
    wide = norm.wide(x_MNHWI)
    a_MNHWI = x_MNHWI if stats_M4I is None else norm.apply(x_MNHWI, None, stats_M4I, relu)
    shape, stride = (geometry.CO, geometry.CI, geometry.KH, geometry.KW), geometry.stride
    if (geometry.KH, geometry.KW, geometry.padding) == (1, 1, 0):  # see fastwi.kernels.pointwise
        a_MNHWI, stride = a_MNHWI[:, :, ::stride, ::stride], 1
    with _exact(x_MNHWI.device):
        dw_MOIHW = torch.stack(
            [
                conv2d_weight(
                    a_NHWI.to(wide).permute(0, 3, 1, 2), shape, dy_NPQO.to(wide).permute(0, 3, 1, 2),
                    stride, geometry.padding,
                )
                for a_NHWI, dy_NPQO in zip(a_MNHWI, dy_MNPQO, strict=True)
            ]
        )  # fmt: skip
    dw_MOHWI = dw_MOIHW.permute(0, 1, 3, 4, 2).contiguous()
    return dw_MOHWI if out_MOHWI is None else out_MOHWI.copy_(dw_MOHWI)
