"""The public functions on every form of network."""

import copy
import itertools

import pytest
import torch
import torchvision
from small_networks import SmallNet, TiedNet, trained
from torch import nn

import fastwi
from fastwi import Population
from fastwi.errors import CheckpointError, UserError

STEM = ("weight", "bias")


def exact_mix(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    if a.is_floating_point():
        return (1 - alpha) * a.double() + alpha * b.double()
    return {0.0: a, 1.0: b}.get(alpha, torch.maximum(a, b)).double()


def assert_mixed(states: list[dict[str, torch.Tensor]], alpha: float) -> None:
    """states: the result, a and b."""
    result, a, b = states
    assert list(result) == list(a)
    for key, value in result.items():
        assert value.dtype == a[key].dtype
        tolerance = 0 if alpha in (0, 1) else 1e-5
        torch.testing.assert_close(value.double(), exact_mix(a[key], b[key], alpha), rtol=tolerance, atol=tolerance)
        assert not torch.equal(a[key], b[key]), f"{key} does not differ, so this shows nothing"


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


@pytest.mark.parametrize(
    ("build", "alpha"),
    [
        *itertools.product((SmallNet, TiedNet), (0.5, 0.1, -0.5, 1.5, 0.0, 1.0)),
        *itertools.product((torchvision.models.resnet18,), (0.1, 1.0)),
    ],
)
def test_modules_are_interpolated_in_place(build, alpha):
    a, b = trained(build(), 1), trained(build(), 2)
    old_a, old_b = copied(a.state_dict()), copied(b.state_dict())
    addresses = [parameter.data_ptr() for parameter in a.parameters()]
    fastwi.interpolate_(a, b, alpha)
    assert_mixed([a.state_dict(), old_a, old_b], alpha)
    assert addresses == [parameter.data_ptr() for parameter in a.parameters()]
    assert all(parameter.requires_grad for parameter in a.parameters())
    assert all(torch.equal(value, old_b[key]) for key, value in b.state_dict().items())


def test_a_module_and_a_state_dict_and_lists():
    a, b = trained(SmallNet(), 1), trained(SmallNet(), 2)
    old_a = copied(a.state_dict())
    fastwi.interpolate_(a, b.state_dict(), 0.25)
    assert_mixed([a.state_dict(), old_a, b.state_dict()], 0.25)
    mine, theirs = [torch.zeros(3), torch.tensor([1, 5])], [torch.ones(3), torch.tensor([2, 4])]
    fastwi.interpolate_(mine, theirs, 0.25)
    assert [tensor.tolist() for tensor in mine] == [[0.25] * 3, [2, 5]]


def test_populations_agree_with_modules(seed):
    networks = [trained(SmallNet(), number) for number in range(4)]
    population, other = Population.from_modules(networks[:2]), Population.from_modules(networks[2:])
    both, crossed = Population.from_modules([networks[0], networks[2]]), Population.from_modules(networks[:2])
    both.momentum_MP.normal_(generator=torch.Generator().manual_seed(seed))
    momentum_MP = both.momentum_MP.clone()
    fastwi.interpolate_(population, other, [0.25, 0.75])  # member by member
    fastwi.interpolate_(both, pairs=[(0, 1)], alpha=0.25, momentum="average")
    fastwi.interpolate_(crossed, other, 0.75, pairs=[(1, 0)])
    torch.testing.assert_close(both.momentum_MP[0], 0.75 * momentum_MP[0] + 0.25 * momentum_MP[1])
    assert torch.equal(both.momentum_MP[1], momentum_MP[1])
    assert all(torch.equal(value, networks[0].state_dict()[key]) for key, value in crossed.state_dict(0).items())
    networks.append(copy.deepcopy(networks[1]))
    fastwi.interpolate_(networks[4], networks[2], 0.75)
    fastwi.interpolate_(networks[0], networks[2], 0.25)
    fastwi.interpolate_(networks[1], networks[3], 0.75)
    for found, m, network in ((population, 0, 0), (population, 1, 1), (both, 0, 0), (both, 1, 2), (crossed, 1, 4)):
        expected = networks[network].state_dict()
        for key, value in found.state_dict(m).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
    for b, message in ((other.clone_rows([0]), "pairs="), (None, "pairs="), (SmallNet(), "not with a SmallNet")):
        with pytest.raises(ValueError, match=message):
            fastwi.interpolate_(population, b, 0.5)


def test_a_network_tied_to_itself_in_one_place_only_is_refused():
    with pytest.raises(ValueError, match=r"network 0 ties 'encoder\.weight' and 'decoder\.weight', network 1"):
        fastwi.interpolate_(TiedNet(), TiedNet(tied=False), 0.5)


def test_tensors_that_one_network_alone_ties_are_averaged_one_by_one():
    tied, untied = TiedNet(), TiedNet(tied=False)
    states = [network.state_dict() for network in (tied, untied)]
    found = fastwi.average(states)
    for key in ("encoder.weight", "decoder.weight"):
        torch.testing.assert_close(found[key], (states[0][key] + states[1][key]) / 2)
    assert not torch.equal(found["encoder.weight"], found["decoder.weight"])
    with pytest.raises(ValueError, match=r"network 0 ties 'encoder\.weight' and 'decoder\.weight', others do not"):
        fastwi.average(tied, untied)  # a copy of the first holds one of the two
    torch.nn.init.constant_(tied.encoder.weight, torch.nan)
    assert fastwi.average(tied, tied).encoder.weight.isnan().all()


@pytest.mark.parametrize("call", [fastwi.interpolate_, lambda a, b: fastwi.average([a, b])])
def test_the_first_difference_is_named(call):
    state = SmallNet().state_dict()
    without = {key: value for key, value in state.items() if key != "norm.weight"}
    with pytest.raises(ValueError, match=r"network 1 lacks 'norm\.weight', which network 0 has"):
        call(state, without)
    with pytest.raises(ValueError, match=r"network 0 lacks 'norm\.weight', which network 1 has"):
        call(without, state)
    with pytest.raises(ValueError, match=r"'stem\.weight' is .*\(5, 3, 3, 3\) in network 0 and .*\(6, 3, 3, 3\)"):
        call(state, SmallNet(6).state_dict())
    with pytest.raises(ValueError, match=r"'scale' is torch\.float32 \(\) .* torch\.float64 \(\)"):
        call(state, {**state, "scale": state["scale"].double()})
    with pytest.raises(ValueError, match="'note' is a str, not a tensor"):
        call({"note": "text"}, {"note": "text"})


@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.5], [2.0, -1.5, 0.25]])
@pytest.mark.parametrize("form", ["modules", "state dicts", "lists", "files", "population", "rows"])
def test_averages_of_three(tmp_path, form, weights):
    """One by one and as one list."""
    networks = [trained(TiedNet(), seed) for seed in (5, 6, 7)]
    states = [copied(network.state_dict()) for network in networks]
    paths = [tmp_path / f"{m}.pt" for m in range(3)]
    for network, path in zip(networks, paths, strict=True):
        torch.save(network.state_dict(), path)
    given = {
        "modules": networks, "state dicts": [network.state_dict() for network in networks],
        "lists": [list(network.state_dict().values()) for network in networks],
        "files": [paths[0], *map(str, paths[1:])],
    }  # fmt: skip
    if form == "population":
        result = fastwi.average(Population.from_modules(networks), weights=weights).state_dict(0)
    elif form == "rows":
        population = Population.from_modules([TiedNet(), *networks[::-1]])
        result = fastwi.average(population, weights=weights, rows=[3, 2, 1]).state_dict(0)
    else:
        found, again = fastwi.average(given[form], weights=weights), fastwi.average(*given[form], weights=weights)
        if form == "modules":
            assert found is not networks[0]
            assert found.decoder.weight is found.encoder.weight
            found, again = found.state_dict(), again.state_dict()
        assert list(found) == list(again)
        assert all(torch.equal(found[name], again[name]) for name in found)
        result = dict(zip(states[0], found.values(), strict=True))
        if form != "lists":
            assert list(found) == list(states[0])
            assert result["decoder.weight"].data_ptr() == result["encoder.weight"].data_ptr()
    shares = weights or [1 / 3] * 3
    for key in result:
        group = [state[key] for state in states]
        assert result[key].dtype == group[0].dtype
        if group[0].is_floating_point():
            exact = sum(share * tensor.double() for share, tensor in zip(shares, group, strict=True))
            torch.testing.assert_close(result[key].double(), exact, rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(result[key], torch.stack(group).amax(0))
    for network, state in zip(networks, states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_views_of_one_memory_are_not_tied():
    """Tied tensors are one tensor: the same elements in the same places."""
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    found = fastwi.average([{"a": x, "b": x.T, "c": x[:1]} for x in (a, b)])
    mean = (a + b) / 2
    assert torch.equal(found["a"], mean)
    assert torch.equal(found["b"], mean.T)
    assert torch.equal(found["c"], mean[:1])


def test_half_precision_is_not_summed_in_itself():
    values = [torch.tensor([1.0 + m], dtype=torch.bfloat16) for m in range(200)]
    result = fastwi.average([{"w": value} for value in values])["w"]
    assert result.dtype == torch.bfloat16
    assert result.item() == 100.5


def test_a_network_of_weight_zero_takes_no_part():
    a, b, diverged = (trained(SmallNet(), seed) for seed in (1, 2, 3))
    for parameter in diverged.parameters():
        parameter.data.fill_(float("nan"))
    diverged.norm.num_batches_tracked.fill_(10**9)
    mean = fastwi.average([a, b, diverged], weights=[0.5, 0.5, 0.0])
    assert all(torch.isfinite(parameter).all() for parameter in mean.parameters())
    assert mean.norm.num_batches_tracked < 10**9


def test_what_cannot_be_averaged_is_refused(tmp_path):
    population = Population.from_modules([SmallNet(), SmallNet()])
    for networks, named, message in [
        ([SmallNet(), SmallNet()], {"weights": [1.0]}, "1 weights for 2 networks"),
        ([SmallNet(), SmallNet()], {"weights": [float("nan"), 1.0]}, "finite"),
        ([SmallNet(), SmallNet()], {"rows": [0, 1]}, "rows is for one population"),
        ([[]], {}, "at least one network"),
        ([population], {"rows": [2]}, "row 2 is named; there are rows 0 to 1"),
        ([population, population], {}, "population alone"),
        ([[SmallNet(), SmallNet()], [0.3, 0.7]], {}, "weights by name"),
        ([population, [0.5, 0.5]], {}, "weights by name"),
        ([SmallNet(), 3], {}, "not a int"),
    ]:
        with pytest.raises(ValueError, match=message):
            fastwi.average(*networks, **named)
    with pytest.raises(TypeError):
        fastwi.average(population, rows=[0.2, 1.9])
    (tmp_path / "x.pt").write_text("")
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        fastwi.average(tmp_path / "x.pt", tmp_path / "x.pt")


def test_modules_whose_other_buffers_differ_are_refused():
    """The result would have the first one's. State dicts do not hold them."""
    a, b = SmallNet(), SmallNet()
    b.mean.add_(1)
    before = copied(a.state_dict())
    for call in (fastwi.average, fastwi.interpolate_):
        with pytest.raises(UserError, match="buffer 'mean' of module 1"):
            call(a, b)
    with pytest.raises(UserError, match="buffer 'mean' of module 2"):
        fastwi.average(a, SmallNet(), b)
    assert all(torch.equal(value, before[key]) for key, value in a.state_dict().items())
    fastwi.average(a.state_dict(), b.state_dict())
    fastwi.interpolate_(a, b.state_dict())


def test_parameters_that_a_hook_takes_out_of_the_state_dict_are_not_lost():
    """Those of a frozen backbone, which are the same in all, may be left out."""
    a, b, frozen = trained(SmallNet(), 1), trained(SmallNet(), 2), trained(SmallNet(), 2)
    frozen.load_state_dict({key: a.state_dict().get(key) for key in ("stem.weight", "stem.bias")}, strict=False)
    for network in (a, b, frozen):
        network.register_state_dict_post_hook(lambda _, state, *__: [state.pop(f"stem.{k}") for k in STEM] and None)
    before, theirs = copied(dict(a.named_parameters())), copied(dict(frozen.named_parameters()))
    for call in (fastwi.average, fastwi.interpolate_):
        with pytest.raises(UserError, match=r"parameter 'stem\.weight' of module 1"):
            call(a, b)
    assert all(torch.equal(value, before[name]) for name, value in a.named_parameters())
    mean = dict(fastwi.average(a, frozen).named_parameters())
    assert torch.equal(mean["stem.weight"], before["stem.weight"])
    torch.testing.assert_close(mean["head.bias"], (before["head.bias"] + theirs["head.bias"]) / 2)


@pytest.mark.parametrize("call", [fastwi.interpolate_, fastwi.average])
def test_what_one_module_alone_has_is_named(call):
    without, having = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for pair, lacks in (((without, having), 0), ((having, without), 1)):
        with pytest.raises(ValueError, match=rf"network {lacks} lacks '1\.weight'"):
            call(*pair)


def test_an_unknown_treatment_of_momentum_is_refused_of_modules_too():
    with pytest.raises(ValueError, match="anything"):
        fastwi.interpolate_(SmallNet(), SmallNet(), momentum="anything")


def test_networks_that_share_a_part_of_their_memory_are_refused():
    base = torch.arange(6.0)
    zeros = {"a": torch.zeros(4), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="'a' and 'b' share a part of their memory"):
        fastwi.interpolate_({"a": base[:4], "b": base[3:]}, zeros, 0.5)
    assert torch.equal(base, torch.arange(6.0))
    fastwi.interpolate_({"a": base[:3], "b": base[3:]}, {"a": torch.zeros(3), "b": torch.zeros(3)}, 0.5)
    assert torch.equal(base, torch.arange(6.0) / 2)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_and_nothing_is_written(dtype):
    a, b = ({"w": value, "x": value.to(dtype)} for value in (torch.zeros(3), torch.ones(3)))
    for call in (fastwi.interpolate_, fastwi.average)[: 1 if dtype.is_floating_point else 2]:
        with pytest.raises(ValueError, match=f"'x' has dtype {dtype}"):
            call(a, b)
    assert torch.equal(a["w"], torch.zeros(3))


def test_a_module_whose_state_dict_holds_copies_is_refused():
    networks = [trained(SmallNet(), seed) for seed in (1, 2)]
    for network in networks:
        network.register_state_dict_post_hook(lambda _, state, *__: state.update(copied(state)))
    for call in (fastwi.interpolate_, fastwi.average):
        with pytest.raises(ValueError, match=r"'scale' is neither a parameter nor a buffer"):
            call(*networks)
    fastwi.average([network.state_dict() for network in networks])


def test_one_memory_as_two_dtypes_is_not_tied():
    x = torch.arange(4.0)
    found = fastwi.average([{"a": x, "b": x.view(torch.int32)}] * 2)
    assert torch.equal(found["b"], x.view(torch.int32))


def test_float64_networks_are_interpolated_in_float64():
    a, b = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    fastwi.interpolate_([a], [b], 0.1)
    assert a.tolist() == [0.1] * 3
