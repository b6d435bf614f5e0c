"""What all engines share: evaluation, statistics, batches. Each engine trains members in its own way.

Shapes: M members, R of them in one pass, N images of a batch, K classes, C H W of an image.
"""

import abc
import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastwi.config.schema import Config
from fastwi.config.time import step_sizes
from fastwi.data.batches import Dataset
from fastwi.data.noise import Draws, Noise
from fastwi.engine.allocator import keep_freed_memory
from fastwi.engine.device import compiled, cpu_threads, make_deterministic, resolve
from fastwi.engine.draws import DrawRequest, DrawsAhead
from fastwi.engine.mixed import low_precision_names, needs_autocast
from fastwi.engine.recorded import Recorded, can_be_recorded
from fastwi.engine.schedule import learning_rate
from fastwi.errors import ConfigError
from fastwi.kernels.augment import augment
from fastwi.models.generators import draws_of, seeded
from fastwi.population import Layout, Population

Report = Callable[[int], None]  # called with the number of images done since the last call
AnyEngine = TypeVar("AnyEngine", bound="Engine")
EVALUATION_BATCH, LARGE_EVALUATION_BATCH = 500, 2500  # both divide test sets of 10,000: code is compiled once
MEMBERS_A_BATCH = 16  # that see an evaluation batch in turn; their weights in low precision are in memory together


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy (nats) and accuracy (%) of each member over one split, float64 [M]."""

    loss_M: NDArray[np.float64]
    accuracy_M: NDArray[np.float64]


@dataclass(frozen=True)
class Epoch:
    """What a pass over training images takes beside the members: one noise each, and the global epoch's number.

    `images` of the epoch's order are passed, from the beginning of its step `first` on.
    """

    dataset: Dataset
    noises: Sequence[Noise]
    number: int
    report: Report
    images: int
    first: int = 0


class Engine(abc.ABC):
    """Trains and evaluates populations of one architecture. All engines equal `loop` to float tolerance.

    `model` gives the architecture only, `config` what its sections engine, optimizer, schedule and augment and
    data.last_batch say. A member's results depend on its own row, noise and rates only.
    """

    name: str
    members_at_once: int
    """How many networks are best trained in one call."""
    tuned_on: tuple[str, ...] = ("cpu", "cuda")
    """The kinds of devices that `python -m fastwi.tune` measures it on."""

    def __init__(self, model: nn.Module, config: Config) -> None:
        self.config, self.resolved = config, resolve(config.engine, model)
        self.device, self.dtype = self.resolved.device, self.resolved.dtype
        if config.engine.deterministic:
            make_deterministic()
        if self.device.type == "cuda" and self.dtype == torch.float32:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.9 and on prefer another name, which older ones lack
                # fp32 is fp32, as it is in the Triton kernels; cuBLAS's default may be another by a variable.
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        if self.device.type == "cpu":
            keep_freed_memory()
            if config.engine.threads or cpu_threads(config.engine) < torch.get_num_threads():
                torch.set_num_threads(cpu_threads(config.engine))
        self._model = self.resolved.network.to(self.device)
        self._norms = batch_norms(self._model.modules())
        self._forward: Callable[..., Tensor] = self._call
        if self.resolved.backend == "compile":
            self._forward = compiled(self._call, self.device)
        recorded = self.resolved.backend == "fused" and can_be_recorded(model, self._model)
        self._recorded = Recorded() if recorded else None
        self._draws_itself = bool(draws_of(model))
        self._ahead = DrawsAhead()
        self._autocast = self.dtype != torch.float32 and needs_autocast(model)
        self._low = frozenset() if self._autocast else low_precision_names(model)
        if self.dtype != torch.float32:
            # Its fast path for evaluation gives NaN where biases are not in the weights' dtype.
            torch.backends.mha.set_fastpath_enabled(False)

    def train_epoch(
        self,
        population: Population,
        dataset: Dataset,
        noises: Sequence[Noise],
        epoch: int,
        report: Report | None = None,
        steps: range | None = None,
    ) -> list[float]:
        """Train every member through global epoch `epoch` under its own noise, in place.

        `steps`: the part of the epoch's order that is trained; None: all. Returns each member's mean training loss
        over the images of these steps (nats, as seen before each). Raises ValueError where there is not one noise a
        member, or for steps that the epoch does not have.
        """
        if len(noises) != population.members:
            raise ValueError(f"{population.members} members need as many noises, got {len(noises)}")
        sizes = self._sizes(dataset)
        every = range(len(sizes))
        steps = every if steps is None else steps
        if not 0 <= steps.start <= steps.stop <= len(every) or steps.step != 1:
            raise ValueError(f"an epoch has {len(every)} steps, got {steps}")
        self._model.train()
        optimizer, schedule = self.config.optimizer, self.config.schedule
        rates_S = [learning_rate(epoch * len(every) + step, len(every), optimizer, schedule) for step in steps]
        images = sum(sizes[steps.start : steps.stop])
        return self._train(population, Epoch(dataset, noises, epoch, report or _silent, images, steps.start), rates_S)

    @abc.abstractmethod
    def _train(self, population: Population, epoch: Epoch, rates_S: list[float]) -> list[float]:
        """What `train_epoch` does, with the learning rate of each step."""

    def draw_ahead(self, noises: Sequence[Noise], epoch: int, dataset: Dataset) -> None:
        """Have a thread make the draws that `train_epoch` will need for `noises` at `epoch`; returns at once.

        Call it before the previous epoch is trained. No result depends on it (`DrawsAhead`).
        """
        self._ahead.ask([self._request(noise, epoch, dataset) for noise in noises])

    def with_config(self: AnyEngine, config: Config) -> AnyEngine:
        """An engine under another configuration with the same `engine` section. It shares the compiled network."""
        other = copy.copy(self)
        other.config = config
        return other

    def iterations(self, dataset: Dataset) -> int:
        """Steps of an epoch. The last, incomplete batch of its order is one of them under data.last_batch: keep."""
        return len(self._sizes(dataset))

    def _sizes(self, dataset: Dataset, images: int = 0) -> list[int]:
        """Images of each step of a pass over `images` of the dataset (0: all)."""
        config, count = self.config, min(images or len(dataset), len(dataset))
        return step_sizes(count, config.optimizer.batch_size, config.data.last_batch == "keep")

    def evaluation_batch(self, dataset: Dataset, members: int = 1) -> int:
        """Images of an evaluation step, of `members` networks together: `engine.evaluation_batch`.

        0: as many as keep a GPU busy for longer than their launches take, for few small networks.
        """
        config, (height, width, _) = self.config.engine, dataset.image_shape
        # With engine.deterministic a member's sums are the same among however many others.
        may_vary = self.device.type == "cuda" and not config.deterministic
        large = may_vary and height * width <= 64 * 64 and members <= 4
        return config.evaluation_batch or (LARGE_EVALUATION_BATCH if large else EVALUATION_BATCH)

    @torch.no_grad()
    def evaluate(self, population: Population, dataset: Dataset, report: Report | None = None) -> Scores:
        """Loss and accuracy of every member on `dataset`, without augmentation, with its own statistics."""
        total_M2 = torch.zeros((population.members, 2), dtype=torch.float64, device=self.device)
        for rows, at, logits_RNK in self._all_logits(population, dataset):
            labels_RN = dataset.labels_N[at].expand(len(logits_RNK), -1)
            total_M2[rows, 0] += self._loss_sums(logits_RNK, labels_RN)
            total_M2[rows, 1] += (logits_RNK.argmax(2) == labels_RN).sum(1).double()
            if report:
                report(labels_RN.numel())
        mean_M2 = (total_M2 / len(dataset)).cpu().numpy()
        return Scores(loss_M=mean_M2[:, 0], accuracy_M=100 * mean_M2[:, 1])

    def logits(self, population: Population, m: int, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Member m's logits on `dataset` in its order, without augmentation, with the member's own statistics.

        Yields (positions int64 [N], logits float32 [N, K]) for one evaluation batch after the other.
        """
        for _, at, logits_NK in self._logits(population, [m], dataset):
            yield at, logits_NK

    def _all_logits(self, population: Population, dataset: Dataset) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, positions [N], logits [R, N, K]) of all members on all images, in any order."""
        for first in range(0, population.members, MEMBERS_A_BATCH):
            rows = range(first, min(first + MEMBERS_A_BATCH, population.members))
            for m, at, logits_NK in self._logits(population, rows, dataset):
                yield slice(m, m + 1), at, logits_NK[None]

    def _loss_sums(self, logits_RNK: Tensor, labels_RN: Tensor) -> Tensor:
        """Each member's cross-entropy over its images, summed, float64 [R] (nats)."""
        return functional.cross_entropy(logits_RNK[0], labels_RN[0], reduction="sum")[None].double()

    @torch.no_grad()
    def _logits(
        self, population: Population, rows: Sequence[int], dataset: Dataset
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """What `logits` yields, with the member before it, of all `rows`: each batch is read or decoded once."""
        self._model.eval()
        table = dataset.table_C256.to(self.dtype)
        states = [self._working_copy(population, m) for m in rows]
        size, everything = self.evaluation_batch(dataset), torch.arange(len(dataset), device=self.device)
        chunks = dataset.chunks(everything, size)
        for at, (images, chosen) in zip(everything.split(size), chunks, strict=True):
            for m, state in zip(rows, states, strict=True):
                x_NCHW = augment(images, chosen, None, None, table, 0)  # a network may change it in place
                # What a network draws in evaluation is the same for every member.
                with seeded(int(at[0]), self.device) if self._draws_itself else contextlib.nullcontext():
                    logits_NK = self._forward(state, x_NCHW)
                yield m, at, logits_NK

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
        """A copy of `population` whose batch-norm statistics are of its own weights.

        They are the plain mean of each batch's statistics over augmented training images (`images` of them; 0:
        all), drawn from the noise's statistics streams at `epoch`: what torch.optim.swa_utils.update_bn computes.
        """
        result = population.clone_rows(range(population.members))
        report = report or _silent
        images = sum(self._sizes(dataset, images)) or min(self.config.optimizer.batch_size, len(dataset))
        if not self._norms:  # nothing to recompute; the images still count as done
            report(population.members * images)
            return result
        self._model.train()
        reset_statistics(result, self._model)
        momenta = [norm.momentum for norm in self._norms]
        own = [Noise(noise.seed, statistics=True) for noise in noises]
        try:
            self._average_statistics(result, Epoch(dataset, own, epoch, report, images))
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
        return result

    def _average_statistics(self, population: Population, epoch: Epoch) -> None:
        """Replace the statistics of `population`, which were reset, by their mean over the epoch's batches."""
        self._model.train()
        calls = Counter[nn.Module]()
        for norm in self._norms:  # for networks that call norm.forward, which has no hooks
            norm.momentum = None

        def take_plain_mean(norm: Any, _: object) -> None:
            """As with momentum None, by which torch reads the count of calls from the device each time."""
            calls[norm] += 1
            norm.momentum = 1 / calls[norm]

        hooks = [norm.register_forward_pre_hook(take_plain_mean) for norm in self._norms]
        try:
            for m, noise in enumerate(epoch.noises):
                calls.clear()
                state = self._working_copy(population, m)
                if m == 0 or noise != epoch.noises[m - 1]:  # many averages share one noise
                    draws = self._draws(noise, epoch)
                with self._layers_draw(noise, epoch.number):
                    for x_NCHW, labels_N in self._batches(epoch, draws):
                        self._call(state, x_NCHW)
                        epoch.report(len(labels_N))
        finally:
            for hook in hooks:
                hook.remove()

    def _working_copy(self, population: Population, m: int) -> dict[str, Tensor]:
        """Member m's tensors by name, without gradients. Buffers are the member's own, written in training mode."""
        parameters = {
            name: value.to(self.dtype) if name in self._low else value
            for name, value in population.parameters(m).items()
        }
        return {**parameters, **population.buffers(m)}

    def _call(self, state: dict[str, Tensor], x_NCHW: Tensor) -> Tensor:
        """Logits [N, K] in float32."""
        cast = torch.autocast(self.device.type, self.dtype) if self._autocast else contextlib.nullcontext()
        with cast:
            logits_NK: Tensor = torch.func.functional_call(self._model, state, (x_NCHW,))
        return logits_NK.float()

    def _layers_draw(self, noise: Noise, epoch: int, step: int = 0) -> contextlib.AbstractContextManager[None]:
        """Within the block layers that draw themselves (dropout) draw by the noise. Generators stay as they were."""
        return seeded(noise.layers_seed(epoch, step), self.device)

    def _request(self, noise: Noise, epoch: int, dataset: Dataset) -> DrawRequest:
        return DrawRequest(noise, epoch, len(dataset), self.config.augment.padding, self.config.augment.flip)

    def _draws(self, noise: Noise, epoch: Epoch) -> Draws:
        return self._ahead.take(self._request(noise, epoch.number, epoch.dataset))

    def _batches(self, epoch: Epoch, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's augmented batches and their labels. Its draws move to the device at once.

        The last batch may be smaller.
        """
        order = torch.from_numpy(draws.order_N).to(self.device).long()
        offset = torch.from_numpy(draws.offset_N2).to(self.device).long()
        flip = torch.from_numpy(draws.flip_N).to(self.device)
        table = epoch.dataset.table_C256.to(self.dtype)
        size = min(self.config.optimizer.batch_size, len(epoch.dataset))
        begin, end = epoch.first * size, epoch.first * size + epoch.images
        for step, (images, at) in enumerate(epoch.dataset.chunks(order[begin:end], size), epoch.first):
            chosen = slice(step * size, min((step + 1) * size, end))
            x_NCHW = augment(images, at, offset[chosen], flip[chosen], table, self.config.augment.padding)
            yield x_NCHW, epoch.dataset.labels_N[order[chosen]]


class Backward:
    """Forward and backward of one member, or of M members as one batched network, on memory that stays where it is.

    `weights`, `low_weights` and `gradient` are one row [P], or all rows [M, P]; parameters in `low` are views of
    `low_weights`. `forward` makes logits of (tensors by name, x), and `loss` one loss a member of (logits, labels).
    The names in `written` are of parameters whose gradients the backward pass wrote to `gradient` itself.
    Passes are recorded and replayed by `recorded`, where it is given.
    """

    def __init__(
        self,
        layout: Layout,
        low: frozenset[str],
        weights: Tensor,
        low_weights: Tensor,
        gradient: Tensor,
        buffers: Mapping[str, Tensor | None],
        forward: Callable[..., Tensor],
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        written: set[str] | None = None,
        recorded: Recorded | None = None,
    ) -> None:
        rows = (weights, low_weights)
        named = {span.name: span.view(rows[span.name in low]) for span in layout.parameters}
        self._leaves = {name: view.detach().requires_grad_() for name, view in named.items()}
        self._gradients = {span.name: span.view(gradient) for span in layout.parameters}
        # `data`, so that to change one in place does not make autograd refuse another in the same memory.
        self._buffers = {name: None if view is None else view.data for name, view in buffers.items()}
        self._forward, self._loss = forward, loss
        self._written = set() if written is None else written
        tensors = (*self._leaves.values(), *self._buffers.values(), *self._gradients.values())
        self._tensors = [each for each in tensors if each is not None]
        self._recorded = recorded

    def __call__(self, x: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """The loss or losses (nats); the gradients of `scale` times each of them are written to `gradient`."""
        if self._recorded is None or scale is not None:
            return self._run(x, labels, scale)
        return self._recorded(lambda: self._run(x, labels, None), [x, labels, *self._tensors])

    def _run(self, x: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        self._written.clear()
        losses = self._loss(self._forward({**self._leaves, **self._buffers}, x), labels)
        scaled = losses if scale is None else losses * scale
        # Ones: the gradients of the sum of all losses, without the sum.
        ones, leaves = torch.ones_like(scaled), list(self._leaves.values())
        made = torch.autograd.grad([scaled], leaves, [ones], allow_unused=True)
        copies: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for (name, row), gradient in zip(self._gradients.items(), made, strict=True):
            if gradient is None and name not in self._written:
                raise ConfigError(
                    f"model.name: parameter {name} has no gradient in a step, as where a call skips its layer; "
                    "multiply what the layer gives by 0 instead"
                )
            if gradient is not None and name in self._written:
                raise RuntimeError(f"parameter {name!r} has two gradients")
            if gradient is not None:
                copies.setdefault(gradient.dtype, []).append((row, gradient))
        for pairs in copies.values():  # a GPU copies all of one dtype by one launch
            torch._foreach_copy_([row for row, _ in pairs], [gradient for _, gradient in pairs])
        return losses.detach()


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms among `modules`."""
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def buffer_views(population: Population) -> dict[str, Tensor]:
    """All members' buffers by name, [M, *shape] views."""
    layout = population.layout
    statistics = {span.name: span.view(population.statistics_MQ) for span in layout.statistics}
    return statistics | {span.name: span.view(population.counters_MB) for span in layout.counters}


def reset_statistics(population: Population, model: nn.Module) -> None:
    """The running statistics and counters of `model`'s batch norms as before the first batch, of all members.

    In place, of those in training mode: one that the network keeps in evaluation mode is not updated again. Other
    layers' buffers stay, whatever their names (frozen batch norms, instance norms).
    """
    buffers = buffer_views(population)
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            for own, value in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
                name = f"{path}.{own}".removeprefix(".")
                if name in buffers:
                    buffers[name].fill_(value)


def _silent(images: int) -> None:
    """The report that nobody reads."""
