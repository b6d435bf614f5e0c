"""The `loop` engine: each member in turn. Right on a CPU, and the reference for every other engine.

A member's step: augment, forward and backward in bf16, fp16 or fp32, one fused SGD pass over the member's row.
"""

import torch

from fastwi.engine.base import Backward, Engine, Epoch
from fastwi.engine.mixed import LossScale
from fastwi.kernels.sgd import sgd_row_
from fastwi.population import Population


class LoopEngine(Engine):
    """Trains and evaluates the members one after the other."""

    name = "loop"
    members_at_once = 4  # they are trained in turn, so more would gain nothing

    def _train(self, population: Population, epoch: Epoch, rates_S: list[float]) -> list[float]:
        losses = []
        for m, noise in enumerate(epoch.noises):
            with self._layers_draw(noise, epoch.number, epoch.first):
                losses.append(self._train_member(population, m, epoch, rates_S))
        return losses

    def _train_member(self, population: Population, m: int, epoch: Epoch, rates_S: list[float]) -> float:
        weights_P, momentum_P = population.weights_MP[m], population.momentum_MP[m]
        low_P = weights_P if self.dtype == torch.float32 else weights_P.to(self.dtype)
        gradient_P = torch.zeros_like(weights_P)
        backward = Backward(
            population.layout, self._low, weights_P, low_P, gradient_P, population.buffers(m), self._forward,
            recorded=self._recorded,
        )  # fmt: skip
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        scale = LossScale(1, self.device) if self.dtype == torch.float16 else None
        batch = self.config.optimizer.batch_size
        batches = self._batches(epoch, self._draws(epoch.noises[m], epoch))
        for rate, (x_NCHW, labels_N) in zip(rates_S, batches, strict=True):
            if low_P is not weights_P:
                low_P.copy_(weights_P)
            loss = backward(x_NCHW, labels_N, None if scale is None else scale.scale_M[0])
            total += loss.double() * (len(labels_N) / batch)  # whole batches count 1
            if scale is None or not scale.unscale_(gradient_P[None])[0]:
                sgd_row_(weights_P, gradient_P, momentum_P, rate, self.config.optimizer)
            if population.layout.moving:
                population.moving_MP[m].lerp_(weights_P, 1 - self.config.optimizer.ema_decay)
            epoch.report(len(labels_N))
        return float(total) / (epoch.images / batch or 1)
