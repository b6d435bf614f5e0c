"""Winograd's convolutions against float64: forward and both gradients, in norm and element by element.

Shapes: N images, C and K channels in and out, H height, W width.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.kernels.cpu import library
from fastwi.kernels.winograd import WinogradConv2d, supported, use_winograd_

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")

SHAPES = [  # N, C, K, H, W
    (3, 16, 16, 32, 32),
    (2, 32, 64, 16, 16),  # sums of all positions at once up to 1,024 products, by rows above
    (5, 64, 64, 8, 8),
    (2, 16, 48, 7, 11),  # edges that tiles overhang
    (1, 48, 16, 6, 4),
    (1, 16, 32, 4, 130),  # more tiles in a row than a block has
    (7, 80, 144, 4, 4),
    (1, 16, 16, 3, 12),  # lower than a tile
]


DTYPES = [torch.float32, torch.bfloat16]


def draw(
    seed: int, N: int, C: int, K: int, H: int, W: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(N, channels, H, W, generator=generator) for channels in (C, K))
    weight = torch.randn(K, C, 3, 3, generator=generator) / (9 * C) ** 0.5
    return x.relu().to(dtype), weight.to(dtype), dy.to(dtype)


def results(convolve, x: Tensor, weight: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dx and dweight."""
    x, weight = (t.clone().requires_grad_() for t in (x, weight))
    y = convolve(x, weight)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), dy)]


def ours(C: int, K: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The module's convolution as a function of x and weight."""
    convolution = nn.Conv2d(C, K, 3, padding=1, bias=False)
    use_winograd_(convolution)
    assert type(convolution) is WinogradConv2d
    return lambda x, weight: torch.func.functional_call(convolution, {"weight": weight}, (x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(seed, shape, dtype):
    """Equal to the bit with any number of threads. In bf16 the result is rounded once."""
    x, weight, dy = draw(seed, *shape, dtype)
    assert supported(x, weight)
    found = results(ours(*shape[1:3]), x, weight, dy)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for order in (torch.channels_last, torch.contiguous_format):  # of weights; theirs is the first
            ordered = weight.contiguous(memory_format=order)
            assert all(map(torch.equal, results(ours(*shape[1:3]), x, ordered, dy), found))
    exact = results(lambda x, w: functional.conv2d(x, w, padding=1), x.double(), weight.double(), dy.double())
    for name, f, e in zip(("y", "dx", "dweight"), found, exact, strict=True):
        assert (f.shape, f.dtype) == (e.shape, dtype)
        rounded = 2**-8 * e.abs() if dtype == torch.bfloat16 else torch.zeros(())
        error = ((f.double() - e).abs() - rounded).clamp_(min=0)
        assert error.norm() <= 3e-6 * e.norm(), f"{name}: {error.norm() / e.norm():.1e}"
        assert error.max() <= 3e-5 * e.abs().max(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_images_do_not_mix(seed, dtype):
    """An image's output and input gradient are the same alone and among others."""
    x, weight, dy = draw(seed, 5, 16, 32, 8, 12, dtype)
    y, dx, _ = results(ours(16, 32), x, weight, dy)
    for n in range(5):
        y1, dx1, _ = results(ours(16, 32), x[n : n + 1], weight, dy[n : n + 1])
        assert torch.equal(y[n : n + 1], y1)
        assert torch.equal(dx[n : n + 1], dx1)
        assert not torch.equal(y1, y[(n + 1) % 5][None])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_are_not_hidden(seed, dtype, value):
    """They reach the pixels around them, and no other image."""
    x, weight, dy = draw(seed, 3, 16, 16, 8, 12, dtype)
    x[1, 5, 3, 6] = value
    y, _, dweight = results(ours(16, 16), x, weight, dy)
    assert not y[1, :, 2:5, 5:8].isfinite().any()
    assert y[[0, 2]].isfinite().all()
    assert not dweight[:, 5].isfinite().any()


def test_bias(seed):
    x, weight, dy = draw(seed, 3, 16, 48, 9, 8)
    bias = torch.randn(48, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()
    convolution = nn.Conv2d(16, 48, 3, padding=1)
    use_winograd_(convolution)
    y = torch.func.functional_call(convolution, {"weight": weight, "bias": bias}, (x,))
    plain = ours(16, 48)(x, weight)
    assert torch.allclose(y, plain + bias[:, None, None], rtol=1e-6, atol=1e-6)
    (dbias,) = torch.autograd.grad(y, (bias,), dy)
    assert torch.allclose(dbias.double(), dy.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_what_gets_no_gradient_is_not_computed(seed):
    x, _, dy = draw(seed, 2, 16, 16, 8, 8)
    convolution = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    use_winograd_(convolution)
    y = convolution(x)
    assert y.requires_grad
    (dweight,) = torch.autograd.grad(y, (convolution.weight,), dy)
    assert dweight.abs().sum() > 0
    convolution.requires_grad_(False)
    (dx,) = torch.autograd.grad(convolution(x.requires_grad_()), (x,), dy)
    assert dx.abs().sum() > 0
    assert not convolution(x.detach()).requires_grad


@pytest.mark.parametrize(
    "kept",
    [
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, padding=1, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 1, padding=1),
    ],
)  # fmt: skip
def test_other_convolutions_stay(kept):
    use_winograd_(kept)
    assert type(kept) is nn.Conv2d


def test_what_is_replaced():
    replaced = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=p) for p in (1, (1, 1), "same"))
    use_winograd_(replaced)
    assert all(type(m) is WinogradConv2d for m in replaced)
    weight = torch.randn(16, 16, 3, 3)
    assert supported(torch.randn(1, 16, 8, 8), weight)
    assert not supported(torch.randn(1, 16, 2, 2), weight)  # a tile of 4 x 4 would be three quarters empty
    assert supported(torch.randn(1, 16, 8, 8, dtype=torch.bfloat16), weight.bfloat16())
    assert not supported(torch.randn(1, 16, 8, 8, dtype=torch.bfloat16), weight)
    many = torch.randn(272, 256, 3, 3)  # which oneDNN multiplies faster in bf16
    assert supported(torch.randn(1, 256, 8, 8), many)
    assert not supported(torch.randn(1, 256, 8, 8).bfloat16(), many.bfloat16())
    assert supported(torch.randn(1, 256, 8, 8).bfloat16(), many[:256].bfloat16())
    assert not supported(torch.randn(1, 16, 8, 8, dtype=torch.float16), weight.half())
    assert not supported(torch.randn(1, 16, 8, 8, dtype=torch.float64), weight.double())
    assert not supported(torch.randn(1, 8, 8, 8), torch.randn(16, 8, 3, 3))
    assert not supported(torch.randn(0, 16, 8, 8), weight)


@pytest.mark.parametrize("case", ["fp64", "small", "8 channels"])
def test_what_is_not_supported_is_what_torch_computes(seed, case):
    torch.manual_seed(seed)
    channels, side = 8 if case == "8 channels" else 16, 2 if case == "small" else 8
    dtype = torch.float64 if case == "fp64" else torch.float32
    plain = nn.Conv2d(channels, 16, 3, padding=1, bias=False).to(dtype)
    replaced = copy.deepcopy(plain)
    use_winograd_(replaced)
    x = torch.randn(2, channels, side, side).to(dtype)
    assert torch.equal(replaced(x), plain(x))
