"""What a store was begun in: `engine.precision: auto` keeps the meaning that it had there, on any machine.

The precision is in the names of states, and decides results. A machine that would choose another one for itself goes
on in this one: every device computes in every precision, some slower.
"""

from dataclasses import replace
from pathlib import Path

from fastwi.config.schema import EngineConfig
from fastwi.engine.device import resolve_precision
from fastwi.engine.precision import Choice
from fastwi.errors import UserError
from fastwi.sealed import read_sealed, write_sealed

_FILE = "precision.json"


def precision_of_store(store: Path, config: EngineConfig) -> Choice:
    """What auto is in `store`: what the first sweep there took it for, else what it is on this machine.

    Raises CheckpointError where the note of it is damaged.
    """
    if not (store / _FILE).exists():
        return resolve_precision(replace(config, precision="auto"))
    return Choice(_noted(store), "the store was begun in it")


def note_precision(store: Path, choice: Choice) -> None:
    """Note in `store` what auto is, where nothing is noted yet.

    Raises UserError where another process noted another meanwhile.
    """
    if not (store / _FILE).exists():
        write_sealed(store / _FILE, {"auto": choice.precision})
    if _noted(store) != choice.precision:
        raise UserError(f"{store}: another process has just begun it in another precision; run this again")


def _noted(store: Path) -> str:
    fix = "delete it, and give engine.precision: bf16 or fp32, as the store was begun"
    return str(read_sealed(store / _FILE, fix)["auto"])
