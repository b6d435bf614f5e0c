"""What names states and treatments: digests of all that decides them (`fastwi.experiment.tree`)."""

import functools
import hashlib
import itertools
import json
from collections.abc import Sequence

from fastwi.config.averaging import momentum_weights
from fastwi.config.schema import Config, section_keys
from fastwi.config.time import iterations_of, step_sizes
from fastwi.config.write import changes
from fastwi.engine.schedule import CURVES, deciding_rates
from fastwi.errors import UserError
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.tree import Average, Treatment
from fastwi.models.names import placeless

KEY_VERSION = 2
"""Raise it when the same key would name another result: a default or the meaning of a setting changed."""

_IN_OTHER_WORDS = frozenset({"optimizer.learning_rate", "model.weights"})
"""Keys that decide by the rate of each epoch, and by the content of the file (`Inputs.digest`)."""

_DIGITS = 32  # 128 bits: no two of any number of trajectories ever meet
_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Namer:
    """Gives the keys of all configurations that differ in `seeds` and `experiment` only.

    `per_epoch`: iterations of an epoch.
    """

    def __init__(self, config: Config, inputs: Inputs) -> None:
        """Raises UserError for fewer training images than a batch, a kept last batch of one image, and times of the
        schedule that are out of order in an epoch of so many iterations.
        """
        assert config.engine.precision != "auto"
        self.config, self._images = config, inputs.images("train", config.data)
        batch, test_images = config.optimizer.batch_size, inputs.images("test", config.data)
        if self._images < batch:
            raise UserError(
                f"optimizer.batch_size: {batch} is more than the {self._images} training images; give a smaller one"
            )
        sizes = self._sizes(self._images, "data.train_images")
        self.per_epoch = len(sizes)
        schedule = config.schedule
        drops = [iterations_of(drop, self.per_epoch) for drop in schedule.drop_epochs]
        if any(later <= earlier for earlier, later in itertools.pairwise(drops)):
            raise UserError(
                f"schedule.drop_epochs: not in order where an epoch has {self.per_epoch} iterations: "
                f"{', '.join(map(str, schedule.drop_epochs))}; give them strictly increasing"
            )
        end = iterations_of(schedule.end, self.per_epoch)
        warmup = iterations_of(schedule.warmup_iterations, self.per_epoch, "iterations")
        if schedule.name in CURVES and warmup >= end:
            raise UserError(
                f"schedule.warmup_iterations: {warmup} leave no iteration to the schedule, which ends at iteration "
                f"{end}; lower them, or raise schedule.end"
            )
        # What decides a parent before its first epoch and its measurement, beside its seed.
        self._untrained = _digest(
            "untrained", KEY_VERSION, _settings(config, "model"), config.engine.precision, inputs.digest, test_images,
            *["moving average"] * (config.optimizer.ema_decay > 0),
        )  # fmt: skip
        # What decides any epoch beside its start, noise and learning rates.
        kept = ["last batch"] * (sizes[-1] < batch)
        self._context = _digest(
            "context", self._untrained, _settings(config, "augment", "optimizer"), self._images, *kept
        )
        self.alike = functools.cache(self._alike)

    def initial(self, seed: int) -> str:
        """The key of a parent at initialisation."""
        return _digest("initial", self._untrained, seed)

    def _alike(self, first: int, last: int, reset: bool = False) -> str:
        """A digest of what decides iteration `first` up to `last`, of one epoch, beside their start and noise.

        reset: they start with zero momentum, whatever their start has.
        """
        epoch, step = divmod(first, self.per_epoch)
        rates = deciding_rates(first, last - 1, self.per_epoch, self.config.optimizer, self.config.schedule)
        part = [] if last - first == self.per_epoch else [step, last - first]
        return _digest(self._context, epoch, rates, *part, *["zero momentum"] * reset)

    def average(self, states: Sequence[str], average: Average, own: int | None, config: Config) -> str:
        """The key of an average of `states`, as a configuration treats averages.

        own: the one of `states` whose momentum it has, whatever experiment.momentum is.
        """
        experiment = config.experiment
        treatment: list[object] = [experiment.momentum if own is None else own, experiment.batch_norm]
        if experiment.batch_norm == "recompute":
            noise = config.seeds.statistics_noise
            treatment += [self._context, noise, self._batches(experiment.recompute_images)[0]]
        if average.statistics != average.weights:
            treatment.append(average.statistics)
        # A pulled child has the momentum of its average, whose weights are others.
        if own is None and average.momentum != momentum_weights(experiment.momentum, average.statistics):
            treatment.append({"momentum": average.momentum})
        return _digest("average", states, average.weights, treatment)

    def over_time(self, name: str, states: Sequence[str], weights: Sequence[float]) -> str:
        """The key of an average of states that is measured only; by `name`, so that no two are one in tables."""
        return _digest("over time", name, states, weights)

    def recomputed(self, noise: int, images: int, epoch: int) -> Treatment:
        """Batch-norm statistics recomputed at `epoch` on the batches of `images` images (0: all)."""
        batches, passed = self._batches(images)
        name = "recomputed-" + _digest(self._context, noise, batches, epoch)[:12]
        return Treatment(name, epoch, noise, passed)

    def _batches(self, images: int) -> tuple[object, int]:
        """The batches that statistics are recomputed on, as the engine counts them, and their images."""
        batch, count = self.config.optimizer.batch_size, min(images or self._images, self._images)
        passed = sum(self._sizes(count, "experiment.recompute_images")) or batch
        whole, rest = divmod(passed, batch)
        return [whole, rest] if rest else whole, passed

    def _sizes(self, images: int, key: str) -> list[int]:
        """The sizes of the batches of so many images, of which `key` decides. Raises UserError for a rest of one."""
        batch = self.config.optimizer.batch_size
        sizes = step_sizes(images, batch, self.config.data.last_batch == "keep")
        if sizes and 1 == sizes[-1] < batch:
            raise UserError(
                f"data.last_batch: keep leaves a batch of 1 of {images} images, and batch norm may need more; change "
                f"{key} or optimizer.batch_size, or give drop"
            )
        return sizes


def epoch_key(before: str, alike: str, noise: int) -> str:
    """The key of the state that an epoch makes of the state `before`."""
    return _hash(f"{before} {alike} {noise}")


def _settings(config: Config, *sections: str) -> dict[str, object]:
    """The settings of `sections` that differ from their defaults."""
    found = changes(
        config, (key for name in sections for key in section_keys(name) if key.path not in _IN_OTHER_WORDS)
    )
    if "model.name" in found:
        found["model.name"] = placeless(config.model.name)  # what is there is in `Inputs.digest`
    return found


def _digest(*parts: object) -> str:
    """A stable hex digest of plain values."""
    return _hash(_to_json(parts))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_DIGITS]
