"""Networks by name, and the plain stacks of convolutions among them.

VGG (Simonyan & Zisserman 2015, table 1, configurations A, B and D) for small images: the mean over all places
instead of the fifth max pool, and one linear layer. Convolutions have biases. The ConvNet is this project's own.

Shapes: N images, H height, W width, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fastwi.errors import ConfigError
from fastwi.models.names import is_own, model_problem
from fastwi.models.own import build_own
from fastwi.models.resnet import GroupNorm, ResNet, WideResNet, he_normal_, scaled

STAGES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg13": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "convnet": ((32, 32), (64, 64), (128, 128)),
}
"""Channels of the convolutions of each stage; a max pool stands between two stages."""


class PlainNet(nn.Module):
    """Convolution, batch norm (but in the ConvNet) and ReLU, repeated; the mean over all places; a linear layer.

    Smallest input: 2 ** (stages - 1) pixels on a side. Weights: He et al. 2015 normal (fan out; fan in
    without batch norm), biases 0, PyTorch's default for the linear layer.
    """

    def __init__(self, name: str, classes: int, width: float = 1.0) -> None:
        super().__init__()
        batch_norm = name != "convnet"
        layers: list[nn.Module] = []
        channels = 3
        for stage, widths in enumerate(STAGES[name]):
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


_BUILDERS: dict[str, Callable[[int, float], nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, (depth - 2) // 6) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}_b": partial(ResNet, (depth - 2) // 6, project=True) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}_gn": partial(ResNet, (depth - 2) // 6, norm=GroupNorm) for depth in (20, 32, 44, 56, 110)},
    # ImageNet's (He et al. 2016, table 1) with a 3 x 3 stem of stride 1 and no max pool.
    "resnet18": partial(ResNet, 2, channels=(64, 128, 256, 512), project=True),
    **{name: partial(PlainNet, name) for name in STAGES},
    "wrn16_4": partial(WideResNet, 16, 4),
    "wrn28_10": partial(WideResNet, 28, 10),
}


def build_model(
    name: str,
    classes: int,
    width: float = 1.0,
    image_size: tuple[int, int] | None = None,
    initialisation: str = "default",
) -> nn.Module:
    """Build the network `name` with weights drawn from torch's global generator.

    name: one of `MODEL_NAMES`, or a network of the user's own (see `fastwi.models.own`). width: multiplies the
    channels of the registry's networks. image_size: (height, width) in pixels, on which a user's network is tried.
    initialisation: `model.initialisation`.

    Raises ConfigError, in one line, for an unknown name, a width or initialisation where there is none, and a wrong
    network.
    """
    problem = model_problem(name, width, initialisation)
    if problem is not None:
        raise ConfigError(problem)
    if is_own(name):
        return build_own(name, classes, image_size)
    network = _BUILDERS[name](classes, width)
    if initialisation != "default":
        _draw_weights(network, uniform_norms=initialisation == "open_lth")
    return network


def _draw_weights(network: nn.Module, uniform_norms: bool) -> None:
    """Draw weights as github.com/facebookresearch/open_lth does by default; biases stay.

    Its models/initializers.py has kaiming_normal, and models/bn_initializers.py has uniform.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        elif uniform_norms and isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
