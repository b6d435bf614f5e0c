"""Plain stacks of 3 x 3 convolutions: VGG with batch norm for small images, and a small network without any norm.

VGG (Simonyan & Zisserman 2015, table 1, configurations A, B and D) with the head that small images have got ever
since: the mean over all places and ONE linear layer from 512 channels, no hidden ones. The fifth max pool is left
out: the mean takes its place, so that 16 x 16 pixels are enough. Convolutions have biases. Parameters at 10 classes,
as kuangliu's pytorch-cifar has them: VGG11 9,231,114, VGG13 9,416,010, VGG16 14,728,266.

The ConvNet is this project's own: two layers each of 32, 64 and 128 channels, 288,298 parameters at 10 classes.

Shapes: N images, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn

from fastwi.models.layers import he_normal_, scaled

# Channels of the convolutions of each stage; a max pool stands between two stages.
VGG_STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
CONVNET_STAGES: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64), (128, 128))


class PlainNet(nn.Module):
    """Convolution, batch norm (where asked for) and ReLU, over and over; the mean over all places; a linear layer.

    Smallest input: 2 ** (stages - 1) pixels on a side. Weights: He et al. 2015 normal (fan out; fan in
    without batch norm), biases 0, PyTorch's default for the linear layer.
    """

    def __init__(
        self, stages: tuple[tuple[int, ...], ...], classes: int, width: float = 1.0, batch_norm: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, widths in enumerate(stages):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for each in widths:
                channels_out = scaled(each, width)
                layers.append(nn.Conv2d(channels, channels_out, 3, 1, 1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels_out))
                layers.append(nn.ReLU())
                channels = channels_out
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)
        he_normal_(self, "fan_out" if batch_norm else "fan_in")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, 3, H, W] to logits [N, K]."""
        return self.linear(torch.mean(self.layers(x_NCHW), dim=(2, 3)))


def vgg(name: str, classes: int, width: float = 1.0) -> nn.Module:
    """VGG11, 13 or 16 with batch norm, by its name in `VGG_STAGES`."""
    return PlainNet(VGG_STAGES[name], classes, width)


def convnet(classes: int, width: float = 1.0) -> nn.Module:
    """The small ConvNet without batch norm."""
    return PlainNet(CONVNET_STAGES, classes, width, batch_norm=False)
