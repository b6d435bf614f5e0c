"""Fused batch norm against nn.BatchNorm2d in float64: outputs, gradients, running statistics.

Each element has its own bound: its share of rounding, told of the terms that it is a sum of. A bound in parts of a
tensor's largest value would not do: how far the terms cancel is chance.

Shapes: N images, C channels, H height, W width, R = N * H * W values a channel.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastwi.kernels.batch_norm import FusedBatchNorm2d, supported
from fastwi.kernels.cpu import library

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")

UNIT = torch.finfo(torch.float32).eps / 2  # of one float32 operation, in parts of its result
STORING = {torch.float32: 0.0, torch.bfloat16: torch.finfo(torch.bfloat16).eps / 2 * 1.001}  # of keeping a value

Tensors = dict[str, Tensor]


def rounding_of(x: Tensor) -> float:
    """What rounding may do to a result, in parts of the sum of its terms' magnitudes.

    A dozen operations a value, and sums: the kernel's are of few float32 numbers each, whose errors average out.
    torch's own kernel adds all R in turn, and then an error of either sign grows as the root of R: by about
    0.25 sqrt(R) as a deviation, of which twelve are allowed.
    """
    R = x.numel() // x.shape[1]
    return UNIT * (16 if supported(x) else 3 * R**0.5)


def make_norm(seed: int, channels: int) -> nn.BatchNorm2d:
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels, eps=0.01)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=generator) * 2 - 0.5)
        norm.bias.copy_(torch.randn(channels, generator=generator) * 0.3)
        norm.running_mean.copy_(torch.randn(channels, generator=generator))
        norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype, count: int = 4) -> list[Tensor]:
    """x with a mean and deviation of its own for each channel, a residual, and two gradients.

    x is standardised first: of 3 values a channel the deviation is now and then almost 0 by chance, and then rounding
    of x alone changes the gradient by any amount.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    made = [torch.randn(shape, generator=generator) for _ in range(count)]
    made[0] = (made[0] - made[0].mean((0, 2, 3), True)) / made[0].std((0, 2, 3), correction=0, keepdim=True)
    scale_C = torch.rand(shape[1], generator=generator)[:, None, None] * 3 + 0.2
    made[0] = made[0] * scale_C + torch.randn(shape[1], generator=generator)[:, None, None]
    return [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in made]


def exact(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool, gradient: Tensor, found_y: Tensor
) -> tuple[Tensors, Tensors]:
    """The results in float64, and how far from each float32 arithmetic over activations of x's dtype may be.

    The mask of the ReLU is that of `found_y`: where y is 0 but for rounding, either answer is right.
    """
    norm, u, stored = copy.deepcopy(norm).double(), rounding_of(x), STORING[x.dtype]
    before_C = norm.running_mean.clone(), norm.running_var.clone()
    x = x.double().requires_grad_()
    leaves = {"dx": x, "dweight": norm.weight, "dbias": norm.bias}
    y = norm(x)
    if residual is not None:
        leaves["dresidual"] = residual.double().requires_grad_()
        y = y + leaves["dresidual"]
    passed = found_y > 0 if relu else torch.ones_like(y, dtype=torch.bool)
    gradients = torch.autograd.grad(y, list(leaves.values()), gradient.double() * passed)
    results = {"y": y.relu() if relu else y, "mean": norm.running_mean, "var": norm.running_var}
    results |= dict(zip(leaves, gradients, strict=True))
    results = {name: value.detach() for name, value in results.items()}
    allowed = bounds(norm, before_C, x.detach(), residual, gradient.double() * passed, results, u, stored)
    turned = passed != (y > 0)
    assert not relu or (y.detach().abs() <= allowed["y"])[turned].all()
    return results, allowed


def bounds(
    norm: nn.BatchNorm2d,
    before_C: tuple[Tensor, Tensor],
    x: Tensor,
    residual: Tensor | None,
    g: Tensor,
    results: Tensors,
    u: float,
    stored: float,
) -> Tensors:
    """How far each result may be from float64's, by the equations of fastwi/kernels/batch_norm.py.

    The variance is a difference, E[x^2] - E[x]^2: its relative error grows by `lost`, and that of 1 / sqrt(var) with
    it. x - mean is a difference too, so both of its parts count. What is stored, gradients on the way too, is rounded
    by `stored` of it.
    """
    dims, R = (0, 2, 3), x.numel() // x.shape[1]
    weight, bias = (p.detach().abs()[:, None, None] for p in (norm.weight, norm.bias))
    mean, var = x.mean(dims, True), x.var(dims, correction=0, keepdim=True)
    inv, square = (var + norm.eps).rsqrt(), (x * x).mean(dims, True)
    lost = 1 + square * inv * inv
    apart = (x.abs() + mean.abs()) * inv  # the terms of (x - mean) / sqrt(var)
    of_bias = u * g.abs().sum(dims, True)
    dweight, dbias = (results[name].abs()[:, None, None] for name in ("dweight", "dbias"))
    of_weight = u * ((g.abs() * apart).sum(dims, True) + lost * dweight)
    xhat = (x - mean).abs() * inv
    terms = g.abs() + dbias / R + apart * dweight / R
    of_dx = u * (terms + lost * (g.abs() + dbias / R + xhat * dweight / R)) + (of_bias + xhat * of_weight) / R
    factor = norm.momentum
    added = 0 if residual is None else residual.double().abs()
    return {
        "y": u * (weight * (apart + lost * xhat) + bias + added) + stored * results["y"].abs(),
        "mean": u * (before_C[0].abs() + factor * x.abs().mean(dims)),
        "var": u * (before_C[1] + factor * square.flatten() * R / (R - 1)),
        "dx": weight * inv * (of_dx + stored * g.abs()) + stored * results["dx"].abs(),
        "dweight": of_weight.flatten(),
        "dbias": of_bias.flatten(),
        "dresidual": (u + stored) * g.abs(),
    }


def by_kernel(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool, users: int, gradients: list[Tensor]
) -> Tensors:
    fused = FusedBatchNorm2d(copy.deepcopy(norm), relu)
    fused.users = users
    leaves = {"dx": x.detach().requires_grad_(), "dweight": fused.weight, "dbias": fused.bias}
    if residual is not None:
        leaves["dresidual"] = residual.detach().requires_grad_()
    found = fused(leaves["dx"], leaves.get("dresidual"))
    outputs = found if users == 2 else (found,)
    assert len(outputs) == users
    if users == 2:
        assert torch.equal(*outputs)
    grads = torch.autograd.grad(outputs, list(leaves.values()), gradients[:users])
    assert fused.num_batches_tracked == norm.num_batches_tracked + 1
    return {"y": outputs[0].detach(), "mean": fused.running_mean, "var": fused.running_var} | dict(
        zip(leaves, grads, strict=True)
    )


def assert_near(found: Tensors, expected: Tensors, allowed: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        share = ((found[name].double() - value).abs() / (allowed[name] + 1e-30)).max()  # 1e-30: where both are 0
        assert share <= 1, f"{name}: {share:.2e} of what rounding can do"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("channels", [16, 32, 64, 128, 20])
def test_training_step(seed, channels, with_residual, relu, users, dtype):
    """In bf16 too: sums are in float32 and float64 whatever the activations are."""
    if dtype == torch.bfloat16 and channels == 20:
        pytest.skip("torch's own kernel, at torch's own precision")
    norm = make_norm(seed, channels)
    x, residual, *gradients = draw(seed, (6, channels, 8, 10), dtype)
    residual = residual if with_residual else None
    assert supported(x, residual) == (channels != 20)
    found = by_kernel(norm, x, residual, relu, users, gradients)
    total = sum(g.double() for g in gradients[:users])
    assert_near(found, *exact(norm, x, residual, relu, total, found["y"]))


@pytest.mark.parametrize("shape", [(1, 16, 2, 2), (3, 64, 1, 1), (5, 8, 16, 1), (33, 64, 16, 16), (2, 192, 3, 3)])
def test_odd_shapes(seed, shape):
    """Fewer rows than chunks, more rows than a float32 span, several blocks of channels."""
    norm = make_norm(seed, shape[1])
    x, residual, *gradients = draw(seed, shape, torch.float32)
    assert supported(x, residual)
    found = by_kernel(norm, x, residual, True, 1, gradients)
    assert_near(found, *exact(norm, x, residual, True, gradients[0], found["y"]))


def test_ordinary_memory_order(seed):
    norm = make_norm(seed, 32)
    x, residual, *gradients = draw(seed, (4, 32, 6, 6), torch.float32)
    last = by_kernel(norm, x, residual, True, 2, gradients)
    first = by_kernel(norm, x.contiguous(), residual.contiguous(), True, 2, [g.contiguous() for g in gradients])
    for name, value in last.items():
        assert torch.equal(first[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [16, 128])
def test_result_does_not_depend_on_threads(seed, channels, dtype):
    norm = make_norm(seed, channels)
    x, residual, *gradients = draw(seed, (9, channels, 16, 16), dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(by_kernel(norm, x, residual, True, 2, gradients))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize("channels", [16, 20])
def test_cumulative_statistics(seed, channels):
    """momentum=None: the plain mean over batches, as nn.BatchNorm2d defines it."""
    norm = nn.BatchNorm2d(channels, momentum=None)
    fused, plain = FusedBatchNorm2d(copy.deepcopy(norm), relu=True), copy.deepcopy(norm).double()
    batches = [draw(seed + 10 * batch, (4, channels, 8, 8), torch.float32)[0] for batch in range(4)]
    for x in batches:
        fused(x)
        plain(x.double())
    assert fused.num_batches_tracked == 4
    every = torch.cat(batches).double()
    allowed = {
        "mean": every.abs().mean((0, 2, 3)),
        "var": 1 + (every * every).mean((0, 2, 3)),
    }
    assert_near(
        {"mean": fused.running_mean, "var": fused.running_var},
        {"mean": plain.running_mean, "var": plain.running_var},
        {name: rounding_of(batches[0]) * value for name, value in allowed.items()},
    )


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("channels", [16, 64, 128, 20])
def test_evaluation(seed, channels, relu, grad):
    norm = make_norm(seed, channels).eval()
    x, residual, *_ = draw(seed, (5, channels, 8, 8), torch.float32)
    for one_residual in (None, residual):
        fused = FusedBatchNorm2d(copy.deepcopy(norm), relu).eval()
        plain = copy.deepcopy(norm).double()
        expected = plain(x.double())
        expected = expected if one_residual is None else expected + one_residual.double()
        expected = expected.relu() if relu else expected
        # The terms of y = weight * (x - mean) / sqrt(var + eps) + bias + residual.
        scale, mean, bias = (p.abs()[:, None, None] for p in (plain.weight, plain.running_mean, plain.bias))
        scale = scale * (plain.running_var + plain.eps).rsqrt()[:, None, None]
        terms = scale * (x.double().abs() + mean) + bias + (0 if one_residual is None else one_residual.abs())
        with torch.set_grad_enabled(grad):
            found = fused(x, one_residual)
        assert found.requires_grad == grad
        assert_near({"y": found.detach()}, {"y": expected.detach()}, {"y": 16 * UNIT * terms.detach()})
        assert torch.equal(fused.running_mean, norm.running_mean)
        assert torch.equal(fused.running_var, norm.running_var)
        assert fused.num_batches_tracked == 0
        fused.users = 2
        both = fused(x, one_residual)
        assert torch.equal(*both)


def test_a_variance_is_never_negative(seed):
    """E[x^2] - E[x]^2 of equal values is below 0 by rounding in some channels."""
    value_C = 1000 * torch.rand(64, generator=torch.Generator().manual_seed(seed))
    x = value_C[:, None, None].expand(33, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    fused = FusedBatchNorm2d(nn.BatchNorm2d(64, eps=1e-9, momentum=1.0), relu=False)
    assert fused(x).isfinite().all()
    assert (fused.running_var >= 0).all()


def test_bf16_is_rounded_to_the_nearest_and_ties_to_even(seed):
    norm = nn.BatchNorm2d(16, eps=0).eval()
    x, residual = draw(seed, (4, 16, 16, 16), torch.bfloat16, 2)
    exact = x.float() + residual.float()
    assert (exact.view(torch.int32) & 0xFFFF == 0x8000).sum() > 10  # ties
    with torch.no_grad():
        assert torch.equal(FusedBatchNorm2d(norm, False).eval()(x, residual), exact.bfloat16())


def test_not_a_number_is_not_hidden():
    x = torch.ones(4, 16, 2, 2).contiguous(memory_format=torch.channels_last)
    x[0, 3] = torch.nan
    fused = FusedBatchNorm2d(nn.BatchNorm2d(16), relu=True)
    y = fused(x)
    assert y[:, 3].isnan().all()
    assert fused.running_mean[3].isnan()
    assert fused.running_var[3].isnan()
    assert y[:, :3].isfinite().all()


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float64, 16), (torch.float16, 16), (torch.float32, 48)])
def test_what_the_kernels_do_not_take(dtype, channels):
    assert not supported(torch.zeros(4, channels, 4, 4, dtype=dtype))


def test_low_precision_parameters_fall_back(seed):
    """The kernels read float32 parameters: a network that was cast whole must not reach them."""
    norm = make_norm(seed, 16)
    x = draw(seed, (4, 16, 8, 8), torch.bfloat16)[0]
    expected = copy.deepcopy(norm).bfloat16()(x)
    fused = FusedBatchNorm2d(copy.deepcopy(norm), relu=False).bfloat16()
    torch.testing.assert_close(fused(x), expected)


def test_one_value_a_channel_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedBatchNorm2d(nn.BatchNorm2d(64), relu=True)(torch.zeros(1, 64, 1, 1))
