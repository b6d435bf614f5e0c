"""The `loop` engine: each member in turn. Right on a CPU, and the reference for every other engine.

A member's step: augment, forward and backward in bf16, fp16 or fp32, one fused SGD pass over the member's row. M = 1
is ordinary training.

Shapes: M members, N images of a batch, K classes, P parameters, C H W of an image.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine, Report, require_noises, training_leaves
from fastwi.engine.mixed import LossScale
from fastwi.engine.schedule import learning_rate
from fastwi.kernels.sgd import sgd_row_
from fastwi.population import Population


class LoopEngine(Engine):
    """Trains and evaluates the members one after the other."""

    name = "loop"
    members_at_once = 4  # they are trained in turn, so more would gain nothing

    def train_epoch(
        self,
        population: Population,
        dataset: Dataset,
        noises: Sequence[Noise],
        epoch: int,
        report: Report | None = None,
    ) -> list[float]:
        """See `Engine.train_epoch`."""
        require_noises(population, noises)
        losses = []
        for m, noise in enumerate(noises):
            with self._layers_draw(noise, epoch):
                losses.append(self._train_member(population, m, dataset, noise, epoch, report))
        return losses

    def _train_member(
        self,
        population: Population,
        m: int,
        dataset: Dataset,
        noise: Noise,
        epoch: int,
        report: Report | None,
    ) -> float:
        self._model.train()
        optimizer, steps = self.settings.optimizer, self.iterations(dataset)
        weights_P, momentum_P = population.weights_MP[m], population.momentum_MP[m]
        low_P = weights_P if self.dtype == torch.float32 else weights_P.to(self.dtype)
        gradient_P = torch.zeros_like(weights_P)
        gradients = [span.view(gradient_P) for span in population.layout.parameters]
        leaves = training_leaves(population.layout, self._low, weights_P, low_P)
        state = {**leaves, **population.buffers(m)}
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        scale = LossScale(1, self.device) if self.dtype == torch.float16 else None
        draws = self._draws(noise, epoch, dataset)
        for step, (x_NCHW, labels_N) in enumerate(self._batches(dataset, draws, steps)):
            if low_P is not weights_P:
                low_P.copy_(weights_P)
            loss = functional.cross_entropy(self._forward(state, x_NCHW), labels_N)
            scaled = loss if scale is None else loss * scale.scale_M[0]
            torch._foreach_copy_(gradients, torch.autograd.grad(scaled, list(leaves.values())))
            rate = learning_rate(epoch * steps + step, steps, optimizer, self.settings.schedule)
            if scale is None or not scale.unscale_(gradient_P[None])[0]:
                sgd_row_(
                    weights_P, gradient_P, momentum_P, rate, optimizer.momentum, optimizer.weight_decay,
                    optimizer.nesterov,
                )  # fmt: skip
            total += loss.detach().double()
            if report:
                report(len(labels_N))
        return float(total) / max(1, steps)
