"""`engine.precision: auto` keeps the meaning that it had where a store was begun, on any machine.

The precision is in the names of states, and decides results. Every device computes in every precision, some slower.
"""

from dataclasses import replace
from pathlib import Path

from fastwi.config.schema import EngineConfig
from fastwi.engine.device import resolve_precision
from fastwi.engine.precision import NOTED, Choice, noted_precision
from fastwi.errors import UserError
from fastwi.experiment.store.places import StorePlaces
from fastwi.files import locked
from fastwi.sealed import write_sealed


def precision_of_store(store: Path, config: EngineConfig) -> Choice:
    """What auto was in the first sweep of `store`, else what it is here. CheckpointError where that is damaged."""
    if noted := noted_precision(store):
        return Choice(noted, "the store was begun in it")
    return resolve_precision(replace(config, precision="auto"))


def note_precision(store: Path, choice: Choice) -> None:
    """Note in `store` what auto is, where it is not noted. UserError where another process has noted another."""
    with locked(StorePlaces(store).turn_lock, exclusive=True):  # of two that begin it at once one is the first
        if not noted_precision(store):
            write_sealed(store / NOTED, {"auto": choice.precision})
    if noted_precision(store) != choice.precision:
        raise UserError(f"{store}: another process has just begun it in another precision; run this again")
