"""The `halo` engine: `stacked` with its 3 x 3 convolutions by halo tiles, where they qualify.

Nothing chooses it by default: `engine.name: halo` does, or `auto` where `python -m fastwi.tune` measured it fastest.
On a CPU it computes by the references, and what it hands from layer to layer is tested there.
"""

from typing import Any

from torch import Tensor, fx, nn

from fastwi.config.schema import Config
from fastwi.engine.stack import StackedNetwork, has_rule
from fastwi.engine.stacked import StackedEngine
from fastwi.errors import ConfigError
from fastwi.kernels.halo import layers
from fastwi.kernels.halo.backward import takes
from fastwi.kernels.halo.build import missing


class HaloNetwork(StackedNetwork):
    """M networks as one, whose convolutions and batch norms hand over what a backward pass would compute twice."""

    def __init__(self, traced: fx.GraphModule, exact: bool) -> None:
        super().__init__(traced, exact)
        order = {node: place for place, node in enumerate(traced.graph.nodes)}
        self._first_of_two: dict[fx.Node, fx.Node] = {}
        """What reads a node first, where that is a convolution with a rule, and one other reads it."""
        for node in order:
            readers = [reader for handle in node.users for reader in handle.users]
            first = min(readers, key=order.__getitem__) if len(readers) == 2 else None
            if first and first.op == "call_module" and first.args and has_rule(self.submodules[first.target]):
                self._first_of_two[node] = first

    def _conv(self, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        return layers.conv(*arguments, sole=len(self._node.users) == 1)

    def _batch_norm(self, *arguments: Any) -> Any:
        first, later = self._first_of_two.get(self._node), False
        if first is not None:
            module = self.submodules[first.target]
            weight_MOHWI = self._tensors[f"{first.target}.weight"].permute(0, 1, 3, 4, 2)
            later = takes(arguments[0], weight_MOHWI, int(module.stride[0]), int(module.padding[0]))
        return layers.batch_norm(*arguments, later=later)


class HaloEngine(StackedEngine):
    """Trains members as one batched network."""

    name = "halo"
    tuned_on = ("cuda",)
    network_type = HaloNetwork

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model, config)
        lacks = missing(self.device) if self.device.type == "cuda" else None
        if lacks is not None:
            raise ConfigError(f"engine.name: halo needs {lacks}; use stacked")
