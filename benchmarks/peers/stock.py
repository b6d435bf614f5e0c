"""Scripts that train one network (`members` is 1): the usual one, and the best stock loop with any data side.

The best stock loop has resident data, bf16 autocast, channels-last order, torch.compile and fused SGD.
"""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.loaders import Loader, dataloader
from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.errors import UserError

Epoch = Callable[[Iterable[tuple[Tensor, Tensor]]], None]
"""Trains through (images [N, C, H, W], labels [N])."""


@functools.lru_cache(maxsize=2)
def compiled_step(task: Task, mode: str | None = None) -> Epoch:
    """One step for all cases of a task that differ in their data side only: it is compiled once.

    mode: torch.compile's.
    """
    network = task.network().to(task.device).to(memory_format=torch.channels_last)
    optimizer = task.optimizer(network.parameters())

    @torch.compile(mode=mode, dynamic=False)
    def loss(x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        with task.autocast():
            return functional.cross_entropy(network(x_NCHW), labels_N)

    def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for x_NCHW, labels_N in batches:
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            loss(x_NCHW, labels_N).backward()
            optimizer.step()

    return epoch


def stock(task: Task, members: int, mode: str | None = None, static_memory: bool = False) -> Case:
    """On a CPU with glibc's own allocator settings, or with those that fastwi makes: no merit of its code."""
    if static_memory and task.device.type != "cpu":
        raise UserError("allocator settings matter on a CPU only")
    if mode is not None and task.device.type != "cuda":
        raise UserError("CUDA graphs need a GPU")
    epoch = compiled_step(task, mode)
    return task.case(lambda x_MNCHW, labels_MN: epoch([(x_MNCHW[0], labels_MN[0])]), 1, static_memory)


def fed(loader: Callable[[Task], Loader], task: Task, members: int) -> Case:
    """The same step behind another loader."""
    batches, close = loader(task)
    epoch = compiled_step(task)
    return Case(lambda: epoch(batches()), task.images, close=close)


def usual(task: Task, members: int) -> Case:
    """DataLoader workers, torchvision transforms, float32, eager."""
    network = task.network().to(task.device)
    optimizer = task.optimizer(network.parameters(), fused=False)
    batches, close = dataloader(task)

    def epoch() -> None:
        for x_NCHW, labels_N in batches():
            x_NCHW, labels_N = (tensor.to(task.device, non_blocking=True) for tensor in (x_NCHW, labels_N))
            optimizer.zero_grad()
            functional.cross_entropy(network(x_NCHW), labels_N).backward()
            optimizer.step()

    return Case(epoch, task.images, close=close)
