"""Loss and error of any networks: what every analysis measures with. Nothing here trains.

Shapes: M members, L networks measured, N images, K classes, H W C of an image, Q columns of statistics.
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

from fastwi.config.schema import AugmentConfig, Config, EngineConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, normalisation_table
from fastwi.engine.base import Report, Scores
from fastwi.engine.choose import build_engine
from fastwi.engine.device import resolve_device
from fastwi.errors import UserError
from fastwi.population import Layout, Population

Values = NDArray[np.float64]
Table = dict[str, dict[str, Values]]  # by split, then by treatment of batch-norm statistics
Splits = Mapping[str, ResidentDataset]

OWN, AVERAGED, RECOMPUTED = "own", "averaged", "recomputed"
_NOISE, _ENGINE, _AUGMENT = Noise(0), EngineConfig(), AugmentConfig()  # frozen: safe as defaults
MEMORY_BYTES = 256 * 2**20  # of networks made for a measurement and alive at one time


@dataclass(frozen=True)
class Recomputation:
    """What batch-norm statistics are recomputed on: augmented images of `dataset`, drawn by `noise`.

    images: how many, in whole batches (0: all). epoch: whose draws (an experiment draws again for each epoch). Every
    network of a measurement has the same draws.
    """

    dataset: ResidentDataset
    noise: Noise = _NOISE
    images: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class LossAndError:
    """Mean cross-entropy (nats) and error (% of images) of L networks, float64 [L] each.

    By split, then by treatment of batch-norm statistics. NaN where a network is not defined: see `measure`.
    Subclasses have arrays of other shapes, and name each network by `place`.
    """

    loss: Table
    error: Table

    def place(self, treatment: str, *at: int) -> dict[str, Any] | None:
        """The columns that name the network at one index; None: it has no row."""
        return {"network": at[0]}

    def columns(self, treatment: str, *at: int) -> dict[str, float | None]:
        """The values at one index as a table has them, units in the names; None where not finite."""
        found: dict[str, float | None] = {}
        for split in self.loss:
            found[f"{split}_loss_nats"] = finite(self.loss[split][treatment][at])
            found[f"{split}_error_%"] = finite(self.error[split][treatment][at])
        return found

    def rows(self) -> list[dict[str, Any]]:
        """One row for each treatment and network, units in the names; None where a value is not finite."""
        return [
            {**place, "batch_norm": treatment, **self.columns(treatment, *at)}
            for treatment, values in next(iter(self.loss.values())).items()
            for at in np.ndindex(values.shape)
            if (place := self.place(treatment, *at)) is not None
        ]

    def arrange(self, change: Callable[[Values], Values]) -> tuple[Table, Table]:
        """Loss and error with `change` made to every array."""
        loss, error = (
            {split: {name: change(values) for name, values in found.items()} for split, found in table.items()}
            for table in (self.loss, self.error)
        )
        return loss, error


class Evaluator:
    """Evaluates populations of one architecture, which may be anyone's nn.Module from images to logits [N, K].

    model: gives the architecture; it is copied. It gets images [N, C, H, W] in channels-last order. engine: device,
    precision and backend. batch_size, augment: of recomputed statistics alone. report: called with the number of
    images evaluated since the last call.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: EngineConfig = _ENGINE,
        batch_size: int = 128,
        augment: AugmentConfig = _AUGMENT,
        report: Report | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        # In evaluation mode: a traced network keeps the mode-dependent branches that it was traced in.
        network = copy.deepcopy(model).eval()
        self.layout = Layout.of(network)
        config = Config(engine=engine, optimizer=OptimizerConfig(batch_size=batch_size), augment=augment)
        self._engine = build_engine(config, network)
        self.device = self._engine.device
        self._report = report
        self._outputs: int | None = None
        self._normalises = any(span.name.endswith("running_var") for span in self.layout.statistics)

    def scores(self, population: Population, dataset: ResidentDataset) -> Scores:
        """Loss (nats) and accuracy (%) of every member with its own statistics, float64 [M] each.

        Raises UserError for another architecture, a dataset on another device or without images, and labels that the
        network has no output for.
        """
        population = self._take(population)
        self._check(dataset)
        if self._outputs is None and population.members:
            _, logits_NK = next(self._engine.logits(population, 0, dataset))
            self._outputs = logits_NK.shape[1]
        # Before they are used: on a GPU a label too large is no exception, but the end of the process.
        if self._outputs is not None and int(dataset.labels_N.max()) >= self._outputs:
            raise UserError(f"labels run to {int(dataset.labels_N.max())}, but the network has fewer outputs")
        return self._engine.evaluate(population, dataset, self._report)

    def recompute(
        self,
        population: Population,
        dataset: ResidentDataset,
        noise: Noise = _NOISE,
        images: int = 0,
        epoch: int = 0,
    ) -> Population:
        """A copy of `population` with statistics of its own weights, all members on the same draws of `noise`.

        See `Engine.recompute_statistics`; `images` is rounded down to whole batches, 0 takes all.
        """
        if images < 0:
            raise UserError(f"images is {images}; give 0 for all, or a positive number")
        self._check(dataset)
        population = self._take(population)
        if not self._normalises:
            return population.clone_rows(range(population.members))
        noises = [noise] * population.members
        return self._engine.recompute_statistics(population, dataset, noises, epoch, images, self._report)

    def logits(self, population: Population, m: int, dataset: ResidentDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions int64 [N], logits float32 [N, K]) of member m, as `Engine.logits` does."""
        self._check(dataset)
        return self._engine.logits(self._take(population), m, dataset)

    def logits_NK(self, population: Population, m: int, dataset: ResidentDataset) -> Tensor:
        """Member m's logits on the whole dataset, float32 [N, K], with its own statistics."""
        return torch.cat([logits_NK for _, logits_NK in self.logits(population, m, dataset)])

    @torch.no_grad()
    def batches(
        self, population: Population, rows: Sequence[int], dataset: ResidentDataset
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions int64 [N], logits float32 [M, N, K] of members `rows`), one evaluation batch at a time."""
        population = self._take(population)
        for steps in zip(*(self.logits(population, m, dataset) for m in rows), strict=True):
            yield steps[0][0], torch.stack([logits_NK for _, logits_NK in steps])

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


def dataset_from_arrays(
    images_NHWC: ArrayLike | Tensor,
    labels_N: ArrayLike | Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device = "auto",
) -> ResidentDataset:
    """A dataset of the caller's own arrays.

    images uint8 [N, H, W, C]; labels integers [N], 0 or more; mean and std of each channel in 0..1: the network
    gets (v / 255 - mean) / std. Raises UserError for anything else.
    """
    images, labels = torch.as_tensor(images_NHWC), torch.as_tensor(labels_N)
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise UserError(f"images are {images.dtype} {tuple(images.shape)}; give uint8 of shape [N, H, W, C]")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"labels are {labels.dtype} {tuple(labels.shape)}; give {len(images)} integers")
    if not len(labels) or int(labels.min()) < 0:
        raise UserError("labels must be there, and 0 or more: each is the number of a class")
    channels = images.shape[3]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(math.isfinite(value) for value in values):
            raise UserError(f"{name} is {list(values)}; give {channels} finite numbers, one a channel")
    if min(std) <= 0:
        raise UserError(f"std is {list(std)}; give numbers above 0")
    place = device if isinstance(device, torch.device) else resolve_device(device)
    return ResidentDataset(
        images_NHWC=images.to(place).contiguous(),
        labels_N=labels.to(place, torch.int64),
        table_C256=normalisation_table(tuple(mean), tuple(std)).to(place),
        classes=int(labels.max()) + 1,
    )


def measure(
    evaluator: Evaluator,
    count: int,
    build: Callable[[int, int], Population],
    splits: Splits,
    treatments: Sequence[str],
    recomputation: Recomputation | None,
    memory_bytes: int = MEMORY_BYTES,
) -> LossAndError:
    """Loss and error of `count` networks on every split, under each of `treatments` (averaged, recomputed).

    `build(first, last)` makes networks first .. last - 1 with averaged statistics, as many at once as `memory_bytes`
    hold. Where averaging gave a negative variance, which extrapolation can, the values are NaN under that treatment:
    with a clamped variance it would be another network.
    """
    check_treatments(treatments, recomputation, (AVERAGED, RECOMPUTED))
    if not splits:
        raise UserError("no split is given to measure on; give a dict of names and datasets")
    # Weights and momentum; twice, for recomputed copies.
    step = max(1, memory_bytes // (2 * evaluator.layout.row_bytes))
    measurement = LossAndError(*({s: {t: np.full(count, np.nan) for t in treatments} for s in splits} for _ in "le"))
    for first in range(0, count, step):
        last = min(first + step, count)
        built = build(first, last)
        for treatment in treatments:
            places = np.arange(first, last)
            if treatment == RECOMPUTED:
                assert recomputation is not None
                members = evaluator.recompute(
                    built, recomputation.dataset, recomputation.noise, recomputation.images, recomputation.epoch
                )
            else:
                keep = ~_negative_variance(built)
                if not keep.any():
                    continue
                places = places[keep]
                members = built if keep.all() else built.clone_rows(np.flatnonzero(keep).tolist())
            for split, dataset in splits.items():
                scores = evaluator.scores(members, dataset)
                measurement.loss[split][treatment][places] = scores.loss_M
                measurement.error[split][treatment][places] = 100 - scores.accuracy_M
    return measurement


def measure_mixtures(
    evaluator: Evaluator,
    members: Population,
    weights_LM: Values,
    splits: Splits,
    treatments: Sequence[str],
    recomputation: Recomputation | None,
    memory_bytes: int = MEMORY_BYTES,
) -> LossAndError:
    """`measure` of L weighted sums of `members`, statistics summed with the same weights."""
    here = members.to(evaluator.device)

    def build(first: int, last: int) -> Population:
        return here.combine(torch.from_numpy(weights_LM[first:last]))

    return measure(evaluator, len(weights_LM), build, splits, treatments, recomputation, memory_bytes)


def check_alphas(alphas: ArrayLike) -> Values:
    """The places as float64 [L]. Raises UserError for none, and where one is NaN or infinite."""
    alphas_L = np.array(alphas, dtype=np.float64)
    if alphas_L.ndim != 1 or not len(alphas_L) or not np.isfinite(alphas_L).all():
        raise UserError(f"alphas are of shape {alphas_L.shape}; give a sequence of one or more finite numbers")
    return alphas_L


def check_treatments(treatments: Sequence[str], recomputation: Recomputation | None, known: Sequence[str]) -> None:
    """Raise UserError for no treatment, one that is not `known` or there twice, and one that lacks its images."""
    if isinstance(treatments, str) or not treatments or len(set(treatments)) != len(treatments):
        raise UserError(
            f"treatments are {treatments!r}; give a tuple of one or more of {', '.join(known)}, each once"
        )
    for treatment in treatments:
        if treatment not in known:
            raise UserError(f"batch-norm treatment {treatment!r} is not one of {', '.join(known)}")
    if RECOMPUTED in treatments and recomputation is None:
        raise UserError("recomputed statistics need training images; give recomputation=Recomputation(dataset)")


def check_rows(population: Population, rows: Sequence[int]) -> None:
    """Raise UserError unless every one of `rows` is a member's number."""
    for row in rows:
        if not 0 <= row < population.members:
            raise UserError(f"member {row} is not in a population of {population.members}, numbered from 0")


def _negative_variance(population: Population) -> NDArray[np.bool_]:
    """Whether any batch norm's variance is below zero, bool [M]."""
    negative_M = torch.zeros(population.members, dtype=torch.bool, device=population.device)
    for span in population.layout.statistics:
        if span.name.endswith("running_var"):
            negative_M |= (span.view(population.statistics_MQ) < 0).flatten(1).any(dim=1)
    return negative_M.cpu().numpy()


def finite(value: float) -> float | None:
    """The value as a table has it: None where it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
