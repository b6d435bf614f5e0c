"""The `stacked` engine: B members as one batched network, on a GPU as one captured CUDA graph.

Where torch.fx can trace the network its layers are batched one by one; where it cannot, the whole network is mapped
over members with torch.func.vmap, and compiled (`fastwi.engine.stack`).

A member's numbers are the same whatever its neighbours are, on a CPU, and on a GPU with engine.deterministic.

Shapes: M, B members, N images of a batch, K classes, C H W of an image.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.config.schema import Config
from fastwi.data.batches import Dataset
from fastwi.data.resident import ResidentDataset, require_resident
from fastwi.engine.base import Backward, Epoch, batch_norms, buffer_views
from fastwi.engine.captured import ProgramEngine
from fastwi.engine.counters import batch_of
from fastwi.engine.device import compiled, peak_bytes
from fastwi.engine.members import one_by_one
from fastwi.engine.mixed import low_precision_names
from fastwi.engine.program import Gradients, State
from fastwi.engine.stack import Forward, StackedNetwork, mapped_network, norms_in_float32
from fastwi.errors import ConfigError
from fastwi.kernels.augment import augment, augment_many
from fastwi.kernels.stacked import Place
from fastwi.population import Population

FORWARD_MEMBERS = {"cpu": 4, "cuda": 32}


class StackedEngine(ProgramEngine):
    """Trains members as one batched network."""

    name = "stacked"
    network_type: type[StackedNetwork] = StackedNetwork

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model, config)
        self._low = low_precision_names(model)  # its rules cast no operands, as autocast does
        self._exact = self._must_be_exact()
        network = self.network_type.of(self.resolved.model, self._exact)
        whole = norms_in_float32(self._model, self.dtype)  # used where the network cannot be traced
        norms = [] if network is None else batch_norms(network.traced.modules())
        self._norms += norms
        if network is None and any(norm.momentum is None for norm in self._norms):
            raise ConfigError("engine.name: stacked maps no batch norm with momentum None over members; use loop")
        compiler = functools.partial(compiled, device=self.device) if self.resolved.backend == "compile" else None
        self._counted = frozenset() if network is None else network.counted
        self._counts_all = 0 < len(norms) == len(self._counted)
        self._stacked_forward: Forward = network or mapped_network(whole, self._exact, compiler)
        self._losses = functools.partial(cross_entropy, exact=self._exact)

    def _must_be_exact(self) -> bool:
        """Whether a member's numbers may not depend on how many there are. It costs nothing on a CPU."""
        return self.device.type == "cpu" or self.config.engine.deterministic

    def _make_gradients(self, state: State) -> Gradients:
        members, written = state.members, set[str]()
        forward, spans = self._stacked_forward, members.layout.parameters
        if isinstance(forward, StackedNetwork):
            places = {s.name: Place(s.name, s.view(state.gradient_BP), written) for s in spans}
            forward = functools.partial(forward, places=places)
        return Backward(
            members.layout, self._low, members.weights_MP, state.low_BP, state.gradient_BP, buffer_views(members),
            functools.partial(forward, training=True), self._losses, written,
        )  # fmt: skip

    def _all_logits(self, population: Population, dataset: Dataset) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """See `Engine._all_logits`. The members of a portion see each batch of images together."""
        dataset = require_resident(dataset, f"engine.name: {self.name}")
        table = dataset.table_C256.to(self.dtype)
        size = self.evaluation_batch(dataset, min(population.members, FORWARD_MEMBERS[self.device.type]))
        for rows in self._portions(population, dataset, size, training=False):
            part = population[rows]
            tensors = self._tensors(part)
            for at in torch.arange(len(dataset), device=self.device).split(size):
                x_NHWC = augment(dataset.images_NHWC, at, None, None, table, 0).permute(0, 2, 3, 1)
                x_MNHWC = torch.stack([x_NHWC] * part.members)
                yield rows, at, self._stacked_forward(tensors, x_MNHWC, training=False)

    def _loss_sums(self, logits_RNK: Tensor, labels_RN: Tensor) -> Tensor:
        return labels_RN.shape[1] * self._losses(logits_RNK, labels_RN).double()

    def _average_statistics(self, population: Population, epoch: Epoch) -> None:
        """See `Engine._average_statistics`, which does it where a batch norm has no rule or is called twice."""
        if not self._counts_all:
            super()._average_statistics(population, epoch)
            return
        dataset = require_resident(epoch.dataset, f"engine.name: {self.name}")
        batch, padding = self.config.optimizer.batch_size, self.config.augment.padding
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        table = dataset.table_C256.to(self.dtype)
        batch_B = batch_of(self._counted, population.layout, self.device)
        for rows in self._portions(population, dataset, min(batch, epoch.images), training=True):
            part = population[rows]
            tensors = self._tensors(part)
            draws = self._stacked_draws(epoch.noises[rows], epoch)
            for step, at in enumerate(range(0, epoch.images, batch)):
                for norm in self._norms:
                    norm.momentum = 1 / (step + 1)  # the plain mean over batches so far
                if batch_B is not None:
                    part.counters_MB.add_(batch_B)
                first.fill_(at)
                count = min(batch, epoch.images - at)
                x_MNHWC = augment_many(dataset.images_NHWC, *draws, table, padding, first, count)
                self._stacked_forward(tensors, x_MNHWC, training=True)
                epoch.report(part.members * count)

    def _portions(self, population: Population, dataset: ResidentDataset, images: int, training: bool) -> list[slice]:
        """Rows that are passed forward together, on so many images a batch.

        Few enough that their activations stay small beside training's and, on a GPU, that they fit into its memory.
        """
        at_once = FORWARD_MEMBERS[self.device.type]
        if self.device.type == "cuda" and population.members > 1:
            at_once = min(at_once, self._forward_room(population, dataset, images, training))
        return [slice(first, first + at_once) for first in range(0, population.members, at_once)]

    def _forward_room(self, population: Population, dataset: ResidentDataset, images: int, training: bool) -> int:
        """Members that fit into the memory beside all programs, from what one takes. Measured once a shape."""
        kind = images, dataset.image_shape, training, tuple(self._programs)
        if kind not in self._rooms:
            alone = population.clone_rows([0])  # a pass in training changes its statistics
            at = torch.arange(min(images, len(dataset)), device=self.device)
            x_NCHW = augment(dataset.images_NHWC, at, None, None, dataset.table_C256.to(self.dtype), 0)

            def forward() -> None:
                self._stacked_forward(
                    self._tensors(alone), torch.stack([x_NCHW.permute(0, 2, 3, 1)]), training=training
                )

            forward()  # compiles and chooses kernels, which takes memory too
            self._rooms[kind] = self._members_of(peak_bytes(self.device, forward))
        return self._rooms[kind]

    def _tensors(self, population: Population) -> dict[str, Tensor]:
        """All members' tensors by name, [M, *shape]: parameters in the activations' dtype, buffers as they are."""
        rows = (population.weights_MP, population.weights_MP.to(self.dtype))
        parameters = {s.name: s.view(rows[s.name in self._low]) for s in population.layout.parameters}
        return {**parameters, **buffer_views(population)}


def cross_entropy(logits_MNK: Tensor, labels_MN: Tensor, exact: bool) -> Tensor:
    """Each member's mean over its images, [M] (nats). `exact`: see `StackedNetwork`."""
    if exact:
        means: Tensor = one_by_one(functional.cross_entropy, logits_MNK, labels_MN)
        return means
    losses = functional.cross_entropy(logits_MNK.flatten(0, 1), labels_MN.flatten(), reduction="none")
    return losses.view(labels_MN.shape).mean(1)
