"""A lost or damaged index made again: from what can still be read of it, metrics.parquet and the states' files."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.store.database import Database, connect, create_tables, translated
from fastwi.experiment.store.filesystem import locked, network_type, sync_directory
from fastwi.experiment.store.places import (
    StorePlaces,
    check_directory,
    check_plain,
    is_temporary,
    looks_like_store,
    write_card,
)
from fastwi.experiment.store.records import StoredState
from fastwi.experiment.store.removal import set_aside
from fastwi.experiment.store.rows import (
    MEASUREMENTS,
    NOTES,
    STATES,
    TABLES,
    Row,
    Table,
    is_whole,
    sealed,
    state_of,
    state_row,
)
from fastwi.experiment.store.states import damage_of, hash_file
from fastwi.experiment.store.table import EXPORTED, export, read_table
from fastwi.experiment.store.usage import files_under
from fastwi.experiment.store.wal import damage_in_wal


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the new index has, and how many rows and states were found damaged and left out."""

    measurements: int
    states: int
    damaged_rows: int
    damaged_states: int


def rebuild(directory: str | os.PathLike[str]) -> Rebuilt:
    """Make the index of a store again, and export metrics.parquet anew.

    Rows whose checksum is right are taken from the old index as far as it can be read, then from metrics.parquet.
    A state's file is held to the SHA-256 in the old index, or where that is lost to the checksums within the file;
    a damaged one is set aside and its measurements are left out, so that it is trained again. The old index goes
    to `damaged/`. Cut off at any moment, it can be started again.

    Raises UserError where the directory is no store or another process has it open.
    """
    places = StorePlaces(Path(directory))
    check_plain(places)
    if not looks_like_store(places):
        check_directory(places, create=False)
    with locked(places.index_lock, exclusive=True, wait=False) as alone:
        if not alone:
            raise UserError(f"{places.directory}: other processes have the store open; end them, then rebuild")
        with translated(places):
            rebuilt = _rebuild(places)
    database = Database(places)
    try:
        export(database)
    finally:
        database.close()
    return rebuilt


def _rebuild(places: StorePlaces) -> Rebuilt:
    tables: dict[str, dict[Row, Row]] = {table.name: {} for table in TABLES}
    # Everything is made in one folder, which `gc` removes if this is killed.
    with tempfile.TemporaryDirectory(prefix=".rebuild.", suffix=".tmp", dir=places.directory) as name:
        folder = Path(name)
        damaged_rows = sum(_salvage(index, folder, tables) for index in (places.index, places.rebuilt_index))
        measurements, states = tables[MEASUREMENTS.name], tables[STATES.name]
        damaged_table = 0
        for row in read_table(places):
            if row is None:
                damaged_table += 1
            else:
                measurements.setdefault(row[:2], row)
        damaged_states = _check_files(places, states)
        for key in [key for key in measurements if key[0] in damaged_states]:
            del measurements[key]
        if damaged_table:
            _move_away(places, places.metrics)
        # The new index vouches for what it has read: if the export that follows is cut off, that is no damage.
        exported = sealed(EXPORTED, hash_file(places.metrics)) if places.metrics.exists() else None
        tables[NOTES.name] = {exported[:1]: exported} if exported else {}
        _replace_index(places, folder / "new.sqlite", tables)
    try:
        check_directory(places, create=False)
    except UserError:
        write_card(places)
    return Rebuilt(len(measurements), len(states), damaged_rows + damaged_table, len(damaged_states))


def _salvage(index: Path, folder: Path, tables: dict[str, dict[Row, Row]]) -> int:
    """Add the whole rows of an index to `tables`, from a copy of it; return how many were not whole."""
    if not index.exists():
        return 0
    copy = folder / index.name
    for end in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{index}{end}", f"{copy}{end}")
    log_is_damaged = damage_in_wal(Path(f"{copy}-wal")) is not None
    damaged = _salvage_tables(copy, tables)
    if log_is_damaged:  # it must not hide what is whole beneath it
        for end in ("", "-wal", "-shm"):
            Path(f"{copy}{end}").unlink(missing_ok=True)
        shutil.copyfile(index, copy)
        damaged += _salvage_tables(copy, tables)
    return damaged


def _salvage_tables(copy: Path, tables: dict[str, dict[Row, Row]]) -> int:
    damaged = 0
    for table in TABLES:
        # From both ends: a broken page in the middle stops either.
        ascending = _salvage_table(copy, table, "ASC", tables[table.name])
        damaged += max(ascending, _salvage_table(copy, table, "DESC", tables[table.name]))
    return damaged


def _salvage_table(copy: Path, table: Table, order: str, rows: dict[Row, Row]) -> int:
    damaged = 0
    unreadable = (sqlite3.Error, UnicodeDecodeError)  # the second: an error's text that quotes damage
    with contextlib.suppress(*unreadable), contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.text_factory = lambda text: text.decode(errors="surrogateescape")
        keys = ", ".join(f"{name} {order}" for name in table.key)
        for row in connection.execute(f"SELECT {table.names} FROM {table.name} ORDER BY {keys}"):
            if is_whole(row):
                rows.setdefault(row[: len(table.key)], row)
            else:
                damaged += 1
    return damaged


def _check_files(places: StorePlaces, states: dict[Row, Row]) -> set[str]:
    """Bring `states` to what is on the disk; return the keys of damaged ones, whose files are set aside."""
    from fastwi.population import Population

    there = {}
    for path in files_under(places.states):
        key = places.key_of(path)
        if key is not None and not is_temporary(path):
            there[key] = path
    for gone in [key for key in states if key[0] not in there]:
        del states[gone]
    damaged = set()
    for key, path in sorted(there.items()):
        if (key,) in states:
            whole = damage_of(places, state_of(states[(key,)])) is None
        else:
            try:
                whole = Population.load(path).members == 1
            except CheckpointError:
                whole = False
            states[(key,)] = state_row(StoredState(key, path.stat().st_size, hash_file(path)))
        if not whole:
            damaged.add(key)
            del states[(key,)]
            set_aside(places, key)
    return damaged


def _replace_index(places: StorePlaces, new: Path, tables: dict[str, dict[Row, Row]]) -> None:
    """Write an index and put it in the old one's place: whole at every moment, under one name or the other."""
    with contextlib.closing(connect(str(new))) as connection:
        create_tables(connection)
        connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            connection.executemany(table.insertion, tables[table.name].values())
        connection.execute("COMMIT")
        if not network_type(places.directory):
            connection.execute("PRAGMA journal_mode = WAL")  # is kept in the file
    os.replace(new, places.rebuilt_index)
    sync_directory(places.directory)
    for path in places.index_files:
        _move_away(places, path)
    os.replace(places.rebuilt_index, places.index)
    sync_directory(places.directory)


def _move_away(places: StorePlaces, path: Path) -> None:
    if path.exists():
        places.damaged.mkdir(exist_ok=True)
        os.replace(path, places.damaged / f"{path.name}.{uuid.uuid4().hex[:8]}")
