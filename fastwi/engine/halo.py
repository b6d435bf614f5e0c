"""The `halo` engine: `stacked` with its 3 x 3 convolutions by halo tiles, where they qualify.

Nothing chooses it by default: `engine.name: halo` does, or `auto` where `python -m fastwi.tune` measured it fastest.
On a CPU it computes by the references, and what it hands from layer to layer is tested there.
"""

from typing import Any

from torch import Tensor, nn

from fastwi.engine.base import Settings
from fastwi.engine.stack import StackedNetwork
from fastwi.engine.stacked import StackedEngine
from fastwi.errors import ConfigError
from fastwi.kernels.halo import layers
from fastwi.kernels.halo.build import missing


class HaloNetwork(StackedNetwork):
    """M networks as one, whose convolutions and batch norms hand over what a backward pass would compute twice."""

    def _conv(self, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        return layers.conv(*arguments, sole=len(self._node.users) == 1)

    def _batch_norm(self, *arguments: Any) -> Any:
        return layers.batch_norm(*arguments)


class HaloEngine(StackedEngine):
    """Trains members as one batched network."""

    name = "halo"
    tuned_on = ("cuda",)
    network_type = HaloNetwork

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__(model, settings)
        lacks = missing(self.device) if self.device.type == "cuda" else None
        if lacks is not None:
            raise ConfigError(f"engine.name: halo needs {lacks}; use stacked")
