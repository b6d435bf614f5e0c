"""What a study's networks are measured with: evaluators, images, the sweep's own recomputation, and progress."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress
from fastwi.config.schema import Config
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.data.noise import Noise
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN

if TYPE_CHECKING:
    from fastwi.analysis.evaluator import Evaluator, Recomputation
    from fastwi.data.resident import ResidentDataset
    from fastwi.population import Population

SPLITS = ("train", "test")


class Bench:
    """Evaluators, each built once, the images that the options ask for, and progress counted in images."""

    def __init__(
        self, opened: OpenedSweep, options: AnalysisOptions, progress: Progress = lambda done, total: None
    ) -> None:
        self._opened = opened
        self._options = options
        self._progress = progress
        self._evaluators: dict[tuple[object, ...], Evaluator] = {}
        self._done = 0
        self._total = 1

    def each(
        self, pairs: Sequence[Pair], networks: Callable[[Pair], int], splits: Sequence[str] = SPLITS
    ) -> Iterator[tuple[Pair, dict[str, Any]]]:
        """Yield each pair, and how functions of `fastwi.analysis` measure it: evaluator, splits, treatments ...

        networks: how many of a pair are measured, for progress. Raises UserError where the children's states are not
        stored.
        """
        self._opened.require(state for pair in pairs for state in pair.place.ends)
        self._total = max(1, sum(networks(pair) * self._images(pair.config, splits) for pair in pairs))
        self._progress(0, self._total)
        for pair in pairs:
            found = self.splits(pair.config)
            yield pair, {"splits": {name: found[name] for name in splits}, **self.how(pair)}
        self._progress(self._total, self._total)  # networks that are not defined are not measured

    def how(self, pair: Pair) -> dict[str, Any]:
        """Evaluator, treatments and recomputation for the pair's networks."""
        return {
            "evaluator": self.evaluator(pair.config),
            "treatments": self._options.treatments,
            "recomputation": self.recomputation(pair),
        }

    def evaluator(self, config: Config) -> "Evaluator":
        """What evaluates networks of `config`. Compiling one takes longer than measuring with it."""
        from fastwi.analysis.evaluator import Evaluator

        batch, keeps = config.optimizer.batch_size, config.data.last_batch == "keep"
        kind = (config.model, config.engine, config.augment, batch, keeps)
        if kind not in self._evaluators:
            network = self._opened.resources.network(config)
            self._evaluators[kind] = Evaluator(
                network, config.engine, batch, config.augment, self._passed, keep_last_batch=keeps
            )
        return self._evaluators[kind]

    def recomputation(self, pair: Pair) -> "Recomputation":
        """The sweep's own, on the draws of the epoch at which the pair was averaged.

        So a network's accuracy is the one that the sweep measured as recomputed, to the bit on the same machine.
        """
        from fastwi.analysis.evaluator import Recomputation

        config = pair.config
        train, _ = self._opened.resident_splits(config)
        noise = Noise(config.seeds.statistics_noise)
        return Recomputation(train, noise, config.experiment.recompute_images, pair.statistics_epoch)

    def treated(self, pair: Pair, networks: "Population") -> "Iterator[tuple[str, Population]]":
        """The networks with their own statistics, and with recomputed ones where the options ask for these."""
        yield OWN, networks
        if RECOMPUTED in self._options.treatments:
            yield RECOMPUTED, self.evaluator(pair.config).recompute(networks, self.recomputation(pair))

    def splits(self, config: Config) -> "dict[str, ResidentDataset]":
        """Training and test images that the options ask for, drawn from all of the dataset's."""
        counts: dict[str, Any] = {}
        for name in SPLITS:
            counts[f"{name}_images"] = self._asked(config, name) or getattr(config.data, f"{name}_images")
        chosen = replace(config, data=replace(config.data, **counts))
        return dict(zip(SPLITS, self._opened.resident_splits(chosen), strict=True))

    def part(self, config: Config, split: str) -> "tuple[ResidentDataset, list[int]]":
        """The same of one split, drawn from the sweep's, and their positions in it."""
        from fastwi.data.resident import even_subset

        images = self._asked(config, split)
        dataset = self._opened.resident_splits(config)[SPLITS.index(split)]
        if images in (0, len(dataset)):
            return dataset, list(range(len(dataset)))
        kept = even_subset(dataset.labels_N.cpu().numpy(), images)
        chosen = replace(dataset, images_NHWC=dataset.images_NHWC[kept].contiguous(), labels_N=dataset.labels_N[kept])
        return chosen, kept.tolist()

    def matching_images(self, config: Config) -> "ResidentDataset":
        """Training images on which activations are compared: analysis.matching_images of the sweep's."""
        train, _ = self._opened.resident_splits(config)
        return _evenly(train, range(len(train)), self._options.matching_images)

    def held_out(self, config: Config) -> "ResidentDataset":
        """analysis.held_out_images of the training images that the sweep left out. Raises UserError for none."""
        from fastwi.data.resident import even_subset

        whole, _ = self._opened.resident_splits(replace(config, data=replace(config.data, train_images=0)))
        trained = even_subset(whole.labels_N.cpu().numpy(), config.data.train_images or len(whole))
        left = sorted(set(range(len(whole))).difference(trained.tolist()))
        if not left:
            raise UserError("data.train_images: the sweep trained on all images, and none is left to choose soups on")
        return _evenly(whole, left, self._options.held_out_images)

    def _asked(self, config: Config, split: str) -> int:
        """How many images the options ask for; 0: the sweep's. Raises UserError for more than the sweep has."""
        images: int = getattr(self._options, f"{split}_images")
        most = len(self._opened.resident_splits(config)[SPLITS.index(split)])
        if images > most:
            raise UserError(f"analysis.{split}_images: {images} is more than the sweep's {most}; lower it, or give 0")
        return images

    def _passed(self, images: int) -> None:
        self._done = min(self._done + images, self._total)
        self._progress(self._done, self._total)

    def _images(self, config: Config, splits: Sequence[str]) -> int:
        """Images that measuring one network takes."""
        found = self.splits(config)
        treatments = self._options.treatments
        evaluated = len(treatments) * sum(len(found[name]) for name in splits)
        if RECOMPUTED not in treatments:
            return evaluated
        train, _ = self._opened.resident_splits(config)
        return evaluated + (config.experiment.recompute_images or len(train))


def _evenly(dataset: "ResidentDataset", positions: Sequence[int], most: int) -> "ResidentDataset":
    """At most so many of the images at `positions` (0: all), drawn evenly over classes."""
    import torch

    from fastwi.data.resident import even_subset

    at_N = torch.tensor(positions)
    part = dataset.part(at_N)
    if most == 0 or most >= len(part):
        return part
    return part.part(torch.from_numpy(even_subset(part.labels_N.cpu().numpy(), most)))
