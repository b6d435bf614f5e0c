"""The counters of batch norms (num_batches_tracked): one addition for all members and layers of a step.

Shapes: B counters of a member.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fastwi.population import Layout


def called_once(traced: fx.GraphModule) -> frozenset[str]:
    """Modules that a pass calls once, and none of whose tensors it reads otherwise."""
    nodes = traced.graph.nodes
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    return frozenset(target for target, number in calls.items() if number == 1 and target not in read)


def counters_to_add(traced: fx.GraphModule, counts: Callable[[nn.Module], bool]) -> frozenset[str]:
    """Names of the counters of those modules called once that `counts`: who calls the network may count for them."""
    plain = {str(node.target) for node in traced.graph.nodes if node.args and not node.kwargs}
    modules = called_once(traced) & plain
    return frozenset(f"{each}.num_batches_tracked" for each in modules if counts(traced.get_submodule(each)))


def batch_of(names: frozenset[str], layout: Layout, device: torch.device) -> Tensor | None:
    """What a batch adds to a row of counters, int64 [B]: 1 for each of `names`. None where there are none."""
    if not names:
        return None
    batch_B = torch.zeros(layout.B, dtype=torch.int64)
    for span in layout.counters:
        span.view(batch_B).fill_(int(span.name in names))
    return batch_B.to(device)
