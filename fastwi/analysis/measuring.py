"""The bench of a study: its pairs, evaluators, images, the sweep's own recomputation, progress, and frames."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import polars

from fastwi.analysis.columns import Columns, schema
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, chosen_lines, chosen_pairs
from fastwi.config.schema import Config
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.data.noise import Noise
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN

if TYPE_CHECKING:
    from fastwi.analysis.evaluator import Evaluator, Recomputation
    from fastwi.data.resident import ResidentDataset
    from fastwi.population import Population

PartT = TypeVar("PartT")
SPLITS = ("train", "test")


class Bench:
    """A finished sweep, and what one study measures it with; `opened`, `options`: what it is given."""

    def __init__(
        self, opened: OpenedSweep, options: AnalysisOptions, progress: Progress = lambda done, total: None
    ) -> None:
        self.opened = opened
        self.options = options
        self._progress = progress
        self._evaluators: dict[tuple[object, ...], Evaluator] = {}
        self._done, self._total = 0, 1
        self._counts_images = False

    def pairs(self, stored: bool = False) -> list[Pair]:
        """`chosen_pairs`. stored: raises UserError where the states of their parents and children are not."""
        pairs = chosen_pairs(self.opened, self.options)
        if stored:
            self.opened.require(state for pair in pairs for state in (pair.place.clone, *pair.place.ends))
        return pairs

    def lines(self) -> list[Pair]:
        """`chosen_lines`."""
        return chosen_lines(self.opened, self.options)

    def frame(self, columns: Columns, rows: Sequence[dict[str, Any]]) -> polars.DataFrame:
        """The rows as a frame: the sweep's axes beside k and s, then `columns`."""
        return polars.DataFrame(rows, schema=schema(self.opened.planned.spec, columns))

    def accuracy(self, state: str, treatment: str = OWN) -> float | None:
        """Test accuracy (%) as the sweep measured it; None where it did not, or the network diverged."""
        found = self.opened.measured.get((state, treatment))
        return None if found is None or found.diverged else found.test_accuracy

    def begin(self, total: int) -> None:
        """Report progress as parts of `total` from here on."""
        self._done, self._total = 0, total
        self.passed(0)

    def passed(self, parts: int = 1) -> None:
        """Report that so many more parts are done."""
        self._done = min(self._done + parts, self._total)
        self._progress(self._done, self._total)

    def each(self, parts: Sequence[PartT]) -> Iterator[PartT]:
        """Each part of a study's work, with progress counted in parts."""
        self.begin(len(parts))
        for part in parts:
            yield part
            self.passed()

    def each_line(
        self, pairs: Sequence[Pair], networks: Callable[[Pair], int], splits: Sequence[str] = SPLITS
    ) -> Iterator[tuple[Pair, dict[str, Any]]]:
        """Yield each pair, and how functions of `fastwi.analysis` measure it: evaluator, splits, treatments ...

        networks: how many of a pair are measured; progress is counted in images. Raises UserError where the
        children's states are not stored.
        """
        self.opened.require(state for pair in pairs for state in pair.place.ends)
        self._counts_images = True
        self.begin(max(1, sum(networks(pair) * self._images(pair.config, splits) for pair in pairs)))
        for pair in pairs:
            found = self.splits(pair.config)
            yield pair, {"splits": {name: found[name] for name in splits}, **self.how(pair)}
        self.passed(self._total)  # networks that are not defined are not measured

    def how(self, pair: Pair) -> dict[str, Any]:
        """Evaluator, treatments and recomputation for the pair's networks."""
        return {
            "evaluator": self.evaluator(pair.config),
            "treatments": self.options.treatments,
            "recomputation": self.recomputation(pair),
        }

    def evaluator(self, config: Config) -> "Evaluator":
        """What evaluates networks of `config`. Compiling one takes longer than measuring with it."""
        from fastwi.analysis.evaluator import Evaluator

        batch, keeps = config.optimizer.batch_size, config.data.last_batch == "keep"
        kind = (self.opened.resources.architecture(config), config.engine, config.augment, batch, keeps)
        if kind not in self._evaluators:
            network = self.opened.resources.network(config)
            report = self.passed if self._counts_images else None
            self._evaluators[kind] = Evaluator(
                network, config.engine, batch, config.augment, report, keep_last_batch=keeps
            )
        return self._evaluators[kind]

    def recomputation(self, pair: Pair) -> "Recomputation":
        """The sweep's own, on the draws of the epoch at which the pair was averaged.

        So a network's accuracy is the one that the sweep measured as recomputed, to the bit on the same machine.
        """
        from fastwi.analysis.evaluator import Recomputation

        config = pair.config
        train, _ = self.opened.resident_splits(config)
        noise = Noise(config.seeds.statistics_noise)
        return Recomputation(train, noise, config.experiment.recompute_images, pair.statistics_epoch)

    def treated(self, pair: Pair, networks: "Population") -> "Iterator[tuple[str, Population]]":
        """The networks with their own statistics, and with recomputed ones where the options ask for these."""
        yield OWN, networks
        if RECOMPUTED in self.options.treatments:
            yield RECOMPUTED, self.evaluator(pair.config).recompute(networks, self.recomputation(pair))

    def splits(self, config: Config) -> "dict[str, ResidentDataset]":
        """Training and test images that the options ask for, drawn from all of the dataset's."""
        counts: dict[str, Any] = {}
        for name in SPLITS:
            counts[f"{name}_images"] = self._asked(config, name) or getattr(config.data, f"{name}_images")
        chosen = replace(config, data=replace(config.data, **counts))
        return dict(zip(SPLITS, self.opened.resident_splits(chosen), strict=True))

    def part(self, config: Config, split: str) -> "tuple[ResidentDataset, list[int]]":
        """The same of one split, drawn from the sweep's, and their positions in it."""
        return _evenly(self.opened.resident_splits(config)[SPLITS.index(split)], self._asked(config, split))

    def matching_images(self, config: Config) -> "ResidentDataset":
        """Training images on which activations are compared: analysis.matching_images of the sweep's."""
        return _evenly(self.opened.resident_splits(config)[0], self.options.matching_images)[0]

    def held_out(self, config: Config) -> "ResidentDataset":
        """analysis.held_out_images of the training images that the sweep left out. Raises UserError for none."""
        import torch

        from fastwi.data.resident import even_subset

        whole, _ = self.opened.resident_splits(replace(config, data=replace(config.data, train_images=0)))
        trained = even_subset(whole.labels_N.cpu().numpy(), config.data.train_images or len(whole))
        left = sorted(set(range(len(whole))).difference(trained.tolist()))
        if not left:
            raise UserError("data.train_images: the sweep trained on all images, and none is left to choose soups on")
        return _evenly(whole.part(torch.tensor(left)), self.options.held_out_images)[0]

    def _asked(self, config: Config, split: str) -> int:
        """How many images the options ask for; 0: the sweep's. Raises UserError for more than the sweep has."""
        images: int = getattr(self.options, f"{split}_images")
        most = len(self.opened.resident_splits(config)[SPLITS.index(split)])
        if images > most:
            raise UserError(f"analysis.{split}_images: {images} is more than the sweep's {most}; lower it, or give 0")
        return images

    def _images(self, config: Config, splits: Sequence[str]) -> int:
        """Images that measuring one network takes."""
        found = self.splits(config)
        treatments = self.options.treatments
        evaluated = len(treatments) * sum(len(found[name]) for name in splits)
        if RECOMPUTED not in treatments:
            return evaluated
        train, _ = self.opened.resident_splits(config)
        return evaluated + (config.experiment.recompute_images or len(train))


def _evenly(dataset: "ResidentDataset", most: int) -> "tuple[ResidentDataset, list[int]]":
    """At most so many images (0: all), drawn evenly over classes, and their positions."""
    import torch

    from fastwi.data.resident import even_subset

    if most == 0 or most >= len(dataset):
        return dataset, list(range(len(dataset)))
    kept = even_subset(dataset.labels_N.cpu().numpy(), most)
    return dataset.part(torch.from_numpy(kept)), kept.tolist()
