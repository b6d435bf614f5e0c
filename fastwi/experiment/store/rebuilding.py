"""A lost or damaged index made again: from what can still be read of it, metrics.parquet and the states' files."""

import contextlib
import os
import sqlite3
from pathlib import Path

from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.store.index import (
    MEASUREMENTS,
    STATES,
    TABLES,
    Index,
    Row,
    Table,
    connect,
    create_tables,
    is_whole,
    sealed,
    translated,
)
from fastwi.experiment.store.places import (
    StorePlaces,
    check_directory,
    check_plain,
    network_type,
    write_card,
)
from fastwi.experiment.store.records import StoredState
from fastwi.experiment.store.removal import files_under, set_aside
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.store.table import export, read_table
from fastwi.files import atomic_path, locked, sync_directory
from fastwi.sealed import file_sha256


def rebuild(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Make the index of a store again, and export metrics.parquet again.

    Rows whose checksum is right are taken from the old index as far as it can be read, then from metrics.parquet.
    A state's file is compared with the SHA-256 in the old index, or where that is lost with the checksums within the
    file; a damaged one is set aside and its measurements are left out, so that it is trained again. The old index
    goes to `damaged/`. Cut off at any moment, it can be started again.

    Returns counts: `measurements` and `states` of the new index, and `damaged_rows` and `damaged_states` left out.
    Raises UserError where the directory is not a store or another process has it open.
    """
    places = StorePlaces(Path(directory))
    check_plain(places)
    if not places.is_begun():
        check_directory(places, create=False)
    with locked(places.index_lock, exclusive=True, wait=False) as alone:
        if not alone:
            raise UserError(f"{places.directory}: other processes have the store open; end them, then rebuild")
        with translated(places):
            rebuilt = _rebuild(places)
    index = Index(places)
    try:
        export(index)
    finally:
        index.close()
    return rebuilt


def _rebuild(places: StorePlaces) -> dict[str, int]:
    tables: dict[str, dict[Row, Row]] = {table.name: {} for table in TABLES}
    # Where an earlier rebuild was cut off in its last step, there are both.
    damaged_rows = sum(
        _salvage(path, table, tables[table.name]) for path in (places.index, places.rebuilt_index) for table in TABLES
    )
    measurements, states = tables[MEASUREMENTS.name], tables[STATES.name]
    whole_table = True
    for row in read_table(places):
        if row is None:
            damaged_rows, whole_table = damaged_rows + 1, False
        else:
            measurements.setdefault(row[:2], row)
    damaged_states = _check_files(places, states)
    for key in [key for key in measurements if key[0] in damaged_states]:
        del measurements[key]
    if not whole_table:
        set_aside(places, places.metrics)
    _replace_index(places, tables)
    try:
        check_directory(places, create=False)
    except UserError:
        write_card(places)
    return {
        "measurements": len(measurements),
        "states": len(states),
        "damaged_rows": damaged_rows,
        "damaged_states": len(damaged_states),
    }


def _salvage(path: Path, table: Table, rows: dict[Row, Row]) -> int:
    """Add the whole rows of a table of an index to `rows`; return how many were not whole."""
    damaged = [0, 0]
    for n, order in enumerate(("ASC", "DESC") if path.exists() else ()):  # a broken page in the middle stops either
        unreadable = (sqlite3.Error, UnicodeDecodeError)  # the second: an error's text that quotes damage
        with contextlib.suppress(*unreadable), contextlib.closing(sqlite3.connect(path)) as connection:
            connection.text_factory = lambda text: text.decode(errors="surrogateescape")
            for row in connection.execute(table.selection(order=order)):
                if is_whole(row):
                    rows.setdefault(row[: table.width], row)
                else:
                    damaged[n] += 1
    return max(damaged)


def _check_files(places: StorePlaces, states: dict[Row, Row]) -> set[str]:
    """Bring `states` to what is on the disk; return the keys of damaged ones, whose files are set aside."""
    from fastwi.population import Population

    there = {places.key_of(path): path for path in files_under(places.states) if not places.is_unfinished(path)}
    for gone in [key for key in states if key[0] not in there]:
        del states[gone]
    damaged = set()
    for key, path in there.items():
        if key is None:
            continue
        if (key,) in states:
            whole = damage_of(places, StoredState(*states[key,][:3])) is None
        else:
            try:
                whole = Population.load(path).members == 1
                states[key,] = sealed(key, path.stat().st_size, file_sha256(path))
            except CheckpointError:
                whole = False
        if not whole:
            damaged.add(key)
            states.pop((key,), None)
            set_aside(places, path)
    return damaged


def _replace_index(places: StorePlaces, tables: dict[str, dict[Row, Row]]) -> None:
    """Write an index and put it in the old one's place: whole at every moment, under one name or the other."""
    with atomic_path(places.rebuilt_index) as temporary, contextlib.closing(connect(temporary)) as connection:
        create_tables(connection)
        connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            connection.executemany(table.insertion, tables[table.name].values())
        connection.execute("COMMIT")
        if not network_type(places.directory):
            connection.execute("PRAGMA journal_mode = WAL")  # is kept in the file
    sync_directory(places.directory)
    for path in places.index_files:  # the logs first
        set_aside(places, path)
    os.replace(places.rebuilt_index, places.index)
    sync_directory(places.directory)
