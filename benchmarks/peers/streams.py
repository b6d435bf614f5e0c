"""M networks side by side on CUDA streams: each member's step is the best stock loop's, issued on its own stream.

Forward and loss are compiled once, as a function of a member's tensors. One process issues all work, so the
host's rate of launches is the limit where kernels are small.
"""

import contextlib
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.errors import UserError

STREAMS = 16
"""More run no faster: a GPU has so many hardware queues, or some few more."""


class StreamsPopulation:
    """M networks of one architecture. On a CPU, which has no streams, they are trained in turn."""

    def __init__(self, task: Task, networks: Sequence[nn.Module], compiled: bool) -> None:
        self._device = task.device
        count = min(STREAMS, len(networks)) if task.device.type == "cuda" else 0
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
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        for m, (state, leaves) in enumerate(zip(self._states, self._leaves, strict=True)):
            mine = (
                torch.cuda.stream(self._streams[m % len(self._streams)])
                if self._streams
                else contextlib.nullcontext()
            )
            with mine:
                gradients = torch.autograd.grad(self._loss(state, x_MNCHW[m], labels_MN[m]), leaves)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                self._optimizers[m].step()
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        return {name: value.detach() for name, value in self._states[m].items()}


def streams(task: Task, members: int) -> Case:
    """Compiled."""
    if task.device.type != "cuda":
        raise UserError("streams need a GPU")
    return task.case(StreamsPopulation(task, task.networks(members), compiled=True).step, members)
