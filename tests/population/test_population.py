"""Members as rows: views, clones, copies, and the way back into modules."""

import random

import pytest
import torch
import torchvision
from small_networks import SmallNet, TiedNet, drawn_population, same_rows, trained
from torch import nn

from fastwi import average
from fastwi.errors import UserError
from fastwi.population import Layout, Population


@pytest.fixture
def made(seed) -> Population:
    return drawn_population(seed, 4)


@pytest.mark.parametrize("build", [SmallNet, TiedNet, torchvision.models.resnet18])
def test_modules_survive_the_round_trip_to_the_bit(build):
    networks = [trained(build(), seed) for seed in (1, 2)]
    made = Population.from_modules(networks)
    assert not torch.equal(made.weights_MP[0], made.weights_MP[1])
    assert not made.momentum_MP.any()
    fresh = build()
    for m, network in enumerate(networks):
        made.write_to(m, fresh)
        state, expected = made.state_dict(m), network.state_dict()
        assert list(state) == list(expected)
        assert set(made.buffers(m)) == {n for n, _ in network.named_buffers() if n in expected}
        for key, tensor in expected.items():
            assert torch.equal(fresh.state_dict()[key], tensor), key
            assert torch.equal(state[key], tensor), key
            assert state[key].dtype == tensor.dtype
            assert state[key].is_contiguous()


def test_views_write_to_their_row_alone_and_padding_stays_zero(made):
    before, state = made.clone_rows(range(4)), made.state_dict(2)
    views = (made.parameters(2), made.momentum(2), made.buffers(2))
    for view in (view for group in views for view in group.values()):
        view.fill_(7)
    assert all(torch.equal(state[key], value) for key, value in before.state_dict(2).items())  # copies
    assert same_rows(made, [0, 1, 3], before, [0, 1, 3])
    layout = made.layout
    spans_of = (layout.parameters, layout.parameters, layout.statistics, layout.counters)
    for spans, matrix in zip(spans_of, made.matrices, strict=True):
        sizes = sum(span.numel for span in spans)
        assert (matrix[2] == 7).sum() == sizes
        assert (matrix[2] == 0).sum() == matrix.shape[1] - sizes  # the padding
    assert sum(span.numel for span in layout.parameters) < layout.P


def test_load_state_dict_converts_and_zeroes_momentum(made):
    before = made.clone_rows(range(4))
    state = {
        key: tensor.double() if tensor.is_floating_point() else tensor.int()
        for key, tensor in trained(SmallNet(), 9).state_dict().items()
    }
    made.load_state_dict(1, state)
    for key, tensor in made.state_dict(1).items():
        assert torch.equal(tensor, state[key].to(tensor.dtype))
    assert not made.momentum_MP[1].any()
    assert same_rows(made, [0, 2, 3], before, [0, 2, 3])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stem.weight", None, r"lacks 'stem\.weight' of shape \(5, 3, 3, 3\)"),
        ("extra", torch.zeros(1), "has 'extra', which"),
        ("head.bias", torch.zeros(3), r"'head\.bias' is torch.float32 \(3,\).*\(97,\)"),
        ("norm.num_batches_tracked", torch.tensor(1.0), r"'norm\.num_batches_tracked' is torch.float32"),
        ("head.bias", torch.zeros(97, dtype=torch.int64), r"'head\.bias' is torch.int64"),
    ],
)
def test_state_dicts_of_other_networks_are_refused(made, key, value, message):
    before = made.clone_rows(range(4))
    state = made.state_dict(0) | {key: value}
    with pytest.raises(ValueError, match=message):
        made.load_state_dict(1, {key: tensor for key, tensor in state.items() if tensor is not None})
    assert same_rows(made, [0, 1, 2, 3], before, [0, 1, 2, 3])


@pytest.mark.parametrize("key", ["decoder.weight", "again.running_mean"])
def test_two_tensors_for_one_that_is_tied_are_refused(key):
    """One of them would be lost. NaN is the same as NaN."""
    made, state = Population.from_modules([TiedNet()]), trained(TiedNet(), 1).state_dict()
    with pytest.raises(ValueError, match=rf"'(encoder|norm)\..*' and '{key}' are one tensor"):
        made.load_state_dict(0, state | {key: state[key] + 1})
    state["encoder.weight"][0, 0] = state["norm.running_mean"][0] = float("nan")
    wide = {name: tensor.double() for name, tensor in state.items() if tensor.is_floating_point() and name != key}
    made.load_state_dict(0, state | wide)
    assert made.state_dict(0)[key].isnan().sum() == 1


def test_modules_that_differ_are_refused(made):
    with pytest.raises(ValueError, match=r"'stem\.weight' is \(5, 3, 3, 3\) .* \(6,"):
        Population.from_modules([SmallNet(), SmallNet(6)])
    with pytest.raises(ValueError, match=r"stem\.weight"):
        made.write_to(0, SmallNet(6))
    for constant in (torch.tensor([0.5, 0.2, 0.3]), SmallNet().mean.double(), None):
        other = SmallNet()
        other.mean = constant
        for pair in ([SmallNet(), other], [other, SmallNet()]):
            with pytest.raises(UserError, match="non-persistent buffer 'mean' of module 1"):
                Population.from_modules(pair)
    with pytest.raises(ValueError, match="at least one module"):
        Population.from_modules([])


def test_a_network_is_only_read():
    """Spectral norm changes its buffers whenever its weight is asked for in training mode."""
    network = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made = Population.from_modules([network, network])
    for state in (network.state_dict(), made.state_dict(0), made.state_dict(1)):
        assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("form", [list, torch.tensor])
def test_a_mask_is_no_list_of_rows(made, form):
    """`finite_M` gives one, and True would be row 1."""
    mask = form(made.finite_M())
    for call in (made.clone_rows, lambda rows: average(made, rows=rows), lambda rows: average(made, rows=list(rows))):
        with pytest.raises(ValueError, match="mask"):
            call(mask)


def test_a_population_is_a_sequence_of_populations_of_one(made):
    assert len(made) == made.members == 4
    for m, member in enumerate(made):
        assert len(member) == 1
        for index in (m, m - 4):
            assert same_rows(made[index], [0], made, [m])
    made[-1].parameters(0)["scale"].fill_(42.0)
    made[1:3].parameters(0)["scale"].fill_(43.0)
    made[::2].parameters(1)["scale"].fill_(44.0)
    assert [float(made.parameters(m)["scale"]) for m in (1, 2, 3)] == [43, 44, 42]
    assert float(made.parameters(0)["scale"]) not in (42, 43, 44)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"member {index} of a population of 4"):
            made[index]


def test_gathered_members_are_copies_with_momentum(seed):
    givers = [drawn_population(seed + members, members) for members in (1, 2, 4)]
    draw = random.Random(seed)
    chosen = [(giver, draw.randrange(len(giver))) for giver in draw.choices(givers, k=12)]
    gathered = Population.gather(chosen)
    assert all(same_rows(gathered, [place], giver, [row]) for place, (giver, row) in enumerate(chosen))
    target = Population.zeros(gathered.layout, 14)
    Population.gather(chosen, into=target[1:13])
    assert same_rows(target, list(range(1, 13)), gathered, list(range(12)))
    assert not any(matrix[[0, 13]].any() for matrix in target.matrices)
    clones = givers[1].clone_rows(torch.tensor([1, 1, 0]))
    assert same_rows(clones, [0, 1, 2], givers[1], [1, 1, 0])
    for copies in (gathered, clones):
        copies.weights_MP.fill_(3.0)
    assert not any((giver.weights_MP == 3).any() for giver in givers)
    for members, into, message in [
        ([(givers[0], 0), (Population.from_modules([SmallNet(6)]), 0)], None, "different layouts"),
        ([(givers[1], 2)], None, "row 2 is named; there are rows 0 to 1"),
        ([(givers[1], -1)], None, "row -1 is named; there are rows 0 to 1"),
        ([(givers[1], 1)], givers[1][1], "both read and written"),
        ([], None, "at least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            Population.gather(members, into=into)


def test_finite_members_are_told_from_diverged_ones(seed):
    made = drawn_population(seed, 6)
    assert made.finite_M() == [True] * 6
    made.weights_MP[1, 5], made.weights_MP[2, 0] = float("nan"), float("inf")
    made.statistics_MQ[3, 1], made.statistics_MQ[4, 2] = float("-inf"), float("nan")
    made.momentum_MP[5] = float("nan")
    made.weights_MP[0] = torch.finfo(torch.float32).max
    assert made.finite_M() == [True, False, False, False, False, True]


def test_to_keeps_a_population_that_is_there_already(made):
    assert made.to("cpu") is made
    moved = made.to("meta")
    assert moved.device.type == "meta"
    assert moved.weights_MP.shape == made.weights_MP.shape


def test_matrices_that_do_not_fit_are_refused():
    layout = Layout.of(SmallNet())
    with pytest.raises(ValueError, match="at least 1 member"):
        Population.zeros(layout, 0)
    weights, momentum, statistics, counters = Population.zeros(layout, 2).matrices
    for matrices, name in [
        ((weights[:, :-1], momentum, statistics, counters), "weights_MP"),
        ((weights, momentum.double(), statistics, counters), "momentum_MP"),
        ((weights, momentum, statistics.to("meta"), counters), "statistics_MQ"),
        ((weights, momentum, statistics, counters[:1]), "counters_MB"),
        ((weights, momentum, statistics, counters.float()), "counters_MB"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} is "):
            Population(layout, *matrices)
