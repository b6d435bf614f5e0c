"""Networks from images to two logits whose loss and error on constant images have a closed form.

A network's cost on image n is q_n > 0, and its logits are such that the cross-entropy of label 0 is q_n itself:
softplus(-z) = q at z = -log(exp(q) - 1). It is right about the image where z > 0, that is where q_n < log 2.
"""

import numpy as np
import torch
from torch import Tensor, nn

from fastwi.analysis import Evaluator, dataset_from_arrays
from fastwi.config.schema import EngineConfig
from fastwi.population import Population

PLAIN = EngineConfig(device="cpu", precision="fp32", backend="eager", evaluation_batch=7)
FLOOR = 0.05


class Costs(nn.Module):
    """Logits of costs: FLOOR + x * cost(), with x in 0..1 the intensity of the image."""

    def cost(self) -> Tensor:
        raise NotImplementedError

    def forward(self, images_NCHW: Tensor) -> Tensor:
        q_N = FLOOR + images_NCHW.mean(dim=(1, 2, 3)) * self.cost()
        z_N = -torch.log(torch.expm1(q_N))
        return torch.stack([z_N, torch.zeros_like(z_N)], dim=1)


class Bowl(Costs):
    """cost = ||w||^2."""

    def __init__(self, w_D) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(np.asarray(w_D), dtype=torch.float32))

    def cost(self) -> Tensor:
        return (self.w**2).sum()


def bowl_cost(w_D) -> float:
    return float((np.asarray(w_D, dtype=np.float64) ** 2).sum())


INTENSITY_N = np.arange(15, 256, 12, dtype=np.uint8)  # 21 constant images


def constant_images():
    images_NHWC = np.broadcast_to(INTENSITY_N[:, None, None, None], (len(INTENSITY_N), 2, 3, 1)).copy()
    return dataset_from_arrays(images_NHWC, np.zeros(len(INTENSITY_N), np.int64), [0.0], [1.0], "cpu")


def closed_form(cost: float) -> tuple[float, float]:
    """Loss (nats) and error (%) on the constant images, in float64."""
    q_N = FLOOR + INTENSITY_N / 255 * cost
    return float(q_N.mean()), 100 * float((q_N > np.log(2)).mean())


def population_of(kind: type[nn.Module], *ws) -> tuple[Evaluator, Population]:
    return Evaluator(kind(ws[0]), PLAIN), Population.from_modules([kind(w) for w in ws])
