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


def test_spans_follow_the_modules_order_and_start_on_16_bytes():
    network = SmallNet()
    layout = Layout.of(network)
    assert [span.name for span in layout.parameters] == [name for name, _ in network.named_parameters()]
    assert [span.shape for span in layout.parameters] == [tuple(p.shape) for p in network.parameters()]
    assert [span.name for span in layout.buffers] == [
        name for name in dict(network.named_buffers()) if name != "mean"
    ]
    assert [span.name for span in layout.counters] == ["norm.num_batches_tracked"]
    for spans, columns in ((layout.parameters, layout.P), (layout.statistics, layout.Q)):
        assert all(span.offset % 4 == 0 for span in spans)
        assert columns % 4 == 0
        ends = [span.offset + span.numel for span in spans]
        assert all(0 <= start.offset - end < 4 for start, end in zip(spans[1:], ends, strict=False))
        assert 0 <= columns - ends[-1] < 4


def test_views_lie_in_the_row_with_the_strides_of_channels_last():
    layout = Layout.of(SmallNet())
    row_P = torch.arange(layout.P, dtype=torch.float32)
    for span in layout.parameters:
        view = span.view(row_P)
        assert view.shape == span.shape
        assert view.untyped_storage().data_ptr() == row_P.untyped_storage().data_ptr()
        assert sorted(view.flatten().tolist()) == list(range(span.offset, span.offset + span.numel))
        if span.name in ("stem.weight", "depthwise.weight"):
            outputs, inputs, height, width = span.shape
            stored = row_P[span.offset : span.offset + span.numel].view(outputs, height, width, inputs)
            assert torch.equal(view, stored.permute(0, 3, 1, 2))
            assert view.is_contiguous(memory_format=torch.channels_last)
        else:
            assert view.is_contiguous()


def test_weights_of_transposed_convolutions_are_channels_last_too():
    span = Layout.of(nn.ConvTranspose2d(2, 3, 5)).parameters[0]
    assert (span.shape, span.strides) == ((2, 3, 5, 5), (75, 1, 15, 3))


def test_a_matrix_gives_the_view_of_every_member():
    layout = Layout.of(SmallNet())
    x_MP = torch.randn(3, layout.P)
    for span in layout.parameters:
        stacked = span.view(x_MP[1:])
        assert stacked.shape == (2, *span.shape)
        assert torch.equal(stacked[1], span.view(x_MP[2]))


def test_a_resnet18_fits_without_overlap():
    network = torchvision.models.resnet18()
    layout = Layout.of(network)
    taken = torch.zeros(layout.P, dtype=torch.int32)
    for span in layout.parameters:
        span.view(taken).add_(1)
    assert taken.max() == 1
    assert taken.sum() == sum(p.numel() for p in network.parameters())
    assert [key for key, _ in layout.keys] == list(network.state_dict())


def test_buffers_of_both_kinds_keep_the_modules_order():
    network = nn.Module()
    for name, dtype in (("c", torch.int64), ("a", torch.float32), ("b", torch.int64), ("d", torch.float32)):
        network.register_buffer(name, torch.zeros(2, dtype=dtype))
    layout = Layout.of(network)
    assert [[span.name for span in spans] for spans in (layout.buffers, layout.counters, layout.statistics)] == [
        ["c", "a", "b", "d"], ["c", "b"], ["a", "d"],
    ]  # fmt: skip
    assert (layout.P, layout.Q, layout.B) == (0, 8, 4)
    assert layout.row_bytes == 4 * 8 + 8 * 4
    assert Layout.of(nn.Linear(3, 2)).row_bytes == 2 * 4 * (8 + 4)


def test_tied_tensors_have_one_span_and_two_keys():
    layout = Layout.of(TiedNet())
    assert [span.name for span in layout.parameters].count("encoder.weight") == 1
    assert "decoder.weight" not in [span.name for span in layout.parameters]
    assert dict(layout.keys)["decoder.weight"] == "encoder.weight"
    assert dict(layout.keys)["again.running_mean"] == "norm.running_mean"
    assert layout != Layout.of(TiedNet(tied=False))


def test_the_fingerprint_is_stable_and_tells_layouts_apart():
    assert Layout.of(nn.Linear(2, 3)).fingerprint == GOLDEN
    different = [SmallNet(), SmallNet(6), TiedNet(), TiedNet(tied=False), nn.Linear(2, 3), nn.Linear(3, 2)]
    assert len({Layout.of(network).fingerprint for network in different}) == len(different)
    assert Layout.of(trained(SmallNet(), 1)) == Layout.of(trained(SmallNet(), 2))
    with torch.device("meta"):
        assert Layout.of(SmallNet()) == Layout.of(trained(SmallNet(), 1))


GOLDEN = "edf88a6447fb19e8127f385291e1cef85588a6af7661832f001c757f14a9c6c3"


@pytest.mark.parametrize(
    "network", [SmallNet(), TiedNet(), nn.Linear(2, 3), nn.ReLU()], ids=lambda n: type(n).__name__
)
def test_json_round_trip(network):
    layout = Layout.of(network)
    assert Layout.from_json(layout.to_json()) == layout


def test_changed_json_is_refused():
    text = Layout.of(SmallNet()).to_json()
    for bad in ("", "[]", "3", text[:-5], text.replace("stem", "stam", 1), text.replace("97", "98", 1)):
        with pytest.raises(ValueError, match="layout"):
            Layout.from_json(bad)
    told = json.loads(text)
    told["parameters"].reverse()
    with pytest.raises(ValueError, match="fingerprint"):
        Layout.from_json(json.dumps(told))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (nn.Linear(2, 3, bias=False), nn.Linear(2, 3), ("'bias' (3,)", "the second only")),
        (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), ("'bias' (3,)", "the first only")),
        (SmallNet(), SmallNet(6), ("'stem.weight'", "(5, 3, 3, 3)", "(6, 3, 3, 3)")),
        (TiedNet(), TiedNet(tied=False), ("'decoder.weight' (6, 6)", "the second only")),
        (
            nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}),
            nn.ModuleDict({"b": nn.Linear(1, 1), "a": nn.Linear(1, 1)}),
            ("parameters", "another order"),
        ),
    ],
)
def test_differences_are_named(old, new, words):
    assert Layout.of(old).difference(Layout.of(old)) is None
    found = Layout.of(old).difference(Layout.of(new))
    assert all(word in found for word in words), found


def test_differences_of_keys_are_named():
    layout = Layout.of(TiedNet())
    untied = replace(
        layout, keys=tuple((key, "decoder.bias" if key == "encoder.bias" else name) for key, name in layout.keys)
    )
    assert "'encoder.bias'" in layout.difference(untied)
    assert "another order" in layout.difference(replace(layout, keys=layout.keys[::-1]))


def with_buffer(dtype: torch.dtype) -> nn.Module:
    network = nn.Linear(2, 2)
    network.register_buffer("mask", torch.ones(2, dtype=dtype))
    return network


def with_shared_memory() -> nn.Module:
    network = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    network[1].weight.data = network[0].weight.data
    return network


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
    ("network", "message"),
    [
        (nn.Linear(2, 2).half(), r"'weight' has dtype torch.float16; .* \.float\(\)"),
        (nn.Linear(2, 2).double(), "'weight' has dtype torch.float64"),
        (nn.LazyLinear(2), "'weight' has no shape yet"),
        (with_buffer(torch.bool), r"'mask' has dtype torch.bool; .*persistent=False"),
        (with_buffer(torch.float16), "'mask' has dtype torch.float16"),
        (with_shared_memory(), "'0.weight' and '1.weight' share memory"),
        (without_bias(), "'bias' is missing from the module's state dict"),
        (WithExtraState(2, 2), "'_extra_state' is neither a parameter nor a buffer"),
    ],
    ids=["half", "double", "lazy", "bool buffer", "half buffer", "shared memory", "hook", "extra state"],
)
def test_what_a_population_cannot_hold_is_refused_in_one_line(network, message):
    with pytest.raises(UserError, match=message) as refusal:
        Layout.of(network)
    assert "\n" not in str(refusal.value)


def test_depthwise_weights_have_right_gradients_on_one_pixel(seed):
    # By channels-last strides torch's bf16 kernel returned garbage for the taps that see padding alone.
    torch.manual_seed(seed)
    module = nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24, bias=False)
    span = Layout.of(module).parameters[0]
    assert span.strides == (9, 9, 3, 1)
    x_NCHW = torch.randn(8, 24, 1, 1).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    row_P = torch.randn(span.numel)
    for _ in range(20):
        weight = span.view(row_P).to(torch.bfloat16).requires_grad_()
        found = nn.functional.conv2d(x_NCHW, weight, stride=2, padding=1, groups=24)
        (gradient,) = torch.autograd.grad(found.float().sum(), [weight])
        assert (gradient.flatten(1)[:, [0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()
        expected = x_NCHW.double().sum((0, 2, 3))
        torch.testing.assert_close(gradient[:, 0, 1, 1].double(), expected, rtol=0.02, atol=0.05)
