"""What a study's networks are measured with: evaluators, images, the sweep's own recomputation, and progress."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress
from fastwi.config.schema import Config
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.data.noise import Noise
from fastwi.errors import UserError

if TYPE_CHECKING:
    from fastwi.analysis.evaluator import Evaluator
    from fastwi.data.resident import ResidentDataset
    from fastwi.population import Population

SPLITS = ("train", "test")


class Bench:
    """Evaluators, each built once, the images that the options ask for, and progress counted in images."""

    def __init__(
        self, opened: OpenedSweep, options: AnalysisOptions, progress: Progress = lambda done, total: None
    ) -> None:
        self._opened, self._options, self._progress = opened, options, progress
        self._evaluators: dict[tuple[object, ...], Evaluator] = {}
        self._done, self._total = 0, 1

    def expect(self, measured: Iterable[tuple[Config, int]], splits: Sequence[str] = SPLITS) -> None:
        """Announce this many networks of each configuration, each under every treatment."""
        self._total = max(1, sum(count * self._images(config, splits) for config, count in measured))
        self._progress(0, self._total)

    def finish(self) -> None:
        """Report that all is done: networks that are not defined are not measured."""
        self._progress(self._total, self._total)

    def evaluator(self, config: Config) -> "Evaluator":
        """What evaluates networks of `config`. Compiling one takes longer than measuring with it."""
        from fastwi.analysis.evaluator import Evaluator

        kind = (config.model, config.engine, config.augment, config.optimizer.batch_size)
        if kind not in self._evaluators:
            network = self._opened.resources.network(config)
            self._evaluators[kind] = Evaluator(
                network, config.engine, config.optimizer.batch_size, config.augment, self._passed
            )
        return self._evaluators[kind]

    def splits(self, config: Config) -> "dict[str, ResidentDataset]":
        """Training and test images. Raises UserError where the options ask for more than the sweep has."""
        asked: dict[str, Any] = {}
        for name, dataset in zip(SPLITS, self._opened.resident_splits(config), strict=True):
            images: int = getattr(self._options, f"{name}_images")
            if images > len(dataset):
                raise UserError(
                    f"analysis.{name}_images: {images} is more than the sweep's {len(dataset)}; lower it, or give 0"
                )
            asked[f"{name}_images"] = images or getattr(config.data, f"{name}_images")
        chosen = replace(config, data=replace(config.data, **asked))
        return dict(zip(SPLITS, self._opened.resident_splits(chosen), strict=True))

    def treatments(self, pair: Pair) -> dict[str, Any]:
        """How batch-norm statistics are treated, as functions of `fastwi.analysis` take it.

        Recomputation is the sweep's own: on the draws of the epoch at which the pair was averaged.
        """
        from fastwi.analysis.evaluator import Recomputation

        config = pair.config
        recomputation = Recomputation(
            self._opened.resident_splits(config)[0], Noise(config.seeds.statistics_noise),
            config.experiment.recompute_images, pair.k + pair.s,
        )  # fmt: skip
        return {"treatments": self._options.treatments, "recomputation": recomputation}

    def _passed(self, images: int) -> None:
        self._done = min(self._done + images, self._total)
        self._progress(self._done, self._total)

    def _images(self, config: Config, splits: Sequence[str]) -> int:
        """Images that measuring one network takes."""
        found, treatments = self.splits(config), self._options.treatments
        train = len(self._opened.resident_splits(config)[0])
        again = (RECOMPUTED in treatments) * (config.experiment.recompute_images or train)
        return len(treatments) * sum(len(found[name]) for name in splits) + again


def recomputed(opened: OpenedSweep, population: "Population", config: Config, epoch: int) -> "Population":
    """A copy of `population` with the batch-norm statistics that the sweep's own recomputation gives at `epoch`.

    So a network's accuracy is the one that the sweep measured as recomputed, to the bit on the same machine.
    """
    train = opened.resident_splits(config)[0]
    noises = [Noise(config.seeds.statistics_noise)] * population.members
    images = config.experiment.recompute_images
    return opened.resources.engine(config).recompute_statistics(population, train, noises, epoch, images)


def part_of(dataset: "ResidentDataset", images: int, option: str) -> "tuple[ResidentDataset, list[int]]":
    """`images` of the dataset's images, evenly over classes (0: all), and their positions in it.

    Raises UserError, naming `option`, where there are fewer.
    """
    from fastwi.data.resident import even_subset

    if not images or images == len(dataset):
        return dataset, list(range(len(dataset)))
    if images > len(dataset):
        raise UserError(f"{option}: {images}; the sweep has {len(dataset)}: give at most that, or 0 for all")
    kept = even_subset(dataset.labels_N.cpu().numpy(), images)
    part = replace(dataset, images_NHWC=dataset.images_NHWC[kept].contiguous(), labels_N=dataset.labels_N[kept])
    return part, [int(place) for place in kept]
