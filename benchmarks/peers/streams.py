"""M networks side by side on CUDA streams: each member's step is the best stock loop's, issued on its own stream.

Forward and loss are compiled once, as a function of a member's tensors. One process issues all work, so the
host's rate of launches is the limit where kernels are small.
"""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.task import Contestant, StockBatches, Task, Unavailable

STREAMS = 16
"""More run no faster: a GPU has so many hardware queues, or some few more."""


class StreamsPopulation:
    """M networks of one architecture. On a CPU, which has no streams, they are trained in turn."""

    def __init__(self, task: Task, networks: Sequence[nn.Module], compiled: bool) -> None:
        self._device = task.device
        on_gpu = task.device.type == "cuda"
        count = min(STREAMS, len(networks)) if on_gpu else 0
        self._streams = [torch.cuda.Stream(task.device) for _ in range(count)]
        placed = [network.to(task.device).to(memory_format=torch.channels_last) for network in networks]
        self._states = [{**dict(n.named_parameters()), **dict(n.named_buffers())} for n in placed]
        self._leaves = [list(network.parameters()) for network in placed]
        self._optimizers = [task.optimizer(leaves) for leaves in self._leaves]
        network = copy.deepcopy(networks[0]).train()

        def loss(state: dict[str, Tensor], x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
            with task.autocast():
                logits_NK = torch.func.functional_call(network, state, (x_NCHW,))
                return functional.cross_entropy(logits_NK, labels_N)

        self._loss = torch.compile(loss, dynamic=False) if compiled else loss

    def step(self, x_MNCHW: Tensor, labels_MN: Tensor) -> None:
        """One step of every member on its own batch. The caller's stream made the batch and waits for all members."""
        self._fork()
        for m, (state, leaves, optimizer) in enumerate(
            zip(self._states, self._leaves, self._optimizers, strict=True)
        ):
            with self._stream(m):
                loss = self._loss(state, x_MNCHW[m], labels_MN[m])
                gradients = torch.autograd.grad(loss, leaves)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                optimizer.step()
        self._join()

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        return {name: value.detach() for name, value in self._states[m].items()}

    def _stream(self, m: int) -> contextlib.AbstractContextManager[Any]:
        if not self._streams:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._streams[m % len(self._streams)])

    def _fork(self) -> None:
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))

    def _join(self) -> None:
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)


def streams(task: Task, members: int) -> Contestant:
    """Compiled."""
    if task.device.type != "cuda":
        raise Unavailable("streams need a GPU")
    network = task.network()
    population = StreamsPopulation(task, [copy.deepcopy(network) for _ in range(members)], compiled=True)
    batches = StockBatches(task, members)

    def epoch() -> None:
        for x_MNCHW, labels_MN in batches.epoch():
            population.step(x_MNCHW, labels_MN)

    return Contestant(epoch, members * task.steps * task.batch)
