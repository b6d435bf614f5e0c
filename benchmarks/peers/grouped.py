"""M networks as one of M times the channels: horizontally fused training (HFTA; Wang et al., MLSys 2021, section 3).

The paper's fusion rules, written from its description: M convolutions become one with groups = M on [N, M * C, H, W],
M batch norms become one over M * C channels, M linear layers one batched matrix product, and element-wise operations
and pooling stay what they are. Losses are averaged over each member's own batch and summed over members, so that each
member's gradients are what it would have alone. One fused SGD over the wide tensors is M separate ones.

Shapes: M members, N images of a batch, C channels, H W of an image, K classes.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.task import Contestant, StockBatches, Task, Unavailable
from fastwi.models.resnet import BasicBlock, ResNet


def _wide_convolution(layer: nn.Module, members: int) -> nn.Conv2d:
    assert isinstance(layer, nn.Conv2d)
    return nn.Conv2d(
        members * layer.in_channels, members * layer.out_channels, layer.kernel_size, layer.stride,  # type: ignore[arg-type]
        layer.padding, groups=members * layer.groups, bias=layer.bias is not None,  # type: ignore[arg-type]
    )  # fmt: skip


def _wide_norm(layer: nn.Module, members: int) -> nn.BatchNorm2d:
    if not isinstance(layer, nn.BatchNorm2d):
        raise Unavailable("written for CIFAR ResNets with batch norm")
    return nn.BatchNorm2d(members * layer.num_features, layer.eps, layer.momentum)


class WideBlock(nn.Module):
    """M `BasicBlock`s as one, under the same names."""

    def __init__(self, block: BasicBlock, members: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _wide_convolution(block.conv1, members), _wide_norm(block.bn1, members)
        self.conv2, self.bn2 = _wide_convolution(block.conv2, members), _wide_norm(block.bn2, members)
        self.members, self.stride, self.added = members, block.stride, block.added

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, M * C, H, W] to [N, M * C', H / stride, W / stride]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        if self.stride != 1 or self.added != (0, 0):
            # Each member's channels are padded by themselves.
            x_NMCHW = x_NCHW[:, :, :: self.stride, :: self.stride].unflatten(1, (self.members, -1))
            x_NCHW = functional.pad(x_NMCHW, (0, 0, 0, 0, *self.added)).flatten(1, 2)
        return functional.relu(y_NCHW + x_NCHW)


class WideResNets(nn.Module):
    """M `ResNet`s as one. Every tensor is the members' tensors one after the other along the first axis."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        network = networks[0]
        if not isinstance(network, ResNet):
            raise Unavailable("written for CIFAR ResNets with batch norm")
        self.members = M = len(networks)
        self.conv, self.bn = _wide_convolution(network.conv, M), _wide_norm(network.bn, M)
        self.blocks = nn.Sequential(*(WideBlock(block, M) for block in network.blocks))  # type: ignore[arg-type]
        self.linear = nn.Linear(network.linear.in_features, M * network.linear.out_features)
        self.to(network.linear.weight.dtype)
        states = [member.state_dict() for member in networks]
        self.load_state_dict({name: _side_by_side([state[name] for state in states]) for name in states[0]})

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, M * 3, H, W] to logits [M, N, K]."""
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        x_NCHW = self.blocks(x_NCHW)
        x_MNC = torch.mean(x_NCHW, dim=(2, 3)).unflatten(1, (self.members, -1)).transpose(0, 1)
        weight_MKC = self.linear.weight.unflatten(0, (self.members, -1))
        bias_MK = self.linear.bias.unflatten(0, (self.members, -1))
        return torch.baddbmm(bias_MK[:, None], x_MNC, weight_MKC.transpose(1, 2))

    def member(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers under the plain network's names."""
        state = self.state_dict()
        return {name: value.chunk(self.members)[m] if value.dim() else value for name, value in state.items()}


def _side_by_side(tensors: list[Tensor]) -> Tensor:
    """One after the other along the first axis; counters, which all members share, once."""
    return torch.cat(tensors) if tensors[0].dim() else tensors[0]


class GroupedPopulation:
    """M networks of one architecture, trained together."""

    def __init__(
        self, task: Task, networks: Sequence[nn.Module], compiled: bool, channels_last: bool = False
    ) -> None:
        self._order = torch.channels_last if channels_last else torch.contiguous_format
        self.wide = WideResNets(networks).to(task.device).to(memory_format=self._order).train()
        self._optimizer = task.optimizer(self.wide.parameters())

        def losses(x_MNCHW: Tensor, labels_MN: Tensor) -> Tensor:
            M, N = labels_MN.shape
            with task.autocast():
                # The data side hands over one batch a member; the wide network wants members as channels.
                x_NCHW = x_MNCHW.transpose(0, 1).flatten(1, 2).contiguous(memory_format=self._order)
                logits_MNK = self.wide(x_NCHW)
                loss_MN = functional.cross_entropy(
                    logits_MNK.flatten(0, 1), labels_MN.flatten(), reduction="none"
                ).view(M, N)
                return loss_MN.mean(dim=1)

        self._losses = torch.compile(losses, dynamic=False) if compiled else losses

    def step(self, x_MNCHW: Tensor, labels_MN: Tensor) -> Tensor:
        """One step of every member on its own batch; losses [M]."""
        self._optimizer.zero_grad()
        loss_M: Tensor = self._losses(x_MNCHW, labels_MN)
        loss_M.sum().backward()
        self._optimizer.step()
        return loss_M.detach()

    def state_dict(self, m: int) -> dict[str, Tensor]:
        """Member m's parameters and buffers."""
        return self.wide.member(m)


def _contestant(task: Task, members: int, channels_last: bool) -> Contestant:
    network = task.network()
    networks = [copy.deepcopy(network) for _ in range(members)]
    population = GroupedPopulation(task, networks, compiled=True, channels_last=channels_last)
    batches = StockBatches(task, members)

    def epoch() -> None:
        for x_MNCHW, labels_MN in batches.epoch():
            population.step(x_MNCHW, labels_MN)

    return Contestant(epoch, members * task.steps * task.batch, static_memory=True)


def grouped(task: Task, members: int) -> Contestant:
    """Compiled, in PyTorch's default order."""
    return _contestant(task, members, channels_last=False)


def grouped_channels_last(task: Task, members: int) -> Contestant:
    """Compiled, in channels-last order."""
    return _contestant(task, members, channels_last=True)
