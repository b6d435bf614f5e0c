"""Curvature against the full Hessian of small networks in float64 (torch.func), closed forms, and plain loops."""

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastwi.analysis import Evaluator, curvature, dataset_from_arrays
from fastwi.analysis.curvature import curvature_cost, gradient_noise, lanczos, measure_curvature, step_noise
from fastwi.config.schema import AugmentConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.kernels.augment import augment
from fastwi.models.registry import build_model
from fastwi.population import Population

CLASSES = 3


class Small(nn.Module):
    """Convolution, batch norm and a smooth activation, a linear layer: 50 parameters, in a row with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, CLASSES)

    def forward(self, x):
        return self.linear(torch.tanh(self.bn(self.conv(x))).mean((2, 3)))


class Attentive(nn.Module):
    """A transformer layer: the fast kernels of attention have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Linear(2, 4), nn.Linear(4, CLASSES)
        self.layer = nn.TransformerEncoderLayer(4, 2, 4, activation="gelu", batch_first=True)

    def forward(self, x):
        return self.linear(self.layer(self.embed(x.flatten(2).transpose(1, 2))).mean(1))


def images(seed, count=60) -> ResidentDataset:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, 5, 6, 2), dtype=np.uint8)
    labels = draw.integers(0, CLASSES, count) * draw.integers(0, 2, count)  # mostly 0: the gradient is not all noise
    return dataset_from_arrays(pixels, labels, [0.4, 0.5], [0.2, 0.3], "cpu")


def networks(seed, members=2, kind=Small) -> Population:
    torch.manual_seed(seed)
    population = Population.from_modules([kind() for _ in range(members)])
    population.statistics_MQ.uniform_(0.5, 1.5)
    return population


def plain(population, m, kind=Small) -> nn.Module:
    module = kind()
    population.write_to(m, module)
    return module.double().eval()


def inputs(dataset, order):
    x = augment(dataset.images_NHWC, order, None, None, dataset.table_C256, 0)
    return x.double(), dataset.labels_N[order]


def losses(module, x, y):
    """Of a flat vector of parameters, in float64."""
    shapes = [(name, p.shape) for name, p in module.named_parameters()]

    def of(flat):
        parts = flat.split([shape.numel() for _, shape in shapes])
        state = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(module, state, (x,)), y)

    return of, torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def order_of(dataset, count):
    draws = Noise(0, statistics=True).draws(0, len(dataset), 0, 0.0)
    return torch.from_numpy(draws.order_N[:count])


@pytest.mark.parametrize("kind", [Small, Attentive])
def test_against_the_full_hessian_in_float64(kind, seed, monkeypatch):
    monkeypatch.setattr(curvature, "_TOGETHER", 15)  # parts of 15, 15 and 10 images
    dataset, population = images(seed), networks(seed, kind=kind)
    done = []
    found = measure_curvature(
        Evaluator(kind(), PLAIN), population, dataset, images=41, vectors=50, probes=60, radius=0.1,
        report=done.append,
    )  # fmt: skip
    for m, each in enumerate(found):
        x, y = inputs(dataset, order_of(dataset, 40))  # 20 batches of 2
        of, w = losses(plain(population, m, kind), x, y)
        with sdpa_kernel(SDPBackend.MATH):
            hessian = torch.func.jacrev(torch.func.grad(of))(w).numpy()
        eigenvalues = np.linalg.eigvalsh(hessian)
        largest = eigenvalues[-1]
        assert each.images == 40
        assert each.loss_nats == pytest.approx(float(of(w)), rel=1e-5)
        assert each.largest_eigenvalue == pytest.approx(largest, rel=1e-4)
        assert each.smallest_eigenvalue == pytest.approx(eigenvalues[0], abs=1e-4 * largest)
        assert max(each.largest_eigenvalue_error, each.smallest_eigenvalue_error) < 1e-3 * largest
        # Rademacher: the variance of z H z is twice the sum of squares off the diagonal.
        spread = np.sqrt(2 * ((hessian**2).sum() - (hessian.diagonal() ** 2).sum()) / 60)
        assert each.trace_error == pytest.approx(spread, rel=0.5)
        assert abs(each.trace - hessian.trace()) < 4 * spread
        gradient = torch.func.grad(of)(w)
        assert each.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)
        rise = float(of(w + 0.1 * gradient / gradient.norm()) - of(w))
        assert each.sharpness_nats == pytest.approx(rise, rel=1e-3)
        assert each.sharpness_error > 0
        batches = [losses(plain(population, m, kind), x[i : i + 2], y[i : i + 2])[0] for i in range(0, 40, 2)]
        error = np.std([float(batch(w)) for batch in batches], ddof=1) / np.sqrt(20)
        assert each.loss_error == pytest.approx(error, rel=1e-3)
        rows = torch.stack([torch.func.grad(batch)(w) for batch in batches]).numpy()
        noise = 2 * rows.var(axis=0, ddof=1).sum()
        norm2 = float(gradient.norm()) ** 2 - noise / 40
        scale = noise / norm2 if norm2 > 0 else np.nan
        assert each.noise_scale_images == pytest.approx(scale, rel=1e-2, nan_ok=True)
    assert found[0].largest_eigenvalue != pytest.approx(found[1].largest_eigenvalue, rel=1e-4)
    assert sum(done) == pytest.approx(
        2 * curvature_cost(40, 50, 60), rel=0.1
    )  # Lanczos ends where the space is exhausted


@pytest.mark.parametrize("name", ["resnet20", "resnet20_gn"])
def test_products_of_built_in_networks_are_differences_of_gradients(name, seed, monkeypatch):
    """v H v against differences of float64's gradients. Smooth: at the kinks of ReLU there is no Hessian."""
    monkeypatch.setattr(functional, "relu", functional.softplus)
    monkeypatch.setattr(nn, "ReLU", nn.Softplus)
    torch.manual_seed(seed)
    network = build_model(name, CLASSES, 0.125)
    draw = np.random.default_rng(seed)
    dataset = dataset_from_arrays(
        draw.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8), draw.integers(0, CLASSES, 24),
        [0.4] * 3, [0.2] * 3, "cpu",
    )  # fmt: skip
    population = Population.from_modules([network])
    (found,) = measure_curvature(Evaluator(network, PLAIN), population, dataset, vectors=1, probes=1)
    x, y = inputs(dataset, order_of(dataset, 24))
    module = build_model(name, CLASSES, 0.125)
    population.write_to(0, module)
    of, w = losses(module.double().eval(), x, y)
    for number, value in ((0, found.largest_eigenvalue * len(w)), (1, found.trace)):
        row = curvature._signs(population.layout, number)
        v = torch.cat([span.view(row).reshape(-1) for span in population.layout.parameters]).double()
        beyond, before = (torch.autograd.functional.jacobian(of, w + step * v) for step in (1e-6, -1e-6))
        assert value == pytest.approx(float((beyond - before) @ v / 2e-6), rel=1e-3, abs=1e-3)


def test_lanczos_finds_the_ends_of_a_spectrum_and_bounds_its_errors(seed):
    draw = np.random.default_rng(seed)
    values = np.concatenate([draw.normal(size=195), [-30, 40, 41, 100, 300]])
    rotation = np.linalg.qr(draw.normal(size=(200, 200)))[0]
    matrix = torch.from_numpy(rotation @ np.diag(values) @ rotation.T)
    start = torch.from_numpy(draw.normal(size=200))
    for vectors in (4, 12, 40):
        found, residuals = lanczos(lambda v: matrix @ v, start, vectors)
        assert len(found) == len(residuals) == vectors
        assert (np.diff(found) < 0).all()
        for value, residual in zip(found, residuals, strict=True):
            assert np.abs(values - value).min() <= residual + 1e-9
    np.testing.assert_allclose(found[:4], [300, 100, 41, 40], rtol=1e-9)
    assert found[-1] == pytest.approx(-30, rel=1e-9)
    # Without orthogonalisation again there would be copies of the largest.
    found, residuals = lanczos(lambda v: matrix @ v, start, 200)
    np.testing.assert_allclose(found, np.sort(values)[::-1], atol=1e-9)
    # An operator of two eigenvalues is known after two vectors.
    found, residuals = lanczos(lambda v: v * torch.tensor([2.0, 2.0, 5.0]), torch.ones(3), 3)
    assert (found.tolist(), residuals.tolist()) == (pytest.approx([5, 2]), [0, 0])


def test_noise_scale_against_gradients_of_single_images(seed):
    """Batches of one image: the covariance is that of the images themselves. And a plain jackknife."""
    gradients = np.random.default_rng(seed).normal(size=(30, 70_000)) * 0.3 + 1.0
    norm, scale, noise = gradient_noise(torch.from_numpy(gradients), 1)

    def plainly(rows, size=1):
        trace = size * rows.var(axis=0, ddof=1).sum()
        mean2 = (rows.mean(axis=0) ** 2).sum()
        return np.sqrt(mean2), trace / (mean2 - trace / size / len(rows)), trace

    assert [value for value, _ in (norm, scale, noise)] == pytest.approx(plainly(gradients))
    without = np.array([plainly(np.delete(gradients, b, axis=0)) for b in range(30)])
    expected = np.sqrt(29 / 30 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    assert [error for _, error in (norm, scale, noise)] == pytest.approx(expected, rel=1e-6)
    # The mean of gradients of 5 images has a fifth of the variance, and the scale stays.
    batches = gradients.reshape(6, 5, -1).mean(axis=1)
    of_batches = gradient_noise(torch.from_numpy(batches), 5)
    assert [value for value, _ in of_batches] == pytest.approx(plainly(batches, 5))
    assert of_batches[2][0] == pytest.approx(noise[0], rel=0.05)
    # Nothing but noise: the square of the gradient's norm has no estimate above 0, or a huge scale.
    alike = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert np.isnan(gradient_noise(alike, 1)[1][0])


def test_step_noise_is_the_variance_of_training_s_own_gradients(seed):
    dataset, population = images(seed), networks(seed)
    evaluator = Evaluator(Small(), PLAIN, batch_size=8, augment=AugmentConfig(padding=2, flip=0.5))
    before = population.statistics_MQ.clone()
    found = step_noise(evaluator, population, dataset, epoch=3)
    draws = Noise(0, statistics=True).draws(3, len(dataset), 2, 0.5)
    order, offset = (torch.from_numpy(each.astype(np.int64)) for each in (draws.order_N, draws.offset_N2))
    flip = torch.from_numpy(draws.flip_N)
    for m in range(2):
        module = plain(population, m).train()
        rows = []
        for first in range(0, 56, 8):
            part = slice(first, first + 8)
            table = dataset.table_C256
            x = augment(dataset.images_NHWC, order[part], offset[part], flip[part], table, 2).double()
            of, w = losses(module, x, dataset.labels_N[order[part]])
            rows.append(torch.autograd.functional.jacobian(of, w).numpy())
        assert found[m] == pytest.approx(np.var(rows, axis=0, ddof=1).sum(), rel=1e-4)
        few = step_noise(evaluator, population, dataset, epoch=3, batches=4)
        assert few[m] == pytest.approx(np.var(rows[:4], axis=0, ddof=1).sum(), rel=1e-4)
    # Without augmentation, or in evaluation mode, it is another number; and nothing was written.
    other = step_noise(Evaluator(Small(), PLAIN, batch_size=8, augment=AugmentConfig(0, 0.0)), population, dataset)
    assert not np.isclose(found, other, rtol=1e-3).any()
    assert np.isnan(step_noise(Evaluator(Small(), PLAIN, batch_size=40), population, dataset)).all()
    np.testing.assert_array_equal(population.statistics_MQ, before)


def test_batches_are_no_larger_than_those_of_training(seed):
    dataset, population = images(seed), networks(seed, 1)
    evaluator = Evaluator(Small(), PLAIN, batch_size=1)
    (found,) = measure_curvature(evaluator, population, dataset, images=41, vectors=1, probes=1)
    assert found.images == 41
    x, y = inputs(dataset, order_of(dataset, 41))
    losses_N = functional.cross_entropy(plain(population, 0)(x), y, reduction="none").detach().numpy()
    assert found.loss_error == pytest.approx(losses_N.std(ddof=1) / np.sqrt(41), rel=1e-3)


class Negated(Small):
    def forward(self, x):
        return super().forward(-x)


class NegatedInPlace(Small):
    def forward(self, x):
        return super().forward(x.neg_())


class Noisy(Small):
    def forward(self, x):
        return super().forward(x + torch.randn(x.shape))


def test_every_pass_is_of_the_same_images(seed):
    """Also of networks that change them in place, or draw in evaluation."""
    dataset, population = images(seed), networks(seed, 1)

    def measured(kind):
        (found,) = measure_curvature(Evaluator(kind(), PLAIN), population, dataset, vectors=2, probes=1)
        return found.row()

    expected = measured(Negated)
    assert measured(NegatedInPlace) == expected
    assert measured(Noisy) == measured(Noisy) != expected


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


class OnceOnly(Small):
    def forward(self, x):
        return Once.apply(super().forward(x))


def test_refusals(seed):
    dataset, population = images(seed), networks(seed, 1)
    evaluator = Evaluator(Small(), PLAIN)
    for wrong in ({"images": -1}, {"vectors": 0}, {"probes": 0}, {"radius": 0.0}):
        with pytest.raises(UserError, match="vectors and probes of 1 or more"):
            measure_curvature(evaluator, population, dataset, **wrong)
    with pytest.raises(UserError, match="cannot be differentiated twice"):
        measure_curvature(Evaluator(OnceOnly(), PLAIN), population, dataset)


def test_a_network_that_is_not_finite_has_no_numbers(seed):
    dataset, population = images(seed), networks(seed, 1)
    population.weights_MP[0, 0] = torch.nan
    (found,) = measure_curvature(Evaluator(Small(), PLAIN), population, dataset, vectors=3, probes=2)
    row = found.row()
    assert row.pop("images") == 60
    assert set(row.values()) == {None}
    assert np.isnan(found.eigenvalues_V).tolist() == [True]
