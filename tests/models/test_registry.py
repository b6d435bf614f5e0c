"""Every network of the registry: published sizes, shapes at all image sizes, widths, traces, refusals."""

import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call

from fastwi.errors import ConfigError
from fastwi.models.names import MODEL_NAMES
from fastwi.models.registry import _BUILDERS, build_model
from fastwi.models.resnet import WideResNet

# Parameters at 10 classes. CIFAR ResNets: He et al. 2016, table 6 (0.27, 0.46, 0.66, 0.85, 1.7 M), to the parameter
# as akamaster's pytorch_resnet_cifar10 has them; ResNet18 and VGG: kuangliu's pytorch-cifar; WRN-28-10: Zagoruyko &
# Komodakis 2016 (36.5 M). The ConvNet is this project's own and added up here.
CONVNET = sum(9 * i * o + o for i, o in [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]) + 129 * 10
PUBLISHED = {
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
    "resnet20_gn": 269_722, "resnet32_gn": 464_154, "resnet44_gn": 658_586, "resnet56_gn": 853_018,
    "resnet110_gn": 1_727_962, "resnet18": 11_173_962, "vgg11": 9_231_114, "vgg13": 9_416_010, "vgg16": 14_728_266,
    "wrn16_4": 2_748_890, "wrn28_10": 36_479_194, "convnet": CONVNET,
}  # fmt: skip
DEPTHS = {"resnet18": 18, "vgg11": 9, "vgg13": 11, "vgg16": 14, "wrn16_4": 14, "wrn28_10": 26, "convnet": 7}
"""Layers with weights on the longest path, where the name doesn't say it: a VGG has one linear layer for three, and
a wide ResNet's depth is 6 n + 4 by name, of which 6 n + 2 lie on the path."""
SHALLOW = ("resnet20", "resnet20_gn", "resnet18", "vgg11", "wrn16_4", "convnet")
"""The shallow member of each family."""


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(name: str, classes: int = 10, width: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, classes, width)


def test_names_and_builders_agree():
    assert set(_BUILDERS) == set(MODEL_NAMES) == set(PUBLISHED)


def test_names_need_no_torch():
    code = "import sys, fastwi.models.names, fastwi.config.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_parameters_are_the_published_ones(name):
    network = on_meta(name)
    assert count(network) == PUBLISHED[name]
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    depth = DEPTHS[name] if name in DEPTHS else int(name.removeprefix("resnet").removesuffix("_gn"))
    assert len(weighted) - len(shortcuts) == depth
    assert len(shortcuts) == {"resnet18": 3, "wrn16_4": 3, "wrn28_10": 3}.get(name, 0)


@pytest.mark.parametrize("name", [*SHALLOW, "resnet32", "vgg13", "vgg16", "wrn28_10"])
def test_shapes_and_a_trace_that_torch_fx_makes(name):
    network = on_meta(name, 7)
    traced = fx.symbolic_trace(network)
    assert {n for n, _ in traced.named_parameters()} == {n for n, _ in network.named_parameters()}
    for height, width in ((16, 16), (64, 64), (28, 36)):
        x_NCHW = torch.empty(3, 3, height, width, device="meta")
        assert network(x_NCHW).shape == (3, 7)
        assert traced(x_NCHW).shape == (3, 7)


@pytest.mark.parametrize("name", SHALLOW)
def test_a_functional_call_writes_only_buffers(seed, name):
    """The images, the weights given and the module's own stay as they were: no layer works in place."""
    torch.manual_seed(seed)
    network, x_NCHW = build_model(name, 4, 0.25).train(), torch.randn(4, 3, 16, 16)
    given = {n: p.detach() + 0.01 for n, p in network.named_parameters()}
    buffers = {n: b.clone() for n, b in network.named_buffers()}
    before = [t.clone() for t in (x_NCHW, *given.values(), *network.state_dict().values())]
    functional_call(network, {**given, **buffers}, (x_NCHW,))
    after = (x_NCHW, *given.values(), *network.state_dict().values())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    own = dict(network.named_buffers())
    assert all(not torch.equal(buffers[n], own[n]) for n in buffers)


@pytest.mark.parametrize("name", [*SHALLOW, "vgg16", "wrn28_10"])
@pytest.mark.parametrize("width", [0.0625, 1.7])
def test_width_multiplies_channels(name, width):
    plain, scaled = on_meta(name), on_meta(name, 10, width)
    layers = [[m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (plain, scaled)]
    for index, (one, other) in enumerate(zip(*layers, strict=True)):
        stem_of_wide = name.startswith("wrn") and index == 0  # 16 channels whatever the factor is
        assert other.out_channels == (16 if stem_of_wide else max(1, round(one.out_channels * width)))
    assert scaled(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 10)


def test_widths_of_a_wide_resnet_are_its_factors():
    with torch.device("meta"):
        other = WideResNet(16, 8, 10)
    assert count(on_meta("wrn16_4", 10, 2)) == count(other)


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [
        ("resnet33", 1.0, ["'resnet33'", "resnet32"]),
        ("VGG-16", 1.0, ["'VGG-16'", "vgg16"]),
        ("a:b", 2.0, ["model.width: 2", "'a:b'"]),
        ("no form:x", 1.0, ["'no form:x'", "package.module:attribute or path/to/file.py:attribute"]),
        ("qqq", 1.0, ["'qqq'", *MODEL_NAMES, "package.module:attribute"]),
    ],
)
def test_refusals(name, width, words):
    with pytest.raises(ConfigError) as caught:
        build_model(name, 10, width)
    assert all(word in str(caught.value) for word in words)
