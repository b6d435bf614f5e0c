"""The `loop` engine: each member in turn. Right on a CPU, and the reference for every other engine.

A member's step: augment, forward and backward in bf16, fp16 or fp32, one fused SGD pass over the member's row. M = 1
is ordinary training.

Shapes: M members, N images of a batch, K classes, P parameters, C H W of an image.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine, Report, require_noises
from fastwi.engine.scaling import LossScale
from fastwi.engine.schedule import learning_rate
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
        steps = self.iterations(dataset)
        weights_P, momentum_P = population.weights_MP[m], population.momentum_MP[m]
        gradient_P = torch.zeros_like(weights_P)
        spans = population.layout.parameters
        gradients = [span.view(gradient_P) for span in spans]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        draws = self._draws(noise, epoch, dataset)
        state, leaves, refresh = self._training_state(population, m)
        scale = LossScale(1, self.device) if self.dtype == torch.float16 else None
        for step, (x_NCHW, labels_N) in enumerate(self._batches(dataset, draws, steps)):
            refresh()
            logits_NK = self._forward(state, x_NCHW)
            loss = functional.cross_entropy(logits_NK, labels_N)
            scaled = loss if scale is None else loss * scale.scale_M[0]
            torch._foreach_copy_(gradients, torch.autograd.grad(scaled, leaves))
            rate = learning_rate(epoch * steps + step, steps, self._optimizer, self._schedule)
            if scale is None or not scale.unscale_(gradient_P[None])[0]:
                self._sgd(weights_P, gradient_P, momentum_P, rate)
            total += loss.detach().double()
            if report:
                report(len(labels_N))
        return float(total) / max(1, steps)

    def _sgd(self, weights_P: Tensor, gradient_P: Tensor, momentum_P: Tensor, rate: float) -> None:
        """v = mu * v + g + wd * w;  w = w - rate * v (or with Nesterov's v), in one pass over the row."""
        torch._fused_sgd_(
            [weights_P], [gradient_P], [momentum_P] if self._optimizer.momentum else [],
            weight_decay=self._optimizer.weight_decay, momentum=self._optimizer.momentum, lr=rate, dampening=0.0,
            nesterov=self._optimizer.nesterov, maximize=False, is_first_step=False,
        )  # fmt: skip

    def _training_state(
        self, population: Population, m: int
    ) -> tuple[dict[str, Tensor], list[Tensor], Callable[[], None]]:
        """Tensors for the model by name, the leaves to differentiate, and a call that renews low-precision ones."""
        row = population.weights_MP[m]
        low_P = row.to(self.dtype) if self.dtype != torch.float32 else row
        leaves = {
            span.name: span.view(low_P if span.name in self._low else row).detach().requires_grad_()
            for span in population.layout.parameters
        }

        def refresh() -> None:
            if low_P is not row:
                low_P.copy_(row)

        return {**leaves, **population.buffers(m)}, list(leaves.values()), refresh
