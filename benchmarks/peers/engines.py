"""fastwi itself: one case for each engine."""

import dataclasses
import itertools

from benchmarks.runner import Case
from benchmarks.task import Task
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_engine
from fastwi.population import Population


def engine(task: Task, members: int, name: str) -> tuple[Case, Population]:
    """A population of `members` siblings of one parent, trained by engine `name`, each under its own noise."""
    config = dataclasses.replace(task.config, engine=dataclasses.replace(task.config.engine, name=name))
    network, epochs = task.network(), itertools.count()
    trainer = build_engine(config, network)
    population = Population.from_modules([network], device=task.device).clone_rows([0] * members)
    noises = [Noise(m) for m in range(members)]

    def epoch() -> None:
        trainer.train_epoch(population, task.dataset, noises, next(epochs))

    return Case(epoch, members * task.images, static_memory=True), population


def case(task: Task, members: int, name: str) -> Case:
    """The case alone."""
    return engine(task, members, name)[0]
