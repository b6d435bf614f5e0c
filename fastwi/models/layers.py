"""What the networks share: widths, initial weights and group norm."""

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8


def scaled(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded to the nearest whole number of at least 1."""
    return max(1, round(channels * width))


def he_normal_(network: nn.Module, fan: Literal["fan_out", "fan_in"] = "fan_out") -> None:
    """He et al. 2015 normal for every convolution's weights, zero for its biases; the rest stays.

    Fan out keeps the scale of gradients, fan in that of activations (their equations 14 and 10), which a network
    without any norm needs: fan out shrinks them wherever channels become more.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) of 8 groups, or of the most that divide both 8 and the channels.

    It normalises each image by itself, so it has no running statistics and nothing of it can go stale when
    weights are averaged.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """[N, C, H, W] to the same; in bf16 or fp32 as the input is, with sums in float32."""
        # CUDA's kernel takes no float32 weights with a bf16 input, and the engine keeps these in float32.
        weight_C, bias_C = self.weight.to(x_NCHW.dtype), self.bias.to(x_NCHW.dtype)
        return functional.group_norm(x_NCHW, self.num_groups, weight_C, bias_C, self.eps)
