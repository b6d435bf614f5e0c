"""fastwi itself: one contestant an engine that this version has."""

import dataclasses
import itertools

from benchmarks.task import Contestant, Task, Unavailable
from fastwi.config.schema import EngineConfig
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_engine
from fastwi.errors import ConfigError
from fastwi.population import Population


def engine_names() -> list[str]:
    """The values of `engine.name` that name one engine."""
    choices = next(field for field in dataclasses.fields(EngineConfig) if field.name == "name").metadata["choices"]
    return [name for name in choices if name != "auto"]


def engine(task: Task, members: int, name: str) -> tuple[Contestant, Population]:
    """A population of `members` siblings of one parent, trained by engine `name`, each under its own noise."""
    config = dataclasses.replace(task.config, engine=dataclasses.replace(task.config.engine, name=name))
    network = task.network()
    try:
        trainer = build_engine(config, network)
    except ConfigError as error:
        raise Unavailable(f"not on this device: {error}") from error
    parent = Population.from_modules([network], device=task.device)
    population = parent.clone_rows([0] * members)
    noises = [Noise(m) for m in range(members)]
    epochs = itertools.count()

    def epoch() -> None:
        try:
            trainer.train_epoch(population, task.dataset, noises, next(epochs))
        except ConfigError as error:
            raise Unavailable(f"not on this device: {error}") from error

    return Contestant(epoch, members * task.steps * task.batch, static_memory=True), population
