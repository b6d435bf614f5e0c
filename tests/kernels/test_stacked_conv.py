"""Convolutions of M networks at once: the Triton kernels and the references against float64."""

import pytest
import torch
from stacked_samples import (
    DEVICE,
    EPS32,
    ExactNorm,
    activation64,
    assert_within,
    conv64,
    draw_activation,
    draw_clear,
    draw_geometry,
    draw_norm,
    draw_prologue,
    draw_weight,
    generator_of,
    rows_of,
)
from torch import Tensor

from fastwi.kernels.stacked import Norm, stacked_conv, stacked_norm_conv
from fastwi.kernels.stacked_conv import forward, input_gradient
from fastwi.kernels.stacked_conv_weight import weight_gradient
from fastwi.kernels.stacked_geometry import Geometry, chunk_rows

EPS = 0.02  # not the default
LOW = [torch.float32, torch.bfloat16]
# (channels in, channels out, window, stride): a ResNet's, odd ones, 1 x 1, and taps that a stride leaves out.
KINDS = [
    (3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 1), (5, 3, 3, 2),
    (16, 5, 3, 1), (16, 32, 1, 2), (5, 64, 1, 1), (3, 5, 2, 3),
]  # fmt: skip

# Two cases of each: every kind in both dtypes, with two of the three prologues.
CASES = [
    (kind, dtype, [None, "relu", "norm"][(place + step) % 3])
    for place, kind in enumerate(KINDS)
    for step, dtype in enumerate(LOW)
]


def gradients64(a: Tensor, weight: Tensor, dy: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    a, weight = a.double().requires_grad_(), weight.double().requires_grad_()
    dx, dw = torch.autograd.grad(conv64(a, weight, geometry), (a, weight), dy.double())
    return dx, dw


def terms64(a: Tensor, weight: Tensor, dy: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Sums of the absolute values of all terms, of dx and of dw."""
    return gradients64(a.abs(), weight.abs(), dy.abs(), geometry)


@pytest.mark.parametrize(("kind", "dtype", "before"), CASES, ids=str)
def test_forward_and_its_moments(seed, kind, dtype, before, path):
    generator = generator_of(seed)
    geometry = draw_geometry(generator, *kind)
    weight = draw_weight(generator, geometry, [torch.float32, dtype][seed % 2])
    relu = before == "relu"
    prologue = draw_prologue(generator, geometry, relu) if before else None
    x = torch.randn(geometry.x_shape, generator=generator).to(DEVICE, dtype)
    stats = None if prologue is None else prologue.stats_M4I
    y, moments = forward(x, weight, geometry, stats, relu, True)
    assert y.dtype == dtype
    a, a_error = activation64(x, prologue)
    low = weight.to(dtype)
    bound = conv64(a_error, low.abs(), geometry)
    bound += (geometry.K + 4) * EPS32 * conv64(a.abs() + a_error, low.abs(), geometry)
    assert_within(y, conv64(a, low, geometry), bound, "y")
    count, total, squares = moments.double().unbind(2)
    y64, R = y.double().reshape(geometry.M, geometry.R, geometry.CO), geometry.R
    assert (count.sum(1) == R).all()
    error = R * EPS32 * y64.abs().sum(1)
    assert_within(total.sum(1), y64.sum(1), error, "sums")
    apart = total / count - y64.mean(1, keepdim=True)
    found = (squares + count * apart.square()).sum(1)
    exact = (y64 - y64.mean(1, keepdim=True)).square().sum(1)
    # Deviations lose eps of y, and the tile's own mean R eps of its values.
    assert_within(found, exact, (R + 8) * EPS32 * exact + 4 * EPS32 * error * y64.abs().amax(1) + R * error**2)


@pytest.mark.parametrize(("kind", "dtype", "before"), CASES, ids=str)
def test_gradients(seed, kind, dtype, before, path):
    generator = generator_of(seed)
    geometry = draw_geometry(generator, *kind)
    weight, relu = draw_weight(generator, geometry, [torch.float32, dtype][seed % 2]), before == "relu"
    dy = torch.randn(geometry.y_shape, generator=generator).to(DEVICE, dtype)
    prologue = draw_prologue(generator, geometry, relu) if before else None
    if prologue is None:
        x, stats = torch.randn(geometry.x_shape, generator=generator).to(DEVICE, dtype), None
    else:
        stats = prologue.stats_M4I
        x = draw_clear(generator, geometry.x_shape, dtype, stats)
    a, a_error = activation64(x, prologue)
    da, dw = gradients64(a, weight.to(dtype), dy, geometry)
    da_terms, dw_terms = terms64(a.abs() + a_error, weight.to(dtype), dy, geometry)
    found, sums = input_gradient(dy, weight, geometry, x, stats, relu)
    assert found.dtype == dtype
    g = da
    if prologue is not None:
        mean, inverse, scale, shift = rows_of(stats)
        g = torch.where(x.double() * scale + shift > 0, da, 0) if relu else da
        xhat = (x.double() - mean) * inverse
        terms = found.double().abs() * (xhat.abs() + 4 * (x.double().abs() + mean.abs()) * inverse)
        lost = (geometry.N * geometry.H * geometry.W + 8) * EPS32
        total = sums.double().sum(1)
        assert_within(total[:, 0], found.double().sum((1, 2, 3)), lost * found.double().abs().sum((1, 2, 3)), "g")
        assert_within(total[:, 1], (found.double() * xhat).sum((1, 2, 3)), lost * terms.sum((1, 2, 3)), "g xhat")
    else:
        assert sums is None
    depth = geometry.KH * geometry.KW * geometry.CO
    assert_within(found, g, (depth + 4) * EPS32 * da_terms, "dx")

    made = weight_gradient(x, dy, geometry, stats, relu)
    assert made.dtype == torch.float32
    _, moved = terms64(a_error, weight, dy, geometry)
    assert_within(made, dw, moved + (geometry.R + 4) * EPS32 * dw_terms, "dw")


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_weight_gradient_of_several_chunks(seed, path, dtype):
    generator = generator_of(seed)
    geometry = Geometry.of((2, 5, 11, 11, 16), (2, 5, 3, 3, 16), 1, 1)
    assert chunk_rows(16, 5) < geometry.R
    x, dy = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in (geometry.x_shape, geometry.y_shape))
    zero = torch.zeros(geometry.weight_shape, device=DEVICE)
    exact, terms = gradients64(x, zero, dy, geometry)[1], terms64(x, zero, dy, geometry)[1]
    assert_within(weight_gradient(x, dy, geometry, None, False), exact, (geometry.R + 4) * EPS32 * terms)


def chain(
    x: Tensor, norm: dict[str, Tensor], weight: Tensor, stride: int, dy: Tensor, relu: bool, training: bool
) -> dict[str, Tensor]:
    """One forward and backward of `stacked_norm_conv`; the running statistics are those of `norm`, updated."""
    leaves = {"dx": x, "dweight": norm["weight"], "dbias": norm["bias"], "dw": weight}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    settings = Norm(leaves["dweight"], leaves["dbias"], norm["mean"], norm["var"], training, 0.1, EPS, relu)
    padding = weight.shape[2] // 2
    y, moments = stacked_norm_conv(leaves["dx"], settings, leaves["dw"], stride, padding, statistics=True)
    assert not moments.requires_grad
    made = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), "moments": moments} | dict(zip(leaves, made, strict=True))


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", [(16, 16, 3, 1), (16, 5, 3, 2), (5, 32, 1, 1)], ids=str)
def test_norm_conv_is_the_convolution_of_the_batch_norm(seed, path, kind, training, dtype):
    generator = generator_of(seed)
    channels_in, channels_out, window, stride = kind
    geometry = Geometry.of(
        (2, 3, 5, 7, channels_in), (2, channels_out, window, window, channels_in), stride, window // 2
    )
    norm, weight = draw_norm(generator, 2, channels_in), draw_weight(generator, geometry, torch.float32)
    x = draw_activation(generator, geometry.x_shape, dtype)
    dy = torch.randn(geometry.y_shape, generator=generator).to(DEVICE, dtype)
    relu = bool(seed % 4)
    running = None if training else (norm["mean"].clone(), norm["var"].clone())
    exact = ExactNorm.of(x, norm["weight"], norm["bias"], running, EPS)
    found = chain(x, norm, weight, stride, dy, relu, training)

    low, eps = weight.to(dtype), torch.finfo(dtype).eps
    a, a_error = exact.output, exact.output_error
    unclear = a.abs() <= a_error
    passed = (a > 0) | torch.tensor(not relu, device=DEVICE)
    a = a.relu() if relu else a
    a_error = a_error + eps * (a.abs() + a_error)
    bound = conv64(a_error, low.abs(), geometry)
    bound += (geometry.K + 4) * EPS32 * conv64(a.abs() + a_error, low.abs(), geometry)
    assert_within(found["y"], conv64(a, low, geometry), bound, "y")
    da, dw = gradients64(a, low, dy, geometry)
    da_terms, dw_terms = terms64(a.abs() + a_error, low, dy, geometry)
    assert_within(
        found["dw"], dw, terms64(a_error, low, dy, geometry)[1] + (geometry.R + 4) * EPS32 * dw_terms, "dw"
    )  # fmt: skip
    g_error = (window**2 * channels_out + 4) * EPS32 * da_terms + eps * da.abs()
    g_error = torch.where(unclear & relu, g_error + da.abs(), g_error)
    g = torch.where(passed, da, 0)
    bounds = exact.gradient_bounds(g, g_error)
    for name, value in exact.gradients(g).items():
        assert_within(found[name], value, bounds[name], name)


def test_gradients_in_float64(seed):
    """The formulas themselves, by finite differences, in training and with a ReLU away from its kink."""
    generator = generator_of(seed)
    geometry = Geometry.of((2, 2, 3, 4, 3), (2, 2, 3, 3, 3), 2, 1)
    norm = {name: value.double().cpu() for name, value in draw_norm(generator, 2, 3).items()}
    norm["bias"] = torch.where(norm["bias"] > 0, 6.0, -6.0) * (1 + norm["weight"].abs())  # |xhat| is below 5
    x = draw_activation(generator, geometry.x_shape, torch.float32).double().cpu()
    weight = torch.randn(geometry.weight_shape, generator=generator).double()

    def layers(x: Tensor, scale: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        y = stacked_norm_conv(x, Norm(scale, bias, norm["mean"], norm["var"]), weight, 2, 1)
        return stacked_conv(y.contiguous(), weight.transpose(1, 4).contiguous(), 1, 1)

    leaves = (x, norm["weight"], norm["bias"], weight)
    assert torch.autograd.gradcheck(layers, tuple(leaf.detach().clone().requires_grad_() for leaf in leaves))


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_member_is_the_same_alone_and_among_others_and_each_time(seed, path, dtype):
    generator = generator_of(seed)
    geometry = Geometry.of((3, 2, 7, 5, 5), (3, 16, 3, 3, 5), 2, 1)
    norm, weight = draw_norm(generator, 3, 5), draw_weight(generator, geometry, dtype)
    x = draw_activation(generator, geometry.x_shape, dtype)
    dy = torch.randn(geometry.y_shape, generator=generator).to(DEVICE, dtype)

    def run(first: int, last: int) -> dict[str, Tensor]:
        own = {name: value[first:last].clone() for name, value in norm.items()}
        part = slice(first, last)
        return own | chain(x[part], own, weight[part], 2, dy[part], True, True)

    together, again = run(0, 3), run(0, 3)
    for member in range(3):
        alone = run(member, member + 1)
        for name, value in together.items():
            assert torch.equal(value, again[name]), name
            assert torch.equal(value[member], alone[name][0]), name
    assert not torch.equal(together["y"][0], together["y"][1])


def test_a_diverged_member_leaves_the_others_alone(seed, path):
    generator = generator_of(seed)
    x = torch.randn(2, 2, 4, 4, 16, generator=generator).to(DEVICE)
    weight = torch.randn(2, 3, 3, 3, 16, generator=generator).to(DEVICE)
    x[0, 1, 2, 2, 5] = float("nan")
    y = stacked_conv(x, weight, 1, 1)
    assert y[0, 1, 2, 2].isnan().all()
    assert y[0, 0].isfinite().all()
    assert y[1].isfinite().all()


def test_activations_of_any_strides(seed, path):
    generator = generator_of(seed)
    x = torch.randn(2, 3, 6, 5, 16, generator=generator).to(DEVICE)
    weight = torch.randn(2, 5, 3, 3, 16, generator=generator).to(DEVICE)
    elsewhere = x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    other = weight.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    assert torch.equal(stacked_conv(elsewhere, other, 1, 1), stacked_conv(x, weight, 1, 1))


def test_bad_shapes_are_refused():
    x, weight = torch.randn(2, 1, 4, 4, 3), torch.randn(2, 5, 3, 3, 3)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4, 3\).*\(3, 5, 3, 3, 3\)"):
        stacked_conv(x, torch.randn(3, 5, 3, 3, 3), 1, 1)
    with pytest.raises(ValueError, match="stride is 0"):
        stacked_conv(x, weight, 0, 1)
    with pytest.raises(ValueError, match="3 x 3 kernel does not fit into 2 x 2"):
        stacked_conv(x[:, :, :2, :2], weight, 1, 0)
    with pytest.raises(ValueError, match=r"2\^31"):
        Geometry.of((1, 2**20, 32, 32, 16), (1, 16, 3, 3, 16), 1, 1)
