"""Every byte of a store checked, and a lost or damaged index made again. And metrics.parquet.

Columns of metrics.parquet: state, treatment, epoch, train_loss, learning_rate, test_loss, test_accuracy (%), seconds,
crc. Rows are sorted by state and treatment. `crc` is that of the index's row, so each row can be checked by itself.
"""

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.store.index import (
    FLOATS,
    MEASUREMENTS,
    STATES,
    TABLES,
    Index,
    Row,
    Transaction,
    connect,
    create_tables,
    is_whole,
    sealed,
    translated,
)
from fastwi.experiment.store.places import CARD, StorePlaces, check_directory, check_plain
from fastwi.experiment.store.records import StoredState, bytes_float, float_bytes
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.store.store import Store, set_aside, state_paths
from fastwi.files import atomic_path, locked, open_plain, sync_directory, write_json, write_parquet
from fastwi.sealed import file_sha256

_BATCH = 50_000  # rows made into columns at a time: as Python's objects they take several times the memory


def export(index: Index) -> None:
    """Write metrics.parquet from the index. Exports take turns, so that the last one has all measurements."""
    import polars

    types: dict[str, Any] = dict.fromkeys(MEASUREMENTS.columns, polars.Float64())
    types |= {"state": polars.String(), "treatment": polars.String(), "epoch": polars.Int64(), "crc": polars.UInt32()}
    places, frames = index.places, [polars.DataFrame(schema=types)]
    with locked(places.writing_lock, exclusive=False), index.writing() as transaction:
        rows = transaction.rows(MEASUREMENTS)
        while batch := list(islice(rows, _BATCH)):
            columns: dict[str, Any] = dict(zip(types, zip(*batch, strict=True), strict=True))
            columns |= {name: list(map(bytes_float, columns[name])) for name in FLOATS}
            frames.append(polars.DataFrame(columns, schema=types))
        write_parquet(places.metrics, polars.concat(frames))


def read_table(places: StorePlaces) -> Iterator[Row | None]:
    """The rows of metrics.parquet as those of the index; None for each that is damaged.

    A file that cannot be read at all gives one None, a missing file nothing.
    """
    import polars

    if not places.metrics.exists():
        return
    try:
        # In a thread: Ctrl-C and SIGTERM, raised in the main one, would be a panic to polars, and look like damage.
        # A stream: in a path polars takes brackets and stars for a pattern.
        with open_plain(places.metrics) as stream, ThreadPoolExecutor(1) as pool:
            columns = list(MEASUREMENTS.columns)
            # Eager: a damaged file is an exception here and nothing later.
            frame = pool.submit(polars.read_parquet, stream, columns=columns, use_statistics=False).result()
        rows = frame.rows()
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError, ValueError):
        yield None
        return
    for state, treatment, epoch, *floats, crc in rows:
        try:
            row = (state, treatment, epoch, *map(float_bytes, floats), crc)
        except (TypeError, ValueError, struct.error):  # a column of another type
            yield None
        else:
            yield row if is_whole(row) else None


@dataclass(slots=True)
class Verification:
    """What was looked at, and the damage found: for each a line that says what it is and what fixes, or fixed, it.

    `notes` are lines on what is no damage: what a kill leaves, or what other processes have not finished yet.
    """

    states: int = 0
    rows: int = 0
    bytes: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(store: Store, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check the card, the index, every state's file and metrics.parquet.

    With `repair`: damaged states are forgotten with their measurements, so that the next sweep trains them again; a
    damaged metrics.parquet is exported again. A damaged index, or one that lacks measurements of metrics.parquet,
    needs `rebuild` before anything else is checked.
    `progress` is called with the bytes of states that are checked and the bytes that there are.
    """
    found, places = Verification(), store.places
    fix = places.repair_command
    try:
        check_directory(places, create=False)
        with store.reading() as transaction:
            for (line,) in transaction.execute("PRAGMA integrity_check(20)"):
                if line != "ok":
                    found.damage.append(f"{places.index}: {' '.join(line.split())}; {places.rebuild_line}")
            found.rows = sum(1 for table in TABLES for _ in transaction.rows(table))
        with store.writing() as transaction:  # what SQLite refuses where the version in the header is damaged
            transaction.execute(f"DELETE FROM {STATES.name} WHERE false")
        with store.reading() as transaction:
            damaged, lacking, different = _compared(places, transaction)
            missing = not places.metrics.exists()
        if lacking:  # this may be their only copy: nothing is repaired
            what = f"measurements that the index lacks: {lacking:,}"
            found.damage.append(f"{places.metrics}: {what}; `rebuild` takes them in")
        strays, files = store.stray_states(), store.state_files()
    except UserError as error:
        found.damage.append(str(error))
    if found.damage:
        return found
    total = sum(file.bytes for file in files.values())
    for key, file in files.items():
        damage = damage_of(places, file)
        found.states += 1
        found.bytes += file.bytes
        if progress is not None:
            progress(found.bytes, total)
        # Another process may have dropped the state, or written it again, since the index was read.
        if damage and any(damage_of(places, now) for now in store.state_files([key]).values()):
            fixed = repair and store.mark_damaged(key)
            done = "forgotten; the next sweep trains it again" if fixed else f"{fix} has it trained again"
            found.damage.append(f"{places.state(key)}: {damage}; {done}")
    if strays:
        what = f"files that the index does not have: {len(strays):,}"
        found.notes.append(f"{places.states}: {what}; `gc` removes them, `rebuild` takes them in")
    if repair and (found.damage or damaged or different):
        export(store)
    if damaged or different:
        what = "missing" if missing else f"rows that are not those of the index: {different:,}"
        what = f"damaged, in {damaged:,} or more of its rows" if damaged else what
        done = "exported again" if repair else f"{fix} exports it again"
        (found.damage if damaged else found.notes).append(f"{places.metrics}: {what}; {done}")
    return found


def _compared(places: StorePlaces, transaction: Transaction) -> tuple[int, int, int]:
    """How many rows of metrics.parquet are damaged, the index lacks, and are not there or not as in the index."""
    # The index first: what another process measures or forgets meanwhile is not committed before the end.
    right = {row[:2]: row for row in transaction.rows(MEASUREMENTS)}
    rows = list(read_table(places))
    table = {row[:2]: row for row in rows if row}
    different = sum(table.get(key) != row for key, row in right.items())
    return rows.count(None), len(table.keys() - right.keys()), different


def rebuild(directory: str | os.PathLike[str]) -> dict[str, int]:
    """Make the index of a store again, and export metrics.parquet again.

    Rows whose checksum is right are taken from the old index as far as it can be read, and those that it lacks from
    metrics.parquet. A state's file is compared with the SHA-256 in the old index, or where that is lost with the
    checksums within the file; a damaged one goes to `damaged/`, as do the old index and metrics.parquet, and its
    measurements are left out, so that it is trained again. Cut off at any moment, it can be started again. Returns
    numbers of `measurements` and `states`, and of `damaged_rows` and `damaged_states` that are left out.

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
    with Store(places) as store:
        export(store)
    return rebuilt


def _rebuild(places: StorePlaces) -> dict[str, int]:
    tables: dict[str, dict[Row, Row]] = {table.name: {} for table in TABLES}
    # It stays until the end, so that the index is not used where a rebuild is cut off: to read it may write to it.
    places.rebuilt_index.touch()
    sync_directory(places.directory)
    # Where an earlier rebuild was cut off in its last step, there are both.
    damaged_rows = sum(_salvage(path, tables) for path in (places.index, places.rebuilt_index))
    measurements, states = tables[MEASUREMENTS.name], tables[STATES.name]
    exported = list(read_table(places))
    for row in filter(None, exported):
        measurements.setdefault(row[:2], row)
    damaged_states = _check_files(places, states)
    for key in [key for key in measurements if key[0] in damaged_states]:
        del measurements[key]
    _replace_index(places, tables)
    try:
        check_directory(places, create=False)
    except UserError:
        write_json(places.card, CARD)
    found = {"measurements": len(measurements), "states": len(states), "damaged_states": len(damaged_states)}
    return found | {"damaged_rows": damaged_rows + exported.count(None)}


def _salvage(path: Path, tables: dict[str, dict[Row, Row]]) -> int:
    """Add the whole rows of an index to `tables`; return the number of damaged ones."""
    damaged = set[tuple[str, Row]]()
    if not path.exists() or path.stat().st_size == 0:
        return 0
    unreadable = (sqlite3.Error, UnicodeDecodeError)  # the second: an error's text that quotes damage
    for order in ("ASC", "DESC"):  # a broken page in the middle stops either
        for table in TABLES:
            with contextlib.suppress(*unreadable), contextlib.closing(sqlite3.connect(path)) as connection:
                connection.text_factory = lambda text: text.decode(errors="surrogateescape")
                for row in connection.execute(table.selection(order=order)):
                    if is_whole(row):
                        tables[table.name].setdefault(row[: table.width], row)
                    else:
                        damaged.add((table.name, row))
    return len(damaged)


def _check_files(places: StorePlaces, states: dict[Row, Row]) -> set[str]:
    """Bring `states` to what is on the disk; return the keys of damaged ones, whose files are set aside."""
    from fastwi.population import Population

    there = state_paths(places)
    for gone in [key for key in states if key[0] not in there]:
        del states[gone]
    damaged = set()
    for key, path in there.items():
        if (key,) in states:
            whole = damage_of(places, StoredState(*states[key,][:-1])) is None
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
            Transaction(connection, places).add(table, tables[table.name].values())
        connection.execute("COMMIT")
    sync_directory(places.directory)
    for path in (*places.index_files, places.metrics):  # the logs first; the last has what is left out now
        set_aside(places, path)
    os.replace(places.rebuilt_index, places.index)
    sync_directory(places.directory)
