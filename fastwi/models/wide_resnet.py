"""Wide ResNets (Zagoruyko & Komodakis 2016, table 1), pre-activation, without dropout.

Parameters at 10 classes: WRN-16-4 2,748,890, WRN-28-10 36,479,194 (the paper: 36.5 M).

Shapes: N images, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.models.layers import he_normal_, scaled


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
    """WRN-`depth`-`factor`: three stages of (depth - 4) / 6 blocks with 16, 32 and 64 channels times the factor.

    `width` multiplies the factor; the stem has 16 channels whatever it is. Raises ValueError for other depths.
    """

    def __init__(self, depth: int, factor: int, classes: int, width: float = 1.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"a wide ResNet has 6 n + 4 layers, not {depth}")
        channels = 16
        self.conv = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for stage in range(3):
            channels_out = scaled(16 * 2**stage * factor, width)
            for block in range(blocks):
                layers.append(PreactivationBlock(channels, channels_out, 2 if stage > 0 and block == 0 else 1))
                channels = channels_out
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)
        he_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        x_NCHW = functional.relu(self.bn(self.blocks(self.conv(x_NCHW))))
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))
