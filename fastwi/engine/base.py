"""What all engines share: evaluation, statistics, batches, precision. How members are trained is each one's own.

Shapes: M members, N images of a batch, K classes, P parameters, C H W of an image, D images of a dataset.
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

from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.batches import Dataset
from fastwi.data.noise import Draws, Noise
from fastwi.engine.allocator import keep_freed_memory
from fastwi.engine.autocast import needs_autocast
from fastwi.engine.device import compiled, cpu_threads, make_deterministic, resolve
from fastwi.engine.draws import DrawRequest, DrawsAhead
from fastwi.kernels.augment import augment
from fastwi.models.generators import draws_of, seeded
from fastwi.population import Population

Report = Callable[[int], None]  # called with the number of images done since the last call
AnyEngine = TypeVar("AnyEngine", bound="Engine")
MEMBERS_A_BATCH = 16  # that see an evaluation batch in turn; their weights in low precision are in memory together


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy (nats) and accuracy (%) of each member over one split, float64 [M]."""

    loss_M: np.ndarray[Any, np.dtype[np.float64]]
    accuracy_M: np.ndarray[Any, np.dtype[np.float64]]


class Engine(abc.ABC):
    """Trains and evaluates populations of one architecture.

    `model` gives the architecture only; its own weights are never read or written. What a member computes depends on
    its own row, noise and rates only, never on M or its neighbours. All engines equal `loop` to float tolerance.
    """

    name: str
    members_at_once: int
    """Networks that are best handed over together."""

    def __init__(
        self,
        model: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        augmentation: AugmentConfig,
    ) -> None:
        self.resolved = resolve(config, model)
        self.device, self.dtype = self.resolved.device, self.resolved.dtype
        self._optimizer, self._schedule, self._augment = optimizer, schedule, augmentation
        self._evaluation_batch = config.evaluation_batch
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
        self._forward: Callable[..., Tensor] = self._call
        if self.resolved.backend == "compile":
            self._forward = compiled(self._call, self.device)
        self._draws_itself = bool(draws_of(model))
        self._ahead = DrawsAhead()
        self._autocast = self.dtype != torch.float32 and needs_autocast(model)
        self._low = frozenset() if self._autocast else low_precision_names(model)
        if self.dtype != torch.float32:
            # Its shortcut for evaluation takes biases to have the weights' dtype, and gives no number where not.
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

        To be called before the epoch that precedes it is trained. No result depends on it (`DrawsAhead`), and engines
        made by `with_settings` share what was drawn.
        """
        self._ahead.ask([self._request(noise, epoch, dataset) for noise in noises])

    def with_settings(
        self: AnyEngine, optimizer: OptimizerConfig, schedule: ScheduleConfig, augmentation: AugmentConfig
    ) -> AnyEngine:
        """An engine for the same networks under other settings, which shares the compiled network with this one."""
        other = copy.copy(self)
        other._optimizer, other._schedule, other._augment = optimizer, schedule, augmentation
        return other

    def iterations(self, dataset: Dataset) -> int:
        """Steps of an epoch. The last, incomplete batch of an epoch's order is left out."""
        return len(dataset) // self._optimizer.batch_size

    def evaluate(self, population: Population, dataset: Dataset, report: Report | None = None) -> Scores:
        """Loss and accuracy of every member on `dataset`, without augmentation, with its own statistics."""
        total = torch.zeros((population.members, 2), dtype=torch.float64, device=self.device)
        for first in range(0, population.members, MEMBERS_A_BATCH):
            rows = range(first, min(first + MEMBERS_A_BATCH, population.members))
            for m, order, logits_NK in self._logits(population, rows, dataset):
                labels_N = dataset.labels_N[order]
                total[m, 0] += functional.cross_entropy(logits_NK, labels_N, reduction="sum").double()
                total[m, 1] += (logits_NK.argmax(1) == labels_N).sum().double()
                if report:
                    report(len(order))
        mean_M2 = (total / len(dataset)).cpu().numpy()
        return Scores(loss_M=mean_M2[:, 0], accuracy_M=100 * mean_M2[:, 1])

    def logits(self, population: Population, m: int, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Member m's logits on `dataset` in its order, without augmentation, with the member's own statistics.

        Yields (positions int64 [N], logits float32 [N, K]) for one evaluation batch after the other.
        """
        for _, at, logits_NK in self._logits(population, [m], dataset):
            yield at, logits_NK

    @torch.no_grad()
    def _logits(
        self, population: Population, rows: Sequence[int], dataset: Dataset
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """What `logits` yields, with the member before it, of all of `rows`: each batch is read or decoded once."""
        self._model.eval()
        table = dataset.table_C256.to(self.dtype)
        states = [self._working_copy(population, m) for m in rows]
        everything = torch.arange(len(dataset), device=self.device)
        order = everything.split(self._evaluation_batch)
        for at, (images, chosen) in zip(order, dataset.chunks(everything, self._evaluation_batch), strict=True):
            for m, state in zip(rows, states, strict=True):
                # Each its own, since a network may change its input in place. They take 1 % of the time.
                x_NCHW = augment(images, chosen, None, None, table, 0)
                # What a network draws while it is tested is the same for every one of them.
                with seeded(int(at[0]), self.device) if self._draws_itself else contextlib.nullcontext():
                    logits_NK = self._forward(state, x_NCHW)
                yield m, at, logits_NK

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
        norms = batch_norms(self._model.modules())
        kept = [norm.momentum for norm in norms]
        batch = self._optimizer.batch_size
        steps = max(1, min(images or len(dataset), len(dataset)) // batch)
        if not norms:  # nothing to recompute; progress is told of what is saved
            if report:
                report(population.members * steps * min(batch, len(dataset)))
            return result
        self._model.train()
        try:
            for norm in norms:
                norm.momentum = None
            reset_statistics(result, self._model)
            for m, noise in enumerate(noises):
                state = self._working_copy(result, m)
                own = Noise(noise.seed, statistics=True)
                if m == 0 or noise != noises[m - 1]:  # many averages share one noise
                    draws = self._draws(own, epoch, dataset)
                with torch.no_grad(), self._layers_draw(own, epoch):
                    for x_NCHW, labels_N in self._batches(dataset, draws, steps):
                        self._call(state, x_NCHW)
                        if report:
                            report(len(labels_N))
        finally:
            for norm, momentum in zip(norms, kept, strict=True):
                norm.momentum = momentum
        return result

    def plain_pass(self, population: Population, dataset: Dataset) -> None:
        """Forward and backward of member 0 on one batch of `dataset`, then in evaluation mode; not compiled.

        Nothing comes of it: it raises what the network raises.
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

    @contextlib.contextmanager
    def _layers_draw(self, noise: Noise, epoch: int) -> Iterator[None]:
        """Within the block layers that draw themselves (dropout) draw by the noise. Generators stay as they were."""
        with seeded(noise.layers_seed(epoch), self.device):
            yield

    def _request(self, noise: Noise, epoch: int, dataset: Dataset) -> DrawRequest:
        return DrawRequest(noise, epoch, len(dataset), self._augment.padding, self._augment.flip)

    def _draws(self, noise: Noise, epoch: int, dataset: Dataset) -> Draws:
        return self._ahead.take(self._request(noise, epoch, dataset))

    def _batches(self, dataset: Dataset, draws: Draws, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` augmented batches and their labels. The epoch's draws move to the device at once."""
        order = torch.from_numpy(draws.order_N).to(self.device)
        offset = torch.from_numpy(draws.offset_N2).to(self.device) if self._augment.padding else None
        flip = torch.from_numpy(draws.flip_N).to(self.device) if self._augment.flip else None
        table = dataset.table_C256.to(self.dtype)
        size = min(self._optimizer.batch_size, len(dataset))
        for step, (images, at) in enumerate(dataset.chunks(order[: steps * size], size)):
            chosen = slice(step * size, (step + 1) * size)
            x_NCHW = augment(
                images,
                at,
                None if offset is None else offset[chosen],
                None if flip is None else flip[chosen],
                table,
                self._augment.padding,
            )
            yield x_NCHW, dataset.labels_N[order[chosen]]


def low_precision_names(model: nn.Module) -> frozenset[str]:
    """Parameters computed with in the activations' precision; batch norm's stay float32, as under autocast."""
    low = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            low.add(f"{name}.bias".removeprefix("."))
    return frozenset(low)


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
