"""3 x 3 convolutions on a CPU against float64: forward and both gradients, in norm and element by element.

Shapes: N images, C and K channels in and out, H height, W width.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.kernels.convolution import OwnConv2d, kernel_for, use_own_convolutions_
from fastwi.kernels.cpu import library

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP"),
    pytest.mark.usefixtures("work_space_of_its_size"),
]

SHAPES = {  # N, C, K, H, W, stride
    "winograd": [
        (3, 16, 16, 32, 32, 1),
        (2, 32, 64, 16, 16, 1),  # sums of all positions at once up to 1,024 products, by rows above
        (5, 64, 64, 8, 8, 1),
        (2, 16, 48, 7, 11, 1),  # edges that tiles overhang
        (1, 48, 16, 6, 4, 1),
        (1, 16, 32, 4, 130, 1),  # more tiles in a row than a block has
        (7, 80, 144, 4, 4, 1),
        (1, 16, 16, 3, 12, 1),  # lower than a tile
    ],
    "direct": [
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
    ],
}
EVERY = [pytest.param(kernel, shape, id=f"{kernel} {shape}") for kernel, shapes in SHAPES.items() for shape in shapes]
DTYPES = [torch.float32, torch.bfloat16]
ERRORS = {"winograd": (3e-6, 3e-5), "direct": (1e-6, 1e-5)}
"""In norm, and of the largest element; in bf16 beyond the rounding of the result."""


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
    use_own_convolutions_(ours)
    assert type(ours) is OwnConv2d
    return ours, plain


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "shape"), EVERY)
def test_against_float64(seed, kernel, shape, dtype):
    """Equal to the bit with any number of threads, and for weights in any order."""
    x, weight, dy = draw(seed, shape, dtype)
    ours, plain = layers(shape[1], shape[2], shape[5])
    assert kernel_for(x, weight, None, shape[5]) == kernel
    found = results(ours, x, weight, dy)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        for order in (torch.channels_last, torch.contiguous_format):  # theirs is the first
            ordered = weight.contiguous(memory_format=order)
            assert all(map(torch.equal, results(ours, x, ordered, dy), found))
    exact = results(plain, x.double(), weight.double(), dy.double())
    for name, f, e in zip(("y", "dweight", "dx"), found, exact, strict=False):
        assert (f.shape, f.dtype) == (e.shape, dtype)
        rounded = 2**-8 * e.abs() if dtype == torch.bfloat16 else torch.zeros(())
        error = ((f.double() - e).abs() - rounded).clamp_(min=0)
        assert error.norm() <= ERRORS[kernel][0] * e.norm(), f"{name}: {error.norm() / e.norm():.1e}"
        assert error.max() <= ERRORS[kernel][1] * e.abs().max(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 16, 32, 8, 12, 1), (5, 16, 32, 8, 11, 2), (5, 3, 16, 6, 7, 1)], ids=str)
def test_images_do_not_mix_and_what_is_not_finite_stays(seed, shape, dtype):
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_winograd_hides_no_nan_and_no_infinity(seed, dtype, value):
    """They reach the pixels around them, and no other image."""
    x, weight, dy = draw(seed, (3, 16, 16, 8, 12, 1), dtype)
    x[1, 5, 3, 6] = value
    y, dweight, _ = results(layers(16, 16, 1)[0], x, weight, dy)
    assert not y[1, :, 2:5, 5:8].isfinite().any()
    assert y[[0, 2]].isfinite().all()
    assert not dweight[:, 5].isfinite().any()


@pytest.mark.parametrize("place", [(0, 0), (0, 4), (4, 0), (4, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_nan_reaches_its_neighbours_alone_in_direct_ones(seed, dtype, place):
    """Of x in y, and of dy in dx: the same places as torch's convolution of it, and no others."""
    x, weight, dy = draw(seed, (1, 16, 16, 10, 10, 2), dtype)
    ours, plain = layers(16, 16, 2)
    x[0, 5, 2 * place[0], 2 * place[1]] = float("nan")
    dy[0, 7, place[0], place[1]] = float("nan")
    (y, _, dx), (y2, _, dx2) = results(ours, x, weight, dy), results(plain, x.double(), weight.double(), dy.double())
    assert torch.equal(y.isnan(), y2.isnan())
    assert torch.equal(dx.isnan(), dx2.isnan())


@pytest.mark.parametrize("stride", [1, 2])
def test_bias(seed, stride):
    x, weight, dy = draw(seed, (3, 16, 48, 9, 8, stride))
    bias = torch.randn(48, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()
    convolution = nn.Conv2d(16, 48, 3, stride, 1)
    use_own_convolutions_(convolution)
    y = torch.func.functional_call(convolution, {"weight": weight, "bias": bias}, (x,))
    assert torch.allclose(y, functional.conv2d(x, weight, bias, stride, 1), rtol=1e-5, atol=1e-5)
    (dbias,) = torch.autograd.grad(y, (bias,), dy)
    assert torch.allclose(dbias.double(), dy.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_gets_no_gradient_is_not_computed(seed, stride):
    x, weight, dy = draw(seed, (2, 16, 16, 8, 8, stride))
    ours, _ = layers(16, 16, stride)
    _, dweight, dx = results(ours, x, weight, dy)
    alone = weight.clone().requires_grad_()
    y = torch.func.functional_call(ours, {"weight": alone}, (x,))
    assert torch.equal(torch.autograd.grad(y, alone, dy)[0], dweight)
    y = torch.func.functional_call(ours, {"weight": weight}, (x.requires_grad_(),))
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], dx)
    with torch.no_grad():
        assert not torch.func.functional_call(ours, {"weight": alone}, (x,)).requires_grad


@pytest.mark.parametrize(
    "more",
    [
        {"stride": 3, "padding": 1}, {"stride": (2, 1), "padding": 1}, {}, {"stride": 2},
        {"padding": 1, "dilation": 2}, {"padding": 1, "groups": 2}, {"stride": 2, "padding": 1, "groups": 2},
        {"padding": 1, "padding_mode": "circular"}, {"padding": 1, "kernel_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_other_convolutions_stay(more):
    kept = nn.Conv2d(16, 16, **{"kernel_size": 3} | more)
    use_own_convolutions_(kept)
    assert type(kept) is nn.Conv2d


def test_what_is_replaced():
    replaced = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=p) for p in (1, (1, 1), "same"))
    use_own_convolutions_(replaced)
    assert all(type(m) is OwnConv2d for m in replaced)
    own = OwnConv2d(16, 16, 3, 2, 1)
    use_own_convolutions_(own)
    assert own.kernel(torch.randn(1, 16, 8, 8)) == "direct"


@pytest.mark.parametrize(
    ("shape", "dtype", "kernel"),
    [
        ((2, 16, 16, 2, 2, 1), torch.float32, None),  # a tile of 4 x 4 would be three quarters empty
        ((1, 256, 272, 8, 8, 1), torch.bfloat16, None),  # which oneDNN multiplies faster in bf16
        ((1, 256, 272, 8, 8, 1), torch.float32, "winograd"),
        ((1, 256, 256, 8, 8, 1), torch.bfloat16, "winograd"),
        ((2, 8, 16, 8, 8, 1), torch.float32, None),
        ((0, 16, 16, 8, 8, 1), torch.float32, None),
        ((2, 8, 16, 8, 8, 2), torch.float32, None),
        ((2, 16, 24, 8, 8, 2), torch.float32, None),
        ((1, 16, 16, 96, 96, 2), torch.float32, None),  # large
        ((1, 96, 96, 8, 8, 2), torch.float32, None),  # many channels
        *(((2, 16, 16, 8, 8, stride), dtype, None) for stride in (1, 2) for dtype in (torch.float16, torch.float64)),
    ],
)
def test_what_the_kernels_take_and_that_torch_computes_the_rest(seed, shape, dtype, kernel):
    x, weight, _ = draw(seed, shape, dtype)
    assert kernel_for(x, weight, None, shape[5]) == kernel
    if dtype == torch.bfloat16:
        assert kernel_for(x, weight.float(), None, shape[5]) is None
        assert kernel_for(x, weight, torch.zeros(shape[1]), shape[5]) is None
    ours, plain = layers(shape[1], shape[2], shape[5])
    both = [torch.func.functional_call(each, {"weight": weight}, (x,)) for each in (ours, plain)]
    assert kernel or torch.equal(*both)


def test_other_channels_than_the_weights_have_are_torchs_to_refuse():
    """The kernels would read beyond the weights."""
    for stride in (1, 2):
        assert kernel_for(torch.zeros(2, 32, 8, 8), torch.zeros(16, 16, 3, 3), None, stride) is None


def test_a_first_layer_whose_images_need_a_gradient_is_torchs(seed):
    x, weight, _ = draw(seed, (2, 3, 16, 8, 8, 1))
    ours, plain = layers(3, 16, 1)
    assert ours.kernel(x) == "direct"
    both = [torch.func.functional_call(each, {"weight": weight}, (x.requires_grad_(),)) for each in (ours, plain)]
    assert torch.equal(*both)
    assert both[0].requires_grad
