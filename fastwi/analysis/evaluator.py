"""Loss and error of any networks: what every analysis measures with. Nothing here trains.

Shapes: M members, L networks measured, N images, K classes, H W C of an image.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from fastwi.config.schema import AugmentConfig, Config, DataConfig, EngineConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, normalisation_table
from fastwi.engine.base import Report, Scores
from fastwi.engine.choose import STACKED_FROM, build_engine
from fastwi.engine.device import resolve_device
from fastwi.errors import UserError
from fastwi.population import Layout, Population

Values = NDArray[np.float64]
Table = dict[str, dict[str, Values]]  # by split, then by treatment of batch-norm statistics
Splits = Mapping[str, ResidentDataset]

AVERAGED, RECOMPUTED = "averaged", "recomputed"
# Frozen: safe as defaults.
_NOISE = Noise(0)
_ENGINE = EngineConfig()
_AUGMENT = AugmentConfig()


@dataclass(frozen=True)
class Recomputation:
    """What batch-norm statistics are recomputed on: augmented images of `dataset`, drawn by `noise`.

    images: how many, rounded down to whole batches (0: all). epoch: whose draws (an experiment draws again for each
    epoch). Every network of a measurement has the same draws.
    """

    dataset: ResidentDataset
    noise: Noise = _NOISE
    images: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Measured:
    """Mean cross-entropy (nats) and error (% of images) of L networks, by split and treatment: float64 [L] each.

    names: of each network, the columns that name it, such as its alpha. NaN: see `Evaluator.measure`.
    """

    names: Sequence[Mapping[str, Any]]
    loss: Table
    error: Table

    def rows(self) -> list[dict[str, Any]]:
        """One row for each treatment and network, units in the names; None where a value is not finite."""
        rows = []
        for treatment in next(iter(self.loss.values())):
            for i, name in enumerate(self.names):
                row = {**name, "batch_norm": treatment}
                for split in self.loss:
                    row[f"{split}_loss_nats"] = finite(self.loss[split][treatment][i])
                    row[f"{split}_error_%"] = finite(self.error[split][treatment][i])
                rows.append(row)
        return rows

    def column(self, name: str) -> Values:
        """One of the numbers that name the networks, float64 [L]."""
        return np.array([each[name] for each in self.names], dtype=np.float64)


class Evaluator:
    """Evaluates populations of one architecture: anyone's nn.Module from images [N, C, H, W] to logits [N, K].

    model: gives the architecture; it is copied. batch_size, augment, keep_last_batch: of recomputed statistics alone.
    report: called with the number of images evaluated since the last call. memory_bytes: of networks made for a
    measurement and alive at one time; no result depends on it.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: EngineConfig = _ENGINE,
        batch_size: int = 128,
        augment: AugmentConfig = _AUGMENT,
        report: Report | None = None,
        memory_bytes: int = 256 * 2**20,
        keep_last_batch: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        # In evaluation mode: a traced network keeps the mode-dependent branches that it was traced in.
        self.network = copy.deepcopy(model).eval()
        self.layout = Layout.of(self.network)
        data = DataConfig(last_batch="keep" if keep_last_batch else "drop")
        config = Config(data=data, engine=engine, optimizer=OptimizerConfig(batch_size=batch_size), augment=augment)
        self._engine = build_engine(config, self.network, STACKED_FROM)  # of many networks, mostly
        self.device = self._engine.device
        self._report = report
        self._memory_bytes = memory_bytes
        self._outputs: int | None = None
        self._variances = [span for span in self.layout.statistics if span.name.endswith("running_var")]

    def scores(self, population: Population, dataset: ResidentDataset) -> Scores:
        """Loss (nats) and accuracy (%) of every member with its own statistics, float64 [M] each.

        Raises UserError for another architecture, a dataset that does not fit, and labels that the network has no
        output for.
        """
        return self._engine.evaluate(self.require_fit(population, dataset), dataset, self._report)

    def require_fit(self, population: Population, dataset: ResidentDataset) -> Population:
        """The population on this evaluator's device. Raises UserError as `scores` does."""
        population = self._take(population)
        self._check(dataset)
        if self._outputs is None and population.members:
            _, logits_NK = next(self._engine.logits(population, 0, dataset))
            self._outputs = logits_NK.shape[1]
        # Before they are used: on a GPU a label too large is no exception, but the end of the process.
        if self._outputs is not None and int(dataset.labels_N.max()) >= self._outputs:
            raise UserError(f"labels run to {int(dataset.labels_N.max())}, but the network has fewer outputs")
        return population

    @property
    def has_statistics(self) -> bool:
        """Whether there is anything to recompute."""
        return bool(self._variances)

    @property
    def config(self) -> Config:
        """What it was made with: batch size, augmentation and engine."""
        return self._engine.config

    def plain(self) -> nn.Module:
        """A copy of the network, without this project's kernels, in evaluation mode on the device."""
        return copy.deepcopy(self._engine.resolved.model).to(self.device).eval()

    def recompute(self, population: Population, on: Recomputation) -> Population:
        """A copy of `population` with statistics of its own weights, all members on the same draws."""
        if on.images < 0:
            raise UserError(f"images is {on.images}; give 0 for all, or a positive number")
        self._check(on.dataset)
        population = self._take(population)
        if not self._variances:
            return population.clone_rows(range(population.members))
        noises = [on.noise] * population.members
        return self._engine.recompute_statistics(population, on.dataset, noises, on.epoch, on.images, self._report)

    def logits(self, population: Population, m: int, dataset: ResidentDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions int64 [N], logits float32 [N, K]) of member m, as `Engine.logits` does."""
        self._check(dataset)
        return self._engine.logits(self._take(population), m, dataset)

    @torch.no_grad()
    def batches(self, population: Population, dataset: ResidentDataset) -> Iterator[Tensor]:
        """Yield the logits of all members, float32 [M, N, K], one evaluation batch after the other."""
        population = self._take(population)
        each = [self.logits(population, m, dataset) for m in range(population.members)]
        for steps in zip(*each, strict=True):
            yield torch.stack([logits_NK for _, logits_NK in steps])

    def measure(
        self,
        names: Sequence[Mapping[str, Any]],
        build: Callable[[int, int], Population],
        splits: Splits,
        treatments: Sequence[str],
        recomputation: Recomputation | None,
        copies: int = 2,
    ) -> Measured:
        """Loss and error of the networks `names` on every split, under each of `treatments`.

        `build(first, last)` makes networks first .. last - 1 with averaged statistics. "averaged" measures them so,
        "recomputed" with statistics of their own weights. A negative variance, which extrapolation can give, is NaN
        under "averaged": clamped it would be another network. So is the error where the loss is NaN: outputs that are
        NaN would count as the first class. copies: networks in memory for each one that is measured.
        """
        _check_treatments(treatments, recomputation)
        if not splits:
            raise UserError("no split is given to measure on; give a dict of names and datasets")
        count = len(names)
        loss, error = ({s: {t: np.full(count, np.nan) for t in treatments} for s in splits} for _ in range(2))
        step = max(1, self._memory_bytes // (copies * self.layout.row_bytes))
        for first in range(0, count, step):
            built = build(first, min(first + step, count))
            for treatment in treatments:
                kept = np.arange(built.members)
                if treatment == RECOMPUTED:
                    assert recomputation is not None
                    members = self.recompute(built, recomputation)
                else:
                    kept = kept[~self._negative_variance(built)]
                    members = built if len(kept) == built.members else built.clone_rows(kept.tolist())
                if not members.members:
                    continue
                for split, dataset in splits.items():
                    scores = self.scores(members, dataset)
                    loss[split][treatment][first + kept] = scores.loss_M
                    wrong_M = np.where(np.isnan(scores.loss_M), np.nan, 100 - scores.accuracy_M)
                    error[split][treatment][first + kept] = wrong_M
        return Measured(names, loss, error)

    def measure_sums(
        self,
        names: Sequence[Mapping[str, Any]],
        members: Population,
        weights_LM: Values,
        splits: Splits,
        treatments: Sequence[str],
        recomputation: Recomputation | None,
    ) -> Measured:
        """`measure` of L weighted sums of `members`, statistics summed with the same weights."""
        here = members.to(self.device)

        def build(first: int, last: int) -> Population:
            return here.combine(torch.from_numpy(weights_LM[first:last]))

        return self.measure(names, build, splits, treatments, recomputation)

    def _take(self, population: Population) -> Population:
        """The population on this evaluator's device."""
        if population.layout != self.layout:
            difference = self.layout.difference(population.layout)
            raise UserError(f"the population is of another architecture than the evaluator's model: {difference}")
        return population.to(self.device)

    def _check(self, dataset: ResidentDataset) -> None:
        if not len(dataset):
            raise UserError("the dataset has no images; nothing can be measured on it")
        if dataset.images_NHWC.device != torch.empty(0, device=self.device).device:
            place = dataset.images_NHWC.device
            raise UserError(f"the dataset is on {place} and the evaluator on {self.device}; load it there")

    def _negative_variance(self, population: Population) -> NDArray[np.bool_]:
        """Whether any batch norm's variance is below zero, bool [M]."""
        negative_M = torch.zeros(population.members, dtype=torch.bool, device=population.device)
        for span in self._variances:
            negative_M |= (span.view(population.statistics_MQ) < 0).flatten(1).any(dim=1)
        return negative_M.cpu().numpy()


def dataset_from_arrays(
    images_NHWC: ArrayLike | Tensor,
    labels_N: ArrayLike | Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "auto",
) -> ResidentDataset:
    """A dataset of the caller's own arrays. Raises UserError for others than these.

    images uint8 [N, H, W, C]; labels integers [N], 0 or more; mean and std of each channel in 0..1: the network gets
    (v / 255 - mean) / std.
    """
    images = torch.as_tensor(images_NHWC)
    labels = torch.as_tensor(labels_N)
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise UserError(f"images are {images.dtype} {tuple(images.shape)}; give uint8 of shape [N, H, W, C]")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"labels are {labels.dtype} {tuple(labels.shape)}; give {len(images)} integers")
    labels = labels.to(torch.int64)  # torch compares no larger unsigned integers
    if not len(labels) or int(labels.min()) < 0:
        raise UserError("no labels, or a label below 0; give each image the number of its class, 0 or more")
    channels = images.shape[3]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            raise UserError(f"{name} is {list(values)}; give {channels} finite numbers, one a channel")
    if min(std) <= 0:
        raise UserError(f"std is {list(std)}; give numbers above 0")
    place = device if isinstance(device, torch.device) else resolve_device(device)
    return ResidentDataset(
        images_NHWC=images.to(place).contiguous(),
        labels_N=labels.to(place),
        table_C256=normalisation_table(tuple(mean), tuple(std)).to(place),
        classes=int(labels.max()) + 1,
    )


def check_alphas(alphas: ArrayLike) -> Values:
    """The places as float64 [L]. Raises UserError for none, and where one is NaN or infinite."""
    alphas_L = np.array(alphas, dtype=np.float64)
    if alphas_L.ndim != 1 or not len(alphas_L) or not np.isfinite(alphas_L).all():
        raise UserError(f"alphas are of shape {alphas_L.shape}; give a sequence of one or more finite numbers")
    return alphas_L


def check_members(population: Population, count: int) -> None:
    """Raise UserError for another number of members."""
    if population.members != count:
        raise UserError(f"a population of {population.members}; give {count} (population.clone_rows chooses members)")


def finite(value: float) -> float | None:
    """The value as a table has it: None where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def _check_treatments(treatments: Sequence[str], recomputation: Recomputation | None) -> None:
    known = (AVERAGED, RECOMPUTED)
    each_once = len(set(treatments)) == len(treatments) > 0
    if isinstance(treatments, str) or not each_once or not set(treatments) <= set(known):
        raise UserError(f"treatments are {treatments!r}; give a tuple of {' or '.join(known)}, each at most once")
    if RECOMPUTED in treatments and recomputation is None:
        raise UserError("recomputed statistics need training images; give recomputation=Recomputation(dataset)")
