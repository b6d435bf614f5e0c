"""Strided 1 x 1 convolutions that sample first: the same sums as torch's, and only where they are needed."""

import pytest
import torch
from torch import nn

from fastwi.config.schema import EngineConfig
from fastwi.engine.device import resolve
from fastwi.kernels.pointwise import SampledConv2d, sample_first


@pytest.mark.parametrize(
    ("channels_in", "channels_out", "stride", "groups"),
    [(3, 5, 2, 1), (4, 8, (2, 1), 1), (15, 2, (1, 3), 1), (24, 6, 2, 3), (8, 8, 4, 8)],
)
def test_equals_torch(seed, channels_in, channels_out, stride, groups):
    draw = torch.Generator().manual_seed(seed)
    plain = nn.Conv2d(channels_in, channels_out, 1, stride, groups=groups).double()
    sampled = sample_first(plain)
    assert type(sampled) is SampledConv2d
    x_NCHW = torch.randn(3, channels_in, 7, 6, dtype=torch.float64, generator=draw)
    found = []
    for network in (plain, sampled):
        x = x_NCHW.clone(memory_format=torch.channels_last).requires_grad_()
        y = network(x)
        dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        found.append((y, *torch.autograd.grad(y, (x, *network.parameters()), dy)))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(16, 4, 1, 2), nn.Conv2d(4, 4, 1, 2, padding=1)],
)
def test_other_convolutions_stay_as_they_are(convolution):
    network = nn.Sequential(convolution, nn.ReLU())
    assert sample_first(network) is network


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_cpu_engine_runs_the_safe_network(backend):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1, 2))
    resolved = resolve(EngineConfig(device="cpu", backend=backend), network)
    convolutions = [module for module in resolved.network.modules() if type(module) is nn.Conv2d]
    assert [convolution.kernel_size for convolution in convolutions] == [(3, 3)]
    assert type(network[3]) is nn.Conv2d
    assert dict(resolved.network.named_parameters()).keys() == dict(network.named_parameters()).keys()
