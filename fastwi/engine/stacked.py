"""The `stacked` engine: B members as one batched network, on a GPU as one captured CUDA graph.

Where torch.fx can trace the network its layers are batched one by one (`fastwi.engine.stack`), convolutions and batch
norm by Triton kernels. Where it cannot, the whole network is mapped over members with torch.func.vmap, and compiled.

A member's numbers are the same bit for bit whatever its neighbours are, on a CPU, and on a GPU with
engine.deterministic: there whatever has no kernel of its own is run for one member after the other.

Shapes: M, B members, N images of a batch, K classes, C H W of an image.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.data.resident import require_resident
from fastwi.engine.base import Report, Scores, batch_norms, low_precision_names, reset_statistics
from fastwi.engine.captured import ProgramEngine
from fastwi.engine.device import compiled
from fastwi.engine.members import by_vmap, one_by_one
from fastwi.engine.program import State
from fastwi.engine.stack import StackedNetwork, Tensors, dense_buffers, write_back
from fastwi.errors import ConfigError
from fastwi.kernels.augment import augment, augment_many
from fastwi.population import Population
from fastwi.population.layout import Span

FORWARD_MEMBERS = {"cpu": 4, "cuda": 32}
Forward = Callable[[Tensors, Tensor, bool], Tensor]  # (tensors by name [M, ...], x_MNHWC, training) to logits_MNK


class StackedEngine(ProgramEngine):
    """Trains members as one batched network."""

    name = "stacked"

    def __init__(
        self,
        model: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        augmentation: AugmentConfig,
    ) -> None:
        super().__init__(model, config, optimizer, schedule, augmentation)
        self._low = low_precision_names(model)  # its rules cast no operands, as autocast does
        self._exact = self._must_be_exact(config)
        network = StackedNetwork.of(self.resolved.model, self._exact)
        whole = norms_in_float32(self._model, self.dtype)  # used where the network cannot be traced
        self._norms = batch_norms((whole if network is None else network.traced).modules())
        if network is None and any(norm.momentum is None for norm in self._norms):
            raise ConfigError("engine.name: stacked maps no batch norm with momentum None over members; use loop")
        compiler = functools.partial(compiled, device=self.device) if self.resolved.backend == "compile" else None
        self._stacked_forward: Forward = network or mapped_network(whole, self._exact, compiler)

    def _must_be_exact(self, config: EngineConfig) -> bool:
        """Whether a member's numbers may not depend on how many there are. It costs nothing on a CPU."""
        return self.device.type == "cpu" or config.deterministic

    def _make_gradients(self, state: State) -> "Stacked":
        return Stacked(state, self._stacked_forward, self._low, self._exact)

    @torch.no_grad()
    def evaluate(self, population: Population, dataset: Dataset, report: Report | None = None) -> Scores:
        """See `Engine.evaluate`. The members of a portion see each batch of images together."""
        dataset = require_resident(dataset, "engine.name: stacked")
        total_M2 = torch.zeros((population.members, 2), dtype=torch.float64, device=self.device)
        table = dataset.table_C256.to(self.dtype)
        for rows in self._portions(population):
            tensors, members = self._tensors(population.select(rows)), len(total_M2[rows])
            for order in torch.arange(len(dataset), device=self.device).split(self._evaluation_batch):
                x_NHWC = augment(dataset.images_NHWC, order, None, None, table, 0).permute(0, 2, 3, 1)
                x_MNHWC = torch.stack([x_NHWC] * members)
                logits_MNK = self._stacked_forward(tensors, x_MNHWC, False)
                labels_MN = dataset.labels_N[order].expand(members, -1)
                total_M2[rows, 0] += len(order) * cross_entropy(logits_MNK, labels_MN, self._exact).double()
                total_M2[rows, 1] += (logits_MNK.argmax(2) == labels_MN).sum(1).double()
                if report:
                    report(members * len(order))
        mean_M2 = (total_M2 / len(dataset)).cpu().numpy()
        return Scores(loss_M=mean_M2[:, 0], accuracy_M=100 * mean_M2[:, 1])

    @torch.no_grad()
    def recompute_statistics(
        self,
        population: Population,
        dataset: Dataset,
        noises: Sequence[Noise],
        epoch: int,
        images: int = 0,
        report: Report | None = None,
    ) -> Population:
        """See `Engine.recompute_statistics`."""
        dataset = require_resident(dataset, "engine.name: stacked")
        result = population.clone_rows(range(population.members))
        kept = [norm.momentum for norm in self._norms]
        batch, padding = self._optimizer.batch_size, self._augment.padding
        steps = max(1, min(images or len(dataset), len(dataset)) // batch)
        count = min(batch, len(dataset))
        if not self._norms:  # nothing to recompute; progress is told of what is saved
            if report:
                report(result.members * steps * count)
            return result
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        table = dataset.table_C256.to(self.dtype)
        try:
            for rows in self._portions(result):
                part = result.select(rows)
                reset_statistics(part, self.resolved.model)
                tensors = self._tensors(part)
                draws = self._stacked_draws([Noise(n.seed, statistics=True) for n in noises[rows]], epoch, dataset)
                for step in range(steps):
                    for norm in self._norms:
                        norm.momentum = 1 / (step + 1)  # the plain mean over batches so far
                    order, offset, flip = draws
                    x_MNHWC = augment_many(
                        dataset.images_NHWC, order, offset if padding else None, flip if self._augment.flip else None,
                        table, padding, first.fill_(step * batch), count,
                    )  # fmt: skip
                    self._stacked_forward(tensors, x_MNHWC, True)
                    if report:
                        report(part.members * count)
        finally:
            for norm, momentum in zip(self._norms, kept, strict=True):
                norm.momentum = momentum
        return result

    def _portions(self, population: Population) -> list[slice]:
        """Rows that are passed forward together: few enough that their activations stay small beside training's."""
        at_once = FORWARD_MEMBERS[self.device.type]
        return [slice(first, first + at_once) for first in range(0, population.members, at_once)]

    def _tensors(self, population: Population) -> dict[str, Tensor]:
        """All members' tensors by name, [M, *shape]: parameters in the activations' dtype, buffers as they are."""
        rows = (population.weights_MP.to(self.dtype), population.weights_MP)
        parameters = {s.name: s.view(rows[s.name not in self._low]) for s in population.layout.parameters}
        return {**parameters, **buffer_views(population)}


class Stacked:
    """Forward and backward of all members in one pass."""

    def __init__(self, state: State, forward: Forward, low: frozenset[str], exact: bool) -> None:
        members, layout = state.members, state.members.layout
        rows = (state.low_BP, members.weights_MP)
        self._forward, self._exact = forward, exact
        self._leaves = {
            span.name: span.view(rows[span.name not in low]).detach().requires_grad_() for span in layout.parameters
        }
        self._gradients = _views(layout.parameters, state.gradient_BP)
        self._buffers = buffer_views(members)

    def __call__(self, x_BNHWC: Tensor, labels_BN: Tensor, scale_B: Tensor | None) -> Tensor:
        """See `fastwi.engine.program.Gradients`."""
        logits_BNK = self._forward({**self._leaves, **self._buffers}, x_BNHWC, True)
        losses_B = cross_entropy(logits_BNK, labels_BN, self._exact)
        scaled_B = losses_B if scale_B is None else losses_B * scale_B
        leaves = list(self._leaves.values())
        torch._foreach_copy_(self._gradients, torch.autograd.grad(scaled_B.sum(), leaves))
        return losses_B.detach()


def cross_entropy(logits_MNK: Tensor, labels_MN: Tensor, exact: bool) -> Tensor:
    """Each member's mean over its images, [M] (nats). `exact`: see `StackedNetwork`."""
    if exact:
        means: Tensor = one_by_one(functional.cross_entropy, logits_MNK, labels_MN)
        return means
    losses = functional.cross_entropy(logits_MNK.flatten(0, 1), labels_MN.flatten(), reduction="none")
    return losses.view(labels_MN.shape).mean(1)


def mapped_network(model: nn.Module, exact: bool, compiler: Callable[[Any], Any] | None = None) -> Forward:
    """The whole network applied to each member, for what torch.fx cannot trace, with batch norm's buffers.

    `exact`: see `StackedNetwork`. A `compiler` is handed one member's network then, and all members' at once else.
    """

    def of_member(state: dict[str, Tensor], x_NCHW: Tensor) -> Any:
        return torch.func.functional_call(model, state, (x_NCHW,))

    one = compiler(of_member) if compiler and exact else of_member

    def forward(tensors: Tensors, x_MNHWC: Tensor, training: bool) -> Tensor:
        model.train(training)
        state = tensors if exact else dense_buffers(tensors)
        logits_MNK: Tensor = (one_by_one if exact else by_vmap)(one, state, x_MNHWC.permute(0, 1, 4, 2, 3))
        write_back(state, tensors)
        return logits_MNK.float()

    return compiler(forward) if compiler and not exact else forward


def norms_in_float32(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `model` whose norms compute in float32 and answer in `dtype`: vmap's take no mixture of dtypes."""
    network = copy.deepcopy(model)
    if dtype == torch.float32:
        return network
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)):
            module.register_forward_pre_hook(lambda _module, inputs: tuple(x.float() for x in inputs))
            module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    return network


def buffer_views(population: Population) -> dict[str, Tensor]:
    """All members' buffers by name, [M, *shape] views."""
    layout = population.layout
    statistics = {span.name: span.view(population.statistics_MQ) for span in layout.statistics}
    return statistics | {span.name: span.view(population.counters_MB) for span in layout.counters}


def _views(spans: Sequence[Span], matrix_MP: Tensor) -> list[Tensor]:
    return [span.view(matrix_MP) for span in spans]
