"""M networks as one program: torch.func.vmap over functional_call, compiled and eager.

Parameters and buffers are stacked along a leading member axis; forward and loss are mapped over it, each member on
its own batch, and one backward of the summed losses gives every member its own gradients. Batch norm's running
statistics are updated in place in the stacked buffers. One fused SGD over the stacked tensors is M separate ones.

Autocast does not reach tensors under vmap, so what it does is written out: weights of convolutions and linear layers
are cast, and batch norm computes in float32, which vmap's rule for it demands of all its operands, and casts back.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.runner import Case
from benchmarks.task import Task


class VmapPopulation:
    """M networks of one architecture, trained together."""

    def __init__(self, task: Task, networks: Sequence[nn.Module], compiled: bool) -> None:
        parameters, self._buffers = torch.func.stack_module_state([network.to(task.device) for network in networks])
        self._parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        self._optimizer = task.optimizer(list(self._parameters.values()))
        # Gives the architecture only. Deep copies, since functional_call swaps tensors in and out of it.
        network = copy.deepcopy(networks[0]).train()
        low: set[str] = set()
        for place, layer in network.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.register_forward_pre_hook(lambda layer, inputs: inputs[0].to(layer.weight.dtype))
                layer.register_forward_hook(lambda layer, inputs, output: output.to(task.dtype))
            elif isinstance(layer, (nn.Conv2d, nn.Linear)):
                low |= {f"{place}.{name}" for name, _ in layer.named_parameters(recurse=False)}

        def loss_of_one(state: dict[str, Tensor], x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
            logits_NK = torch.func.functional_call(network, state, (x_NCHW,))
            logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
            return functional.cross_entropy(logits_NK, labels_N)

        def losses(state: dict[str, Tensor], x_MNCHW: Tensor, labels_MN: Tensor) -> Tensor:
            state = {name: value.to(task.dtype) if name in low else value for name, value in state.items()}
            return torch.func.vmap(loss_of_one)(state, x_MNCHW, labels_MN)

        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def step(self, x_MNCHW: Tensor, labels_MN: Tensor) -> None:
        """One step of every member on its own batch."""
        self._optimizer.zero_grad()
        self._losses({**self._parameters, **self._buffers}, x_MNCHW, labels_MN).sum().backward()
        self._optimizer.step()

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        return {name: value[m].detach() for name, value in {**self._parameters, **self._buffers}.items()}


def vmap(task: Task, members: int, compiled: bool = True) -> Case:
    """Forward, loss and their gradients under torch.compile, or without it."""
    return task.case(VmapPopulation(task, task.networks(members), compiled).step, members)
