"""Linear CKA against Song et al.'s estimator written out, N x N matrices in float64, and what leaves it as it is."""

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN
from torch import nn

from fastwi.analysis import Evaluator, dataset_from_arrays, linear_cka, representation
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population


def hsic(x_NF, y_NG):
    """Song, Smola, Gretton, Bedo, Borgwardt 2012 (Feature Selection via Dependence Maximization), equation 5."""
    n = len(x_NF)
    k, h = x_NF @ x_NF.T, y_NG @ y_NG.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(h, 0)
    one = np.ones(n)
    total = (
        np.trace(k @ h) + (one @ k @ one) * (one @ h @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ h @ one)
    )
    return total / (n * (n - 3))


class Turn(nn.Module):
    """Its output has no entry an image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_NF):
        return x_NF.T * self.scale


class Two(nn.Module):
    """Three layers to compare; `own` is a parameter, and `idle` a layer that is not called."""

    def __init__(self, seed: int, features: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.own = nn.Parameter(torch.ones(1))
        self.first, self.norm = nn.Linear(12, features), nn.BatchNorm1d(features)
        self.idle, self.turn, self.last = nn.Linear(2, 2), Turn(), nn.Linear(features, 3)
        self.norm.running_mean += torch.rand(features)

    def forward(self, x):
        return self.last(self.turn(self.norm(self.first(x.flatten(1) * self.own)).tanh()).T)


@pytest.fixture
def dataset(seed):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (70, 2, 2, 3), dtype=np.uint8)
    return dataset_from_arrays(images, draw.integers(0, 3, 70), [0.2] * 3, [0.25] * 3, "cpu")


def outputs(network, dataset):
    """Of each layer by name, float64 [N, F]: by hand."""
    x = (dataset.images_NHWC.double() / 255 - 0.2) / 0.25
    network = network.double().eval()
    with torch.no_grad():
        first = network.first(x.permute(0, 3, 1, 2).flatten(1) * network.own)
        norm = network.norm(first)
        found = {"first": first, "norm": norm, "last": network.last(norm.tanh())}
    return {name: y.numpy() for name, y in found.items()}


def networks_of(*modules):
    return Evaluator(modules[0], PLAIN), Population.from_modules(modules)


@pytest.mark.parametrize("images", [6, 70])  # of few images each term of the estimator is seen
def test_each_layer_against_the_whole_matrix_in_float64(images, dataset, seed):
    dataset = dataset.part(torch.arange(images))
    modules = [Two(seed % 1000 + m) for m in range(3)]
    found = linear_cka(*networks_of(*modules), dataset)  # one batch of all images
    assert found.layers == ["first", "norm", "last"]
    each = [outputs(module, dataset) for module in modules]
    for number, layer in enumerate(found.layers):
        for i in range(3):
            for j in range(3):
                x, y = each[i][layer], each[j][layer]
                expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
                assert found.cka_LMM[number, i, j] == pytest.approx(expected, abs=2e-5)
    assert np.ptp(found.cka_LMM) > 0.2


def test_batches_are_averaged_before_the_ratio(dataset, seed, monkeypatch):
    monkeypatch.setattr(representation, "BATCH", 24)
    modules = [Two(seed % 1000 + m) for m in range(2)]
    found = linear_cka(*networks_of(*modules), dataset)
    order = representation.permutation(0, representation.Stream.SUBSET, 1, 70)
    assert (order != np.arange(70)).any()  # datasets may be sorted by class
    parts = np.array_split(order, 3)
    layers = [outputs(module, dataset) for module in modules]
    differences = []
    for number, layer in enumerate(found.layers):
        x, y = (each[layer] for each in layers)
        means = [np.mean([hsic(a[at], b[at]) for at in parts]) for a, b in ((x, y), (x, x), (y, y))]
        cka = found.cka_LMM[number, 0, 1]
        assert cka == pytest.approx(means[0] / np.sqrt(means[1] * means[2]), abs=2e-5)
        differences.append(abs(cka - hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))))
    assert max(differences) > 1e-4


def test_what_cka_does_not_see_and_sees(dataset, seed):
    """Rotations, scales and shifts of the features change nothing; another network does; a constant is undefined."""
    draw = torch.Generator().manual_seed(seed % 2**31)
    base, turned, other, constant = Two(1), Two(1), Two(2), Two(1)
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw))
    with torch.no_grad():
        turned.first.weight.copy_(3 * q @ base.first.weight)
        turned.first.bias.copy_(torch.randn(5, generator=draw))
        constant.first.weight.zero_()
    found = linear_cka(*networks_of(base, turned, other, constant), dataset).cka_LMM[0]
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    assert found[0, 2] < 0.95
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(found[:3, :3], found[:3, :3].T, rtol=1e-12)
    np.testing.assert_allclose(np.diag(found)[:3], 1, rtol=1e-12)


class Noisy(Two):
    def forward(self, x):
        return super().forward(x + torch.randn(x.shape))


def test_what_a_network_draws_is_the_same_for_every_member(dataset, seed):
    modules = [Noisy(seed % 1000)] * 2
    _, cka_LMM = linear_cka(*networks_of(*modules), dataset)
    np.testing.assert_allclose(cka_LMM, 1, rtol=1e-9)


class InPlace(Two):
    def forward(self, x):
        return self.last(self.turn(self.norm(self.first(x.flatten(1) * self.own)).tanh_()).T)


def test_outputs_are_compared_as_their_layers_gave_them(dataset, seed):
    """What follows a layer may change its output in place."""
    plain, in_place = (
        linear_cka(*networks_of(*(kind(seed % 1000 + m) for m in range(2))), dataset) for kind in (Two, InPlace)
    )
    np.testing.assert_allclose(in_place.cka_LMM, plain.cka_LMM, rtol=1e-6)


def test_blocks_of_a_convolutional_network(seed):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    dataset = dataset_from_arrays(images, draw.integers(0, 10, 20), [0.5] * 3, [0.25] * 3, "cpu")
    modules = [build_model("resnet20", 10, width=0.125) for _ in range(2)]
    evaluator, networks = networks_of(*modules)
    before = {name: tensor.clone() for name, tensor in networks.state_dict(0).items()}
    found = linear_cka(evaluator, networks, dataset)
    assert found.layers == ["conv", "bn", *(f"blocks.{i}" for i in range(9)), "linear"]
    assert np.isfinite(found.cka_LMM).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in networks.state_dict(0).items())
    with torch.no_grad():
        last = [
            module.eval()((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25) for module in modules
        ]
    x, y = (each.double().numpy() for each in last)
    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert found.cka_LMM[-1, 0, 1] == pytest.approx(expected, abs=1e-4)


class NoLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(12, 3))

    def forward(self, x):
        return x.flatten(1) @ self.own


def test_refusals(dataset):
    with pytest.raises(UserError, match="no layer"):
        linear_cka(*networks_of(NoLayer()), dataset)
    with pytest.raises(UserError, match="3 images"):
        linear_cka(*networks_of(Two(0)), dataset.part(torch.arange(3)))
