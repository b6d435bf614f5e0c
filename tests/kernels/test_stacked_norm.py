"""Batch norm of M networks at once: the Triton kernels and the references against float64."""

import pytest
import torch
from stacked_samples import (
    ALL,
    DEVICE,
    EPS32,
    ExactNorm,
    assert_within,
    draw_activation,
    draw_norm,
    generator_of,
)
from torch import Tensor, nn

from fastwi.kernels.stacked import Norm, stacked_batch_norm, stacked_conv
from fastwi.kernels.stacked_norm import apply

EPS = 0.02  # not the default
LOW = [torch.float32, torch.bfloat16]
# A ResNet's channels and odd ones, several blocks of channels, several tiles of rows, as few rows as there can be.
SHAPES = [
    (2, 5, 9, 7, 16), (1, 3, 5, 5, 64), (3, 1, 7, 9, 3), (2, 2, 3, 1, 5), (1, 2, 4, 4, 80), (2, 3, 16, 16, 32),
    (3, 2, 1, 1, 16),
]  # fmt: skip


def run(
    x: Tensor,
    residual: Tensor | None,
    norm: dict[str, Tensor],
    gradients: list[Tensor],
    training: bool,
    relu: bool,
    factor: float | Tensor = 0.1,
    moments: Tensor | None = None,
) -> dict[str, Tensor]:
    """Forward and backward, with one user of z a gradient; updates `norm`'s running statistics."""
    leaves = {"dx": x, "dweight": norm["weight"], "dbias": norm["bias"]}
    if residual is not None:
        leaves["dresidual"] = residual
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    own = Norm(leaves["dweight"], leaves["dbias"], norm["mean"], norm["var"], training, factor, EPS, relu)
    z = stacked_batch_norm(leaves["dx"], leaves.get("dresidual"), own, moments, len(gradients))
    handles = z if len(gradients) == 2 else (z,)
    assert len(handles) == len(gradients)
    assert len(gradients) == 1 or torch.equal(*handles)
    made = torch.autograd.grad(handles, list(leaves.values()), gradients)
    return {"z": handles[0].detach()} | dict(zip(leaves, made, strict=True))


def check(
    found: dict[str, Tensor], exact: ExactNorm, residual: Tensor | None, gradients: list[Tensor], relu: bool
) -> None:
    """z and all gradients against float64."""
    eps = torch.finfo(found["z"].dtype).eps
    before, error = exact.output, exact.output_error
    if residual is not None:
        before = before + residual.double()
        error = error + 2 * EPS32 * (before.abs() + residual.double().abs())
    assert_within(found["z"], before.relu() if relu else before, error, "z")
    dz = sum(gradient.double() for gradient in gradients)
    g = torch.where(before > 0, dz, 0) if relu else dz
    g_error = (eps + EPS32) * dz.abs()
    g_error = torch.where((before.abs() <= error) & relu, g_error + dz.abs(), g_error)
    bounds, wanted = exact.gradient_bounds(g, g_error), exact.gradients(g)
    if residual is not None:
        bounds["dresidual"], wanted["dresidual"] = g_error, g
    for name, value in wanted.items():
        assert_within(found[name], value, bounds[name], name)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_form(seed, path, training, with_residual, relu, users, dtype):
    generator = generator_of(seed)
    shape = SHAPES[seed % 4]
    norm, x = draw_norm(generator, shape[0], shape[-1]), draw_activation(generator, shape, dtype)
    residual, *gradients = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(1 + users))
    residual = residual if with_residual else None
    running = None if training else (norm["mean"].clone(), norm["var"].clone())
    exact = ExactNorm.of(x, norm["weight"], norm["bias"], running, EPS)
    check(run(x, residual, norm, gradients, training, relu), exact, residual, gradients, relu)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(seed, path, shape, dtype):
    generator = generator_of(seed)
    norm, x = draw_norm(generator, shape[0], shape[-1]), draw_activation(generator, shape, dtype)
    residual, gradient = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
    exact = ExactNorm.of(x, norm["weight"], norm["bias"], None, EPS)
    check(run(x, residual, norm, [gradient], True, True), exact, residual, [gradient], True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_statistics_are_torchs(seed, path, shape):
    """Against nn.BatchNorm2d in float64, member by member, over two steps; what lies between is left alone."""
    generator = generator_of(seed)
    norm = draw_norm(generator, shape[0], shape[-1])
    statistics_MQ, before = norm["mean"]._base, norm["mean"]._base.clone()
    own = []
    for member in range(shape[0]):
        own.append(nn.BatchNorm2d(shape[-1], EPS).double())
        own[-1].running_mean.copy_(norm["mean"][member])
        own[-1].running_var.copy_(norm["var"][member])
    size = 0.0
    for _ in range(2):
        x = draw_activation(generator, shape, torch.float32)
        size = max(size, float(x.abs().max()))
        run(x, None, norm, [torch.ones_like(x)], True, False)
        for member, module in enumerate(own):
            module(x[member].double().cpu().permute(0, 3, 1, 2))
    lost = torch.as_tensor((x[0, ..., 0].numel() + 8) * EPS32)
    for name, key in (("mean", "running_mean"), ("var", "running_var")):
        exact = torch.stack([getattr(module, key) for module in own])
        bound = lost * (exact.abs() + (size if name == "mean" else size**2 + 1))
        assert_within(norm[name].cpu(), exact, bound, name)
        assert not torch.equal(norm[name].cpu(), before[:, : shape[-1]].cpu())
    C = shape[-1]
    for outside in (slice(C, C + 2), slice(2 + 2 * C, None)):
        assert torch.equal(statistics_MQ[:, outside], before[:, outside])


def test_a_factor_for_each_member(seed, path):
    generator = generator_of(seed)
    norm, x = draw_norm(generator, 3, 5), draw_activation(generator, (3, 2, 4, 3, 5), torch.float32)
    factor_M = torch.rand(3, generator=generator).to(DEVICE)
    each = {name: value.clone() for name, value in norm.items()}
    run(x, None, each, [x], True, True, factor_M)
    for member in range(3):
        own = {name: value[member : member + 1].clone() for name, value in norm.items()}
        run(x[member : member + 1], None, own, [x[member : member + 1]], True, True, float(factor_M[member]))
        for name in ("mean", "var"):
            torch.testing.assert_close(each[name][member], own[name][0], rtol=1e-6, atol=1e-7)


def test_evaluation_leaves_the_running_statistics_alone(seed, path):
    generator = generator_of(seed)
    norm, x = draw_norm(generator, 2, 16), draw_activation(generator, (2, 1, 1, 1, 16), torch.bfloat16)
    x = torch.randn(x.shape, generator=generator).to(DEVICE)  # one value a channel is enough here
    before = {name: value.clone() for name, value in norm.items()}
    run(x, None, norm, [torch.ones_like(x)], False, True)
    assert all(torch.equal(norm[name], value) for name, value in before.items())


def test_a_channel_far_from_zero_keeps_its_variance(seed, path):
    """A mean of 1,000 deviations: sums of squares in float32 would leave nothing of the variance."""
    generator = generator_of(seed)
    norm, shape = draw_norm(generator, 1, 16), (1, 4, 16, 16, 16)
    x = (torch.randn(shape, generator=generator) + 1000).to(DEVICE)
    norm["mean"].zero_()
    run(x, None, norm, [x], True, False, 1.0)
    exact = x.double().var(ALL)
    assert ((norm["var"].double() - exact).abs() <= 1e-3 * exact).all()
    torch.testing.assert_close(norm["mean"].double(), x.double().mean(ALL), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_moments_of_the_convolution_serve_as_xs_own(seed, path, dtype):
    generator = generator_of(seed)
    images = torch.randn(2, 4, 9, 8, 3, generator=generator).to(DEVICE, dtype)
    weight = torch.randn(2, 16, 3, 3, 3, generator=generator).to(DEVICE)
    x, moments = stacked_conv(images, weight, 1, 1, statistics=True)
    norm, gradient = draw_norm(generator, 2, 16), torch.randn(x.shape, generator=generator).to(DEVICE, dtype)
    other = {name: value.clone() for name, value in norm.items()}
    exact = ExactNorm.of(x, norm["weight"], norm["bias"], None, EPS)
    check(run(x, None, norm, [gradient], True, True, 0.1, moments), exact, None, [gradient], True)
    run(x, None, other, [gradient], True, True)
    for name in ("mean", "var"):
        torch.testing.assert_close(norm[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_member_is_the_same_alone_and_among_others_and_each_time(seed, path, dtype):
    generator, shape = generator_of(seed), (3, 3, 7, 13, 16)
    norm, x = draw_norm(generator, 3, 16), draw_activation(generator, shape, dtype)
    residual, gradient = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))

    def some(first: int, last: int) -> dict[str, Tensor]:
        own = {name: value[first:last].clone() for name, value in norm.items()}
        part = slice(first, last)
        return own | run(x[part], residual[part], own, [gradient[part]], True, True)

    together, again = some(0, 3), some(0, 3)
    for member in range(3):
        alone = some(member, member + 1)
        for name, value in together.items():
            assert torch.equal(value, again[name]), name
            assert torch.equal(value[member], alone[name][0]), name


def test_a_diverged_member_leaves_the_others_alone(seed, path):
    generator = generator_of(seed)
    norm, x = draw_norm(generator, 2, 5), draw_activation(generator, (2, 2, 3, 4, 5), torch.float32)
    x[0, 1, 2, 0, 3] = float("nan")
    found = run(x, None, norm, [torch.ones_like(x)], True, True)
    assert found["z"][0, ..., 3].isnan().all()
    assert found["z"][0, ..., :3].isfinite().all()
    for name in ("z", "dx", "dweight", "dbias"):
        assert found[name][1].isfinite().all()
    assert norm["var"][0, 3].isnan()
    assert norm["var"][1].isfinite().all()


def test_formulas_in_float64(seed):
    """By finite differences, away from the ReLU's kink; the two handles' gradients are summed."""
    generator = generator_of(seed)
    norm = {name: value.double().cpu() for name, value in draw_norm(generator, 2, 3).items()}
    norm["bias"] = torch.where(norm["bias"] > 0, 6.0, -6.0) * (1 + norm["weight"].abs())  # |xhat| is below 5
    x = draw_activation(generator, (2, 2, 3, 4, 3), torch.float32).double().cpu()
    residual = torch.rand(x.shape, generator=generator).double()

    def layer(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        z, z2 = stacked_batch_norm(x, residual, Norm(weight, bias, norm["mean"], norm["var"]), users=2)
        return z.sin() + 2 * z2

    leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, residual, norm["weight"], norm["bias"])]
    assert torch.autograd.gradcheck(layer, leaves)


@pytest.mark.parametrize(
    ("shape", "residual", "changed", "message"),
    [
        ((2, 1, 1, 1, 4), None, {}, "2 values a channel"),
        ((2, 1, 1, 1, 5), None, {}, r"\(2, 1, 1, 1, 5\).*\(2, 4\)"),
        ((2, 1, 1, 1, 4), torch.zeros(1, 1, 1, 1, 4), {}, "residual"),
        ((2, 1, 1, 1, 4), None, {"running_var_MC": torch.ones(4, 2).T}, "dense channels"),
        ((2, 1, 1, 1, 4), None, {"bias_MC": torch.ones(2, 3)}, "one shape"),
    ],
)
def test_bad_inputs_are_refused(shape, residual, changed, message):
    names = ("weight_MC", "bias_MC", "running_mean_MC", "running_var_MC")
    with pytest.raises(ValueError, match=message):
        stacked_batch_norm(torch.randn(shape), residual, Norm(**{name: torch.ones(2, 4) for name in names} | changed))


def test_bf16_is_rounded_to_the_nearest_and_ties_to_even(seed, path):
    generator = generator_of(seed)
    x, residual = (torch.randn(1, 2, 16, 16, 16, generator=generator).to(DEVICE, torch.bfloat16) for _ in range(2))
    exact, stats_M4C = x.float() + residual.float(), torch.zeros(1, 4, 16, device=DEVICE)
    stats_M4C[:, 1:3] = 1
    assert (exact.view(torch.int32) & 0xFFFF == 0x8000).sum() > 10  # ties
    assert torch.equal(apply(x, residual, stats_M4C, False), exact.bfloat16())


def test_parameters_in_16_bits(seed, path):
    generator, shape = generator_of(seed), (2, 3, 4, 5, 16)
    norm, x = draw_norm(generator, 2, 16), draw_activation(generator, shape, torch.bfloat16)
    gradient = torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16)
    low = {name: norm[name].bfloat16() for name in ("weight", "bias")}
    wide = {name: value.float() for name, value in low.items()}
    found = run(x, None, norm | low, [gradient], False, True)
    expected = run(x, None, norm | wide, [gradient], False, True)
    assert found["dweight"].dtype == torch.bfloat16
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name
