"""`engine.precision: auto` keeps the meaning that it had where a store was begun, on any machine.

The precision is in the names of states, and decides results. Every device computes in every precision, some slower.
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
    """What auto was in the first sweep of `store`, else what it is here. CheckpointError where that is damaged."""
    if (store / _FILE).exists():
        return Choice(_noted(store), "the store was begun in it")
    return resolve_precision(replace(config, precision="auto"))


def note_precision(store: Path, choice: Choice) -> None:
    """Note in `store` what auto is, where it is not noted. UserError where another process has noted another."""
    if not (store / _FILE).exists():
        write_sealed(store / _FILE, {"auto": choice.precision})
    if _noted(store) != choice.precision:
        raise UserError(f"{store}: another process has just begun it in another precision; run this again")


def _noted(store: Path) -> str:
    fix = "delete it, and give engine.precision: bf16 or fp32, as the store was begun"
    return str(read_sealed(store / _FILE, fix)["auto"])
