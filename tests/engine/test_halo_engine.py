"""The `halo` engine against `stacked`: what its layers hand over, on the references and on the emulated kernels."""

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trained_networks import BATCH, CLASSES, CONFIG, draw_data, draw_momentum, on_gpu

from fastwi.config.schema import AugmentConfig, DataConfig, EngineConfig
from fastwi.data.noise import Noise
from fastwi.engine import halo
from fastwi.engine.halo import HaloEngine, HaloNetwork
from fastwi.engine.stack import StackedNetwork
from fastwi.engine.stacked import StackedEngine
from fastwi.errors import ConfigError
from fastwi.kernels import stacked_norm
from fastwi.kernels.compiler import compiler
from fastwi.kernels.halo import backward, build, conv, layers
from fastwi.kernels.stacked import stacked_batch_norm, stacked_conv
from fastwi.kernels.stacked_norm import Norm
from fastwi.models.resnet import BasicBlock
from fastwi.population import Layout, Population

M = 2


class Narrow(nn.Module):
    """Two blocks of 16 channels, then one with a stride, as in a CIFAR ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1), BasicBlock(16, 32, 2))
        self.linear = nn.Linear(32, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.blocks(functional.relu(self.bn(self.conv(x_NCHW))))
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))


class Other(nn.Module):
    """Readers for whom something else must be handed over, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.convs = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1, bias=i == 6) for i in range(8)])
        self.bns = nn.ModuleList([nn.BatchNorm2d(16) for _ in range(8)])
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        convs, bns, relu = self.convs, self.bns, functional.relu
        x_NCHW = relu(self.bn(self.conv(x_NCHW)))
        y_NCHW = convs[0](x_NCHW)
        z_NCHW = relu(bns[0](y_NCHW)) + bns[1](y_NCHW) + x_NCHW  # two norms of one convolution
        y_NCHW = convs[1](z_NCHW)
        z_NCHW = relu(bns[2](y_NCHW) + y_NCHW)  # a norm's residual is its input
        z_NCHW = bns[3](convs[2](z_NCHW)) + z_NCHW  # no ReLU
        z_NCHW = relu(bns[4](convs[3](z_NCHW)) + z_NCHW)  # three readers
        x_NCHW = relu(bns[5](convs[4](z_NCHW)) + z_NCHW)  # one reader
        x_NCHW = relu(bns[6](convs[5](x_NCHW)))  # two readers: not the convolution first, and no residual sum
        half_NCHW = x_NCHW * 0.5
        x_NCHW = convs[6](x_NCHW) + half_NCHW  # no norm
        z_NCHW = relu(bns[7](convs[7](z_NCHW)))  # one reader, and no convolution
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)) + torch.mean(z_NCHW, dim=(2, 3)))


class Keyword(nn.Module):
    """A convolution that reads a block's end, called by keyword: it has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.linear = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.Linear(16, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        return self.linear(torch.mean(self.inner(input=x_NCHW) + x_NCHW, dim=(2, 3)))


def logits_and_gradients(
    kind: type[StackedNetwork], network: nn.Module, seed: int, dtype: torch.dtype = torch.bfloat16, size: int = 8
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of M members whose tensors differ, and the running statistics after it among the gradients."""
    draw = torch.Generator().manual_seed(seed)
    made = kind.of(network, True)
    assert made is not None
    tensors, wide = {}, torch.promote_types(dtype, torch.float32)
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        own = torch.stack([value.detach()] * M)
        if own.is_floating_point() and "running" not in name:
            noise = torch.randn(own.shape, generator=draw) * (0.1 if own.dim() > 2 else 0.3)
            own = (own + noise).bfloat16().to(dtype if own.dim() > 2 else wide).requires_grad_()
        tensors[name] = own
    x_MNHWC = torch.randn(M, 3, size, size, 3, generator=draw).bfloat16().to(dtype)
    low = {name: value.to(dtype) if "linear" in name else value for name, value in tensors.items()}
    logits_MNK = made(low, x_MNHWC, True)
    weights_MNK = torch.randn(logits_MNK.shape, generator=draw)
    (logits_MNK * weights_MNK).sum().backward()
    found = {name: value.grad for name, value in tensors.items() if value.grad is not None}
    return logits_MNK.detach(), found | {name: value for name, value in tensors.items() if "running" in name}


def emulate(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the halo kernels' own source run, in the emulator. Returns their names as they are launched."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    launched: list[str] = []

    def launch(kernel: build.Kernel, *arguments: Any) -> None:
        launched.append(kernel.name)
        build.launch(kernel, *arguments)

    for module in (conv, backward):
        monkeypatch.setattr(module, "runs_here", lambda device: True)
        monkeypatch.setattr(module, "launch", launch)
    return launched


@pytest.mark.parametrize(("network", "size"), [(Narrow, 8), (Other, 8), (Keyword, 8), (Narrow, 6)])
def test_references_are_those_of_stacked(seed, network, size):
    """To the bit: what is handed over is computed by the same functions. No kernel takes 6 x 6 images."""
    torch.manual_seed(seed)
    model = network()
    expected_logits, expected = logits_and_gradients(StackedNetwork, model, seed, size=size)
    logits, found = logits_and_gradients(HaloNetwork, model, seed, size=size)
    assert torch.equal(logits, expected_logits)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert not torch.equal(value[0], value[1]), name


@pytest.mark.parametrize(("network", "convolutions"), [(Narrow, 4), (Other, 8)])
def test_emulated_kernels_are_as_exact_as_stacked(seed, network, convolutions, monkeypatch):
    """Against float64: `stacked` has the same roundings in other places."""
    torch.manual_seed(seed)
    model = network()
    exact_logits, exact = logits_and_gradients(StackedNetwork, model.double(), seed, torch.float64)
    model.float()
    _, plain = logits_and_gradients(StackedNetwork, model, seed)
    launched = emulate(monkeypatch)
    logits, found = logits_and_gradients(HaloNetwork, model, seed)
    assert {name: launched.count(name) for name in launched} == dict.fromkeys(("forward", "backward"), convolutions)
    assert found.keys() == exact.keys()
    assert (logits - exact_logits).abs().max() < 0.05 * exact_logits.abs().max()
    for name, value in exact.items():
        off, as_far = (found[name] - value).norm() / value.norm(), (plain[name] - value).norm() / value.norm()
        assert off < 1.5 * as_far + 0.02, (name, off, as_far)
        assert as_far < 0.3, name


def test_what_a_network_hands_over(seed, monkeypatch):
    """Of Narrow's 5 convolutions of 16 channels all make dy of g, and 4 norms' passes of 7 are left."""
    calls: dict[str, list[Any]] = {"gradients": [], "gradient_sums": [], "input_gradient": []}

    def watched(module, name):
        function = getattr(module, name)

        def call(*arguments):
            calls[name].append(arguments)
            return function(*arguments)

        monkeypatch.setattr(module, name, call)

    for module, name in ((backward, "gradients"), (stacked_norm, "gradient_sums"), (stacked_norm, "input_gradient")):
        watched(module, name)
    torch.manual_seed(seed)
    logits_and_gradients(HaloNetwork, Narrow(), seed)
    assert len(calls["gradients"]) == 4
    within = [arguments[4] is not None for arguments in calls["gradients"]]
    assert within == [True, False] * 2
    assert all(arguments[1] is not None for arguments in calls["gradients"])  # dy of g
    assert [arguments[7] is not None for arguments in calls["gradients"]] == [False, True, False, True]


def test_a_second_backward_pass_takes_nothing_of_the_first(seed):
    """Where the convolution that reads a block's end goes backward before the residual sum does."""
    draw = torch.Generator().manual_seed(seed)
    values = [torch.randn(M, 2, 8, 8, 16, generator=draw).bfloat16() for _ in range(6)]
    weight = (torch.randn(M, 16, 3, 3, 16, generator=draw) / 12).bfloat16()
    found = []
    for batch_norm, convolution in ((stacked_batch_norm, stacked_conv), (layers.batch_norm, layers.conv)):
        x, u = (value.clone().requires_grad_() for value in values[:2])
        handle, other = batch_norm(x, None, Norm(*torch.ones(4, M, 16)), None, 2)
        z = batch_norm(u, other, Norm(*torch.ones(4, M, 16)))
        y, _ = convolution(handle, weight, 1, 1)
        for dy, dz in (values[2:4], values[4:]):
            found += torch.autograd.grad((y, z), x, (dy, dz), retain_graph=True)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def engine(kind: type[StackedEngine], **more: Any) -> StackedEngine:
    config = EngineConfig(**{"device": "cpu", "precision": "bf16", "backend": "eager", "evaluation_batch": 4} | more)
    data, augment = DataConfig(last_batch="keep"), AugmentConfig(padding=1)
    return kind(Narrow(), dataclasses.replace(CONFIG, engine=config, data=data, augment=augment))


def test_training_equals_stacked_and_no_member_sees_another(seed):
    """An epoch with a smaller last batch, recomputed statistics and an evaluation, to the bit; and a member alone."""
    torch.manual_seed(seed)
    start = Population.from_modules([Narrow() for _ in range(3)])
    draw_momentum(start, seed)
    data, noises, results = draw_data(seed, 2 * BATCH + 2), [Noise(seed + m) for m in range(3)], []
    for kind, rows in ((StackedEngine, [0, 1, 2]), (HaloEngine, [0, 1, 2]), (HaloEngine, [2])):
        made, trained = engine(kind), start.clone_rows(rows)
        own = [noises[m] for m in rows]
        losses = made.train_epoch(trained, data, own, 1)
        trained = made.recompute_statistics(trained, data, own, 1)
        results.append((losses, trained, made.evaluate(trained, data).loss_M))
    (losses, expected, scores), (found_losses, found, found_scores), (own_loss, alone, own_score) = results
    assert (losses, scores.tolist()) == (found_losses, found_scores.tolist())
    assert (losses[2:], scores[2:].tolist()) == (own_loss, own_score.tolist())
    for matrix, same, row in zip(expected.matrices, found.matrices, alone.matrices, strict=True):
        assert torch.equal(matrix, same)
        assert torch.equal(matrix[2:], row)
    assert not torch.equal(expected.weights_MP, start.weights_MP)


def test_a_device_that_cannot_run_the_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(halo, "missing", lambda device: "a GPU of compute capability 8.0 or later, and cuda has 7.5")
    assert engine(HaloEngine).name == "halo"  # a CPU has the references
    made = StackedEngine.__init__

    def on_a_gpu(self, *arguments):
        made(self, *arguments)
        self.device = torch.device("cuda")

    monkeypatch.setattr(StackedEngine, "__init__", on_a_gpu)
    with pytest.raises(ConfigError, match=r"engine\.name: halo needs a GPU of .* 7\.5; use stacked"):
        engine(HaloEngine)


@pytest.mark.parametrize("kind", [StackedEngine, HaloEngine])
def test_launches_of_a_captured_step(cuda, kind):
    made, data = engine(kind, device="cuda"), on_gpu(draw_data(0, 2 * BATCH))
    members = Population.zeros(Layout.of(Narrow()), M, "cuda")
    made.train_epoch(members, data, [Noise(0), Noise(1)], 0)
    launched = Counter(launch[0] for launch in cuda.graphs[0].launches)
    made.evaluate(members, data)  # measures once what a member takes
    cuda.launches.clear()
    made.evaluate(members, data)
    # Left of `stacked`: the first convolution and the last block's two. Passes for the sums of gradients at the ends
    # of the last two blocks. dx of these two convolutions, and of the norms behind the three.
    # Activations at the ends of the last two blocks and within the last.
    counts = (4, 4, 3, 2, 2 + 3, 3) if kind is HaloEngine else (0, 0, 7, 4, 6 + 7, 7)
    names = ("forward", "backward", "forward_kernel", "gradient_sums_kernel", "input_gradient_kernel", "apply_kernel")
    assert tuple(launched[name] for name in names) == counts
    assert cuda.counts()["forward"] == counts[0] * (2 * BATCH // 4)  # the evaluation's batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("M", [1, 5])
def test_on_a_gpu_as_stacked(seed, M):
    """Captured steps by the kernels themselves: after one the weights have moved as with `stacked`."""
    torch.manual_seed(seed)
    start = Population.from_modules([Narrow() for _ in range(M)])
    draw_momentum(start, seed)
    data, noises, moved = on_gpu(draw_data(seed, BATCH)), [Noise(seed + m) for m in range(M)], []
    for kind in (StackedEngine, HaloEngine):
        trained = start.clone_rows(range(M)).to("cuda")
        engine(kind, device="cuda").train_epoch(trained, data, noises, 1)
        moved.append(trained.weights_MP.cpu() - start.weights_MP)
    assert (moved[0] - moved[1]).norm() <= 0.1 * moved[0].norm()
    assert moved[0].norm() > 0
