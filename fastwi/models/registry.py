"""Networks by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from fastwi.errors import ConfigError
from fastwi.models.layers import GroupNorm
from fastwi.models.names import is_own, model_problem
from fastwi.models.own import build_own
from fastwi.models.resnet import WideResNet, cifar_resnet, resnet18
from fastwi.models.vgg import STAGES, PlainNet

_BUILDERS: dict[str, Callable[[int, float], nn.Module]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth, nn.BatchNorm2d) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}_gn": partial(cifar_resnet, depth, GroupNorm) for depth in (20, 32, 44, 56, 110)},
    "resnet18": resnet18,
    **{name: partial(PlainNet, name) for name in STAGES},
    "wrn16_4": partial(WideResNet, 16, 4),
    "wrn28_10": partial(WideResNet, 28, 10),
}


def build_model(name: str, classes: int, width: float = 1.0, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Build the network `name` with weights drawn from torch's global generator.

    name: one of `MODEL_NAMES`, or a network of the user's own (see `fastwi.models.own`). width: multiplies the
    channels of the registry's networks. image_size: (height, width) in pixels, on which a user's network is tried.

    Raises ConfigError, in one line, for an unknown name, a width where there is none, and a wrong network.
    """
    problem = model_problem(name, width)
    if problem is not None:
        raise ConfigError(problem)
    if is_own(name):
        return build_own(name, classes, image_size)
    return _BUILDERS[name](classes, width)
