"""The network and the engine that a configuration names."""

from pathlib import Path

from torch import nn

from fastwi.config.schema import Config
from fastwi.data.noise import Stream, raw_words
from fastwi.engine.base import Engine, Settings
from fastwi.engine.device import resolve_device, resolve_dtype
from fastwi.engine.graph import GraphEngine
from fastwi.engine.loop import LoopEngine
from fastwi.engine.stacked import StackedEngine
from fastwi.engine.table import entry_key, fastest, read_speeds
from fastwi.models.generators import seeded
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.population.state_file import read_state_file

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (LoopEngine, GraphEngine, StackedEngine)}

_HERE = Path()


def build_network(
    config: Config, classes: int, image_size: tuple[int, int] | None = None, root: Path = _HERE
) -> nn.Module:
    """The parent at initialisation: a pure function of `seeds.init`, drawn on the CPU, or what `model.weights` holds.

    image_size: (height, width) in pixels of the images to come, where they are known; the user's own network is tried
    on that size, and built for it if it asks. A relative path of weights is relative to `root`. Raises ConfigError
    where the network cannot be built, and CheckpointError where the weights are of another network.
    """
    seed = int(raw_words(config.seeds.init, Stream.INIT, 0, 1)[0]) >> 1
    with seeded(seed):
        network = build_model(config.model.name, classes, config.model.width, image_size)
    if config.model.weights:
        population = Population.from_modules([network])
        read_state_file(root / config.model.weights).copy_into(population, 0)
        population.write_to(0, network)
    return network


def engine_name(config: Config) -> str:
    """`engine.name`; for auto the fastest that `python -m fastwi.tune` measured here, and `loop` before it has."""
    if config.engine.name != "auto":
        return config.engine.name
    device, dtype = resolve_device(config.engine.device), resolve_dtype(config.engine)
    best = fastest(read_speeds(entry_key(config, device, dtype)))
    return best[0] if best is not None and best[0] in ENGINES else LoopEngine.name


def build_engine(config: Config, model: nn.Module) -> Engine:
    """The engine `engine.name` for networks of `model`'s architecture. Raises ConfigError as `resolve` does."""
    return ENGINES[engine_name(config)](model, Settings.of(config))
