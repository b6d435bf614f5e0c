"""Both gradients of a 3 x 3 convolution of M networks by one kernel, with the batch norms before and behind it.

    dy = batch norm's backward of g, or g itself
    dw = sums of a dy,  a = x or act(x scale + shift)
    dx = weights' sums of dy, + residual, 0 where a is not > 0 (with `relu`), and its sums with xhat of u

See backward.cu for the equations. Elsewhere than on a GPU by the functions of `stacked_conv` and `stacked_norm`,
which round dx to bf16 before the residual is added.

Memory traffic in bytes a value of y in bf16: 8 (g, y, x read; dx written), 4 more with a residual and a u that is
not x, and 1 to 2 for partial sums of dw. Results are the same on every machine. For another M the sums of dw may be
cut otherwise: see `tiles_for`.

Shapes: M members, N images, H W height and width, C channels, T partial sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastwi.kernels import stacked_conv, stacked_norm
from fastwi.kernels.halo.build import MULTIPROCESSORS, Kernel, aligned_weights, launch, runs_here
from fastwi.kernels.stacked_geometry import Geometry

_PLACES = 256  # of a tile
_WARPS = {16: 4, 32: 8, 64: 8}
_SLICE = {16: 16, 32: 32, 64: 32}  # input channels of a CTA, so that its sums of dw fit the registers
_TILES = {16: 4, 32: 4, 64: 8}  # of a CTA, at most: enough that partial sums move less memory than activations
_CTAS = {16: 4, 32: 2, 64: 2}  # on a multiprocessor at a time; bounds the registers


@dataclass(frozen=True)
class NormOf:
    """A batch norm's input [M, N, H, W, C] and its stats_M4C: mean, inv, scale and shift."""

    x: Tensor
    stats: Tensor


def takes(x_MNHWC: Tensor, weight_MOHWI: Tensor, stride: int, padding: int) -> bool:
    """Whether the halo kernels compute this convolution and its gradients."""
    *_, H, W, C = x_MNHWC.shape
    square = tuple(weight_MOHWI.shape[1:]) == (C, 3, 3, C) and (stride, padding) == (1, 1)
    images = C in _WARPS and H % 8 == 0 and W in (8, 16, 32)
    return square and images and x_MNHWC.dtype == torch.bfloat16 and x_MNHWC[0].numel() < 2**31  # counted in 32 bits


def gradients(
    g: Tensor,
    y: NormOf | None,
    made_M2C: Tensor | None,
    x: Tensor,
    stats_M4C: Tensor | None,
    relu: bool,
    weight_MOHWI: Tensor,
    residual: Tensor | None = None,
    u: NormOf | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dx like x, its partial sums [M, T, 2, C] with xhat of `u` (None without), and those of dw [M, T, O, 3, 3, I].

    g is the gradient of the output of the batch norm `y` (in training mode) whose sums are made_M2C; without `y` the
    convolution's own. stats_M4C puts a batch norm between x and the convolution, `relu` a ReLU behind it, or before x
    without one. Activations are contiguous. Of convolutions that `takes`.
    """
    if runs_here(x.device):
        M, N, H, W, C = x.shape
        norms = [each for norm in (y, u) if norm is not None for each in (norm.x, norm.stats)]
        optional = (made_M2C, stats_M4C, residual)
        if not all(each.is_contiguous() for each in (g, x, *optional, *norms) if each is not None):
            raise ValueError("activations, statistics and sums need to be contiguous")
        weight = aligned_weights(weight_MOHWI, x.dtype)
        tiles = tiles_for(M, N * H * W, C)
        chunks = -(-N * H * W // (_PLACES * tiles))
        dx = torch.empty_like(x)
        sums = None if u is None else x.new_empty((M, chunks, 2, C), dtype=torch.float32)
        partial = x.new_empty((M, chunks, C, 3, 3, C), dtype=torch.float32)
        launch(
            kernel_for(H, W, C, tiles), (chunks, C // _SLICE[C], M), g,
            *((None, None) if y is None else (y.x, y.stats)), made_M2C, N * H * W, x, stats_M4C, relu,
            weight, weight.stride(0), residual, *((None, None) if u is None else (u.x, u.stats)), dx, sums, partial,
            N * H,
        )  # fmt: skip
        return dx, sums, partial
    dy, geometry = g, Geometry(x.shape, weight_MOHWI.shape, 1, 1)
    if y is not None:
        assert made_M2C is not None
        dy = stacked_norm.input_gradient(g, y.x, y.stats, made_M2C, False, True)
    dw = stacked_conv.weight_gradient(x, dy, geometry, stats_M4C, relu)
    dx, _ = stacked_conv.input_gradient(dy, weight_MOHWI, geometry, None, None, False)
    a = x if stats_M4C is None else stacked_norm.apply(x, None, stats_M4C, relu)
    if u is not None:
        sums, kept = stacked_norm.gradient_sums(dx, residual, u.x, a, u.stats, relu, True)
        assert kept is not None
        return kept, sums, dw
    if residual is not None:
        dx = dx + residual
    return torch.where(a > 0, dx, 0) if relu else dx, None, dw


def tiles_for(M: int, places: int, C: int) -> int:
    """Tiles of a CTA: fewer where few members would leave multiprocessors without one.

    Sums of dw are then cut otherwise for one member than for many; never under engine.deterministic.
    """
    tiles = _TILES[C]
    while tiles > 1 and not torch.are_deterministic_algorithms_enabled():
        if -(-places // (_PLACES * tiles)) * (C // _SLICE[C]) * M >= MULTIPROCESSORS:
            break
        tiles //= 2
    return tiles


def kernel_for(H: int, W: int, C: int, tiles: int) -> Kernel:
    """The kernel for images of H x W with C channels."""
    together = 64 // C if C < 64 else 1  # places that make 128 bytes
    row_bytes = -(-(W + 2) // together) * together * C * 2
    dy_bytes = (_PLACES // W + 2) * row_bytes
    slice_bytes = _SLICE[C] * 2
    constants = (("C", C), ("H", H), ("W", W), ("SLICE", _SLICE[C]), ("TILES", tiles), ("CTAS", _CTAS[C]))
    shared = dy_bytes + (_PLACES + 9 * C) * slice_bytes + (4 * C + 2 * _SLICE[C]) * 4 + 128 * _WARPS[C]
    return Kernel("backward.cu", "backward", 32 * _WARPS[C], shared, constants)
