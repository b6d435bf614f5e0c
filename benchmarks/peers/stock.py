"""Scripts that train one network (`members` is 1): the usual one, and the best stock loop with any data side.

The best stock loop has resident data, bf16 autocast, channels-last order, torch.compile and fused SGD.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.loaders import Loader, dataloader, on_device
from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.errors import UserError


class CompiledStep:
    """The step, which other data sides feed too. `mode` is torch.compile's."""

    def __init__(self, task: Task, mode: str | None = None) -> None:
        network = task.network().to(task.device).to(memory_format=torch.channels_last)
        self._optimizer = task.optimizer(network.parameters())
        self._graphs = mode == "reduce-overhead"

        def loss(x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
            with task.autocast():
                return functional.cross_entropy(network(x_NCHW), labels_N)

        self._loss = torch.compile(loss, mode=mode, dynamic=False)

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Train through (images [N, C, H, W], labels [N])."""
        for x_NCHW, labels_N in batches:
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            self._optimizer.zero_grad()
            self._loss(x_NCHW, labels_N).backward()
            self._optimizer.step()


@functools.lru_cache(maxsize=2)
def _step(task: Task, mode: str | None = None) -> CompiledStep:
    """One step for all cases of a task that differ in their data side only: it is compiled once."""
    return CompiledStep(task, mode)


def stock(task: Task, members: int, mode: str | None = None, static_memory: bool = False) -> Case:
    """On a CPU with glibc's own allocator settings, or with those that fastwi makes: no merit of its code."""
    if static_memory and task.device.type != "cpu":
        raise UserError("allocator settings matter on a CPU only")
    if mode is not None and task.device.type != "cuda":
        raise UserError("CUDA graphs need a GPU")
    step = _step(task, mode)
    return task.case(lambda x_MNCHW, labels_MN: step.epoch([(x_MNCHW[0], labels_MN[0])]), 1, static_memory)


def fed(loader: Callable[[Task], Loader], task: Task, members: int) -> Case:
    """The same step behind another loader."""
    epoch, close = loader(task)
    step = _step(task)
    return Case(lambda: step.epoch(epoch()), task.images, close=close)


def usual(task: Task, members: int) -> Case:
    """DataLoader workers, torchvision transforms, float32, eager."""
    network = task.network().to(task.device)
    optimizer = task.optimizer(network.parameters(), fused=False)
    batches, close = dataloader(task)

    def epoch() -> None:
        for x_NCHW, labels_N in on_device(task, batches()):
            optimizer.zero_grad()
            functional.cross_entropy(network(x_NCHW), labels_N).backward()
            optimizer.step()

    return Case(epoch, task.images, close=close)
