"""What `python -m fastwi.tune` measured: images/s of each engine, by network and number of members.

The table is a JSON file in the user's cache directory, one entry for each device, version of torch and network. A
missing, foreign or damaged file is an empty table: it decides nothing but speed.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from fastwi.config.schema import Config
from fastwi.engine.device import cpu_threads
from fastwi.files import write_json
from fastwi.version import __version__

Speeds = dict[str, dict[int, float]]  # engine to members to images/s


def table_path() -> Path:
    """Where the table is kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "fastwi" / "engines.json"


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
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
