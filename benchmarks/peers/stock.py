"""The best stock loop: resident data, bf16 autocast, channels-last, compiled, fused SGD. One network."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.runner import Case, Unavailable
from benchmarks.task import Task


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

    def step(self, x_NCHW: Tensor, labels_N: Tensor) -> None:
        """Train on one batch."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad()
        self._loss(x_NCHW, labels_N).backward()
        self._optimizer.step()

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Train through (images [N, C, H, W], labels [N])."""
        for x_NCHW, labels_N in batches:
            self.step(x_NCHW, labels_N)


@functools.lru_cache(maxsize=2)
def compiled_step(task: Task, mode: str | None = None) -> CompiledStep:
    """One step for all cases of a task that differ in their data side only: it is compiled once."""
    return CompiledStep(task, mode)


def stock(task: Task, members: int, mode: str | None = None, static_memory: bool = False) -> Case:
    """`members` is 1. On a CPU with glibc's own allocator settings."""
    step = compiled_step(task, mode)
    return task.case(lambda x_MNCHW, labels_MN: step.step(x_MNCHW[0], labels_MN[0]), 1, static_memory)


def stock_static(task: Task, members: int) -> Case:
    """The same under the allocator settings that fastwi makes, which are no merit of its code."""
    if task.device.type != "cpu":
        raise Unavailable("allocator settings matter on a CPU only")
    return stock(task, members, static_memory=True)


def stock_graphs(task: Task, members: int) -> Case:
    """The same with torch.compile's CUDA graphs, without which one small network waits for its launches."""
    if task.device.type != "cuda":
        raise Unavailable("CUDA graphs need a GPU")
    return stock(task, members, "reduce-overhead")
