"""Networks that use different parts of the engines, and training of them in float64, to compare engines with.

A ReLU whose input is within rounding of 0 may be open in one engine and closed in another, and from there on they
differ by more than rounding. So comparisons start from states where no such input occurs in the reference. Nor has a
network here a bias or scale that a norm behind it takes away: its gradient would be nothing but rounding.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastwi.config.schema import AugmentConfig, Config, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, normalisation_table
from fastwi.engine.base import Engine
from fastwi.engine.choose import ENGINES as ALL_ENGINES
from fastwi.engine.schedule import learning_rate
from fastwi.engine.stacked import StackedEngine
from fastwi.kernels.augment import augment_reference
from fastwi.models.resnet import BasicBlock
from fastwi.population import Population

BATCH, STEPS, SIZE, CLASSES, PADDING = 6, 5, 8, 10, 2
IMAGES = BATCH * STEPS + 2  # two are left out of every epoch
OPTIMIZER = OptimizerConfig(batch_size=BATCH, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
SCHEDULE = ScheduleConfig(drop_epochs=(1,), drop_factor=0.2, warmup_iterations=3)
AUGMENT = AugmentConfig(padding=PADDING, flip=0.5)
CONFIG = Config(optimizer=OPTIMIZER, schedule=SCHEDULE, augment=AUGMENT)
CLEARANCE = 2e-5  # of the reference's ReLU inputs from 0: some 100 roundings of float32


class Residual(nn.Module):
    """The layers of a CIFAR ResNet: batch norm, residual sums, an option-A shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(BasicBlock(4, 4, 1), BasicBlock(4, 8, 2))
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.blocks(functional.relu(self.bn(self.conv(x_NCHW))))
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))


class Mixed(nn.Module):
    """Layers without a rule of their own: pooling, group norm, strides that differ, biases, a scale, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.norm, self.grouped = nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.bn, self.plain = nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1, stride=(2, 1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.linear = nn.Linear(32, CLASSES, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.bn(self.pool(functional.silu(self.conv(x_NCHW))))
        x_NCHW = self.grouped(self.norm(x_NCHW)) * self.scale
        x_NCHW = torch.tanh(self.plain(x_NCHW))
        return self.linear(x_NCHW.reshape(x_NCHW.size(0), -1))


class Untraceable(nn.Module):
    """Control flow that depends on a shape's value, in Python: torch.fx stops at it, torch.func.vmap does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if len(x_NCHW.shape) != 4:
            raise ValueError("images, please")
        return self.linear(functional.silu(self.bn(self.conv(x_NCHW))).mean((2, 3)))


class InPlace(nn.Module):
    """Activations that are changed in place: by a module, an operator and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU6(inplace=True)
        self.shift, self.linear = nn.Parameter(torch.zeros(4, 1, 1)), nn.Linear(4, CLASSES)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.act(self.conv(x_NCHW))
        x_NCHW = x_NCHW * 2
        x_NCHW += self.shift
        return self.linear(x_NCHW.mean((2, 3)).sigmoid_())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "mixed": Mixed,
    "untraceable": Untraceable,
    "in place": InPlace,
}


def build(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        for module in network.modules():  # not all ones and zeros, so that a mix-up of members shows
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.3)
        return network


def draw_data(seed: int, images: int = IMAGES) -> ResidentDataset:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, SIZE, SIZE, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, CLASSES, (images,), generator=draw)
    return ResidentDataset(pixels, labels, normalisation_table((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), CLASSES)


def on_gpu(data: ResidentDataset) -> ResidentDataset:
    tensors = {name: getattr(data, name).to("cuda") for name in ("images_NHWC", "labels_N", "table_C256")}
    return dataclasses.replace(data, **tensors)


def draw_momentum(population: Population, seed: int) -> None:
    """Momentum as after some training, in the columns that weights have: padding stays zero."""
    draw = torch.Generator().manual_seed(seed)
    for m in range(population.members):
        for view in population.momentum(m).values():
            view.copy_(torch.randn(view.shape, generator=draw) * 0.01)


def batches(data: ResidentDataset, noise: Noise, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    draws = noise.draws(epoch, len(data), PADDING, AUGMENT.flip)
    order, offset, flip = (torch.from_numpy(x) for x in (draws.order_N, draws.offset_N2, draws.flip_N))
    for step in range(STEPS):
        at = slice(step * BATCH, (step + 1) * BATCH)
        table = data.table_C256.double()
        yield (
            augment_reference(data.images_NHWC, order[at], offset[at], flip[at], table, PADDING),
            data.labels_N[order[at]],
        )


def train_exactly(
    network: nn.Module, population: Population, m: int, data: ResidentDataset, noise: Noise, epoch: int,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> tuple[nn.Module, dict[str, Tensor], float]:  # fmt: skip
    """Member m trained through an epoch in float64: the network, its momentum and its mean loss.

    Raises TooClose where a ReLU's input comes near 0.
    """
    population.write_to(m, network)
    network = network.double().train()
    momentum = {name: value.double() for name, value in population.momentum(m).items()}
    losses = []
    for step, (x_NCHW, labels_N) in enumerate(batches(data, noise, epoch)):
        with Corners() as corners:
            loss = functional.cross_entropy(network(x_NCHW), labels_N)
        if corners.nearest < CLEARANCE:
            raise TooClose
        names, values = zip(*network.named_parameters(), strict=True)
        rate = learning_rate(epoch * STEPS + step, STEPS, optimizer, SCHEDULE)
        with torch.no_grad():
            for name, value, gradient in zip(names, values, torch.autograd.grad(loss, values), strict=True):
                gradient = gradient + optimizer.weight_decay * value
                momentum[name] = optimizer.momentum * momentum[name] + gradient
                nesterov = gradient + optimizer.momentum * momentum[name]
                value -= rate * (nesterov if optimizer.nesterov else momentum[name])
        losses.append(loss.item())
    return network, momentum, sum(losses) / STEPS


class TooClose(Exception):
    """A ReLU's input is so close to 0 that rounding may turn it over."""


class Corners(TorchFunctionMode):
    """How near the inputs of ReLUs come to 0: there rounding may turn one over, and gradients jump."""

    def __init__(self) -> None:
        super().__init__()
        self.nearest = float("inf")

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function in (functional.relu, torch.relu, Tensor.relu, torch.relu_):
            x = arguments[0] if arguments else keywords["input"]
            self.nearest = min(self.nearest, x.detach().abs().min().item())
        return function(*arguments, **keywords)


class VmappedEngine(StackedEngine):
    """`stacked` as it runs on a GPU without engine.deterministic: with vmap and batched matrix products."""

    def _must_be_exact(self) -> bool:
        return False


CHOICES = {name: kind for name, kind in ALL_ENGINES.items() if name != "halo"}
"""Without `halo`, which is `stacked` on networks as small as these: see test_halo_engine.py."""
ENGINES = {**CHOICES, "vmapped": VmappedEngine}
BATCHED = [name for name in ENGINES if name != "loop"]


def make(
    engine: str,
    network: str | nn.Module,
    precision: str = "fp32",
    backend: str = "eager",
    optimizer: OptimizerConfig = OPTIMIZER,
    device: str = "cpu",
) -> Engine:
    """An engine for networks like `network`, or for those of that name."""
    model = build(network, 0) if isinstance(network, str) else network
    config = EngineConfig(device=device, precision=precision, backend=backend, evaluation_batch=8)
    return ENGINES[engine](model, dataclasses.replace(CONFIG, engine=config, optimizer=optimizer))


def starts(network: str, seed: int, members: int) -> Population:
    population = Population.from_modules([build(network, seed + m) for m in range(members)])
    draw_momentum(population, seed)
    return population
