"""The scale of the loss in fp16 training (Micikevicius et al. 2018, Mixed Precision Training, section 3.2).

Gradients are multiplied by the scale on their way and divided by it before the step, so that small ones do not vanish
in fp16. A step whose gradients overflowed is skipped and halves the scale; after `GROWTH_INTERVAL` good steps it
doubles. Each member has a scale of its own, which starts anew every epoch: so an epoch's result follows from its
start state and noise alone, and a resumed run equals an uninterrupted one.

Shapes: M members, P parameters.
"""

import torch
from torch import Tensor

START, GROWTH_INTERVAL = 2.0**14, 200


class LossScale:
    """The scales of M members: `scale_M` float32 on the device. No call waits for the device."""

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
