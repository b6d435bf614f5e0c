"""What every case of a benchmark of training is given: images, batches, a network, a device; and fastwi's own case.

Shapes: M members, N images of a batch, D images of a round, C H W of an image, K classes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.runner import Case
from fastwi.config.schema import Config, DataConfig, EngineConfig, ModelConfig, OptimizerConfig
from fastwi.data.noise import Noise, Stream, permutation
from fastwi.data.resident import ResidentDataset, random_images, require_resident
from fastwi.engine.choose import build_engine, build_network
from fastwi.engine.device import resolve_dtype
from fastwi.kernels.augment import augment_reference
from fastwi.population import Population

Batches = Iterator[tuple[Tensor, Tensor]]
RANDOM = "random"
"""As a dataset's directory: 32 x 32 images of random pixels."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Train `config.model` on batches of a dataset that holds the images of one round, on one device.

    Compared and hashed by identity, so that what is built for a task can be kept by it.
    """

    config: Config
    dataset: ResidentDataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    dtype: torch.dtype
    workers: int

    @property
    def batch(self) -> int:
        """Images of a step."""
        return self.config.optimizer.batch_size

    @property
    def images(self) -> int:
        """Images of a round of one member."""
        return len(self.dataset)

    @property
    def steps(self) -> int:
        """Steps of a round."""
        return self.images // self.batch

    def network(self) -> nn.Module:
        """The network that all train, from one initialisation."""
        return build_network(self.config, self.dataset.classes)

    def optimizer(self, tensors: Any, fused: bool = True) -> torch.optim.Optimizer:
        """The optimizer that all use; `fused` is its fastest stock form."""
        kind = self.config.optimizer
        return torch.optim.SGD(
            tensors, lr=kind.learning_rate, momentum=kind.momentum, weight_decay=kind.weight_decay,
            nesterov=kind.nesterov, fused=fused or None,
        )  # fmt: skip

    def autocast(self) -> torch.autocast:
        """bf16 autocast where the device computes in bf16, else nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """torch.compile with Inductor's `options`, for stock networks in channels-last order.

        On a GPU Inductor gives that order up where no layer has more than 64 channels. It is told to keep it, as
        fastwi tells it (`fastwi.engine.device.compiled`).
        """
        if self.device.type == "cuda":
            options["force_layout_optimization"] = True
        made: Callable[..., Any] = torch.compile(function, dynamic=False, options=options or None)
        return made

    def of_images(self, at_N: Tensor) -> "Task":
        """The same task with these images."""
        return dataclasses.replace(self, dataset=self.dataset.part(at_N))

    def case(self, step: Callable[[Tensor, Tensor], object], members: int, static_memory: bool = True) -> Case:
        """A round of steps on (images [M, N, C, H, W], labels [M, N])."""
        batches = stock_batches(self, members)

        def run() -> None:
            for x_MNCHW, labels_MN in batches():
                step(x_MNCHW, labels_MN)

        return Case(run, members * self.images, static_memory=static_memory)


def make_task(
    data: str, steps: int, batch: int = 128, device: str = "cpu", workers: int = 0, model: str = "resnet20",
    width: float = 1.0,
) -> Task:  # fmt: skip
    """A random subset of the training images, as many as `steps` steps take; of a small set all, again and again."""
    config = Config(
        model=ModelConfig(model, width),
        optimizer=OptimizerConfig(batch_size=batch),
        engine=EngineConfig(device=device),
    )
    on = torch.device(device)
    dataset, mean, std = load(data, "train", on, batch * steps if data == RANDOM else 0)
    task = Task(config, dataset, mean, std, on, resolve_dtype(config.engine), workers)
    # Drawn at random: files are often sorted by class, and a network that sees one class alone soon computes with
    # subnormal numbers, at a fifth of the speed.
    drawn_N = np.resize(permutation(0, Stream.SUBSET, 0, len(dataset)), batch * steps)
    return task.of_images(torch.from_numpy(drawn_N))


def load(
    data: str, split: str, device: torch.device, images: int
) -> tuple[ResidentDataset, tuple[float, ...], tuple[float, ...]]:
    """`images` of a dataset in a directory (0: all), or RANDOM ones; their mean and standard deviation by channel."""
    if data == RANDOM:
        return random_images(images, device, seed=sum(split.encode())), (0.5,) * 3, (0.25,) * 3
    from fastwi.data.card import read_card  # both import pydantic, which a machine with a GPU may lack
    from fastwi.data.split import open_split

    card, kept = read_card(data), DataConfig(streaming="resident", train_images=images, test_images=images)
    dataset = require_resident(open_split(Path(data), split, card, kept, device), "benchmarks")
    return dataset, card.mean, card.std


def stock_batches(task: Task, members: int, compiled: bool = True) -> Callable[[], Batches]:
    """The data side of every stock case: resident images, augmented by one compiled torch function.

    Each call is an epoch: (x [M, N, C, H, W] in the task's dtype, each member's part in channels-last order; labels
    [M, N]), one step after the other; each member draws its own order, crops and flips, all before the first step.
    """
    draw, M, D = torch.Generator().manual_seed(0), members, task.images
    augment = torch.compile(augment_reference, dynamic=False) if compiled else augment_reference
    kind, table = task.config.augment, task.dataset.table_C256.to(task.dtype)

    def epoch() -> Batches:
        order_MD = torch.stack([torch.randperm(D, generator=draw) for _ in range(M)]).to(task.device)
        offset_MD2 = torch.randint(0, 2 * kind.padding + 1, (M, D, 2), generator=draw).to(task.device)
        flip_MD = (torch.rand(M, D, generator=draw) < kind.flip).to(task.device)
        for first in range(0, task.steps * task.batch, task.batch):
            at = slice(first, first + task.batch)
            chosen = order_MD[:, at].flatten()
            offset, flip = offset_MD2[:, at].flatten(0, 1), flip_MD[:, at].flatten()
            x_NCHW = augment(task.dataset.images_NHWC, chosen, offset, flip, table, kind.padding)
            yield x_NCHW.unflatten(0, (M, task.batch)), task.dataset.labels_N[chosen].view(M, task.batch)

    return epoch


def fastwi_case(task: Task, members: int, engine: str) -> tuple[Case, Population]:
    """A case that trains siblings, each under its own noise, by an engine of fastwi; and their population.

    Its run takes a function to call with the number of images done after each step, for a profile.
    """
    config = dataclasses.replace(task.config, engine=dataclasses.replace(task.config.engine, name=engine))
    network, epochs = task.network(), itertools.count()
    trainer = build_engine(config, network)
    population = Population.from_modules([network], device=task.device).clone_rows([0] * members)
    noises = [Noise(m) for m in range(members)]

    def epoch(report: Callable[[int], None] | None = None) -> None:
        trainer.train_epoch(population, task.dataset, noises, next(epochs), report)

    return Case(epoch, members * task.images, static_memory=True), population
