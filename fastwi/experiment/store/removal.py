"""States leave the store: dropped, or found damaged.

A state's row goes first and its file after it, so that a crash leaves a file without a row and not the reverse. The
file loses its name within a transaction of its own that looks again: whoever trains the state again claims it before
the file is written.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path

from fastwi.errors import CheckpointError
from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import refusal
from fastwi.experiment.store.owner import live_owners
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.rows import MEASUREMENTS, STATES, state_of
from fastwi.experiment.store.select import rows_of_keys
from fastwi.experiment.store.states import read_state

_BATCH = 500  # files a transaction; others wait for that long


def drop_states(database: Database, keys: Iterable[str], own: Collection[str]) -> set[str]:
    """Remove states that no live owner but those of `own` has pinned or claimed; return those that went.

    Those that stay lose the pins of `own`: of the owners that need a state, the last to drop it removes it.
    """
    source, dropped = iter(dict.fromkeys(keys)), set()
    while batch := list(islice(source, _BATCH)):
        with database.writing() as connection:
            wanted = wanted_states(connection, database.places, own, batch)
            there = {row[0] for row in rows_of_keys(connection, database.places, STATES, ((key,) for key in batch))}
            gone = sorted(there - wanted)
            connection.executemany(STATES.deletion, [(key,) for key in gone])
            for owner in own:
                connection.executemany(
                    "DELETE FROM pins WHERE state = ? AND owner = ?", [(key, owner) for key in batch]
                )
        unlink_unwanted(database, gone)
        dropped.update(gone)
    return dropped


def unlink_unwanted(database: Database, keys: Sequence[str]) -> int:
    """Unlink the files of those states that the index does not have and no live owner wants; return the bytes."""
    freed = 0
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        with database.writing() as connection:
            wanted = wanted_states(connection, database.places, (), batch)
            wanted.update(row[0] for row in rows_of_keys(connection, database.places, STATES, ((k,) for k in batch)))
            moved = [_renamed(database.places, key) for key in batch if key not in wanted]
        # A rename is quick, and nobody waits for the rest. What a kill leaves is an unfinished file to `gc`.
        for path in filter(None, moved):
            with contextlib.suppress(FileNotFoundError):  # `gc` of another process was here
                size = path.stat().st_size
                path.unlink()
                freed += size
    return freed


def _renamed(places: StorePlaces, key: str) -> Path | None:
    """The file of a state under an unfinished file's name, where there was one."""
    path = places.state(key)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        os.replace(path, unfinished)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(error, path) from error
    return unfinished


def wanted_states(
    connection: sqlite3.Connection, places: StorePlaces, own: Collection[str], keys: Sequence[str] | None = None
) -> set[str]:
    """States, of `keys` if given, that live owners besides `own` have pinned, or claimed and may be writing."""
    held: list[tuple[str, str]] = []
    for table in ("pins", "claims"):
        where = "" if keys is None else f"WHERE state IN ({', '.join('?' * len(keys))})"
        held += connection.execute(f"SELECT state, owner FROM {table} {where}", keys or ()).fetchall()
    others = {owner for _, owner in held}.difference(own)
    live = live_owners(places, others)
    return {state for state, owner in held if owner in live}


def mark_damaged(database: Database, key: str) -> bool:
    """Forget the state `key` and its measurements, and move its file to `damaged/`, unless the file is right."""
    places = database.places
    with database.writing() as connection:
        for row in rows_of_keys(connection, places, STATES, [(key,)]):
            try:
                read_state(places.directory, state_of(row))
                return False
            except CheckpointError:
                pass
        connection.execute(STATES.deletion, (key,))
        connection.execute(f"DELETE FROM {MEASUREMENTS.name} WHERE state = ?", (key,))
        # Before the commit: after it another process may write the state anew.
        set_aside(places, key)
    return True


def set_aside(places: StorePlaces, key: str) -> None:
    """Move a state's file to `damaged/`."""
    path = places.state(key)
    try:
        places.damaged.mkdir(exist_ok=True)
        os.replace(path, places.damaged / f"{key}.{uuid.uuid4().hex[:8]}.safetensors")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refusal(error, path) from error
