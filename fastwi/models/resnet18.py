"""ResNet18 for small images: ImageNet's (He et al. 2016, table 1) with a 3 x 3 stem of stride 1 and no max pool.

11,173,962 parameters at 10 classes, as kuangliu's pytorch-cifar has it.

Shapes: N images, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.models.layers import he_normal_, scaled


class ProjectedBlock(nn.Module):
    """Two 3 x 3 convolutions; where the shape changes the shortcut is a 1 x 1 convolution and a norm (option B)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / stride, W / stride]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        return functional.relu(self.bn2(self.conv2(y_NCHW)) + self.shortcut(x_NCHW))


class ResNet18(nn.Module):
    """Four stages of two blocks with 64, 128, 256 and 512 channels times `width`, then the mean over all places."""

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        layers: list[nn.Module] = []
        for stage in range(4):
            channels_out = scaled(64 * 2**stage, width)
            layers.append(ProjectedBlock(channels, channels_out, 2 if stage > 0 else 1))
            layers.append(ProjectedBlock(channels_out, channels_out, 1))
            channels = channels_out
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        he_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        x_NCHW = functional.relu(self.bn(self.conv(x_NCHW)))
        return self.linear(torch.mean(self.blocks(x_NCHW), dim=(2, 3)))
