"""Which columns hold which tensor, and what a population refuses to hold."""

import json
from dataclasses import replace

import pytest
import torch
import torchvision
from small_networks import SmallNet, TiedNet, trained
from torch import nn

from fastwi.errors import UserError
from fastwi.population import Layout


@pytest.mark.parametrize("build", [SmallNet, torchvision.models.resnet18])
def test_tensors_lie_one_after_another_from_16_bytes_on(build):
    network = build()
    layout = Layout.of(network)
    state = network.state_dict()
    assert [key for key, _ in layout.keys] == list(state)
    groups = {"parameters": list(dict(network.named_parameters())), "statistics": [], "counters": []}
    for name, tensor in state.items():
        if name not in groups["parameters"]:
            groups["statistics" if tensor.is_floating_point() else "counters"].append(name)
    for kind, columns, align in (("parameters", layout.P, 4), ("statistics", layout.Q, 4), ("counters", layout.B, 1)):
        end, spans = 0, getattr(layout, kind)
        assert [span.name for span in spans] == groups[kind]
        for span in spans:
            assert span.shape == tuple(state[span.name].shape)
            assert span.offset == end
            end += -(-state[span.name].numel() // align) * align
        assert columns == end
    assert layout.row_bytes == 8 * layout.P + 4 * layout.Q + 8 * layout.B


def test_views_lie_in_every_row_with_the_strides_of_channels_last():
    layout = Layout.of(SmallNet())
    x_MP = torch.arange(3 * layout.P, dtype=torch.float32).view(3, layout.P)
    for span in layout.parameters:
        view = span.view(x_MP[2])
        stored = x_MP[2, span.offset : span.offset + span.numel]
        if len(span.shape) == 4:
            outputs, inputs, height, width = span.shape
            expected = stored.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
            assert view.is_contiguous(memory_format=torch.channels_last)
        else:
            expected = stored.view(span.shape)
            assert view.is_contiguous()
        assert torch.equal(view, expected)
        assert view.untyped_storage().data_ptr() == x_MP.untyped_storage().data_ptr()
        assert torch.equal(span.view(x_MP[1:])[1], expected)


def test_strides_of_transposed_and_depthwise_convolutions():
    """By channels-last strides torch's bf16 kernel returned garbage for depthwise weights on images of one pixel."""
    span = Layout.of(nn.ConvTranspose2d(2, 3, 5)).parameters[0]
    assert (span.shape, span.strides) == ((2, 3, 5, 5), (75, 1, 15, 3))
    assert Layout.of(nn.Conv2d(24, 24, 3, groups=24)).parameters[0].strides == (9, 9, 3, 1)


def test_tied_tensors_have_one_span_and_two_keys():
    layout = Layout.of(TiedNet())
    names = [span.name for span in layout.parameters]
    assert names.count("encoder.weight") == 1
    assert "decoder.weight" not in names
    assert dict(layout.keys)["decoder.weight"] == "encoder.weight"
    assert dict(layout.keys)["again.running_mean"] == "norm.running_mean"
    assert layout != Layout.of(TiedNet(tied=False))


GOLDEN = "edf88a6447fb19e8127f385291e1cef85588a6af7661832f001c757f14a9c6c3"


def test_fingerprints_are_stable_and_differ_between_layouts():
    assert Layout.of(nn.Linear(2, 3)).fingerprint == GOLDEN
    different = [SmallNet(), SmallNet(6), TiedNet(), TiedNet(tied=False), nn.Linear(2, 3), nn.Linear(3, 2), nn.ReLU()]
    layouts = [Layout.of(network) for network in different]
    layouts.append(replace(layouts[0], moving=True))
    assert len({layout.fingerprint for layout in layouts}) == len(different) + 1
    assert [Layout.from_json(layout.json) for layout in layouts] == layouts
    with torch.device("meta"):
        assert Layout.of(SmallNet()) == Layout.of(trained(SmallNet(), 1)) == Layout.of(trained(SmallNet(), 2))


def test_changed_json_is_refused():
    text = Layout.of(SmallNet()).json
    for bad in ("", "[]", "3", text[:-5], text.replace("stem", "stam", 1), text.replace("97", "98", 1)):
        with pytest.raises(ValueError, match="layout"):
            Layout.from_json(bad)
    content = json.loads(text)
    content["parameters"].reverse()
    with pytest.raises(ValueError, match="fingerprint"):
        Layout.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (nn.Linear(2, 3, bias=False), nn.Linear(2, 3), ("'bias' (3,)", "the second only")),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), ("'bias' (3,)", "the first only")),
        (SmallNet(), SmallNet(6), ("'stem.weight'", "(5, 3, 3, 3)", "(6, 3, 3, 3)")),
        (
            nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}),
            nn.ModuleDict({"b": nn.Linear(1, 1), "a": nn.Linear(1, 1)}),
            ("another order",),
        ),
    ],
)
def test_differences_are_named(old, new, words):
    layout = Layout.of(old)
    assert layout.difference(Layout.of(old)) is None
    found = layout.difference(Layout.of(new))
    assert all(word in found for word in words), found
    assert "another order" in layout.difference(replace(layout, keys=layout.keys[::-1] + layout.keys[:1]))


def with_buffer(dtype: torch.dtype) -> nn.Module:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.ones(2, dtype=dtype))
    return network


def with_parts_of(elements: int, start: int) -> nn.Module:
    """Two parameters in one piece of memory: the first 16 elements, and those from `start` on."""
    network = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    memory = torch.zeros(elements)
    network[0].data, network[1].data = memory[:16], memory[start:]
    return network


def with_every_other() -> nn.Module:
    """A parameter of every other element of a piece of memory, and one that begins at its last element."""
    network = nn.ParameterList([torch.zeros(1), torch.zeros(1)])
    memory = torch.zeros(32)
    network[0].data, network[1].data = memory[::2], memory[30:]
    return network


def with_buffer_of_a_parameter() -> nn.Module:
    """As torch trains it, the buffer changes with the parameter."""
    network = nn.Linear(2, 2)
    network.register_buffer("row", network.weight.data[1])
    return network


def with_counts() -> nn.Module:
    """A parameter of integers, which has no gradient."""
    network = nn.Linear(2, 2)
    network.counts = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    return network


def test_neighbours_in_memory_are_held():
    assert Layout.of(with_parts_of(32, 16)).P == 32


def without_bias() -> nn.Module:
    network = nn.Linear(2, 2)

    def hook(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: object) -> None:
        del state[f"{prefix}bias"]

    network.register_state_dict_post_hook(hook)
    return network


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"temperature": 1.0}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Linear(2, 2).half(), ("'weight'", "torch.float16", ".float()")),
        (nn.Linear(2, 2).double(), ("'weight'", "torch.float64")),
        (nn.LazyLinear(2), ("'weight'", "no shape")),
        (with_buffer(torch.bool), ("'mask'", "torch.bool", "persistent=False")),
        (with_buffer(torch.float16), ("'mask'", "torch.float16")),
        (with_counts(), ("'counts'", "torch.int64")),
        (with_parts_of(16, 15), ("'0' and '1'", "share memory")),
        (with_every_other(), ("'0' and '1'", "share memory")),
        (with_buffer_of_a_parameter(), ("'weight' and 'row'", "share memory", "clone")),
        (without_bias(), ("'bias'", "missing")),
        (WithExtraState(2, 2), ("'_extra_state'", "neither a parameter nor a buffer")),
    ],
    ids=[
        "half", "double", "lazy", "bool buffer", "half buffer", "integers", "shared memory", "shared gaps",
        "shared with a buffer", "hook", "extra state",
    ],
)  # fmt: skip
def test_what_a_population_cannot_hold_is_refused_in_one_line(network, words):
    with pytest.raises(UserError) as refusal:
        Layout.of(network)
    (line,) = str(refusal.value).splitlines()
    assert all(word in line for word in words), line
