"""Matching, REPAIR and soups against brute force, closed forms and plain loops."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN
from test_symmetry import Shared, drawn
from torch import nn

from fastwi.analysis import (
    Evaluator,
    MatchedLines,
    Recomputation,
    Symmetry,
    barrier_of,
    dataset_from_arrays,
    greedy_soup,
    images_of,
    match_activations,
    match_weights,
    moments_of,
    rescaled,
    uniform_soups,
    variance_ratios,
)
from fastwi.data.noise import Stream, permutation
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population


def dataset_of(seed: int, count: int = 40, size: int = 8):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return dataset_from_arrays(pixels, np.arange(count) % 4, [0.5] * 3, [0.25] * 3, "cpu")


class Small(nn.Module):
    """Two hidden layers of 3 and 4 units."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(3, 3, 3), nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(torch.tanh(self.conv(x)).mean((2, 3)))))


def members_of(build, seeds):
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(drawn(build(), seed))
    population = Population.from_modules(networks)
    return Symmetry.of(networks[0], next(images_of(dataset_of(0), 4))), population


@pytest.mark.parametrize(
    "build",
    [
        *(lambda name=name: build_model(name, 4, 0.25) for name in ("resnet20", "resnet20_gn", "convnet")),
        lambda: build_model("wrn16_4", 4, 0.0625),
    ],
)
def test_a_permuted_copy_is_recovered(build, seed):
    """All of it to the bit, by weights and, with units that differ, by activations; several pairs at once."""
    symmetry, one = members_of(build, [seed])
    copies = symmetry.permute(one.clone_rows([0, 0]), symmetry.random(2, seed))
    members = Population.gather([(one, 0), (copies, 0), (copies, 1)])
    pairs = [(0, 1), (0, 2), (2, 1)]
    for orders in (
        match_weights(symmetry, members, pairs, seed),
        match_activations(symmetry, members, pairs, dataset_of(seed, size=16)),
    ):
        found = symmetry.permute(members.clone_rows([1, 2, 1]), orders)
        assert torch.equal(found.weights_MP, members.clone_rows([0, 0, 2]).weights_MP)
        assert torch.equal(found.statistics_MQ, members.clone_rows([0, 0, 2]).statistics_MQ)
        assert not torch.equal(members.weights_MP[0], members.weights_MP[1])


def test_pairs_that_are_matched_together_get_the_orders_that_each_gets_alone(seed):
    """Also where inputs and outputs of a layer are one group, and a step that helps one pair would harm another."""
    symmetry, members = members_of(Shared, range(seed, seed + 9))
    pairs = [(m, m + 1) for m in range(8)]
    together = match_weights(symmetry, members, pairs)
    alone = [match_weights(symmetry, members, [pair]) for pair in pairs]
    for g, order_LE in enumerate(together):
        assert order_LE.tolist() == [orders[g][0].tolist() for orders in alone]
        assert len({tuple(order) for order in order_LE.tolist()}) > 4


def test_against_brute_force_over_all_orders(seed):
    """Weight matching is no worse than any order of one group, the other as it is; activation matching the best."""
    symmetry, members = members_of(Small, [seed, seed + 1])
    dataset = dataset_of(seed)
    a = members[:1].weights_MP.double()
    every = [list(itertools.permutations(range(group.size))) for group in symmetry.groups]

    def moved(*orders):
        return symmetry.permute(members[1:], [np.array([order]) for order in orders])

    def similarity(*orders):
        return float((a * moved(*orders).weights_MP).sum())

    found = [tuple(order[0].tolist()) for order in match_weights(symmetry, members, [(0, 1)])]
    reached = similarity(*found)
    assert reached >= similarity(*(range(group.size) for group in symmetry.groups))
    assert reached >= max(similarity(order, found[1]) for order in every[0]) - 1e-5
    assert reached >= max(similarity(found[0], order) for order in every[1]) - 1e-5

    (x,) = images_of(dataset)

    def activations(network):
        tensors = {name: tensor.double().numpy() for name, tensor in network.parameters(0).items()}
        conv = torch.conv2d(x.double(), *(network.parameters(0)[f"conv.{n}"].double() for n in ("weight", "bias")))
        first = torch.tanh(conv).mean((2, 3)).numpy()
        return first, np.tanh(first @ tensors["hidden.weight"].T + tensors["hidden.bias"])

    of_a, of_b = activations(members[:1]), activations(members[1:])
    orders = match_activations(symmetry, members, [(0, 1)], dataset)
    for one, other, order, group in zip(of_a, of_b, orders, every, strict=True):
        apart = [float(((one - other[:, list(each)]) ** 2).sum()) for each in group]
        assert group[int(np.argmin(apart))] == tuple(order[0].tolist())


def test_a_line_to_a_permuted_copy_has_no_barrier_once_matched(seed):
    """Unmatched it has one, and its variance collapses, which REPAIR undoes."""
    symmetry, one = members_of(lambda: build_model("resnet20", 4, 0.25), [seed])
    dataset = dataset_of(seed, size=16)
    evaluator = Evaluator(build_model("resnet20", 4, 0.25), PLAIN, batch_size=20)
    one = evaluator.recompute(one, Recomputation(dataset))
    members = Population.gather([(one, 0), (symmetry.permute(one, symmetry.random(1, seed)), 0)])
    logits_NK = torch.cat([logits_NK for _, logits_NK in evaluator.logits(one, 0, dataset)])
    dataset = replace(dataset, labels_N=logits_NK.argmax(1))  # both ends make no error
    orders = {"none": symmetry.identity(1), "weights": match_weights(symmetry, members, [(0, 1)])}
    ratios = {}
    for name, order in orders.items():
        lines = MatchedLines(evaluator, symmetry, members, [(0, 1)], order, dataset, Recomputation(dataset))
        barrier = barrier_of(lines.measure(0, np.linspace(0, 1, 5), {"test": dataset}, repair=False), "test")
        ratios[name] = np.mean(list(lines.collapse(repair=False).values()))
        assert (lines.cosine(0) == pytest.approx(1, abs=1e-12)) == (name == "weights")
        assert (barrier.error > 0, abs(barrier.loss) > 1e-5) == ((name == "none"),) * 2
        repaired = np.mean(list(lines.collapse(repair=True).values()))
        assert abs(repaired - 1) < 0.2  # on other, augmented images
    assert ratios["weights"] == pytest.approx(1, abs=1e-5)
    assert ratios["none"] < 0.7


@pytest.mark.parametrize("name", ["convnet", "resnet20_gn"])
def test_repair_without_batch_norm(name, seed):
    """On one batch the units' moments are those interpolated from the ends', at every layer that is corrected."""
    symmetry, members = members_of(lambda: build_model(name, 4, 0.25), [seed, seed + 1])
    dataset, alphas = dataset_of(seed, size=16), [0.0, 0.3, 1.0]
    ends = moments_of(symmetry, members, dataset)
    networks = members.combine([[1 - alpha, alpha] for alpha in alphas])
    pairs = [(0, 1)] * 3
    repaired = rescaled(symmetry, networks, ends, pairs, alphas, dataset)
    assert torch.equal(repaired.weights_MP[[0, 2]], members.weights_MP)
    many = rescaled(symmetry, networks.clone_rows([0, 1, 2] * 3), ends, pairs * 3, alphas * 3, dataset)
    torch.testing.assert_close(many.weights_MP, repaired.weights_MP.repeat(3, 1), rtol=1e-5, atol=1e-6)
    evaluator, on = Evaluator(build_model(name, 4, 0.25), PLAIN, memory_bytes=1), Recomputation(dataset)  # one by one
    lines = MatchedLines(evaluator, symmetry, members, [(1, 0), (0, 1)], symmetry.identity(2), dataset, on)
    line = lines.measure(1, np.array(alphas), {"all": dataset}, repair=True)
    np.testing.assert_allclose(line.loss["all"]["averaged"], evaluator.scores(repaired, dataset).loss_M, rtol=1e-4)
    a_P, b_P = members.weights_MP.double().numpy()
    cosine = a_P @ b_P / (np.linalg.norm(a_P) * np.linalg.norm(b_P))
    assert lines.cosine(1) == pytest.approx(cosine, rel=1e-9)
    batches = dataset_of(seed, 70, 16)  # a batch of 50 images and one of 20
    of_batches = moments_of(symmetry, members, batches)
    order = torch.from_numpy(permutation(0, Stream.SUBSET, 1, 70).copy())
    first, rest = (moments_of(symmetry, members, batches.part(part)) for part in order.split(50))
    for node, moments in of_batches.items():
        for whole, one, other in zip(moments, first[node], rest[node], strict=True):
            torch.testing.assert_close(whole, (50 * one + 20 * other) / 70)
    repaired_on = rescaled(symmetry, networks, of_batches, pairs, alphas, batches)
    assert torch.equal(repaired_on.weights_MP[[0, 2]], members.weights_MP)
    before, after = (moments_of(symmetry, each, dataset) for each in (networks, repaired))
    corrected = [layer.node for layer in symmetry.layers if layer.bias and layer.node in ends]
    assert len(corrected) == {"convnet": 6, "resnet20_gn": 19}[name]
    apart = []
    for node in corrected:
        (mean, variance), wrong = after[node], before[node]
        wanted = [0.7 * ends[node][0][0] + 0.3 * ends[node][0][1],
                  0.7 * ends[node][1][0].sqrt() + 0.3 * ends[node][1][1].sqrt()]  # fmt: skip
        torch.testing.assert_close(mean[1], wanted[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(variance[1].sqrt(), wanted[1], rtol=1e-3, atol=1e-3)
        apart.append(float((wrong[1][1].sqrt() - wanted[1]).abs().max()))
    assert max(apart) > 0.1
    ratio = variance_ratios(before, ends, pairs)[corrected[0]]
    (x,) = images_of(dataset)
    of_unit = [symmetry.module(each, m) for each, m in ((networks, 1), (members, 0), (members, 1))]
    if name == "convnet":  # the first layer by hand
        middle, a, b = (module.layers.get_submodule("0")(x).var((0, 2, 3), correction=0).sum() for module in of_unit)
        assert ratio[1] == pytest.approx(float(2 * middle / (a + b)), rel=1e-5)
        assert ratio[0] == pytest.approx(float(2 * a / (a + b)), rel=1e-5)


def test_a_unit_that_does_not_vary_is_shifted_alone(seed):
    """The weights of A and B cancel in one unit, but for rounding, which is not scaled up to their deviation."""
    symmetry, members = members_of(Small, [seed, seed + 1])
    dataset = dataset_of(seed)
    a, b = (members.parameters(m)["conv.weight"] for m in range(2))
    b[0] = -a[0] * (1 + 1e-6)
    ends, middle = moments_of(symmetry, members, dataset), members.combine([[0.5, 0.5]])
    found = rescaled(symmetry, middle, ends, [(0, 1)], [0.5], dataset)
    before, after = (each.parameters(0)["conv.weight"] for each in (middle, found))
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1:], before[1:])
    mean_1C, _ = moments_of(symmetry, found, dataset)["conv"]
    torch.testing.assert_close(mean_1C[0], ends["conv"][0].mean(0), rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """Layers whose units are on the last axis, behind four places."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 5, 4, 4), nn.LayerNorm(5)
        self.hidden, self.last = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        return self.last(self.hidden(x.relu()).relu().mean(1))


def test_moments_of_units_on_the_last_axis(seed):
    symmetry, members = members_of(Tokens, [seed, seed + 1])
    dataset = dataset_of(seed)
    (x,) = images_of(dataset)
    found = moments_of(symmetry, members, dataset)
    for m in range(2):
        module = symmetry.module(members, m)
        normed = module.norm(module.embed(x).flatten(2).transpose(1, 2))
        for node, units in (("norm", normed), ("hidden", module.hidden(normed.relu()))):
            expected = torch.var_mean(units.double(), dim=(0, 1), correction=0)
            for moment_MC, expected_C in zip(found[node], expected[::-1], strict=True):
                torch.testing.assert_close(moment_MC[m], expected_C, rtol=1e-4, atol=1e-5)


class Rows(Tokens):
    """The same with the places of all images on one axis, behind the embedding."""

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2).reshape(-1, 5))
        return self.last(self.hidden(x.relu()).relu().reshape(-1, 4, 6).mean(1))


def hidden_of(module, x):
    """Variance and mean of the units of the layer `hidden`, float64 [C] each."""
    found = []
    module.hidden.register_forward_hook(lambda _, __, y_NC: found.append(y_NC.flatten(0, -2).double()))
    module(x)
    return torch.var_mean(found[0], dim=0, correction=0)


@pytest.mark.parametrize("network", [Small, Tokens, Rows])
def test_moments_of_images_in_the_order_of_their_classes(network, seed):
    """As folders of images are: units vary over all of them, not over those of a batch."""
    images_NHWC = np.random.default_rng(seed).integers(0, 64, (400, 8, 8, 3), dtype=np.uint8)
    labels_N = np.arange(400) // 100
    images_NHWC += (60 * labels_N).astype(np.uint8)[:, None, None, None]
    dataset = dataset_from_arrays(images_NHWC, labels_N, [0.5] * 3, [0.25] * 3, "cpu")
    (x,) = images_of(dataset, 400)
    symmetry, members = members_of(network, [seed, seed + 1])
    ends = moments_of(symmetry, members, dataset)
    repaired = rescaled(symmetry, members.combine([[0.5, 0.5]]), ends, [(0, 1)], [0.5], dataset)
    three = Population.gather([(members, 0), (members, 1), (repaired, 0)])
    a, b, middle = (hidden_of(symmetry.module(three, m), x) for m in range(3))
    for m, (variance_C, mean_C) in enumerate((a, b)):
        torch.testing.assert_close(ends["hidden"][0][m], mean_C, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ends["hidden"][1][m], variance_C, rtol=0.1, atol=1e-4)
    torch.testing.assert_close(middle[0].sqrt(), (a[0].sqrt() + b[0].sqrt()) / 2, rtol=0.2, atol=1e-2)


class Normed(Small):
    """A layer norm over channels, height and width, as many of each."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.hidden = nn.Conv2d(3, 6, 3), nn.LayerNorm((6, 6, 6)), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))))


def test_a_layer_norm_over_several_axes_is_not_repaired(seed):
    symmetry, members = members_of(Normed, [seed, seed + 1])
    dataset = dataset_of(seed)
    ends, middle = moments_of(symmetry, members, dataset), members.combine([[0.5, 0.5]])
    assert list(ends) == ["conv", "hidden"]
    found = rescaled(symmetry, middle, ends, [(0, 1)], [0.5], dataset)
    for name, before in middle.parameters(0).items():
        assert torch.equal(found.parameters(0)[name], before) == name.startswith(("norm", "last"))


class Noisy(Small):
    """Draws in evaluation mode too."""

    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


def test_what_networks_draw_in_evaluation_is_the_same_for_all(seed):
    symmetry, members = members_of(Noisy, [seed, seed + 1, seed])
    dataset = dataset_of(seed)
    before = torch.get_rng_state()
    moments = moments_of(symmetry, members, dataset)
    for node, moment in moments.items():
        for found_MC, again_MC in zip(moment, moments_of(symmetry, members, dataset)[node], strict=True):
            assert torch.equal(found_MC, again_MC)
            assert torch.equal(found_MC[0], found_MC[2])
            assert not torch.equal(found_MC[0], found_MC[1])
    permuted = symmetry.permute(members[:1], symmetry.random(1, seed))
    both = Population.gather([(members, 0), (permuted, 0)])
    orders = match_activations(symmetry, both, [(0, 1)], dataset)
    assert torch.equal(symmetry.permute(permuted, orders).weights_MP, members[:1].weights_MP)
    assert torch.equal(torch.get_rng_state(), before)


class Negated(Small):
    def forward(self, x):
        return super().forward(x.neg_())


def test_networks_that_change_their_images_in_place_do_not_share_them(seed):
    symmetry, members = members_of(Negated, [seed, seed + 1])
    dataset = dataset_of(seed)
    together = moments_of(symmetry, members, dataset)
    for m in range(2):
        for node, moments in moments_of(symmetry, members[m : m + 1], dataset).items():
            for found_MC, expected_1C in zip(together[node], moments, strict=True):
                torch.testing.assert_close(found_MC[m], expected_1C[0])


NO_BIAS = nn.Conv2d(3, 3, 3, padding=1, bias=False)
TWICE = nn.Conv2d(3, 3, 3, padding=1)  # whose two calls would need two corrections


@pytest.mark.parametrize("hidden", [[NO_BIAS], [NO_BIAS, nn.ReLU(), TWICE, nn.ReLU(), TWICE]])
def test_a_network_without_a_layer_to_repair_is_refused(seed, hidden):
    network = nn.Sequential(*hidden, nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    dataset = dataset_of(seed)
    symmetry, members = members_of(lambda: network, [seed, seed])
    ends = moments_of(symmetry, members, dataset)
    with pytest.raises(UserError, match="REPAIR"):
        rescaled(symmetry, members, ends, [(0, 1), (0, 1)], [0.5, 0.5], dataset)


def test_greedy_soups_against_a_plain_loop(seed):
    """Of sets of several sizes."""
    _, members = members_of(Small, range(seed, seed + 7))
    members.weights_MP.mul_(4)
    dataset, evaluator = dataset_of(seed, 200), Evaluator(Small(), PLAIN)
    logits_NK = torch.cat([logits_MNK.sum(0) for logits_MNK in evaluator.batches(members, dataset)])
    dataset = replace(dataset, labels_N=logits_NK.argmax(1))
    assert len(set(evaluator.scores(members, dataset).accuracy_M.tolist())) > 3
    sets = [[0, 1, 2, 3, 4, 5, 6], [3, 5], [2], [6, 4, 1]]

    def accuracy(rows):
        mean = Population.averages([[(members, row) for row in rows]], [[1 / len(rows)] * len(rows)])
        return evaluator.scores(mean, dataset).accuracy_M[0]

    sizes = set()
    for rows in sets:
        chosen = greedy_soup(evaluator, members.clone_rows(rows), dataset)
        sizes.add(len(chosen))
        best: list[int] = []
        for row in sorted(rows, key=lambda row: -accuracy([row])):
            if not best or accuracy([*best, row]) >= accuracy(best):
                best.append(row)
        assert [rows[row] for row in chosen] == best
    assert len(sizes) > 1
    assert greedy_soup(evaluator, members.clone_rows([2, 2]), dataset) == (0, 1)
    soups = uniform_soups(members, sets)
    expected = members.weights_MP[sets[3]].double().mean(0)
    torch.testing.assert_close(soups.weights_MP[3].double(), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(UserError, match="at least one"):
        greedy_soup(evaluator, members[:0], dataset)
    for wrong in ([], [7]):
        with pytest.raises(ValueError, match=r"member|row"):
            uniform_soups(members, [[0, 1], wrong])


def test_greedy_soups_measure_with_recomputed_statistics(seed):
    """Statistics of no use at all decide nothing then."""
    _, members = members_of(lambda: build_model("resnet20", 4, 0.125), [seed, seed + 1, seed + 2])
    evaluator, dataset = Evaluator(build_model("resnet20", 4, 0.125), PLAIN, batch_size=20), dataset_of(seed, size=16)
    spoilt = members.clone_rows(range(3))
    spoilt.statistics_MQ.mul_(50)
    on = Recomputation(dataset)
    expected = greedy_soup(evaluator, members, dataset, on)
    assert greedy_soup(evaluator, spoilt, dataset, on) == expected
