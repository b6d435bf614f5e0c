"""Permutations of units: networks that they leave as they are, in float64, and networks that are refused."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fastwi.analysis.symmetry import Symmetry, best_order
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population


def drawn(network: nn.Module, seed: int) -> nn.Module:
    """With no two values alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return network.eval()


def images(seed: int) -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def check_same_function(network: nn.Module, seed: int) -> Symmetry:
    """Every tensor of every group is permuted, and the network computes the same in float64."""
    symmetry = Symmetry.of(network, images(seed))
    orders = symmetry.random(1, seed)
    permuted = copy.deepcopy(network)
    symmetry.permute(Population.from_modules([network]), orders).write_to(0, permuted)
    before, after = network.state_dict(), permuted.state_dict()
    for group, order in zip(symmetry.groups, orders, strict=True):
        assert (order != np.arange(group.size)).any()
        assert group.places
        for place in group.places:
            if (order[:, place.elements_E] != place.elements_E).any():
                assert not torch.equal(before[place.name], after[place.name])
    for name, tensor in before.items():
        assert torch.equal(tensor.flatten().sort().values, after[name].flatten().sort().values)
    x = images(seed + 1).double()
    with torch.no_grad():
        expected, found = (copy.deepcopy(each).double()(x) for each in (network, permuted))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)
    return symmetry


@pytest.mark.parametrize(
    ("name", "width", "sizes"),
    [
        # The first stage's stream goes on within the second's, whose other channels are padded with zeros.
        ("resnet20", 0.25, [4] * 4 + [8, 4, 8, 8] + [16, 8, 16, 16]),
        ("resnet20_gn", 0.5, [8] * 4 + [16, 8, 16, 16] + [32, 16, 32, 32]),
        ("resnet18", 0.0625, [4] * 3 + [8] * 3 + [16] * 3 + [32] * 3),
        ("wrn16_4", 0.125, [16] + [8] * 3 + [16] * 3 + [32] * 3),
        ("vgg11", 0.0625, [4, 8, 16, 16, 32, 32, 32, 32]),
        ("convnet", 0.25, [8, 8, 16, 16, 32, 32]),
    ],
)
def test_built_in_networks(name, width, sizes, seed):
    symmetry = check_same_function(drawn(build_model(name, 10, width), seed), seed)
    assert sorted(group.size for group in symmetry.groups) == sorted(sizes)


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.slope = nn.Conv2d(3, 5, 3), nn.PReLU()  # one slope for all channels
        self.pool, self.flatten = nn.MaxPool2d(7), nn.Flatten()
        self.hidden, self.prelu, self.last = nn.Linear(20, 6), nn.PReLU(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.prelu(self.hidden(self.flatten(self.pool(self.slope(self.conv(x)))))))


class Concatenated(nn.Module):
    """Two branches, one of them twice, the other padded and cut again; one group norm joins them in one group."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.both = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(13, 6, 1)
        self.whole, self.norm, self.last = nn.GroupNorm(1, 13), nn.GroupNorm(2, 6), nn.Linear(6, 4)

    def forward(self, x):
        a, b = self.a(x).relu(), functional.leaky_relu(self.b(x))
        x = torch.cat([a, functional.pad(b, (1, 1, 1, 1))[:, :, 1:-1, 1:-1], a], dim=1)
        return self.last(functional.silu(self.norm(self.both(self.whole(x)))).mean((2, 3)))


class Joined(nn.Module):
    """The image's own channels, which stay in place, beside those of a layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.both, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(7, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.both(torch.cat([self.conv(x).relu(), x], dim=1)).relu().mean((2, 3)))


class Shared(nn.Module):
    """A block that is run twice, its channels tied by the sum, a tied weight, and a scale for each channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.up, self.down, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 4)
        self.down.weight = self.up.weight

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = x + self.norm(self.block(x)).relu() * self.scale
        x = x.mean((2, 3))
        return self.last(self.down(self.up(x).tanh()) + x)


class Mixer(nn.Module):
    """Linear layers over places and over channels, with layer norms, and a scaled sum of channels."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
        self.position = nn.Parameter(torch.zeros(1, 16, 6))
        self.places, self.back, self.channels = nn.Linear(16, 5), nn.Linear(5, 16), nn.Linear(6, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        y = self.back(functional.gelu(self.places(self.norm(x).permute(0, 2, 1)))).permute(0, 2, 1)
        return self.last(self.channels(x + y).amax(1))


class Depthwise(nn.Module):
    """Each channel gives two; squeeze and excitation; instance norm; a part of the channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.each = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4)
        self.norm, self.squeeze = nn.InstanceNorm2d(8, affine=True), nn.Linear(8, 8)
        self.mix, self.last = nn.Conv2d(8, 10, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.each(self.stem(x).relu()))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3))))[:, :, None, None]
        x = self.mix(x)
        x = (x[:, :5] * x[:, 5:]).mean((2, 3))
        return self.last(torch.cat([x, x.sum(1, keepdim=True)], 1))


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (Flattened, [5, 6]),
        (Concatenated, [6, 9]),
        (Joined, [4, 6]),
        (Shared, [6]),
        (Mixer, [5, 6, 7]),
        # The excited channels of a kind that the squeeze puts out have to stay with those that it scales.
        (Depthwise, [4, 5]),
    ],
)
def test_networks_of_the_user(network, sizes, seed):
    torch.manual_seed(seed)
    symmetry = check_same_function(drawn(network(), seed), seed)
    assert sorted(group.size for group in symmetry.groups) == sizes


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 4)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        scores = x @ x.transpose(1, 2)
        return self.last((scores.softmax(2) @ x).mean(1))


def of(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


class Cumulative(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        return self.last(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Attention(), "matmul"),
        (of(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2)), "'_1'"),
        (of(nn.Conv2d(3, 6, 3), Cumulative()), "cumsum"),
        (of(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 6, 3)), "ConvTranspose2d"),
        (of(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.GroupNorm(2, 6)), "overlap"),
        (Branching(), "Branching"),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), "Sequential has no units"),
    ],
)
def test_refusals_name_the_node(network, named, seed):
    with pytest.raises(UserError, match=named):
        Symmetry.of(network, images(seed))


def test_a_network_that_is_not_what_its_graph_says_is_refused(seed):
    network = drawn(of(nn.Conv2d(3, 6, 3)), seed)
    symmetry, one = Symmetry.of(network, images(seed)), Population.from_modules([network])
    (group,) = symmetry.groups
    symmetry.check(one, images(seed))
    broken = replace(symmetry, groups=(replace(group, places=group.places[:-1]),))  # the linear layer stays
    with pytest.raises(UserError, match="graph"):
        broken.check(one, images(seed))


def test_the_best_order_is_the_best_of_all_that_group_norms_allow(seed):
    """By brute force over all orders that leave the network as it is: 3! x 2 ** 3 of the 6! are allowed."""
    network = drawn(of(nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU()), seed)
    symmetry = Symmetry.of(network, images(seed))
    (group,) = symmetry.groups
    every, x = list(itertools.permutations(range(6))), images(seed + 1)
    moved = symmetry.permute(Population.from_modules([network]).clone_rows([0] * len(every)), [np.array(every)])
    base, allowed = network(x), []
    for m, order in enumerate(every):
        if torch.allclose(functional_call(network, moved.parameters(m), (x,)), base, rtol=1e-3, atol=1e-4):
            allowed.append(order)
    assert len(allowed) == 48
    for gain_EE in np.random.default_rng(seed).normal(size=(20, 6, 6)):
        sums = [sum(gain_EE[e, other] for e, other in enumerate(order)) for order in allowed]
        assert tuple(best_order(group, gain_EE).tolist()) == allowed[int(np.argmax(sums))]


def test_the_given_network_stays_as_it_is(seed):
    network = drawn(of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), seed).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Symmetry.of(network, images(seed))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_numbers_that_are_not_finite_are_refused(seed):
    symmetry = Symmetry.of(drawn(of(nn.Conv2d(3, 6, 3)), seed), images(seed))
    with pytest.raises(UserError, match="NaN"):
        best_order(symmetry.groups[0], np.full((6, 6), np.nan))


def test_each_member_has_its_own_order(seed):
    """Momentum and statistics move with the weights, and an order and its inverse cancel."""
    network = drawn(of(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), seed)
    symmetry = Symmetry.of(network, images(seed))
    three = Population.from_modules([network] * 3)
    three.momentum_MP.copy_(three.weights_MP * 2)
    orders = symmetry.random(3, seed)
    moved = symmetry.permute(three, orders)
    assert torch.equal(moved.momentum_MP, moved.weights_MP * 2)
    for m, order in enumerate(orders[0]):
        for name in ("0.weight", "0.bias", "1.weight"):
            assert torch.equal(moved.parameters(m)[name], three.parameters(m)[name][order])
        assert torch.equal(moved.buffers(m)["1.running_var"], three.buffers(m)["1.running_var"][order])
    before = [tensor.clone() for tensor in three.matrices]
    back = symmetry.permute(moved, [np.argsort(order, axis=1) for order in orders])
    assert all(torch.equal(one, other) for one, other in zip(back.matrices, three.matrices, strict=True))
    assert not torch.equal(moved.weights_MP[0], moved.weights_MP[1])
    for tensor in moved.matrices:
        tensor.add_(1)
    assert all(torch.equal(one, other) for one, other in zip(three.matrices, before, strict=True))  # it is a copy
