"""Networks by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from fastwi.errors import ConfigError
from fastwi.models.names import is_own, model_problem
from fastwi.models.own import build_own
from fastwi.models.resnet import RESNETS
from fastwi.models.resnet18 import ResNet18
from fastwi.models.vgg import VGG_STAGES, convnet, vgg
from fastwi.models.wide_resnet import WideResNet

_BUILDERS: dict[str, Callable[[int, float], nn.Module]] = {
    **RESNETS,
    "resnet18": ResNet18,
    **{name: partial(vgg, name) for name in VGG_STAGES},
    "wrn16_4": partial(WideResNet, 16, 4),
    "wrn28_10": partial(WideResNet, 28, 10),
    "convnet": convnet,
}


def build_model(name: str, classes: int, width: float = 1.0, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the network `name` with freshly drawn weights from torch's global generator.

    name: one of `MODEL_NAMES`, or `package.module:attribute` or `path/to/file.py:attribute` for the user's own (see
    `fastwi.models.own`). width: multiplies the channels of the registry's networks. image_size: (height, width) in
    pixels of the images to come, on which a network of the user's own is tried.

    Raises ConfigError in one line for an unknown name, a width where there is none, and all that can be wrong with
    the user's own.
    """
    problem = model_problem(name, width)
    if problem is not None:
        raise ConfigError(problem)
    if is_own(name):
        return build_own(name, classes, image_size)
    return _BUILDERS[name](classes, width)
