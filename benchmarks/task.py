"""What every contestant of a benchmark is given: images, batches, a network, a device; and what a contestant is.

Shapes: M members, N images of a batch, C H W of an image, K classes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import pick_device
from fastwi.config.schema import Config
from fastwi.data.noise import Stream, permutation
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine.choose import build_network
from fastwi.engine.device import resolve_dtype
from fastwi.errors import UserError
from fastwi.kernels.augment import augment_reference


class Unavailable(UserError):
    """A contestant that cannot run here, for this network or for so many members; the message says why."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to do a benchmark's work: `run` is timed and takes `images` images through it."""

    run: Callable[[], object]
    images: int
    static_memory: bool = False
    """On a CPU, whether it runs under the allocator settings that fastwi makes, or under glibc's own."""
    close: Callable[[], None] = lambda: None
    """Ends its workers and removes its files."""


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

    def optimizer(self, tensors: Any) -> torch.optim.Optimizer:
        """The optimizer that all use, in its fastest stock form."""
        kind = self.config.optimizer
        return torch.optim.SGD(
            tensors, lr=kind.learning_rate, momentum=kind.momentum, weight_decay=kind.weight_decay,
            nesterov=kind.nesterov, fused=True,
        )  # fmt: skip

    def autocast(self) -> torch.autocast:
        """bf16 autocast where the device computes in bf16, else nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def shortened(self, steps: int) -> "Task":
        """The same task with rounds of the first `steps` steps."""
        images = min(steps, self.steps) * self.batch
        kept = dataclasses.replace(
            self.dataset, images_NHWC=self.dataset.images_NHWC[:images], labels_N=self.dataset.labels_N[:images]
        )
        return dataclasses.replace(self, dataset=kept)


def make_task(
    data: str, device: str, batch: int, steps: int, workers: int, model: str = "resnet20", width: float = 1.0
) -> Task:
    """A random subset of the training images, as many as a round trains on; of a small set all, again and again."""
    chosen_device = pick_device(device)
    config = Config()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=model, width=width),
        optimizer=dataclasses.replace(config.optimizer, batch_size=batch),
        engine=dataclasses.replace(config.engine, device=str(chosen_device)),
    )
    dataset, card = load_split(data, "train", chosen_device)
    # Drawn at random: files are often sorted by class, and a network that sees one class alone soon computes with
    # subnormal numbers, at a fifth of the speed.
    chosen = np.resize(permutation(0, Stream.SUBSET, 0, len(dataset)), batch * steps)
    at = torch.from_numpy(chosen).to(chosen_device)
    subset = dataclasses.replace(dataset, images_NHWC=dataset.images_NHWC[at], labels_N=dataset.labels_N[at])
    dtype = resolve_dtype(config.engine)
    return Task(config, subset, tuple(card.mean), tuple(card.std), chosen_device, dtype, workers)


class StockBatches:
    """The data side of every stock contestant: resident images, augmented by one compiled torch function.

    Yields (x [M, N, C, H, W] in the task's dtype, each member's part in channels-last order; labels [M, N]), one
    step after the other; each member draws its own order, crops and flips.
    """

    def __init__(self, task: Task, members: int, compiled: bool = True) -> None:
        self._task, self._members = task, members
        self._draw = torch.Generator().manual_seed(0)
        self._augment = torch.compile(augment_reference, dynamic=False) if compiled else augment_reference

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch. Draws move to the device at once, before the first step."""
        task, M, D = self._task, self._members, self._task.images
        padding = task.config.augment.padding
        order_MD = torch.stack([torch.randperm(D, generator=self._draw) for _ in range(M)]).to(task.device)
        offset_MD2 = torch.randint(0, 2 * padding + 1, (M, D, 2), generator=self._draw).to(task.device)
        flip_MD = (torch.rand(M, D, generator=self._draw) < task.config.augment.flip).to(task.device)
        table = task.dataset.table_C256.to(task.dtype)
        for first in range(0, task.steps * task.batch, task.batch):
            at = slice(first, first + task.batch)
            chosen = order_MD[:, at].flatten()
            x_NCHW = self._augment(
                task.dataset.images_NHWC, chosen, offset_MD2[:, at].flatten(0, 1), flip_MD[:, at].flatten(), table,
                padding,
            )  # fmt: skip
            yield x_NCHW.unflatten(0, (M, task.batch)), task.dataset.labels_N[chosen].view(M, task.batch)
