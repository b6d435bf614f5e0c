"""Strided convolutions on a CPU: gradients as in float64, whatever runs them, and only where they are needed."""

import copy
from types import MethodType

import pytest
import torch
from torch import Tensor, fx, nn

from fastwi.config.schema import EngineConfig
from fastwi.engine.device import resolve
from fastwi.kernels.convolution import OwnConv2d
from fastwi.kernels.cpu import library
from fastwi.kernels.onednn import convolve, without_faults


class Own(nn.Conv2d):
    """A user's, which torch.fx traces through."""


CONVOLUTIONS = [
    nn.Conv2d(3, 8, 3, 2, 1),
    nn.Conv2d(3, 8, 7, 3, 3, bias=False),
    nn.Conv2d(16, 32, 3, 3, 1),
    nn.Conv2d(16, 32, 3, 2, 2, dilation=2),
    nn.Conv2d(24, 48, 5, 2, 2, groups=2),
    nn.Conv2d(3, 8, (1, 3), (1, 3), (0, 1)),
    nn.Conv2d(16, 16, 3, 2, 1, groups=16),
    nn.Conv2d(8, 16, 1, 2, 1),
    nn.Conv2d(8, 32, 3, (1, 2), 1, groups=8),
    Own(64, 128, 3, 2, 1),
]


def results(network: nn.Module, x_NCHW: Tensor, autocast: bool = False) -> list[Tensor]:
    """Output, and the gradients of input and parameters for a fixed gradient of the output."""
    x = x_NCHW.clone(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = network(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    return [y, *torch.autograd.grad(y, [x, *network.parameters()], dy.to(y.dtype))]


def assert_near(network: nn.Module, exact: nn.Module, x_NCHW: Tensor, autocast: bool) -> None:
    """`network` in bf16 is as near to `exact` in float64 as rounding has it: some 0.002.

    More where the processor has no instructions for bf16, and partial sums are rounded.
    """
    near = 0.01 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0.05
    low, high = copy.deepcopy(network), copy.deepcopy(exact).double()
    found = results(low, x_NCHW, True) if autocast else results(low.bfloat16(), x_NCHW.bfloat16())
    for value, truth in zip(found, results(high, x_NCHW.double()), strict=True):
        assert (value.double() - truth).norm() <= near * truth.norm()


def rounded(network: nn.Module) -> nn.Module:
    """With weights that bf16 has."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    return network


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 4), (4, 1), (5, 6)])
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_gradients(seed, convolution, size):
    torch.manual_seed(seed)
    plain = rounded(copy.deepcopy(convolution))
    safe = without_faults(plain, bf16=True)
    assert safe is not plain
    x_NCHW = torch.randn(4, plain.in_channels, *size).bfloat16().float()
    for autocast in (False, True):
        assert_near(safe, plain, x_NCHW, autocast)
    if size == (5, 6) and plain.stride != (1, 2):  # nothing changes
        assert all(map(torch.equal, results(safe, x_NCHW), results(plain, x_NCHW)))


COLUMNS = [
    (nn.Conv2d(4, 12, (1, 3), (1, 4), groups=4), (5, 4)),
    (nn.Conv2d(1, 16, 3, (1, 3)), (8, 3)),
    (nn.Conv2d(1, 4, (3, 5), (1, 2), "valid"), (5, 6)),
    (nn.Conv2d(4, 8, (2, 3), (1, 3), (1, 2), groups=4), (2, 1)),  # smaller than the stride
    (nn.Conv2d(1, 4, (3, 5), (1, 2), (2, 2)), (1, 2)),
]


@pytest.mark.parametrize(("convolution", "size"), COLUMNS, ids=str)
def test_one_column(seed, convolution, size):
    """Also where the weights are in channels-last order."""
    torch.manual_seed(seed)
    plain = rounded(copy.deepcopy(convolution))
    x_NCHW = torch.randn(16, plain.in_channels, *size).bfloat16().float()
    safe = without_faults(plain, bf16=True)
    for form in (torch.contiguous_format, torch.channels_last):
        assert_near(safe.to(memory_format=form), plain, x_NCHW, autocast=False)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 5, 1, 2), nn.Conv2d(4, 8, 1, (2, 1)), Own(15, 2, 1, (1, 3)), nn.Conv2d(24, 6, 1, 2, groups=3),
        nn.Conv2d(8, 8, 1, 4, groups=8), nn.Conv2d(3, 5, 1, 2, padding_mode="circular"),
    ],
    ids=str,
)  # fmt: skip
def test_pointwise_ones_of_few_channels_are_the_same_sums_in_any_precision(seed, convolution):
    torch.manual_seed(seed)
    plain = copy.deepcopy(convolution).double()
    sampled = without_faults(plain, bf16=False)
    assert sampled is not plain
    x_NCHW = torch.randn(3, plain.in_channels, 7, 6, dtype=torch.float64)
    for expected, value in zip(results(plain, x_NCHW), results(sampled, x_NCHW), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2, 1, padding_mode="circular"),
        nn.Conv2d(4, 4, 1), nn.Conv2d(16, 4, 1, 2),
    ],
    ids=str,
)  # fmt: skip
def test_other_convolutions_stay_as_they_are(convolution, bf16):
    network = nn.Sequential(convolution, nn.ReLU())
    assert without_faults(network, bf16) is network


def test_one_whose_computation_a_user_replaced_stays_as_it_is():
    convolution = nn.Conv2d(3, 5, 1, 2)
    convolution._conv_forward = MethodType(lambda _, x, weight, bias: x, convolution)
    assert without_faults(convolution, bf16=True) is convolution


@pytest.mark.parametrize("convolution", [nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2, padding=1)], ids=str)
def test_padded_ones_stay_as_they_are_but_in_bf16(convolution):
    assert without_faults(convolution, bf16=False) is convolution
    assert without_faults(convolution, bf16=True) is not convolution


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_cpu_engine_samples_first(backend):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1, 2))
    resolved = resolve(EngineConfig(device="cpu", backend=backend), network)
    replaced = ["_conv_forward" in vars(resolved.network.get_submodule(each)) for each in ("0", "3")]
    assert replaced == [False, True]
    assert "_conv_forward" not in vars(network[3])
    assert dict(resolved.network.named_parameters()).keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_cpu_engine_runs_the_safe_network(seed, backend):
    """The last layer's images have one pixel. Modules keep their types, and rewriting finds them."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(16)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), norm, nn.ReLU(), Own(16, 24, 3, 3, 1), nn.Conv2d(24, 8, 3, 2, 1)
    )
    network = rounded(network)
    resolved = resolve(EngineConfig(device="cpu", precision="bf16", backend=backend), network)
    x_NCHW = torch.randn(64, 3, 4, 4).bfloat16().float()
    assert resolved.network is not network
    assert dict(resolved.network.named_parameters()).keys() == dict(network.named_parameters()).keys()
    if backend == "auto" and library() is not None:
        assert isinstance(resolved.network, fx.GraphModule)
        assert any(node.target is convolve for node in resolved.network.graph.nodes)
        assert type(resolved.network.get_submodule("0")) is OwnConv2d
    found, truth = (
        results(each, x, a)
        for each, x, a in (
            (resolved.network, x_NCHW, True),
            (copy.deepcopy(network).double(), x_NCHW.double(), False),
        )
    )
    for value, exact in zip(found[-4:], truth[-4:], strict=True):
        assert (value.double() - exact).norm() <= 0.05 * exact.norm()
    assert resolve(EngineConfig(device="cpu", precision="fp32", backend="eager"), network).network is network
