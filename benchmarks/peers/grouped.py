"""M networks as one of M times the channels: horizontally fused training (HFTA; Wang et al., MLSys 2021, section 3).

The paper's fusion rules, written from its description: M convolutions become one with groups = M on [N, M * C, H, W],
M batch norms become one over M * C channels, M linear layers one batched matrix product, and element-wise operations
and pooling stay what they are. Losses are averaged over each member's own batch and summed over members, so that each
member's gradients are what it would have alone. One fused SGD over the wide tensors is M separate ones.

Shapes: M members, N images of a batch, C channels, H W of an image, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.errors import UserError
from fastwi.models.resnet import ResNet


def _wide(layer: nn.Module, members: int) -> nn.Module:
    """M layers as one."""
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(
            members * layer.in_channels, members * layer.out_channels, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
            layer.padding, groups=members * layer.groups, bias=layer.bias is not None,  # type: ignore[arg-type]
        )  # fmt: skip
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(members * layer.num_features, layer.eps, layer.momentum)
    raise UserError("written for CIFAR ResNets with batch norm")


class WideResNets(nn.Module):
    """M `ResNet`s as one. Every tensor is the members' tensors one after the other along the first axis."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        network = networks[0]
        if not isinstance(network, ResNet):
            raise UserError("written for CIFAR ResNets with batch norm")
        self.members = M = len(networks)
        self.conv, self.bn = _wide(network.conv, M), _wide(network.bn, M)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: _wide(layer, M) for name, layer in block.named_children()})
            for block in network.blocks
        )
        self._shortcuts: list[Any] = [(block.stride, block.added) for block in network.blocks]
        self.linear = nn.Linear(network.linear.in_features, M * network.linear.out_features)
        self.to(network.linear.weight.dtype)
        states = [member.state_dict() for member in networks]
        # Counters, which all members share, once.
        wide = {name: torch.cat([state[name] for state in states]) if states[0][name].dim() else states[0][name]
                for name in states[0]}  # fmt: skip
        self.load_state_dict(wide)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, M * 3, H, W] to logits [M, N, K]."""
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        block: Any
        for block, (stride, added) in zip(self.blocks, self._shortcuts, strict=True):
            y_NCHW = functional.relu(block["bn1"](block["conv1"](x_NCHW)))
            y_NCHW = block["bn2"](block["conv2"](y_NCHW))
            if stride != 1 or added != (0, 0):
                # Each member's channels are padded by themselves.
                x_NMCHW = x_NCHW[:, :, ::stride, ::stride].unflatten(1, (self.members, -1))
                x_NCHW = functional.pad(x_NMCHW, (0, 0, 0, 0, *added)).flatten(1, 2)
            x_NCHW = functional.relu(y_NCHW + x_NCHW)
        x_MNC = torch.mean(x_NCHW, dim=(2, 3)).unflatten(1, (self.members, -1)).transpose(0, 1)
        weight_MKC, bias_MK = (v.unflatten(0, (self.members, -1)) for v in (self.linear.weight, self.linear.bias))
        return torch.baddbmm(bias_MK[:, None], x_MNC, weight_MKC.transpose(1, 2))


class GroupedPopulation:
    """M networks of one architecture, trained together."""

    def __init__(
        self, task: Task, networks: Sequence[nn.Module], compiled: bool, channels_last: bool = False
    ) -> None:
        order = torch.channels_last if channels_last else torch.contiguous_format
        self._wide = WideResNets(networks).to(task.device).to(memory_format=order).train()
        self._optimizer = task.optimizer(self._wide.parameters())

        def losses(x_MNCHW: Tensor, labels_MN: Tensor) -> Tensor:
            with task.autocast():
                # The data side hands over one batch a member; the wide network wants members as channels.
                logits_MNK = self._wide(x_MNCHW.transpose(0, 1).flatten(1, 2).contiguous(memory_format=order))
                flat = functional.cross_entropy(logits_MNK.flatten(0, 1), labels_MN.flatten(), reduction="none")
                return flat.view(labels_MN.shape).mean(dim=1)

        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def step(self, x_MNCHW: Tensor, labels_MN: Tensor) -> None:
        """One step of every member on its own batch."""
        self._optimizer.zero_grad()
        self._losses(x_MNCHW, labels_MN).sum().backward()
        self._optimizer.step()

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers under the plain network's names."""
        state = self._wide.state_dict()
        return {name: value.chunk(self._wide.members)[m] if value.dim() else value for name, value in state.items()}


def grouped(task: Task, members: int, channels_last: bool = False) -> Case:
    """Compiled, in PyTorch's default order or in channels-last order."""
    return task.case(GroupedPopulation(task, task.networks(members), True, channels_last).step, members)
