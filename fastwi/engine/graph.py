"""The `graph` engine: the whole step of B members as one captured CUDA graph, each member a branch of its own.

A replayed graph has one launch, and branches fill a device that one small network's kernels leave idle.

Shapes: B members, N images of a batch, C H W of an image.
"""

import contextlib

import torch
from torch import Tensor, nn

from fastwi.config.schema import Config
from fastwi.engine.base import Backward
from fastwi.engine.captured import ProgramEngine
from fastwi.engine.counters import counters_to_add
from fastwi.engine.fuse import trace
from fastwi.engine.program import Gradients, State
from fastwi.errors import ConfigError

BRANCHES = 8  # streams; more members than that share them


class GraphEngine(ProgramEngine):
    """Trains members as parallel branches of one captured step. Without a GPU it is `loop` on static buffers."""

    name = "graph"

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model, config)
        # torch reads the count of batches on the host for it, which no captured step may.
        if self.device.type == "cuda" and any(norm.momentum is None for norm in self._norms):
            raise ConfigError("engine.name: graph captures no batch norm with momentum None; use loop or stacked")
        traced = trace(self._model) if self._model is self.resolved.model else None
        if traced is not None:  # their counters are None in a pass, so that they count nothing
            self._counted = counters_to_add(traced, _may_have_no_counter)

    def _make_gradients(self, state: State) -> Gradients:
        members, recorded = state.members, self._recorded
        uncounted = dict.fromkeys(self._counted)
        branches = [
            Backward(
                members.layout, self._low, *rows, members.buffers(b) | uncounted, self._forward, recorded=recorded
            )
            for b, rows in enumerate(zip(members.weights_MP, state.low_BP, state.gradient_BP, strict=True))
        ]
        on_gpu = self.device.type == "cuda" and len(branches) > 1
        streams = [torch.cuda.Stream(self.device) for _ in range(BRANCHES)] if on_gpu else []

        def gradients(x_BNHWC: Tensor, labels_BN: Tensor, scale_B: Tensor | None) -> Tensor:
            for stream in streams:
                stream.wait_stream(torch.cuda.current_stream(self.device))
            losses: list[Tensor] = []
            for b, branch in enumerate(branches):
                with torch.cuda.stream(streams[b % BRANCHES]) if streams else contextlib.nullcontext():
                    scale = None if scale_B is None else scale_B[b]
                    losses.append(branch(x_BNHWC[b].permute(0, 3, 1, 2), labels_BN[b], scale))
            for stream in streams:
                torch.cuda.current_stream(self.device).wait_stream(stream)
            return torch.stack(losses)

        return gradients


def _may_have_no_counter(module: nn.Module) -> bool:
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return plain and bool(module.track_running_stats) and module.momentum is not None
