"""Convolutions and batch norms of M networks at once, by torch and by the Triton kernels, against float64.

Shapes: M members, N images, H W height and width, C channels (I in, O out). Weights are [M, O, KH, KW, I].
"""

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastwi.kernels import gpu
from fastwi.kernels import stacked_conv as stacked_conv_kernels
from fastwi.kernels.shortcut import shortcut_reference
from fastwi.kernels.stacked import Norm, Place, stacked_batch_norm, stacked_conv, stacked_shortcut
from fastwi.kernels.stacked_geometry import Geometry, stores_activation
from fastwi.kernels.stacked_norm import apply, moments, sum_tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}  # of a tensor's norm, and of dy's
EPS = 0.02  # not the default
# (channels in, channels out, window, stride): a ResNet's, odd ones, 1 x 1, and taps that a stride leaves out.
KINDS = [
    (3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 1), (5, 3, 3, 2),
    (16, 5, 3, 1), (16, 5, 3, 2), (16, 32, 1, 2), (5, 64, 1, 1), (3, 5, 2, 3),
]  # fmt: skip
# A ResNet's channels and odd ones, several blocks of channels, several tiles of rows, few rows.
SHAPES = [
    (2, 5, 9, 7, 16), (1, 3, 5, 5, 64), (3, 1, 7, 9, 3), (2, 2, 3, 1, 5), (1, 2, 4, 4, 80), (2, 3, 16, 16, 32),
    (3, 2, 1, 1, 16),
]  # fmt: skip
Tensors = dict[str, Tensor]


class Draw:
    """Random inputs. Parameters and statistics are views of rows that hold other things too, as a population's."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(DEVICE, dtype)

    def weight(self, M: int, O: int, window: int, I: int, dtype: torch.dtype = torch.float32) -> Tensor:  # noqa: E741
        numel = O * window * window * I
        rows_MP = self.tensor(M, 8 + -(-numel // 4) * 4 + 12, dtype=dtype)
        return rows_MP[:, 8 : 8 + numel].view(M, O, window, window, I)

    def norm(self, M: int, C: int) -> Tensors:
        """Weight, bias and running statistics [M, C]."""
        matrix_MP, statistics_MQ = self.tensor(M, 2 * C + 5), self.tensor(M, 2 * C + 5)
        statistics_MQ[:, 2 + C : 2 + 2 * C].abs_().add_(0.3)
        return {
            "weight": matrix_MP[:, 1 : 1 + C], "bias": matrix_MP[:, 3 + C : 3 + 2 * C],
            "mean": statistics_MQ[:, :C], "var": statistics_MQ[:, 2 + C : 2 + 2 * C],
        }  # fmt: skip

    def activation(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """x with a mean and deviation of its own for each channel and member."""
        x = self.tensor(*shape)
        x = (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), correction=0, keepdim=True).clamp(min=0.1)
        spread, centre = self.tensor(shape[0], 1, 1, 1, shape[-1]), self.tensor(shape[0], 1, 1, 1, shape[-1])
        return (x * (spread.abs() + 0.2) + centre).to(dtype)


def conv64(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Each member's convolution by torch."""
    padding = weight.shape[2] // 2
    made = [
        functional.conv2d(a.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), None, stride, padding)
        for a, w in zip(x, weight, strict=True)
    ]
    return torch.stack(made).permute(0, 1, 3, 4, 2)


def norm64(x: Tensor, norm: Tensors, training: bool, relu: bool, residual: Tensor | None = None) -> Tensor:
    """Each member's batch norm by torch, which updates the running statistics of `norm`; residual and ReLU."""
    rows = zip(x, norm["mean"], norm["var"], norm["weight"], norm["bias"], strict=True)
    made = [
        functional.batch_norm(a.permute(0, 3, 1, 2), mean, var, weight, bias, training, 0.1, EPS)
        for a, mean, var, weight, bias in rows
    ]
    z = torch.stack(made).permute(0, 1, 3, 4, 2)
    z = z if residual is None else z + residual
    return z.relu() if relu else z


def results(run: Callable[[Tensors], Tensor], leaves: Mapping[str, Tensor], dy: Tensor) -> Tensors:
    """The output of `run` on `leaves`, and their gradients by name."""
    own = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    y = run(own)
    made = torch.autograd.grad(y, list(own.values()), dy)
    return {"y": y.detach()} | {f"d{name}": gradient for name, gradient in zip(own, made, strict=True)}


def assert_near(found: Tensors, exact: Tensors, dtype: torch.dtype, dy: Tensor) -> None:
    """Each member's part of each tensor."""
    for name, values in exact.items():
        assert found[name].shape == values.shape, name
        for m, value in enumerate(values):
            error = (found[name][m].double() - value).norm()
            allowed = NEAR[dtype] * (value.norm() + dy[m].double().norm())
            assert error <= allowed, f"{name} of member {m}: {error:.1e}, {allowed:.1e} are allowed"


def doubles(tensors: Tensors) -> Tensors:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("dtype", "low_weights"), [(torch.float32, False), *itertools.product(DTYPES[1:], (False, True))], ids=str
)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_convolution(seed, path, kind, dtype, low_weights):
    """At 16 channels in and 5 out each gradient has several programs: their first images are not the first of all."""
    draw, (I, O, window, stride) = Draw(seed), kind  # noqa: E741
    sizes = [5, 11, 10] if O == 5 else torch.randint(1, 10, (3,), generator=draw.generator).tolist()
    shape = (2, *sizes, I)
    weight = draw.weight(2, O, window, I, dtype if low_weights else torch.float32)
    x, y_shape = draw.tensor(*shape, dtype=dtype), Geometry(shape, weight.shape, stride, window // 2).y_shape
    dy, leaves = draw.tensor(*y_shape, dtype=dtype), {"x": x, "w": weight}
    found = results(lambda own: stacked_conv(own["x"], own["w"], stride, window // 2)[0], leaves, dy)
    assert {name: tensor.dtype for name, tensor in found.items()} == {"y": dtype, "dx": dtype, "dw": weight.dtype}
    exact = {"x": x.double(), "w": weight.to(dtype).double()}
    assert_near(found, results(lambda own: conv64(own["x"], own["w"], stride), exact, dy.double()), dtype, dy)
    rounded = stacked_conv(x, weight.to(dtype), stride, window // 2)[0]  # weights are rounded first
    assert torch.equal(found["y"], rounded)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", [(16, 16, 3, 1), (16, 5, 3, 2), (5, 32, 1, 1), (64, 64, 3, 1)], ids=str)
def test_norm_conv_is_the_convolution_of_the_batch_norm(seed, path, kind, training, relu, dtype):
    draw, (I, O, window, stride) = Draw(seed), kind  # noqa: E741
    shape = (2, 3, 5, 7, I)
    norm, weight = draw.norm(2, I), draw.weight(2, O, window, I)
    y_shape = Geometry(shape, weight.shape, stride, window // 2).y_shape
    x, dy, other = draw.activation(shape, dtype), draw.tensor(*y_shape, dtype=dtype), doubles(norm)
    made: list[Tensor] = []

    def run(own: Tensors) -> Tensor:
        settings = Norm(own["weight"], own["bias"], norm["mean"], norm["var"], training, 0.1, EPS, relu)
        y, moments = stacked_conv(own["x"], own["w"], stride, window // 2, settings, statistics=True)
        assert not moments.requires_grad
        made.append(moments)
        return y

    leaves = {"x": x, "w": weight, "weight": norm["weight"], "bias": norm["bias"]}
    found = results(run, leaves, dy)
    exact = doubles(leaves) | {"w": weight.to(dtype).double()}
    expected = results(
        lambda own: conv64(norm64(own["x"], other | own, training, relu), own["w"], stride), exact, dy.double()
    )
    assert_near(found, expected, dtype, dy)
    assert_near(norm, {name: other[name] for name in ("mean", "var")}, torch.float32, x)
    count, total, squares = made[0].double().unbind(2)
    y = found["y"].double().flatten(1, 3)
    mean = total.sum(1) / count.sum(1)
    squares = (squares + count * (total / count - mean[:, None]).square()).sum(1)
    variance = {"mean": y.mean(1), "squares": (y - y.mean(1, keepdim=True)).square().sum(1)}
    assert (count.sum(1) == y.shape[1]).all()
    assert_near({"mean": mean, "squares": squares}, variance, torch.float32, y)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("kind", [(16, 16, 3, 1), (32, 5, 3, 2), (5, 32, 1, 1)], ids=str)
def test_a_stored_activation_is_the_one_that_the_convolution_would_make(seed, path, kind, dtype, monkeypatch):
    draw, (I, O, window, stride) = Draw(seed), kind  # noqa: E741
    norm, weight, x = draw.norm(2, I), draw.weight(2, O, window, I), draw.activation((2, 3, 5, 7, I), dtype)
    geometry = Geometry(x.shape, weight.shape, stride, window // 2)
    assert stores_activation(geometry) == (window > 1)
    dy, made = draw.tensor(*geometry.y_shape, dtype=dtype), {}
    leaves = {"x": x, "w": weight, "weight": norm["weight"], "bias": norm["bias"]}
    for way in ("fused", "stored"):
        monkeypatch.setenv("FASTWI_PROLOGUE", way)
        assert stores_activation(geometry) == (way == "stored")
        running = [norm[name].clone() for name in ("mean", "var")]

        def run(own: Tensors, running=running) -> Tensor:
            settings = Norm(own["weight"], own["bias"], *running, True, 0.1, EPS, True)
            return stacked_conv(own["x"], own["w"], stride, window // 2, settings)[0]

        made[way] = results(run, leaves, dy) | dict(zip(("mean", "var"), running, strict=True))
    for name, value in made["fused"].items():
        other = made["stored"][name]
        assert torch.equal(value, other) or (DEVICE.type == "cuda" and torch.allclose(value, other, 1e-2)), name


def norm_results(
    x: Tensor,
    residual: Tensor | None,
    norm: Tensors,
    dz: list[Tensor],
    training: bool,
    relu: bool,
    factor: float | Tensor = 0.1,
    moments: Tensor | None = None,
) -> Tensors:
    """`results` of a stacked batch norm with a user of z for each of `dz`; updates `norm`'s running statistics."""

    def run(own: Tensors) -> Tensor:
        settings = Norm(own["weight"], own["bias"], norm["mean"], norm["var"], training, factor, EPS, relu)
        z = stacked_batch_norm(own["x"], own.get("residual"), settings, moments, len(dz))
        if len(dz) == 1:
            return z
        assert torch.equal(*z)
        return torch.stack(z)

    leaves = {"x": x, "weight": norm["weight"], "bias": norm["bias"]}
    leaves |= {} if residual is None else {"residual": residual}
    made = results(run, leaves, torch.stack(dz) if len(dz) == 2 else dz[0])
    return made | {"y": made["y"][0]} if len(dz) == 2 else made


FORMS = list(itertools.product((True, False), (True, False), (True, False), (1, 2)))


@pytest.mark.parametrize(
    ("shape", "form", "dtype"),
    [(shape, FORMS[0], dtype) for shape in SHAPES for dtype in DTYPES]
    + [(SHAPES[0], form, dtype) for form in FORMS[1:] for dtype in DTYPES[:2]],
    ids=str,
)
def test_batch_norm(seed, path, shape, form, dtype):
    """Running statistics too; what lies between them is left alone."""
    draw, (training, with_residual, relu, users) = Draw(seed), form
    norm, x = draw.norm(shape[0], shape[-1]), draw.activation(shape, dtype)
    everything, other = norm["mean"]._base.clone(), doubles(norm)
    residual, *dz = (draw.tensor(*shape, dtype=dtype) for _ in range(1 + users))
    leaves = {"x": x, "weight": norm["weight"], "bias": norm["bias"]} | (
        {"residual": residual} if with_residual else {}
    )
    found = norm_results(x, residual if with_residual else None, norm, dz, training, relu)
    expected = results(
        lambda own: norm64(own["x"], other | own, training, relu, own.get("residual")), doubles(leaves),
        sum(each.double() for each in dz),
    )  # fmt: skip
    assert_near(found, expected, dtype, dz[0])
    assert_near(norm, {name: other[name] for name in ("mean", "var")}, torch.float32, x)
    assert torch.equal(norm["mean"], everything[:, : shape[-1]]) != training
    for outside in (slice(shape[-1], shape[-1] + 2), slice(2 + 2 * shape[-1], None)):
        assert torch.equal(norm["mean"]._base[:, outside], everything[:, outside])


def test_float32_products_are_exact():
    assert [stacked_conv_kernels._precision(dtype) for dtype in DTYPES] == ["ieee", "tf32", "tf32"]


def test_a_factor_for_each_member(seed, path):
    draw = Draw(seed)
    norm, x, factor_M = draw.norm(3, 5), draw.activation((3, 2, 4, 3, 5), torch.float32), draw.tensor(3).abs()
    each = {name: value.clone() for name, value in norm.items()}
    norm_results(x, None, each, [x], True, True, factor_M)
    for m in range(3):
        own = {name: value[m : m + 1].clone() for name, value in norm.items()}
        norm_results(x[m : m + 1], None, own, [x[m : m + 1]], True, True, float(factor_M[m]))
        for name in ("mean", "var"):
            torch.testing.assert_close(each[name][m], own[name][0], rtol=1e-6, atol=1e-6)


def test_a_channel_far_from_zero_keeps_its_variance(seed, path):
    """A mean of 1,000 deviations: sums of squares in float32 would leave nothing of it. And it is never negative."""
    draw = Draw(seed)
    norm, x = draw.norm(1, 16), draw.tensor(1, 4, 16, 16, 16) + 1000
    norm_results(x, None, norm, [x], True, False, 1.0)
    torch.testing.assert_close(norm["var"].double(), x.double().var((1, 2, 3)), rtol=1e-3, atol=0)
    torch.testing.assert_close(norm["mean"].double(), x.double().mean((1, 2, 3)), rtol=1e-6, atol=0)
    constant = x[:, :1, :1, :1].expand(x.shape) / 3
    norm_results(constant, None, norm, [x], True, False, 1.0)
    assert (norm["var"] >= 0).all()
    assert (norm["var"] < 1e-4).all()


def test_sums_and_moments_of_more_tiles_than_a_program_adds_at_a_time(seed, path):
    """130 tiles; here a tile of moments is an image."""
    draw = Draw(seed)
    if path == "triton":
        partial = draw.tensor(2, 130, 3, 5)
        torch.testing.assert_close(sum_tiles(partial).double(), partial.double().sum(1), rtol=1e-6, atol=1e-6)
    x, norm = draw.activation((2, 130, 2, 3, 5), torch.float32) + draw.tensor(1, 130, 1, 1, 1), draw.norm(2, 5)
    means, rows = x.double().mean((2, 3)), x.double().flatten(1, 3)
    squares = (x - means[:, :, None, None]).square().sum((2, 3))
    moments = torch.stack([torch.full_like(means, 6), 6 * means, squares], 2).float()
    other = doubles(norm)
    norm64(x.double(), other, True, False)
    stats = Norm(norm["weight"], norm["bias"], norm["mean"], norm["var"], True, 0.1, EPS).settle(x, moments)
    inverse = (rows.var(1, correction=0) + EPS).rsqrt()
    scale = other["weight"] * inverse
    expected = torch.stack([rows.mean(1), inverse, scale, other["bias"] - rows.mean(1) * scale], 1)
    torch.testing.assert_close(stats.double(), expected, rtol=1e-4, atol=1e-5)
    for name in ("mean", "var"):
        torch.testing.assert_close(norm[name].double(), other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_moments_of_the_convolution_serve_as_xs_own(seed, path, dtype):
    draw = Draw(seed)
    x, moments = stacked_conv(
        draw.tensor(2, 4, 9, 8, 3, dtype=dtype), draw.weight(2, 16, 3, 3), 1, 1, statistics=True
    )  # fmt: skip
    norm, dz = draw.norm(2, 16), draw.tensor(*x.shape, dtype=dtype)
    other = {name: value.clone() for name, value in norm.items()}
    found = norm_results(x, None, norm, [dz], True, True, 0.1, moments)
    assert_near(found, doubles(norm_results(x, None, other, [dz], True, True)), dtype, dz)
    assert_near(norm, doubles(other), torch.float32, dz)


def some(seed: int, dtype: torch.dtype, first: int, last: int) -> Tensors:
    """All results of two chained layers, of members first ... last - 1 of three."""
    draw, part = Draw(seed), slice(first, last)
    norm, weight = draw.norm(3, 16), draw.weight(3, 16, 3, 16, dtype)
    x, residual, dz = (draw.activation((3, 3, 7, 13, 16), dtype)[part] for _ in range(3))
    own = {name: value[part].clone() for name, value in norm.items()}
    made = norm_results(x, residual, own, [dz], True, True)
    settings = Norm(own["weight"], own["bias"], own["mean"], own["var"], True, 0.1, EPS)
    leaves = {"made": made["y"], "w": weight[part]}
    chained = results(lambda o: stacked_conv(o["made"], o["w"], 1, 1, settings)[0], leaves, dz)
    return own | made | {f"chained {name}": value for name, value in chained.items()}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_member_is_the_same_alone_and_among_others_and_each_time(seed, path, dtype):
    together, again = some(seed, dtype, 0, 3), some(seed, dtype, 0, 3)
    for member in range(3):
        alone = some(seed, dtype, member, member + 1)
        for name, value in together.items():
            assert torch.equal(value, again[name]), name
            assert torch.equal(value[member], alone[name][0]), name
    assert not torch.equal(together["y"][0], together["y"][1])


def test_sums_of_many_values_are_the_same_alone_and_among_others(seed):
    """Where they are of torch, more than it adds up on one thread."""
    torch.set_num_threads(2)
    x = Draw(seed).tensor(4, 4, 128, 128, 1)
    for m, own in enumerate(moments(x)):
        assert torch.equal(own, moments(x[m : m + 1])[0])


def test_a_diverged_member_leaves_the_others_alone(seed, path):
    draw = Draw(seed)
    norm, x = draw.norm(2, 16), draw.activation((2, 2, 4, 4, 16), torch.float32)
    x[0, 1, 2, 2, 5] = float("nan")
    y = stacked_conv(x, draw.weight(2, 3, 3, 16), 1, 1)[0]
    assert y[0, 1, 2, 2].isnan().all()
    assert y[0, 0].isfinite().all()
    assert y[1].isfinite().all()
    found = norm_results(x, None, norm, [torch.ones_like(x)], True, True)
    assert found["y"][0, ..., 5].isnan().all()
    assert found["y"][0, ..., :5].isfinite().all()
    assert all(value[1].isfinite().all() for value in found.values())
    assert norm["var"][0, 5].isnan()
    assert norm["var"][1].isfinite().all()
    settled = Norm(
        norm["weight"], norm["bias"], norm["mean"].nan_to_num(), norm["var"].nan_to_num(1.0), False, 0.1, EPS, True
    )
    y = stacked_conv(x, draw.weight(2, 3, 3, 16), 1, 1, settled)[0]  # the prologue's ReLU keeps NaN
    assert y[0, 1, 2, 2].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 9, 7, 16), (3, 1, 7, 9, 3)])
def test_gradients_written_to_rows_are_those_that_are_returned(seed, path, shape, dtype):
    """Bit for bit: a chain's, of its convolution and of both its batch norms; nothing beside them is written."""
    M, C = shape[0], shape[-1]

    def gradients(placed: bool) -> Tensors:
        draw, written = Draw(seed), set[str]()
        weight, norms = draw.weight(M, C, 3, C, dtype), [draw.norm(M, C), draw.norm(M, C)]
        sizes = {"w": (M, C, 3, 3, C)} | {f"{name} {i}": (M, C) for i in (0, 1) for name in ("weight", "bias")}
        rows_MP, places, at = torch.full((M, 9 * C * C + 4 * C + 9), 7.0, device=DEVICE), {}, 4
        for name, size in sizes.items():
            columns = math.prod(size[1:])
            places[name] = Place(name, rows_MP[:, at : at + columns].view(size), written)
            at += columns + (name == "weight 1")  # the last is one on: the two of a norm are anywhere
        leaves = {"w": weight.requires_grad_()}
        settings = []
        for i, each in enumerate(norms):
            leaves |= {f"{name} {i}": each[name].requires_grad_() for name in ("weight", "bias")}
            both = (places[f"weight {i}"], places[f"bias {i}"]) if placed else None
            settings.append(
                Norm(each["weight"], each["bias"], each["mean"], each["var"], True, 0.1, EPS, True, gradients=both)
            )
        x = draw.activation(shape, dtype)
        y, moments = stacked_conv(
            x, leaves["w"], 1, 1, settings[0], None, True, places["w"] if placed else None
        )  # fmt: skip
        z = stacked_batch_norm(y, x, settings[1], moments)
        made = torch.autograd.grad(z, list(leaves.values()), draw.tensor(*shape, dtype=dtype), allow_unused=placed)
        if not placed:
            return {name: gradient.float() for name, gradient in zip(leaves, made, strict=True)}
        assert made == (None,) * 5
        assert written == set(leaves)
        found = {name: place.rows.clone() for name, place in places.items()}
        for place in places.values():
            place.rows.fill_(7.0)
        assert (rows_MP == 7).all()
        with pytest.raises(RuntimeError, match="parameter 'w' has a second gradient"):
            places["w"].take()
        return found

    returned, found = gradients(False), gradients(True)
    for name, gradient in returned.items():
        assert torch.equal(found[name], gradient), name
        assert not torch.equal(gradient[0], gradient[-1]), name


def test_the_shortcut_is_each_members_own(seed):
    draw = Draw(seed)
    for shape, stride, before, after in [((2, 3, 8, 8, 4), 2, 2, 3), ((1, 2, 5, 7, 3), 3, 0, 1)]:
        x, members = draw.tensor(*shape).requires_grad_(), []
        y = stacked_shortcut(x, stride, before, after)
        for x_NHWC in x:
            made = shortcut_reference(x_NHWC.permute(0, 3, 1, 2), stride, before, after)
            members.append(made.permute(0, 2, 3, 1))
        expected, dy = torch.stack(members), draw.tensor(*y.shape)
        assert torch.equal(y, expected)
        assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(expected, x, dy)[0])


def test_activations_and_weights_of_any_strides(seed, path):
    draw = Draw(seed)
    x, weight = draw.tensor(2, 3, 6, 5, 16), draw.tensor(2, 5, 3, 3, 16)
    elsewhere = x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    other = weight.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1)
    assert torch.equal(stacked_conv(elsewhere, other, 1, 1)[0], stacked_conv(x, weight, 1, 1)[0])


def test_parameters_in_16_bits(seed, path):
    draw, shape = Draw(seed), (2, 3, 4, 5, 16)
    norm, x, dz = draw.norm(2, 16), draw.activation(shape, torch.bfloat16), draw.tensor(*shape, dtype=torch.bfloat16)
    low = {name: norm[name].bfloat16() for name in ("weight", "bias")}
    found = norm_results(x, None, norm | low, [dz], False, True)
    wide = {name: value.float() for name, value in low.items()}
    assert found["dweight"].dtype == torch.bfloat16
    for name, value in norm_results(x, None, norm | wide, [dz], False, True).items():
        assert torch.equal(found[name], value.to(found[name].dtype)), name


def test_bf16_is_rounded_to_the_nearest_and_ties_to_even(seed, path):
    draw = Draw(seed)
    x, residual = (draw.tensor(1, 2, 16, 16, 16, dtype=torch.bfloat16) for _ in range(2))
    exact, stats_M4C = x.float() + residual.float(), torch.zeros(1, 4, 16, device=DEVICE)
    stats_M4C[:, 1:3] = 1
    assert (exact.view(torch.int32) & 0xFFFF == 0x8000).sum() > 10  # ties
    assert torch.equal(apply(x, residual, stats_M4C, False), exact.bfloat16())


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")
def test_the_last_program_of_more_than_2_to_the_31_values(seed, tmp_path, monkeypatch):
    """It gives what it gives on the last image alone. Before it are zeros, which a file need not store."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder, new_empty, grids = interpreter.interpreter_builder, Tensor.new_empty, []
    N, draw = 2**15 + 1, Draw(seed)

    def sparse(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        file = tmp_path / str(len(list(tmp_path.iterdir())))
        return torch.from_file(str(file), True, math.prod(shape), dtype=dtype).view(shape)

    def made(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None, **more: object) -> Tensor:
        return sparse(*shape, dtype=dtype or x.dtype) if shape else new_empty(x, shape, dtype=dtype, **more)

    def launch_last(kernel: object, grid: tuple[int, int, int], *rest: object) -> None:
        grids.append(grid)
        launch(kernel, (1, 1, 1), *rest)

    launch = stacked_conv_kernels._launch
    monkeypatch.setattr(stacked_conv_kernels, "_launch", launch_last)
    monkeypatch.setattr(gpu, "has_triton", lambda device: True)
    monkeypatch.setattr(Tensor, "new_empty", made)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)  # would copy all of them
    monkeypatch.setattr(type(builder), "set_grid_dim", lambda self, *_: setattr(self, "grid_dim", grids[-1]))
    monkeypatch.setattr(
        type(builder), "set_grid_idx", lambda self, *_: setattr(self, "grid_idx", tuple(n - 1 for n in grids[-1]))
    )
    x, dy, weight = sparse(1, N, 32, 32, 64), sparse(1, N, 32, 32, 64), draw.weight(1, 64, 3, 64)
    for tensor in (x, dy):
        tensor[0, -1] = draw.tensor(32, 32, 64)
    own = {"x": x[:, -1:].double(), "w": weight.bfloat16().double()}
    exact = results(lambda leaves: conv64(leaves["x"], leaves["w"], 1), own, dy[:, -1:].double())
    geometry = Geometry(x.shape, weight.shape, 1, 1)
    y, _ = stacked_conv_kernels.forward(x, weight, geometry, None, False, False)
    dx, _ = stacked_conv_kernels.input_gradient(dy, weight, geometry, None, None, False)
    dw = stacked_conv_kernels.weight_gradient(x, dy, geometry, None, False)
    found = {"y": y[:, -1:, -8:], "dx": dx[:, -1:, -8:], "dw": dw[:, -1, :, 2:, 2:]}
    wanted = {"y": exact["y"][:, :, -8:], "dx": exact["dx"][:, :, -8:], "dw": exact["dw"][:, :, 2:, 2:]}
    assert_near(found, wanted, torch.bfloat16, dy[:, -1:])


NAMES = ("weight_MC", "bias_MC", "running_mean_MC", "running_var_MC")


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
def test_bad_norms_are_refused(shape, residual, changed, message):
    with pytest.raises(ValueError, match=message):
        stacked_batch_norm(torch.randn(shape), residual, Norm(**{name: torch.ones(2, 4) for name in NAMES} | changed))


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "message"),
    [
        ((2, 1, 4, 4, 3), (3, 5, 3, 3, 3), 1, 1, r"\(2, 1, 4, 4, 3\).*\(3, 5, 3, 3, 3\)"),
        ((2, 1, 4, 4, 3), (2, 5, 3, 3, 3), 0, 1, "stride is 0"),
        ((2, 1, 2, 2, 3), (2, 5, 3, 3, 3), 1, 0, "3 x 3 kernel does not fit into 2 x 2"),
        ((1, 2**21, 32, 32, 16), (1, 16, 3, 3, 16), 1, 1, r"2\^31"),
        ((1, 2, 2**10, 2**10, 2**10), (1, 16, 3, 3, 2**10), 1, 1, r"2\^31"),
    ],
)
def test_bad_shapes_are_refused(x_shape, weight_shape, stride, padding, message):
    with pytest.raises(ValueError, match=message):
        Geometry(x_shape, weight_shape, stride, padding)
