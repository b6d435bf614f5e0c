"""Ways to train M networks of one architecture at once: vmap and grouped convolutions.

Each class is made from (task, networks, compiled). `step(x [M, N, C, H, W], labels [M, N])` trains every member on
its own batch, and `state_dict(m)` is member m's.

Shapes: M members, N images of a batch, C channels, H W of an image, K classes.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.errors import UserError
from fastwi.models.resnet import BasicBlock, ResNet


def population(kind: Callable[..., Any], task: Task, members: int, compiled: bool = True, **options: Any) -> Case:
    """A case that trains copies of the task's network by one of the classes."""
    network = task.network()
    networks = [copy.deepcopy(network) for _ in range(members)]
    return task.case(kind(task, networks, compiled, **options).step, members)


class _Fused:
    """M networks as one program: one backward of the sum of their losses, one fused SGD."""

    _losses: Callable[[Tensor, Tensor], Tensor]
    _optimizer: torch.optim.Optimizer

    def step(self, x_MNCHW: Tensor, labels_MN: Tensor) -> None:
        self._optimizer.zero_grad()
        self._losses(x_MNCHW, labels_MN).sum().backward()
        self._optimizer.step()


class Vmap(_Fused):
    """torch.func.vmap over functional_call. Parameters and buffers are stacked along a leading member axis.

    Autocast does not reach tensors under vmap, so what it does is written out: weights of convolutions and linear
    layers are cast; batch norm computes in float32, which vmap needs for all its operands, and casts back.
    """

    def __init__(self, task: Task, networks: Sequence[nn.Module], compiled: bool) -> None:
        parameters, self._buffers = torch.func.stack_module_state([network.to(task.device) for network in networks])
        self._parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        self._optimizer = task.optimizer(list(self._parameters.values()))
        # Gives the architecture only; a deep copy, since functional_call swaps tensors in and out of it.
        network = copy.deepcopy(networks[0]).train()
        low: set[str] = set()
        for place, layer in network.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
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

        run = torch.compile(losses, dynamic=False) if compiled else losses
        self._losses = lambda x_MNCHW, labels_MN: run({**self._parameters, **self._buffers}, x_MNCHW, labels_MN)

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        return {name: value[m].detach() for name, value in {**self._parameters, **self._buffers}.items()}


class Grouped(_Fused):
    """M ResNets as one of M times the channels: HFTA (Wang et al., MLSys 2021, section 3), written from the paper.

    M convolutions become one with groups = M on [N, M * C, H, W], M batch norms one over M * C channels, M linear
    layers one batched matrix product. Every tensor is the members' tensors one after the other along the first axis.
    """

    def __init__(
        self, task: Task, networks: Sequence[nn.Module], compiled: bool, channels_last: bool = False
    ) -> None:
        order = torch.channels_last if channels_last else torch.contiguous_format
        self._members = len(networks)
        self._wide = _widened(networks).to(task.device).to(memory_format=order).train()
        self._optimizer = task.optimizer(self._wide.parameters())

        def losses(x_MNCHW: Tensor, labels_MN: Tensor) -> Tensor:
            with task.autocast():
                logits_MNK = self._wide(x_MNCHW.transpose(0, 1).flatten(1, 2).contiguous(memory_format=order))
                flat = functional.cross_entropy(logits_MNK.flatten(0, 1), labels_MN.flatten(), reduction="none")
                return flat.view(labels_MN.shape).mean(dim=1)

        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        state = self._wide.state_dict()
        return {name: value.chunk(self._members)[m] if value.dim() else value for name, value in state.items()}


class _WideLinear(nn.Linear):
    """M linear layers: [N, M * C] to [M, N, K]."""

    def forward(self, x_NC: Tensor) -> Tensor:
        x_MNC = x_NC.unflatten(1, (-1, self.in_features)).transpose(0, 1)
        weight_MKC = self.weight.unflatten(0, (len(x_MNC), -1))
        return torch.baddbmm(self.bias.view(len(x_MNC), 1, -1), x_MNC, weight_MKC.transpose(1, 2))


class _WideShortcut(nn.Module):
    """M shortcuts that are subsampled and padded with zero channels, each member by itself."""

    def __init__(self, block: BasicBlock, members: int) -> None:
        super().__init__()
        self._stride, self._added, self._members = block.stride, block.added, members

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NMCHW = x_NCHW[:, :, :: self._stride, :: self._stride].unflatten(1, (self._members, -1))
        return functional.pad(x_NMCHW, (0, 0, 0, 0, *self._added)).flatten(1, 2)


def _widened(networks: Sequence[nn.Module]) -> nn.Module:
    wide, M = copy.deepcopy(networks[0]), len(networks)
    for name, layer in list(wide.named_modules()):
        if isinstance(layer, nn.Conv2d):
            convolution: Any = functools.partial(nn.Conv2d, groups=M, bias=layer.bias is not None)
            channels = M * layer.in_channels, M * layer.out_channels
            wide.set_submodule(name, convolution(*channels, layer.kernel_size, layer.stride, layer.padding))
        elif isinstance(layer, nn.BatchNorm2d):
            wide.set_submodule(name, nn.BatchNorm2d(M * layer.num_features, layer.eps, layer.momentum))
        elif isinstance(layer, nn.Linear):
            wide.set_submodule(name, _WideLinear(layer.in_features, M * layer.out_features))
        elif isinstance(layer, BasicBlock) and layer.shortcut is None:
            shortcut: Any = _WideShortcut(layer, M)
            layer.shortcut = shortcut
        elif not isinstance(wide, ResNet) or any(True for _ in layer.parameters(recurse=False)):
            raise UserError("written for CIFAR ResNets with batch norm")
    states = [network.state_dict() for network in networks]
    # Counters have no axis: all members share one.
    joined = {name: torch.cat([s[name] for s in states]) if v.dim() else v for name, v in states[0].items()}
    wide = wide.to(next(networks[0].parameters()).dtype)
    wide.load_state_dict(joined)
    return wide
