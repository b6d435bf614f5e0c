"""The CIFAR ResNets of He et al. 2016, above all ResNet20, which must stay what it was to the bit."""

import hashlib

import pytest
import torch
from torch import nn

from fastwi.models.registry import build_model
from fastwi.models.resnet import BasicBlock, GroupNorm

# Of all values of the state dict, in float64: their norm, and their sum weighted by cos(0), cos(1), cos(2) ...
GOLDEN = {
    (0, 10): (51.29855471870109, 38.39466015871509),
    (12345, 7): (51.27706692313243, 0.8151605603915684),
}
GOLDEN_NAMES = "7a217dfe387899aa0be991aa18fd66ef7d3ac0ac0d45c3f5b263bba9f47a3e19"  # names and shapes, 10 classes


@pytest.mark.parametrize(("torch_seed", "classes"), GOLDEN)
def test_resnet20_and_its_initial_weights_never_change(torch_seed, classes):
    """Runs of old are found and continued by these names; their parents are drawn from these weights.

    Values to rounding: torch draws by approximations of log and cos that depend on the processor (without AVX2 values
    differ in their last digits), and promises nothing between its versions.
    """
    torch.manual_seed(torch_seed)
    state = build_model("resnet20", classes).state_dict()
    told = "\n".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
    if classes == 10:
        assert hashlib.sha256(told.encode()).hexdigest() == GOLDEN_NAMES
    values = torch.cat([value.double().flatten() for value in state.values()])
    found = (float(values.norm()), float(values @ torch.cos(torch.arange(len(values), dtype=torch.float64))))
    assert found == pytest.approx(GOLDEN[torch_seed, classes], abs=1e-4)


@pytest.mark.parametrize(("channels_in", "channels_out", "stride"), [(16, 16, 1), (16, 32, 2), (3, 8, 2)])
def test_shortcut(seed, channels_in, channels_out, stride):
    """With its last batch norm at zero, a block is its shortcut: subsampled, zero channels on both sides."""
    torch.manual_seed(seed)
    block = BasicBlock(channels_in, channels_out, stride)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv1", "bn1", "conv2", "bn2"}
    nn.init.zeros_(block.bn2.weight)
    x_NCHW = torch.rand(2, channels_in, 8, 8)
    y_NCHW = block(x_NCHW)
    before = (channels_out - channels_in) // 2
    expected = torch.zeros(2, channels_out, 8 // stride, 8 // stride)
    expected[:, before : before + channels_in] = x_NCHW[:, :, ::stride, ::stride]
    assert torch.equal(y_NCHW, expected)


def test_group_norm_variant_is_the_same_network_with_other_norms():
    """Same names and parameters in the same order, and nothing that runs along."""
    with torch.device("meta"):
        plain, grouped = build_model("resnet32", 10), build_model("resnet32_gn", 10)
    assert {n: p.shape for n, p in grouped.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert not list(grouped.buffers())
    norms = [m for m in grouped.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 31
    assert {norm.num_groups for norm in norms} == {8}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in grouped.modules())


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 4), (7, 1), (1, 1)])
def test_group_norm_is_its_equation(seed, channels, groups):
    """Wu & He 2018, equation 1: (x - mean) / sqrt(var + eps) over each image's group; in bf16 to its rounding."""
    torch.manual_seed(seed)
    norm = GroupNorm(channels)
    assert norm.num_groups == groups
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x_NCHW = torch.randn(3, channels, 5, 4, dtype=torch.float64) * 2 + 1
    for dtype, eps in ((torch.float32, 2.0**-24), (torch.bfloat16, 2.0**-8)):
        rounded = x_NCHW.to(dtype)
        groups_NGD = rounded.double().view(3, groups, -1)
        mean, var = groups_NGD.mean(2, keepdim=True), groups_NGD.var(2, correction=0, keepdim=True)
        scaled = ((groups_NGD - mean) / torch.sqrt(var + norm.eps)).view_as(x_NCHW)
        expected = scaled * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
        with torch.no_grad():
            found = norm(rounded)
        assert found.dtype == dtype
        bound = eps * (8 * scaled.abs().max() * norm.weight.abs().max() + 2 * norm.bias.abs().max() + 1)
        assert (found.double() - expected).abs().max() <= bound
