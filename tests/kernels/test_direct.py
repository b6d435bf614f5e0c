"""Direct convolutions against float64: forward and both gradients, in norm and element by element.

Shapes: N images, C and K channels in and out, H height, W width.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.kernels.cpu import library
from fastwi.kernels.direct import DirectConv2d, supported, use_direct_

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")

SHAPES = [  # N, C, K, H, W, stride
    (3, 16, 32, 32, 32, 2),
    (17, 32, 64, 16, 16, 2),  # more images than chunks of a weight gradient
    (2, 64, 48, 8, 6, 2),
    (2, 16, 16, 7, 9, 2),  # odd sizes: phases of different sizes
    (1, 48, 16, 1, 11, 2),
    (2, 16, 32, 40, 23, 2),
    (3, 3, 16, 32, 32, 1),
    (2, 3, 32, 9, 5, 1),
    (2, 1, 16, 6, 13, 1),
    (2, 4, 48, 7, 1, 1),
    (2, 3, 64, 15, 10, 2),  # a strided first layer
]
ERRORS = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (3e-3, 8e-3)}  # in norm, and of the largest element


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and the gradient of the output."""
    N, C, K, H, W, stride = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, H, W, generator=generator).relu().to(dtype)
    weight = (torch.randn(K, C, 3, 3, generator=generator) / (9 * C) ** 0.5).to(dtype)
    dy = torch.randn(N, K, -(-H // stride), -(-W // stride), generator=generator).to(dtype)
    return x, weight, dy


def results(layer: nn.Module, x: Tensor, weight: Tensor, dy: Tensor) -> list[Tensor]:
    """y, dweight and, of all but a first layer, dx."""
    weight, x = weight.clone().requires_grad_(), x.clone().requires_grad_(x.shape[1] > 4)
    y = torch.func.functional_call(layer, {"weight": weight}, (x,))
    return [y.detach(), *torch.autograd.grad(y, [weight, x] if x.requires_grad else [weight], dy)]


def layers(C: int, K: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """The convolution by the kernels, and torch's."""
    plain = nn.Conv2d(C, K, 3, stride, 1, bias=False)
    ours = copy.deepcopy(plain)
    use_direct_(ours)
    assert type(ours) is DirectConv2d
    return ours, plain


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(seed, shape, dtype):
    """Equal to the bit with any number of threads."""
    x, weight, dy = draw(seed, shape, dtype)
    ours, plain = layers(shape[1], shape[2], shape[5])
    assert supported(x, weight, None, shape[5])
    found = results(ours, x, weight, dy)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, results(ours, x, weight, dy), found))
    exact = results(plain, x.double(), weight.double(), dy.double())
    for name, f, e in zip(("y", "dweight", "dx"), found, exact, strict=False):
        assert (f.shape, f.dtype) == (e.shape, dtype)
        error = f.double() - e
        assert error.norm() <= ERRORS[dtype][0] * e.norm(), f"{name}: {error.norm() / e.norm():.1e}"
        assert error.abs().max() <= ERRORS[dtype][1] * e.abs().max(), name


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("shape", [(5, 16, 32, 8, 11, 2), (5, 3, 16, 6, 7, 1)], ids=str)
def test_images_do_not_mix_and_nan_stays(seed, shape, dtype):
    """An image's output and input gradient are the same alone and beside one that is NaN and infinite."""
    x, weight, dy = draw(seed, shape, dtype)
    ours, _ = layers(shape[1], shape[2], shape[5])
    x[2], x[2, 0, 3, 3], dy[2] = float("inf"), float("nan"), float("nan")
    y, dweight, *dx = results(ours, x, weight, dy)
    assert y[2].isnan().any()
    assert dweight.isnan().all()
    for n in (0, 1, 3, 4):
        y1, dweight1, *dx1 = results(ours, x[n : n + 1], weight, dy[n : n + 1])
        assert torch.equal(y[n : n + 1], y1)
        assert dweight1.isfinite().all()
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(dx, dx1, strict=True))
        assert not torch.equal(y1, y[(n + 1) % 5][None])


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (4, 0), (4, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_one_nan_reaches_its_neighbours_alone(seed, dtype, place):
    """Of x in y, and of dy in dx: the same places as torch's convolution of it, and no others."""
    shape = (1, 16, 16, 10, 10, 2)
    x, weight, dy = draw(seed, shape, dtype)
    ours, plain = layers(16, 16, 2)
    x[0, 5, 2 * place[0], 2 * place[1]] = float("nan")
    dy[0, 7, place[0], place[1]] = float("nan")
    (y, _, dx), (y2, _, dx2) = results(ours, x, weight, dy), results(plain, x.double(), weight.double(), dy.double())
    assert torch.equal(y.isnan(), y2.isnan())
    assert torch.equal(dx.isnan(), dx2.isnan())


def test_bias(seed):
    x, weight, dy = draw(seed, (3, 16, 48, 9, 8, 2))
    bias = torch.randn(48, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()
    convolution = nn.Conv2d(16, 48, 3, 2, 1)
    use_direct_(convolution)
    y = torch.func.functional_call(convolution, {"weight": weight, "bias": bias}, (x,))
    assert torch.allclose(y, functional.conv2d(x, weight, bias, 2, 1), rtol=1e-5, atol=1e-5)
    (dbias,) = torch.autograd.grad(y, (bias,), dy)
    assert torch.allclose(dbias.double(), dy.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_what_gets_no_gradient_is_not_computed(seed):
    x, weight, dy = draw(seed, (2, 16, 16, 8, 8, 2))
    ours, _ = layers(16, 16, 2)
    _, dweight, dx = results(ours, x, weight, dy)
    alone = weight.clone().requires_grad_()
    y = torch.func.functional_call(ours, {"weight": alone}, (x,))
    assert torch.equal(torch.autograd.grad(y, alone, dy)[0], dweight)
    y = torch.func.functional_call(ours, {"weight": weight}, (x.requires_grad_(),))
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], dx)
    with torch.no_grad():
        assert not torch.func.functional_call(ours, {"weight": alone}, (x,)).requires_grad


@pytest.mark.parametrize(
    "kept",
    [
        nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2), nn.Conv2d(16, 16, 3, 2, padding=1, dilation=2),
        nn.Conv2d(16, 16, 3, 2, padding=1, groups=2), nn.Conv2d(16, 16, 3, (2, 1), padding=1),
        nn.Conv2d(16, 16, 3, 2, padding=1, padding_mode="circular"), nn.Conv2d(16, 16, 1, 2),
    ],
)  # fmt: skip
def test_other_convolutions_stay(kept):
    use_direct_(kept)
    assert type(kept) is nn.Conv2d


@pytest.mark.parametrize(
    ("shape", "case"),
    [
        ((2, 8, 16, 8, 8, 2), "channels"), ((2, 16, 24, 8, 8, 2), "channels"), ((1, 16, 16, 96, 96, 2), "large"),
        ((1, 96, 96, 8, 8, 2), "many channels"),
        ((2, 16, 16, 8, 8, 2), "float64"), ((2, 3, 16, 8, 8, 1), "gradient"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_what_torch_computes(seed, shape, case):
    x, weight, _ = draw(seed, shape, torch.float64 if case == "float64" else torch.float32)
    x.requires_grad_(case == "gradient")
    assert not supported(x, weight, None, shape[5])
    ours, plain = layers(shape[1], shape[2], shape[5])
    both = [torch.func.functional_call(each, {"weight": weight}, (x,)) for each in (ours, plain)]
    assert torch.equal(*both)
    assert both[0].requires_grad == (case == "gradient")
