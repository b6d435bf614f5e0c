"""Members as rows: views, clones, averages, and the way back into modules."""

import random

import pytest
import torch
import torchvision
from small_networks import SmallNet, TiedNet, trained

from fastwi.errors import UserError
from fastwi.population import Layout, Population


def population(members: int = 4, seed: int = 0) -> Population:
    """Members that all differ, with momentum and counters that differ as well."""
    made = Population.from_modules([trained(SmallNet(), seed * 1000 + m) for m in range(members)])
    generator = torch.Generator().manual_seed(seed)
    for m in range(members):
        for view in made.momentum(m).values():
            view.copy_(torch.randn(view.shape, generator=generator))
    assert len({row.sum().item() for row in made.weights_MP}) == members
    return made


def padding(made: Population) -> torch.Tensor:
    """All values of all matrices that lie in no span."""
    layout, found = made.layout, []
    groups = ((layout.parameters, made.weights_MP), (layout.parameters, made.momentum_MP))
    for spans, matrix in (*groups, (layout.statistics, made.statistics_MQ)):
        free = torch.ones(matrix.shape[1], dtype=torch.bool)
        for span in spans:
            free[span.offset : span.offset + span.numel] = False
        found.append(matrix[:, free].flatten())
    return torch.cat(found)


@pytest.mark.parametrize("build", [SmallNet, TiedNet, torchvision.models.resnet18])
def test_modules_survive_the_round_trip_to_the_bit(build):
    networks = [trained(build(), seed) for seed in (1, 2)]
    made = Population.from_modules(networks)
    assert not torch.equal(made.weights_MP[0], made.weights_MP[1])
    fresh = build()
    for m, network in enumerate(networks):
        made.write_to(m, fresh)
        for (key, mine), theirs in zip(fresh.state_dict().items(), network.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs), key
        state = made.state_dict(m)
        assert list(state) == list(network.state_dict())
        assert all(tensor.is_contiguous() for tensor in state.values())
        build().load_state_dict(state)
        for key, tensor in network.state_dict().items():
            assert torch.equal(state[key], tensor), key
    assert not made.momentum_MP.any()


def test_views_write_to_their_row_alone_and_padding_stays_zero():
    made = population()
    before = made.weights_MP.clone()
    for view in (*made.parameters(2).values(), *made.momentum(2).values()):
        view.fill_(7.0)
    for view in made.buffers(2).values():
        view.fill_(7)
    assert torch.equal(made.weights_MP[[0, 1, 3]], before[[0, 1, 3]])
    assert (made.weights_MP[2] == 7).sum() == sum(span.numel for span in made.layout.parameters)
    assert len(padding(made)) > 0
    assert not padding(made).any()


def test_views_run_the_network_as_the_module_does():
    networks = [trained(SmallNet(), seed).eval() for seed in (3, 4)]
    made = Population.from_modules(networks)
    images_NCHW = torch.randn(2, 3, 8, 8)
    shell = SmallNet().eval()
    for m, network in enumerate(networks):
        logits_NK = torch.func.functional_call(shell, made.parameters(m) | made.buffers(m), (images_NCHW,))
        torch.testing.assert_close(logits_NK, network(images_NCHW), rtol=1e-5, atol=1e-4)


def test_buffers_come_in_the_modules_order():
    assert list(population().buffers(0)) == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_load_state_dict_converts_and_zeroes_momentum():
    made = population()
    state = {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in trained(SmallNet(), 9).state_dict().items()
    }
    made.load_state_dict(1, state)
    for key, tensor in made.state_dict(1).items():
        assert torch.equal(tensor, state[key].to(tensor.dtype))
    assert not made.momentum_MP[1].any()
    assert made.momentum_MP[0].any()


def test_state_dicts_of_other_networks_are_refused():
    made = population()
    before = made.weights_MP.clone()
    state = made.state_dict(0)
    with pytest.raises(ValueError, match=r"lacks 'stem\.weight' of shape \(5, 3, 3, 3\)"):
        made.load_state_dict(1, {key: state[key] for key in state if key != "stem.weight"})
    with pytest.raises(ValueError, match="has 'extra', which"):
        made.load_state_dict(1, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'head\.bias' is torch.float32 \(3,\).*\(97,\)"):
        made.load_state_dict(1, {**state, "head.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'norm\.num_batches_tracked' is torch.float32"):
        made.load_state_dict(1, {**state, "norm.num_batches_tracked": torch.tensor(1.0)})
    assert torch.equal(made.weights_MP, before)


def test_modules_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"'stem\.weight' \(5, 3, 3, 3\) .* is 'stem\.weight' \(6,"):
        Population.from_modules([SmallNet(), SmallNet(6)])
    with pytest.raises(ValueError, match=r"stem\.weight"):
        population().write_to(0, SmallNet(6))
    other_constant = SmallNet()
    other_constant.mean[0] = 0.5
    with pytest.raises(UserError, match="non-persistent buffer 'mean' of module 1"):
        Population.from_modules([SmallNet(), other_constant])
    with pytest.raises(ValueError, match="at least one module"):
        Population.from_modules([])


def test_clones_are_copies_with_momentum():
    parent = population(2)
    children = parent.clone_rows([1] * 5 + [0])
    assert children.members == 6
    for mine, theirs in zip(children._matrices(), parent._matrices(), strict=True):
        assert torch.equal(mine, theirs[[1, 1, 1, 1, 1, 0]])
    children.parameters(0)["scale"].fill_(99.0)
    assert parent.parameters(1)["scale"] != 99
    assert children.parameters(1)["scale"] != 99
    for rows in ([2], [-1]):
        with pytest.raises(ValueError, match=f"rows names row {rows[0]}"):
            parent.clone_rows(rows)


def test_a_population_is_a_sequence_of_populations_of_one():
    made = population()
    assert len(made) == 4
    for m, member in enumerate(made):
        assert len(member) == 1
        for index in (m, m - 4):
            for mine, theirs in zip(made[index]._matrices(), made._matrices(), strict=True):
                assert torch.equal(mine, theirs[m : m + 1])
    made[-1].parameters(0)["scale"].fill_(42.0)
    made[1:3].parameters(0)["scale"].fill_(43.0)
    assert [float(made.parameters(m)["scale"].flatten()[0]) for m in (1, 3)] == [43, 42]
    assert made.parameters(0)["scale"].flatten()[0] not in (42, 43)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"member {index} of a population of 4"):
            made[index]


def test_gathered_members_are_copies_with_momentum(seed):
    givers = [population(members, seed=100 + members) for members in (1, 2, 4)]
    draw = random.Random(seed)
    chosen = [(giver, draw.randrange(len(giver))) for giver in draw.choices(givers, k=12)]
    gathered = Population.gather(chosen)
    for place, (giver, row) in enumerate(chosen):
        for mine, theirs in zip(gathered._matrices(), giver._matrices(), strict=True):
            assert torch.equal(mine[place], theirs[row])
    target = Population.zeros(gathered.layout, 14)
    Population.gather(chosen, into=target[1:13])
    assert all(map(torch.equal, target[1:13]._matrices(), gathered._matrices()))
    assert not any(matrix[[0, 13]].any() for matrix in target._matrices())
    gathered.weights_MP.fill_(3.0)
    assert not any((giver.weights_MP == 3).any() for giver in givers)
    with pytest.raises(ValueError, match="different layouts"):
        Population.gather([(givers[0], 0), (Population.from_modules([SmallNet(6)]), 0)])
    for row in (2, -1):
        with pytest.raises(ValueError, match=f"row {row} is named; there are rows 0 to 1"):
            Population.gather([(givers[1], row)])
    with pytest.raises(ValueError, match="both read and written"):
        Population.gather([(givers[1], 1)], into=givers[1][1])
    with pytest.raises(ValueError, match="at least one"):
        Population.gather([])


def test_finite_members_are_told_from_diverged_ones():
    made = population(6)
    assert made.finite_M() == [True] * 6
    made.weights_MP[1, 5], made.weights_MP[2, 0] = float("nan"), float("inf")
    made.statistics_MQ[3, 1], made.statistics_MQ[4, 2] = float("-inf"), float("nan")
    made.momentum_MP[5] = float("nan")
    made.weights_MP[0] = torch.finfo(torch.float32).max
    assert made.finite_M() == [True, False, False, False, False, True]


def test_to_keeps_a_population_that_is_there_already():
    made = population(1)
    assert made.to("cpu") is made
    moved = made.to("meta")
    assert moved.device.type == "meta"
    assert moved.weights_MP.shape == made.weights_MP.shape


def test_matrices_that_do_not_fit_are_refused():
    layout = Layout.of(SmallNet())
    with pytest.raises(ValueError, match="at least 1 member"):
        Population.zeros(layout, 0)
    made = Population.zeros(layout, 2)
    with pytest.raises(ValueError, match=r"counters_MB is .*torch\.int64"):
        Population(layout, made.weights_MP, made.momentum_MP, made.statistics_MQ, made.counters_MB[:1])
    with pytest.raises(ValueError, match=r"momentum_MP is .*torch\.float64"):
        Population(layout, made.weights_MP, made.momentum_MP.double(), made.statistics_MQ, made.counters_MB)
