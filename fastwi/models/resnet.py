"""CIFAR ResNets with option-A shortcuts (He et al. 2016, section 4.2), with batch norm or group norm.

Parameters at 10 classes (He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M), of either norm: ResNet20
269,722, ResNet32 464,154, ResNet44 658,586, ResNet56 853,018, ResNet110 1,727,962.

Shapes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.models.layers import GroupNorm, he_normal_, scaled

Norm = Callable[[int], nn.Module]  # channels to a layer


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters: subsampled, and padded with zero channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = norm(channels_out)
        self.stride = stride
        added = channels_out - channels_in
        self.added = (added // 2, added - added // 2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        if self.stride != 1 or self.added != (0, 0):
            x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
            x_NCHW = functional.pad(x_NCHW, (0, 0, 0, 0, *self.added))
        return functional.relu(y_NCHW + x_NCHW)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks with 16, 32 and 64 channels times `width`; depth 6 * blocks + 2.

    `norm` makes the layers named bn: one class, and one set of names, serves both norms. Weights: He et al. 2015
    normal (fan out) for convolutions, PyTorch's default for the linear layer.
    """

    def __init__(self, blocks: int, classes: int, width: float = 1.0, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        widths = [scaled(channels, width) for channels in (16, 32, 64)]
        channels = widths[0]
        self.conv = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn = norm(channels)
        layers: list[nn.Module] = []
        for stage, channels_out in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(channels, channels_out, 2 if stage > 0 and block == 0 else 1, norm))
                channels = channels_out
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        he_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        x_NCHW = self.blocks(x_NCHW)
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))


def cifar_resnet(depth: int, norm: Norm = nn.BatchNorm2d) -> Callable[[int, float], nn.Module]:
    """The builder (classes, width) of the ResNet of `depth` layers, which is 6 n + 2."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers, not {depth}")
    return lambda classes, width: ResNet(blocks, classes, width, norm)


def resnet20(classes: int) -> nn.Module:
    """ResNet20: 269,722 parameters at 10 classes (He et al. 2016, table 6: 0.27 M)."""
    return ResNet(3, classes)


RESNETS: dict[str, Callable[[int, float], nn.Module]] = {
    f"resnet{depth}{suffix}": cifar_resnet(depth, norm)
    for suffix, norm in (("", nn.BatchNorm2d), ("_gn", GroupNorm))
    for depth in (20, 32, 44, 56, 110)
}
"""The family by name; _gn: with group norm in place of batch norm."""
