"""A training step of B members on buffers that stay where they are, so that it can be captured as a CUDA graph.

The step reads all that changes from the device, and waits for nothing. Where there is no GPU it simply runs. A kept
last batch of fewer images (data.last_batch) is a step of its own.

Shapes: B members, N images of a batch, S steps of an epoch, P parameters, D images of a dataset, C H W of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastwi.config.schema import Config
from fastwi.config.time import step_sizes
from fastwi.data.resident import ResidentDataset
from fastwi.engine.counters import batch_of
from fastwi.engine.mixed import LossScale
from fastwi.kernels.augment import augment_many
from fastwi.kernels.sgd import sgd_
from fastwi.population import Layout, Population

WARMUP_STEPS = 3  # before a capture: kernels are compiled and chosen, and memory is allocated


@dataclass(frozen=True, eq=False)
class State:
    """B members as a program computes with them. `low_BP` holds the weights in the activations' dtype.

    `low_BP` is `weights_MP` itself in fp32.
    """

    members: Population
    gradient_BP: Tensor
    low_BP: Tensor


Gradients = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_BNHWC, labels_BN, scale_B) to losses [B]: writes the gradients of `scale_B` times each loss to the state."""


class Program:
    """Trains B members through an epoch of one dataset under one configuration."""

    def __init__(
        self,
        layout: Layout,
        members: int,
        dataset: ResidentDataset,
        dtype: torch.dtype,
        config: Config,
        gradients: Callable[[State], Gradients],
        counted: frozenset[str] = frozenset(),
    ) -> None:
        """`gradients` is called with the state that it reads and writes. The step counts the batch in `counted`."""
        device = dataset.labels_N.device
        self._dataset, self._optimizer, self._padding = dataset, config.optimizer, config.augment.padding
        batch = self._optimizer.batch_size
        self._sizes, self._done = step_sizes(len(dataset), batch, config.data.last_batch == "keep"), 0
        images = sum(self._sizes)
        population = Population.zeros(layout, members, device)
        population = replace(population, counters_MB=_aligned_rows(population.counters_MB, torch.int64))
        weights = population.weights_MP
        low = weights if dtype == torch.float32 else _aligned_rows(weights, dtype)
        self.state = State(population, torch.zeros_like(weights), low)
        self._table = dataset.table_C256.to(dtype)
        self.members = members
        self._order = torch.zeros(members, images, dtype=torch.int64, device=device)
        self._labels = torch.zeros_like(self._order)
        self._offset = torch.zeros(members, images, 2, dtype=torch.int64, device=device)
        self._flip = torch.zeros(members, images, dtype=torch.bool, device=device)
        self._rates_S = torch.zeros(len(self._sizes), device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._first = torch.zeros(1, dtype=torch.int64, device=device)
        self._in_batch = torch.arange(batch, device=device)
        self._losses_B = torch.zeros(members, dtype=torch.float64, device=device)
        self._scale = LossScale(members, device) if dtype == torch.float16 else None
        self._batch_B = batch_of(counted, layout, device)
        self._gradients = gradients(self.state)
        self._replays: dict[int, Callable[[], None]] = {size: partial(self._run, size) for size in self._sizes}

    def load(
        self, population: Population, order: Tensor, offset: Tensor, flip: Tensor, rates_S: Tensor, first: int = 0
    ) -> None:
        """Start an epoch with the rows of `population`, their draws [M, images] and the rates of the steps.

        It starts at step `first`, which has the first of the rates. M may be less than B: the last rows then go on
        with what they hold, and nobody reads them.
        """
        M, images = population.members, self._order.shape[1]
        for mine, theirs in zip(self.state.members.matrices, population.matrices, strict=True):
            mine[:M].copy_(theirs)
        self._refresh()
        self._order[:M].copy_(order[:, :images])
        self._labels.copy_(self._dataset.labels_N[self._order])
        self._offset[:M].copy_(offset[:, :images])
        self._flip[:M].copy_(flip[:, :images])
        self._rates_S[first : first + len(rates_S)].copy_(rates_S)
        self.restart(first)

    def _refresh(self) -> None:
        """The weights in low precision as the weights are."""
        if self.state.low_BP is not self.state.members.weights_MP:
            self.state.low_BP.copy_(self.state.members.weights_MP)

    def draw_weights(self) -> None:
        """Random weights, not zeros, for the first steps: they choose the kernels that training will run."""
        self.state.members.weights_MP.normal_(std=0.05)
        self._refresh()

    def restart(self, step: int = 0) -> None:
        """Go back to a step of the epoch, the first by default; weights stay as they are."""
        self._step.fill_(step)
        self._first.fill_(step * self._optimizer.batch_size)
        self._losses_B.zero_()
        self._done = step
        if self._scale is not None:
            self._scale.restart()

    def step(self) -> int:
        """The next step of the epoch; returns its images of each member. Asynchronous on a GPU."""
        size = self._sizes[self._done]
        self._replays[size]()
        self._done += 1
        return size

    def store(self, population: Population, images: int) -> list[float]:
        """Copy the members back after so many images of the epoch; returns each one's mean loss (nats)."""
        M = population.members
        for mine, theirs in zip(self.state.members.matrices, population.matrices, strict=True):
            theirs.copy_(mine[:M])
        return (self._losses_B[:M] / (images / self._optimizer.batch_size or 1)).tolist()

    def capture(self) -> None:
        """Record each step that differs as one CUDA graph. The members' values are lost: load afterwards."""
        self.draw_weights()
        pool: Any = None  # of memory: no graph's values are read after another's
        for size in self._replays:
            graph = self._captured(size, pool)
            self._replays[size], pool = graph.replay, graph.pool()

    def _captured(self, size: int, pool: Any) -> torch.cuda.CUDAGraph:
        # Streams and captures are the current device's, which need not be this program's.
        with torch.cuda.device(self.state.members.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARMUP_STEPS):
                    self.restart()
                    self._run(size)
            torch.cuda.current_stream().wait_stream(stream)
            self.restart()
            graph = torch.cuda.CUDAGraph()
            # Of this thread's work alone: another may copy states from the device to a file meanwhile.
            with torch.cuda.graph(graph, pool, torch.cuda.Stream(), capture_error_mode="thread_local"):
                self._run(size)
        return graph

    def _run(self, count: int) -> None:
        optimizer, state = self._optimizer, self.state
        x_BNHWC = augment_many(
            self._dataset.images_NHWC, self._order, self._offset, self._flip, self._table, self._padding,
            self._first, count,
        )  # fmt: skip
        labels_BN = self._labels.index_select(1, self._first + self._in_batch[:count])
        if self._batch_B is not None:
            state.members.counters_MB.add_(self._batch_B)
        scale_B = None if self._scale is None else self._scale.scale_M.clone()
        losses_B = self._gradients(x_BNHWC, labels_BN, scale_B).double()
        self._losses_B += losses_B if count == optimizer.batch_size else losses_B * (count / optimizer.batch_size)
        skip_B = None if self._scale is None else self._scale.unscale_(state.gradient_BP)
        rate_B = self._rates_S.index_select(0, self._step).expand(self.members)
        low_BP = None if state.low_BP is state.members.weights_MP else state.low_BP
        members = state.members
        sgd_(members.weights_MP, state.gradient_BP, members.momentum_MP, rate_B, optimizer, low_BP, skip_B)
        if members.layout.moving:
            members.moving_MP.lerp_(members.weights_MP, 1 - optimizer.ema_decay)
        self._first += count
        self._step += 1


def _aligned_rows(matrix_BP: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros like `matrix_BP` whose rows all start at a multiple of 16 bytes, as the first does.

    Compiled code expects of the other members what it saw of that one.
    """
    B, P = matrix_BP.shape
    step = 16 // dtype.itemsize
    return torch.zeros(B, -(-P // step) * step, dtype=dtype, device=matrix_BP.device)[:, :P]
