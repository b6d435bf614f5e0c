"""Fused batch norm against nn.BatchNorm2d in float64: outputs, gradients, running statistics.

Shapes: N images, C channels, H height, W width.
"""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from fastwi.kernels.batch_norm import FusedBatchNorm2d, supported
from fastwi.kernels.cpu import library

pytestmark = [
    pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP"),
    pytest.mark.usefixtures("work_space_of_its_size"),
]

DTYPES = [torch.float32, torch.bfloat16]
NEAR = {torch.float32: 3e-6, torch.bfloat16: 6e-3}  # of a tensor's norm, and of the output's gradient
Tensors = dict[str, Tensor]


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


def run(
    norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool, users: int, dy: list[Tensor]
) -> Tensors:
    """A step of the fused module, or in float64 of the plain one: y, gradients and running statistics."""
    plain = x.dtype == torch.float64
    module = copy.deepcopy(norm).double() if plain else FusedBatchNorm2d(copy.deepcopy(norm), relu)
    leaves = {"dx": x.detach().requires_grad_(), "dweight": module.weight, "dbias": module.bias}
    if residual is not None:
        leaves["dresidual"] = residual.detach().requires_grad_()
    if plain:
        y = module(leaves["dx"])
        y = y if residual is None else y + leaves["dresidual"]
        outputs = (y.relu() if relu else y,) * users
    else:
        module.users = users
        found = module(leaves["dx"], leaves.get("dresidual"))
        outputs = found if users == 2 else (found,)
        assert users == 1 or torch.equal(*outputs)
        assert module.num_batches_tracked == norm.num_batches_tracked + 1
    gradients = torch.autograd.grad(outputs, list(leaves.values()), dy[:users])
    made = {"y": outputs[0].detach(), "mean": module.running_mean, "var": module.running_var}
    return made | dict(zip(leaves, gradients, strict=True))


def check(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool, users: int, dy: list[Tensor]) -> None:
    """Hold a step to float64. In bf16 too sums are in float32 and float64."""
    found = run(norm, x, residual, relu, users, dy)
    wide = None if residual is None else residual.double()
    exact = run(norm, x.double(), wide, relu, users, [each.double() for each in dy])
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        near = NEAR[x.dtype if name in ("y", "dx", "dresidual") else torch.float32]
        near = near if supported(x, residual) else 20 * NEAR[torch.float32]  # torch's own kernel
        error, allowed = (found[name].double() - value).norm(), near * (value.norm() + dy[0].double().norm())
        assert error <= allowed, f"{name}: {error:.1e}, {allowed:.1e} are allowed"


FORMS = list(itertools.product([16, 32, 64, 128], [False, True], [False, True], [1, 2], DTYPES))


@pytest.mark.parametrize(("channels", "with_residual", "relu", "users", "dtype"), FORMS)
def test_training_step(seed, channels, with_residual, relu, users, dtype):
    norm, (x, residual, *dy) = make_norm(seed, channels), draw(seed, (6, channels, 8, 10), dtype)
    residual = residual if with_residual else None
    assert supported(x, residual)
    check(norm, x, residual, relu, users, dy)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 2, 2), (3, 64, 1, 1), (5, 8, 16, 1), (33, 64, 16, 16), (2, 192, 3, 3),
        (3, 16, 3, 3), (6, 20, 8, 10),  # torch's own kernel
    ],
)  # fmt: skip
def test_odd_shapes(seed, shape):
    """Fewer rows than chunks, more rows than a float32 span, several blocks of channels, part of a lane row."""
    x, residual, *dy = draw(seed, shape, torch.float32)
    check(make_norm(seed, shape[1]), x, residual, True, 1, dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [16, 128])
def test_results_do_not_depend_on_threads_and_memory_order(seed, channels, dtype):
    norm, (x, *rest) = make_norm(seed, channels), draw(seed, (9, channels, 16, 16), dtype)
    x, residual, *dy = x.contiguous(), *(each.contiguous() for each in rest)
    results = [run(norm, x, residual, True, 2, dy)]
    for threads in (2, 3):
        torch.set_num_threads(threads)
        results.append(run(norm, *draw(seed, (9, channels, 16, 16), dtype)[:2], True, 2, rest[1:]))
    for name, value in results[0].items():
        assert all(torch.equal(other[name], value) for other in results[1:]), name


@pytest.mark.parametrize("channels", [16, 20])
def test_cumulative_statistics(seed, channels):
    """momentum=None: the plain mean over batches, as nn.BatchNorm2d defines it."""
    norm = nn.BatchNorm2d(channels, momentum=None)
    fused, plain = FusedBatchNorm2d(copy.deepcopy(norm), relu=True), copy.deepcopy(norm).double()
    for batch in range(4):
        x = draw(seed + 10 * batch, (4, channels, 8, 8), torch.float32)[0]
        fused(x)
        plain(x.double())
    assert fused.num_batches_tracked == 4
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(fused, name).double(), getattr(plain, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("channels", [16, 64, 128, 20])
def test_evaluation(seed, channels, relu, grad):
    norm = make_norm(seed, channels).eval()
    x, residual, *_ = draw(seed, (5, channels, 8, 8), torch.float32)
    for added in (None, residual):
        fused = FusedBatchNorm2d(copy.deepcopy(norm), relu).eval()
        expected = copy.deepcopy(norm).double()(x.double()) + (0 if added is None else added.double())
        with torch.set_grad_enabled(grad):
            found = fused(x, added)
        assert found.requires_grad == grad
        torch.testing.assert_close(found.double(), expected.relu() if relu else expected, rtol=1e-5, atol=1e-5)
        for name, value in norm.named_buffers():
            assert torch.equal(getattr(fused, name), value)
        fused.users = 2
        assert torch.equal(*fused(x, added))


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
    x = torch.zeros(4, 16, 4, 4, dtype=torch.bfloat16)
    assert [supported(x, residual) for residual in (x, x.float(), x[:1], 1)] == [True, False, False, False]


def test_low_precision_parameters_fall_back(seed):
    """The kernels read float32 parameters: a network that was cast whole must not reach them."""
    norm = make_norm(seed, 16)
    x = draw(seed, (4, 16, 8, 8), torch.bfloat16)[0]
    expected = copy.deepcopy(norm).bfloat16()(x)
    fused = FusedBatchNorm2d(copy.deepcopy(norm), relu=False).bfloat16()
    torch.testing.assert_close(fused(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_other_channels_than_the_norm_has_are_refused_as_torch_refuses_them(training):
    """The kernels would read and write beyond its statistics."""
    with pytest.raises(RuntimeError, match="running_mean"), torch.no_grad():
        FusedBatchNorm2d(nn.BatchNorm2d(16), relu=True).train(training)(torch.zeros(4, 32, 2, 2))


def test_one_value_a_channel_is_refused_as_torch_refuses_it():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedBatchNorm2d(nn.BatchNorm2d(64), relu=True)(torch.zeros(1, 64, 1, 1))
