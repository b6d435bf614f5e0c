"""Every network of the registry: published sizes, shapes at all image sizes, widths, traces, refusals.

That all of them train, eager and fused, as they always did is what the golden traces hold.
"""

import hashlib
import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call

from fastwi.config.schema import EngineConfig
from fastwi.engine.device import resolve
from fastwi.errors import ConfigError
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.convolution import OwnConv2d
from fastwi.kernels.cpu import library
from fastwi.models.names import MODEL_NAMES
from fastwi.models.registry import _BUILDERS, build_model
from fastwi.models.resnet import BasicBlock, GroupNorm, WideResNet

# Parameters at 10 classes. CIFAR ResNets: He et al. 2016, table 6 (0.27, 0.46, 0.66, 0.85, 1.7 M), to the parameter
# as akamaster's pytorch_resnet_cifar10 has them; with option B the two shortcuts have 2,752 more; ResNet18 and VGG:
# kuangliu's pytorch-cifar; WRN-28-10: Zagoruyko & Komodakis 2016 (36.5 M). The ConvNet is this project's own and
# added up here.
CONVNET = sum(9 * i * o + o for i, o in [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]) + 129 * 10
PUBLISHED = {
    "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
    "resnet20_b": 272_474, "resnet32_b": 466_906, "resnet44_b": 661_338, "resnet56_b": 855_770,
    "resnet110_b": 1_730_714,
    "resnet20_gn": 269_722, "resnet32_gn": 464_154, "resnet44_gn": 658_586, "resnet56_gn": 853_018,
    "resnet110_gn": 1_727_962, "resnet18": 11_173_962, "vgg11": 9_231_114, "vgg13": 9_416_010, "vgg16": 14_728_266,
    "wrn16_4": 2_748_890, "wrn28_10": 36_479_194, "convnet": CONVNET,
}  # fmt: skip
DEPTHS = {"resnet18": 18, "vgg11": 9, "vgg13": 11, "vgg16": 14, "wrn16_4": 14, "wrn28_10": 26, "convnet": 7}
"""Layers with weights on the longest path, where the name doesn't say it: a VGG has one linear layer for three, and
a wide ResNet's depth is 6 n + 4 by name, of which 6 n + 2 lie on the path."""
SHALLOW = ("resnet20", "resnet20_b", "resnet20_gn", "resnet18", "vgg11", "wrn16_4", "convnet")
"""The shallow member of each family."""


def on_meta(name: str, classes: int = 10, width: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, classes, width)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def test_names_and_builders_agree_and_names_need_no_torch():
    assert set(_BUILDERS) == set(MODEL_NAMES) == set(PUBLISHED)
    code = "import sys, fastwi.models.names, fastwi.config.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_parameters_are_the_published_ones(name):
    network = on_meta(name)
    assert sum(shape.numel() for shape in shapes(network).values()) == PUBLISHED[name]
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    depth = DEPTHS[name] if name in DEPTHS else int(name.removeprefix("resnet").partition("_")[0])
    assert len(weighted) - len(shortcuts) == depth
    assert len(shortcuts) == {"resnet18": 3, "wrn16_4": 3, "wrn28_10": 3}.get(name, 2 * name.endswith("_b"))
    if name.endswith("_gn"):  # the same network with other norms, and nothing that runs along
        assert shapes(network) == shapes(on_meta(name.removesuffix("_gn")))
        assert not list(network.buffers())
        groups = [m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert groups == [8] * (depth - 1)


@pytest.mark.parametrize("name", [*SHALLOW, "resnet32", "vgg13", "vgg16", "wrn28_10"])
def test_shapes_and_a_trace_that_torch_fx_makes(name):
    network = on_meta(name, 7)
    traced = fx.symbolic_trace(network)
    assert shapes(traced) == shapes(network)
    for height, width in ((16, 16), (64, 64), (28, 36)):
        x_NCHW = torch.empty(3, 3, height, width, device="meta")
        assert network(x_NCHW).shape == traced(x_NCHW).shape == (3, 7)


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
    with torch.device("meta"):
        assert shapes(on_meta("wrn16_4", 10, 2)) == shapes(WideResNet(16, 8, 10))


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("resnet33", {}, ["'resnet33'", "resnet32"]),
        ("VGG-16", {}, ["'VGG-16'", "vgg16"]),
        ("net.py", {}, ["'net.py'", "net.py:MyNetwork"]),
        ("a:b", {"width": 2.0}, ["model.width: 2", "'a:b'"]),
        ("a:b", {"initialisation": "open_lth"}, ["model.initialisation: open_lth", "'a:b'"]),
        ("qqq", {}, ["'qqq'", "resnet20", "_b", "_gn", *MODEL_NAMES[15:], "package.module:attribute"]),
    ],
)
def test_refusals(name, other, words):
    with pytest.raises(ConfigError) as caught:
        build_model(name, 10, **other)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("initialisation", ["kaiming_normal", "open_lth"])
@pytest.mark.parametrize("name", SHALLOW)
def test_initialisations(seed, name, initialisation):
    """Weights in units of their standard deviation, sqrt(2 / fan in): He et al. 2015. Biases as PyTorch has them.

    Each layer by itself too: the linear layer, where PyTorch's default has a sixth of the variance, has few weights.
    """
    torch.manual_seed(seed)
    network = build_model(name, 10, 0.25, initialisation=initialisation)
    weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    layers = [(m.weight * (m.weight[0].numel() / 2) ** 0.5).flatten().double() for m in weighted]
    assert all(abs(layer.square().mean() - 1) < 6 * (2 / len(layer)) ** 0.5 for layer in layers)
    drawn = torch.cat(layers)
    off = 6 / len(drawn) ** 0.5
    assert abs(drawn.mean()) < off
    assert abs(drawn.square().mean() - 1) < 2 * off
    assert abs((drawn.abs() < 1).double().mean() - 0.6827) < off  # normal
    assert 0 < network.linear.bias.abs().max() <= network.linear.in_features**-0.5
    scales = [m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.bias == 0).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    if scales and initialisation == "open_lth":
        scale = torch.cat(scales).double()
        assert scale.min() >= 0
        assert scale.max() < 1
        assert abs(scale.mean() - 0.5) < 6 * (len(scale) * 12) ** -0.5
        assert abs((scale < 0.25).double().mean() - 0.25) < 3 / len(scale) ** 0.5
    else:
        assert all((scale == 1).all() for scale in scales)


@pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")
@pytest.mark.parametrize(
    ("name", "norms", "with_relu", "convolutions"),
    [
        ("resnet20", 19, 19, 16),
        ("resnet20_b", 21, 19, 16),
        ("resnet18", 20, 17, 13),
        ("vgg11", 8, 8, 7),
        ("wrn16_4", 13, 13, 10),
    ],
)
def test_every_batch_norm_and_3_x_3_convolution_has_its_kernel(name, norms, with_relu, convolutions):
    """Norms with the ReLU behind them: ResNet18's three shortcuts end in a sum, which the block's other norm takes.

    Convolutions of stride 1 but the first, of the images' three channels, which the kernel itself leaves to torch.
    """
    resolved = resolve(
        EngineConfig(device="cpu", precision="fp32"),
        build_model(name, 10, 0.5 if name.startswith("resnet20") else 0.125),
    )
    assert resolved.backend == "fused"
    modules = list(resolved.network.modules())
    fused = [m for m in modules if isinstance(m, FusedBatchNorm2d)]
    assert (len(fused), sum(m.relu for m in fused)) == (norms, with_relu)
    assert not any(type(m) is nn.BatchNorm2d for m in modules)
    own = [m for m in modules if isinstance(m, OwnConv2d) and m.stride == (1, 1) and m.in_channels > 3]
    assert len(own) == convolutions


@pytest.mark.parametrize(
    ("torch_seed", "classes", "norm", "weighted_sum"),
    [(0, 10, 51.29855471870109, 38.39466015871509), (12345, 7, 51.27706692313243, 0.8151605603915684)],
)
def test_resnet20_and_its_initial_weights_never_change(torch_seed, classes, norm, weighted_sum):
    """Earlier runs are found and continued by these names; their parents are drawn from these weights.

    Of all values, in float64: their norm, and their sum weighted by cos(0), cos(1), cos(2) ... To rounding: torch
    draws by approximations of log and cos that depend on the processor, and promises nothing between its versions.
    """
    torch.manual_seed(torch_seed)
    state = build_model("resnet20", classes).state_dict()
    names = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    if classes == 10:
        digest = "7a217dfe387899aa0be991aa18fd66ef7d3ac0ac0d45c3f5b263bba9f47a3e19"
        assert hashlib.sha256(names.encode()).hexdigest() == digest
    values = torch.cat([value.double().flatten() for value in state.values()])
    found = (float(values.norm()), float(values @ torch.cos(torch.arange(len(values), dtype=torch.float64))))
    assert found == pytest.approx((norm, weighted_sum), abs=1e-4)


@pytest.mark.parametrize(("channels_in", "channels_out", "stride"), [(16, 16, 1), (16, 32, 2), (3, 8, 2)])
def test_shortcut(seed, channels_in, channels_out, stride):
    """With its last batch norm at zero, a block is its shortcut: subsampled, zero channels on both sides."""
    torch.manual_seed(seed)
    block = BasicBlock(channels_in, channels_out, stride)
    assert {name.split(".")[0] for name in shapes(block)} == {"conv1", "bn1", "conv2", "bn2"}
    nn.init.zeros_(block.bn2.weight)
    x_NCHW = torch.rand(2, channels_in, 8, 8)
    before = (channels_out - channels_in) // 2
    expected = torch.zeros(2, channels_out, 8 // stride, 8 // stride)
    expected[:, before : before + channels_in] = x_NCHW[:, :, ::stride, ::stride]
    assert torch.equal(block(x_NCHW), expected)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (7, 1), (1, 1)])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)])
def test_group_norm_is_its_equation(seed, channels, groups, dtype, eps):
    """Wu & He 2018, equation 1: (x - mean) / sqrt(var + eps) over each image's group; in bf16 to its rounding."""
    torch.manual_seed(seed)
    norm = GroupNorm(channels).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x_NCHW = (torch.randn(3, channels, 5, 4) * 2 + 1).to(dtype)
    groups_NGD = x_NCHW.double().view(3, groups, -1)
    mean, var = groups_NGD.mean(2, keepdim=True), groups_NGD.var(2, correction=0, keepdim=True)
    scaled = ((groups_NGD - mean) / torch.sqrt(var + norm.eps)).view_as(x_NCHW)
    expected = scaled * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    found = norm(x_NCHW)
    assert found.dtype == dtype
    bound = eps * (8 * scaled.abs().max() * norm.weight.abs().max() + 2 * norm.bias.abs().max() + 1)
    assert (found.double() - expected).abs().max() <= bound
