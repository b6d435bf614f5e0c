"""Mixed precision: what is computed in bf16 or fp16, and the scale of the loss in fp16.

Shapes: M members, P parameters.
"""

import torch
from torch import Tensor, nn

START, GROWTH_INTERVAL = 2.0**14, 200
_ONE_DTYPE = (
    nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout,
)  # fmt: skip


def needs_autocast(model: nn.Module) -> bool:
    """Whether `model` runs under torch.autocast, which casts the operands of products; parameters stay in float32.

    All networks do whose modules are not known to keep to one dtype: a network may hold positions in a float32
    buffer, or make a mask in its forward. Parameters of the others are cast once a step.
    """
    built_in = "fastwi.models."
    return any(type(m) not in _ONE_DTYPE and not type(m).__module__.startswith(built_in) for m in model.modules())


def low_precision_names(model: nn.Module) -> frozenset[str]:
    """Parameters that are cast to the activations' dtype; batch norm's stay float32, as under autocast."""
    low = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            low.add(f"{name}.bias".removeprefix("."))
    return frozenset(low)


class LossScale:
    """The scales of M members in fp16: `scale_M` float32 on the device. No call waits for the device.

    So small gradients do not vanish (Micikevicius et al. 2018, Mixed Precision Training, section 3.2). A step whose
    gradients overflow is skipped and halves the scale; after `GROWTH_INTERVAL` good steps it doubles. It starts again
    in each epoch, so that an epoch's result follows from its start state and noise alone.
    """

    def __init__(self, members: int, device: torch.device) -> None:
        self.scale_M = torch.empty(members, device=device)
        self._good_M = torch.empty(members, dtype=torch.int64, device=device)
        self.restart()

    def restart(self) -> None:
        """As at the start of an epoch, in place."""
        self.scale_M.fill_(START)
        self._good_M.zero_()

    def unscale_(self, gradient_MP: Tensor) -> Tensor:
        """Divide each member's gradient by its scale, in place; then set the scales for the next step.

        Returns bool [M]: members whose gradients have an overflow. Their step is to be skipped.
        """
        gradient_MP.div_(self.scale_M[:, None])
        overflowed_M = ~torch.isfinite(gradient_MP).all(dim=1)
        self._good_M.add_(1).mul_(~overflowed_M)
        grown_M = self._good_M == GROWTH_INTERVAL
        self._good_M.mul_(~grown_M)
        self.scale_M.mul_(torch.where(overflowed_M, 0.5, torch.where(grown_M, 2.0, 1.0)))
        return overflowed_M
