"""The `graph` engine: the whole step of B members as one captured CUDA graph, each member a branch of its own.

A small network's step is bound by launches; a replayed graph has one launch, and branches fill the device where one
network's kernels leave it idle.

Shapes: B members, N images of a batch, K classes, C H W of an image.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.engine.base import Settings, training_leaves
from fastwi.engine.captured import ProgramEngine
from fastwi.engine.program import State
from fastwi.errors import ConfigError

BRANCHES = 8  # streams; more members than that share them


class GraphEngine(ProgramEngine):
    """Trains members as parallel branches of one captured step. Without a GPU it is `loop` on static buffers."""

    name = "graph"

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        # torch reads the count of batches on the host for it, which no captured step may.
        if self.device.type == "cuda" and any(norm.momentum is None for norm in self._norms):
            raise ConfigError("engine.name: graph captures no batch norm with momentum None; use loop or stacked")

    def _make_gradients(self, state: State) -> "Branches":
        return Branches(state, self._forward, self._low)


class Branches:
    """Forward and backward of each member, on the streams of the device in turn."""

    def __init__(self, state: State, forward: Callable[..., Tensor], low: frozenset[str]) -> None:
        members, layout = state.members, state.members.layout
        self._forward, self._device = forward, members.device
        rows = zip(members.weights_MP, state.low_BP, strict=True)
        self._leaves = [training_leaves(layout, low, weights_P, low_P) for weights_P, low_P in rows]
        self._gradients = [[span.view(row_P) for span in layout.parameters] for row_P in state.gradient_BP]
        self._buffers = [members.buffers(b) for b in range(members.members)]
        on_gpu = self._device.type == "cuda" and members.members > 1
        self._streams = [torch.cuda.Stream(self._device) for _ in range(BRANCHES)] if on_gpu else []

    def __call__(self, x_BNHWC: Tensor, labels_BN: Tensor, scale_B: Tensor | None) -> Tensor:
        """See `fastwi.engine.program.Gradients`."""
        losses: list[Tensor] = []
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        for b, leaves in enumerate(self._leaves):
            with torch.cuda.stream(self._streams[b % BRANCHES]) if self._streams else contextlib.nullcontext():
                logits_NK = self._forward({**leaves, **self._buffers[b]}, x_BNHWC[b].permute(0, 3, 1, 2))
                loss = functional.cross_entropy(logits_NK, labels_BN[b])
                scaled = loss if scale_B is None else loss * scale_B[b]
                torch._foreach_copy_(self._gradients[b], torch.autograd.grad(scaled, list(leaves.values())))
                losses.append(loss.detach())
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)
        return torch.stack(losses)
