"""The network and the engine that a configuration names, and what `python -m fastwi.tune` measured.

Its table of images/s is a JSON file in the user's cache directory. A missing or damaged file is an empty table, and
so is no such directory.
"""

import contextlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fastwi.config.schema import Config
from fastwi.data.noise import Stream, raw_words
from fastwi.engine.base import Engine
from fastwi.engine.device import cpu_threads, resolve_device, resolve_dtype
from fastwi.engine.fuse import trace
from fastwi.engine.graph import GraphEngine
from fastwi.engine.halo import HaloEngine
from fastwi.engine.loop import LoopEngine
from fastwi.engine.stacked import StackedEngine
from fastwi.errors import ConfigError, UserError
from fastwi.files import cache_directory, write_json
from fastwi.kernels.gpu import has_triton
from fastwi.models.generators import seeded
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.version import __version__

Speeds = dict[str, dict[int, float]]  # engine to members to images/s
ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (LoopEngine, GraphEngine, StackedEngine, HaloEngine)
}

STACKED_FROM = 4
"""Networks trained together from which on `stacked` is expected to be faster than `graph` on a GPU."""


def build_network(config: Config, classes: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """The parent at initialisation: a pure function of `seeds.init`, drawn on the CPU, or what `model.weights` holds.

    image_size: (height, width) in pixels, where they are known.
    Raises ConfigError where the network cannot be built, and CheckpointError where the weights are of another one.
    """
    seed = int(raw_words(config.seeds.init, Stream.INIT, 0, 1)[0]) >> 1
    with seeded(seed):
        model = config.model
        network = build_model(model.name, classes, model.width, image_size, model.initialisation)
    if config.model.weights:
        from fastwi.population.state_file import read_state_file  # imports safetensors

        population = Population.from_modules([network])
        read_state_file(Path(config.model.weights)).copy_into(population, 0)
        population.write_to(0, network)
    return network


def build_engine(config: Config, model: nn.Module, members: int = 1, resident: bool = True) -> Engine:
    """The engine `engine.name` for networks of `model`'s architecture. Raises ConfigError as `resolve` does.

    auto: the fastest that `python -m fastwi.tune` measured here. Before it has: on a CPU `loop`; on a GPU `stacked`
    where at least `STACKED_FROM` of `members` networks are trained together, else `graph`. `loop` for
    networks that those refuse or that torch.fx cannot trace, and for images that are not `resident`. With
    `engine.deterministic` neither what was measured nor `members` decides, as engines differ in their last bits.
    """
    if config.engine.name != "auto":
        return ENGINES[config.engine.name](model, config)
    device, dtype = resolve_device(config.engine.device), resolve_dtype(config.engine)
    fixed = config.engine.deterministic
    best = None if fixed else fastest(read_speeds(entry_key(config, device, dtype)))
    kind: type[Engine] = LoopEngine
    if best is not None and best[0] in ENGINES:
        kind = ENGINES[best[0]]
    elif device.type == "cuda" and resident and trace(model) is not None:
        several = fixed or members >= STACKED_FROM
        kind = StackedEngine if several and has_triton(device) else GraphEngine
    if kind is not LoopEngine and resident:
        with contextlib.suppress(ConfigError):  # of networks with dropout, for one; what loop refuses too comes again
            return kind(model, config)
    return LoopEngine(model, config)


def table_path() -> Path:
    """Where the table is kept."""
    return cache_directory() / "engines.json"


def entry_key(config: Config, device: torch.device, dtype: torch.dtype) -> str:
    """What speeds depend on, as one line of words."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        threads = cpu_threads(config.engine)
        place = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {threads} threads"
    network = f"{config.model.name} x {config.model.width:g}, batch {config.optimizer.batch_size}"
    precision = str(dtype).removeprefix("torch.")
    return f"fastwi {__version__}, torch {torch.__version__}, {place}, {network}, {precision}"


def read_speeds(key: str) -> Speeds:
    """The entry `key`; empty where there is none."""
    return _read().get(key, {})


def write_speeds(key: str, speeds: Mapping[str, Mapping[int, float]]) -> None:
    """Keep an entry beside those that are there."""
    path = table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {engine: {m: round(speed, 1) for m, speed in by.items()} for engine, by in speeds.items()}
    write_json(path, {**_read(), key: kept})


def fastest(speeds: Speeds) -> tuple[str, int] | None:
    """The engine and the number of members at which most images/s were measured; None for an empty table."""
    measured = [(speed, engine, m) for engine, by in speeds.items() for m, speed in by.items()]
    return max(measured)[1:] if measured else None


def _read() -> dict[str, Speeds]:
    try:
        return {
            key: {engine: {int(m): float(speed) for m, speed in by.items()} for engine, by in speeds.items()}
            for key, speeds in json.loads(table_path().read_text()).items()
        }
    except (UserError, OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}
