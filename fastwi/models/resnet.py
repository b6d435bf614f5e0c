"""Residual networks for small images (CIFAR ResNets, ResNet18, wide ResNets), and the parts that networks share.

Shapes: N images, C channels, H height, W width, K classes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]  # channels to a layer


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded to the nearest whole number of at least 1."""
    return max(1, round(channels * width))


def he_normal_(network: nn.Module, fan: Literal["fan_out", "fan_in"] = "fan_out") -> None:
    """He et al. 2015 normal for the weights of convolutions, zero for their biases; the rest stays.

    Fan out keeps the scale of gradients, fan in that of activations, which a network without any norm needs.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def stages(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Sequence[int], n: int
) -> nn.Sequential:
    """`n` blocks (channels in, channels out, stride) of each width; each stage but the first begins with stride 2."""
    blocks = []
    for stage, channels_out in enumerate(widths):
        for i in range(n):
            blocks.append(block(channels, channels_out, 2 if stage > 0 and i == 0 else 1))
            channels = channels_out
    return nn.Sequential(*blocks)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) of 8 groups, or of the most that divide both 8 and the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(8, channels), channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to the same, in the dtype of the input, with sums in float32."""
        # CUDA's kernel takes no float32 weights with a bf16 input, and the engine keeps these in float32.
        weight_C, bias_C = self.weight.to(x_NCHW.dtype), self.bias.to(x_NCHW.dtype)
        return functional.group_norm(x_NCHW, self.num_groups, weight_C, bias_C, self.eps)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, section 4.2).

    Where the shape changes the shortcut is subsampled and padded with zero channels (option A), or, with `project`,
    a 1 x 1 convolution and a norm (option B).
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm = nn.BatchNorm2d, project: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = norm(channels_out)
        self.stride = stride
        added = channels_out - channels_in
        self.added = (added // 2, added - added // 2)
        self.shortcut: nn.Sequential | None = None
        if project and (stride != 1 or added != 0):
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, norm(channels_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        if self.shortcut is not None:
            x_NCHW = self.shortcut(x_NCHW)
        elif self.stride != 1 or self.added != (0, 0):
            x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
            x_NCHW = functional.pad(x_NCHW, (0, 0, 0, 0, *self.added))
        return functional.relu(y_NCHW + x_NCHW)


class ResNet(nn.Module):
    """A 3 x 3 convolution, stages of `blocks` blocks with `channels` times `width`, the mean over all places.

    By default a CIFAR ResNet of 6 `blocks` + 2 layers. `norm` makes the layers named bn. Weights: He et al. 2015
    normal (fan out) for convolutions, PyTorch's default for the linear layer.
    """

    def __init__(
        self,
        blocks: int,
        classes: int,
        width: float = 1.0,
        norm: Norm = nn.BatchNorm2d,
        channels: Sequence[int] = (16, 32, 64),
        project: bool = False,
    ) -> None:
        super().__init__()
        widths = [scaled(each, width) for each in channels]
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = norm(widths[0])
        self.blocks = stages(partial(BasicBlock, norm=norm, project=project), widths[0], widths, blocks)
        self.linear = nn.Linear(widths[-1], classes)
        he_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        return self.linear(torch.mean(self.blocks(x_NCHW), dim=(2, 3)))


class PreactivationBlock(nn.Module):
    """Norm, ReLU, 3 x 3 convolution, twice. Where channels change, a 1 x 1 convolution of the first ReLU joins."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        y_NCHW = functional.relu(self.bn1(x_NCHW))
        shortcut_NCHW = x_NCHW if self.shortcut is None else self.shortcut(y_NCHW)
        y_NCHW = self.conv2(functional.relu(self.bn2(self.conv1(y_NCHW))))
        return y_NCHW + shortcut_NCHW


class WideResNet(nn.Module):
    """WRN-`depth`-`factor` (Zagoruyko & Komodakis 2016, table 1) without dropout; the depth is 6 n + 4.

    `width` multiplies the factor; the first convolution has 16 channels in any case.
    """

    def __init__(self, depth: int, factor: int, classes: int, width: float = 1.0) -> None:
        super().__init__()
        widths = [scaled(channels * factor, width) for channels in (16, 32, 64)]
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = stages(PreactivationBlock, 16, widths, (depth - 4) // 6)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], classes)
        he_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        x_NCHW = functional.relu(self.bn(self.blocks(self.conv(x_NCHW))))
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))
