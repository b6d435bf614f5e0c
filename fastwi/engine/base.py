"""What all engines share: settings, evaluation, statistics, batches. How members are trained is each one's own.

Shapes: M members, R of them in one pass, N images of a batch, K classes, C H W of an image.
"""

import abc
import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.config.schema import AugmentConfig, Config, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.batches import Dataset
from fastwi.data.noise import Draws, Noise
from fastwi.engine.allocator import keep_freed_memory
from fastwi.engine.device import compiled, cpu_threads, make_deterministic, resolve
from fastwi.engine.draws import DrawRequest, DrawsAhead
from fastwi.engine.mixed import low_precision_names, needs_autocast
from fastwi.kernels.augment import augment
from fastwi.models.generators import draws_of, seeded
from fastwi.population import Layout, Population

Report = Callable[[int], None]  # called with the number of images done since the last call
AnyEngine = TypeVar("AnyEngine", bound="Engine")
MEMBERS_A_BATCH = 16  # that see an evaluation batch in turn; their weights in low precision are in memory together


@dataclass(frozen=True)
class Settings:
    """The sections of a configuration that engines read."""

    engine: EngineConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    augment: AugmentConfig

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Those of `config`."""
        return cls(config.engine, config.optimizer, config.schedule, config.augment)


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy (nats) and accuracy (%) of each member over one split, float64 [M]."""

    loss_M: np.ndarray[Any, np.dtype[np.float64]]
    accuracy_M: np.ndarray[Any, np.dtype[np.float64]]


class Engine(abc.ABC):
    """Trains and evaluates populations of one architecture. All engines equal `loop` to float tolerance.

    `model` gives the architecture only; its own weights are never read or written. What a member computes depends on
    its own row, noise and rates only, never on M or its neighbours.
    """

    name: str
    members_at_once: int
    """How many networks are best trained in one call."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        config = settings.engine
        self.settings, self.resolved = settings, resolve(config, model)
        self.device, self.dtype = self.resolved.device, self.resolved.dtype
        if config.deterministic:
            make_deterministic()
        if self.device.type == "cuda" and self.dtype == torch.float32:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch 2.9 and on prefer another name, which older ones lack
                torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, as it is in the Triton kernels
        if self.device.type == "cpu":
            keep_freed_memory()
            if config.threads or cpu_threads(config) < torch.get_num_threads():
                torch.set_num_threads(cpu_threads(config))
        self._model = self.resolved.network.to(self.device)
        self._norms = batch_norms(self._model.modules())
        self._forward: Callable[..., Tensor] = self._call
        if self.resolved.backend == "compile":
            self._forward = compiled(self._call, self.device)
        self._draws_itself = bool(draws_of(model))
        self._ahead = DrawsAhead()
        self._autocast = self.dtype != torch.float32 and needs_autocast(model)
        self._low = frozenset() if self._autocast else low_precision_names(model)
        if self.dtype != torch.float32:
            # Its shortcut for evaluation expects biases in the weights' dtype, and gives NaN for others.
            torch.backends.mha.set_fastpath_enabled(False)

    @abc.abstractmethod
    def train_epoch(
        self,
        population: Population,
        dataset: Dataset,
        noises: Sequence[Noise],
        epoch: int,
        report: Report | None = None,
    ) -> list[float]:
        """Train every member through global epoch `epoch` under its own noise, in place.

        Returns each member's mean training loss over the epoch (nats, as seen before each step).
        Raises ValueError where there is not one noise a member.
        """

    def draw_ahead(self, noises: Sequence[Noise], epoch: int, dataset: Dataset) -> None:
        """Have a thread make the draws that `train_epoch` will need for `noises` at `epoch`. Returns at once.

        Call it before the epoch that precedes it is trained. No result depends on it (`DrawsAhead`).
        """
        self._ahead.ask([self._request(noise, epoch, dataset) for noise in noises])

    def with_settings(self: AnyEngine, settings: Settings) -> AnyEngine:
        """An engine under other settings with the same `engine` section. It shares the compiled network."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def iterations(self, dataset: Dataset) -> int:
        """Steps of an epoch. The last, incomplete batch of an epoch's order is left out."""
        return len(dataset) // self.settings.optimizer.batch_size

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
        """What `logits` yields, with the member before it, of all of `rows`: each batch is read or decoded once."""
        self._model.eval()
        table = dataset.table_C256.to(self.dtype)
        states = [self._working_copy(population, m) for m in rows]
        size, everything = self.settings.engine.evaluation_batch, torch.arange(len(dataset), device=self.device)
        chunks = dataset.chunks(everything, size)
        for at, (images, chosen) in zip(everything.split(size), chunks, strict=True):
            for m, state in zip(rows, states, strict=True):
                # Each its own, since a network may change its input in place. They take 1 % of the time.
                x_NCHW = augment(images, chosen, None, None, table, 0)
                # What a network draws while it is tested is the same for every one of them.
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
        batch = self.settings.optimizer.batch_size
        steps = max(1, min(images or len(dataset), len(dataset)) // batch)
        if not self._norms:  # nothing to recompute; the images still count as done
            if report:
                report(population.members * steps * min(batch, len(dataset)))
            return result
        reset_statistics(result, self.resolved.model)
        momenta = [norm.momentum for norm in self._norms]
        try:
            own = [Noise(noise.seed, statistics=True) for noise in noises]
            self._average_statistics(result, dataset, own, epoch, steps, report or (lambda images: None))
        finally:
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
        return result

    def _average_statistics(
        self,
        population: Population,
        dataset: Dataset,
        noises: Sequence[Noise],
        epoch: int,
        steps: int,
        report: Report,
    ) -> None:
        """Replace the statistics of `population`, which were reset, by their mean over `steps` batches."""
        self._model.train()
        for norm in self._norms:
            norm.momentum = None
        for m, noise in enumerate(noises):
            state = self._working_copy(population, m)
            if m == 0 or noise != noises[m - 1]:  # many averages share one noise
                draws = self._draws(noise, epoch, dataset)
            with self._layers_draw(noise, epoch):
                for x_NCHW, labels_N in self._batches(dataset, draws, steps):
                    self._call(state, x_NCHW)
                    report(len(labels_N))

    def plain_pass(self, population: Population, dataset: Dataset) -> None:
        """Forward and backward of member 0 on one batch of `dataset`, then in evaluation mode; not compiled.

        Its results are dropped: it raises what the network raises.
        """
        noise = Noise(0)
        state = self._working_copy(population, 0)
        leaves = [state[name].detach().requires_grad_() for name in population.parameters(0)]
        state |= dict(zip(population.parameters(0), leaves, strict=True))
        self._model.train()
        with self._layers_draw(noise, 0):
            for x_NCHW, labels_N in self._batches(dataset, self._draws(noise, 0, dataset), 1):
                loss = functional.cross_entropy(self._call(state, x_NCHW), labels_N)
                torch.autograd.grad(loss, leaves)
                self._model.eval()
                self._call(state, x_NCHW)

    def _working_copy(self, population: Population, m: int) -> dict[str, Tensor]:
        """Member m's tensors by name, without gradients. Buffers are the member's own, written in training mode."""
        parameters = {
            name: value.to(self.dtype) if name in self._low else value
            for name, value in population.parameters(m).items()
        }
        return {**parameters, **population.buffers(m)}

    def _call(self, state: dict[str, Tensor], x_NCHW: Tensor) -> Tensor:
        """Logits [N, K] in float32."""
        if not self._autocast:
            logits_NK: Tensor = torch.func.functional_call(self._model, state, (x_NCHW,))
            return logits_NK.float()
        with torch.autocast(self.device.type, self.dtype):
            logits_NK = torch.func.functional_call(self._model, state, (x_NCHW,))
        return logits_NK.float()

    def _layers_draw(self, noise: Noise, epoch: int) -> contextlib.AbstractContextManager[None]:
        """Within the block layers that draw themselves (dropout) draw by the noise. Generators stay as they were."""
        return seeded(noise.layers_seed(epoch), self.device)

    def _request(self, noise: Noise, epoch: int, dataset: Dataset) -> DrawRequest:
        return DrawRequest(noise, epoch, len(dataset), self.settings.augment.padding, self.settings.augment.flip)

    def _draws(self, noise: Noise, epoch: int, dataset: Dataset) -> Draws:
        return self._ahead.take(self._request(noise, epoch, dataset))

    def _batches(self, dataset: Dataset, draws: Draws, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` augmented batches and their labels. The epoch's draws move to the device at once."""
        padding = self.settings.augment.padding
        order = torch.from_numpy(draws.order_N).to(self.device)
        offset = torch.from_numpy(draws.offset_N2).to(self.device) if padding else None
        flip = torch.from_numpy(draws.flip_N).to(self.device) if self.settings.augment.flip else None
        table = dataset.table_C256.to(self.dtype)
        size = min(self.settings.optimizer.batch_size, len(dataset))
        for step, (images, at) in enumerate(dataset.chunks(order[: steps * size], size)):
            chosen = slice(step * size, (step + 1) * size)
            own_offset = None if offset is None else offset[chosen]
            own_flip = None if flip is None else flip[chosen]
            x_NCHW = augment(images, at, own_offset, own_flip, table, padding)
            yield x_NCHW, dataset.labels_N[order[chosen]]


def training_leaves(layout: Layout, low: frozenset[str], weights: Tensor, low_weights: Tensor) -> dict[str, Tensor]:
    """Parameters by name, to be differentiated: those in `low` are views of `low_weights`, others of `weights`.

    Both are one row [P], or all rows [M, P].
    """
    rows = (weights, low_weights)
    return {s.name: s.view(rows[s.name in low]).detach().requires_grad_() for s in layout.parameters}


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms among `modules`."""
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def reset_statistics(population: Population, model: nn.Module) -> None:
    """The running statistics and counters of `model`'s batch norms as before the first batch, of all members.

    In place. Other layers' buffers stay, whatever their names (frozen batch norms, instance norms).
    """
    start = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    values = {
        f"{name}.{own}".removeprefix("."): value
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for own, value in start.items()
    }
    for m in range(population.members):
        for name, buffer in population.buffers(m).items():
            if name in values:
                buffer.fill_(values[name])


def require_noises(population: Population, noises: Sequence[Noise]) -> None:
    """Raise ValueError where there is not one noise a member."""
    if len(noises) != population.members:
        raise ValueError(f"{population.members} members need as many noises, got {len(noises)}")
