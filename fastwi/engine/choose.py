"""The engine that a configuration names."""

from torch import nn

from fastwi.config.schema import Config
from fastwi.engine.base import Engine
from fastwi.engine.device import resolve_device, resolve_dtype
from fastwi.engine.graph import GraphEngine
from fastwi.engine.loop import LoopEngine
from fastwi.engine.stacked import StackedEngine
from fastwi.engine.table import entry_key, fastest, read_speeds

ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (LoopEngine, GraphEngine, StackedEngine)}


def engine_name(config: Config) -> str:
    """`engine.name`; for auto the fastest that `python -m fastwi.tune` measured here, and `loop` before it has."""
    if config.engine.name != "auto":
        return config.engine.name
    device, dtype = resolve_device(config.engine.device), resolve_dtype(config.engine)
    best = fastest(read_speeds(entry_key(config, device, dtype)))
    return best[0] if best is not None and best[0] in ENGINES else LoopEngine.name


def build_engine(config: Config, model: nn.Module) -> Engine:
    """The engine `engine.name` for networks of `model`'s architecture. Raises ConfigError as `resolve` does."""
    chosen = ENGINES[engine_name(config)]
    return chosen(model, config.engine, config.optimizer, config.schedule, config.augment)
