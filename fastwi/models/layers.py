"""What the registry's networks share: channel counts, initial weights, group norm, stages of residual blocks."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

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
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Iterable[int], n: int
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
