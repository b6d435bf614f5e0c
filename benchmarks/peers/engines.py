"""fastwi itself: one case for each engine."""

import dataclasses
import itertools

from benchmarks.runner import Case, Unavailable
from benchmarks.task import Task
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_engine
from fastwi.errors import ConfigError
from fastwi.population import Population


def engine(task: Task, members: int, name: str) -> tuple[Case, Population]:
    """A population of `members` siblings of one parent, trained by engine `name`, each under its own noise."""
    config = dataclasses.replace(task.config, engine=dataclasses.replace(task.config.engine, name=name))
    network = task.network()
    population = Population.from_modules([network], device=task.device).clone_rows([0] * members)
    noises, epochs = [Noise(m) for m in range(members)], itertools.count()

    def epoch() -> None:
        try:
            trainer.train_epoch(population, task.dataset, noises, next(epochs))
        except ConfigError as error:
            raise Unavailable(f"not on this device: {error}") from error

    try:
        trainer = build_engine(config, network)
    except ConfigError as error:
        raise Unavailable(f"not on this device: {error}") from error
    return Case(epoch, members * task.images, static_memory=True), population


def case(task: Task, members: int, name: str) -> Case:
    """The case alone."""
    return engine(task, members, name)[0]
