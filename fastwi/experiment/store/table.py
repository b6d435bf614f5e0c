"""metrics.parquet: all measurements as columns, for other tools and for a lost index.

Columns: state, treatment, epoch, train_loss, learning_rate, test_loss, test_accuracy (%), seconds, crc. Rows are
sorted by state and treatment. `crc` is that of the index's row, so each row vouches for itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import locked
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import bytes_float, float_bytes
from fastwi.experiment.store.rows import MEASUREMENTS, NOTES, Row, is_whole, sealed
from fastwi.experiment.store.select import all_rows
from fastwi.experiment.store.states import hash_file
from fastwi.files import atomic_path

EXPORTED = "metrics.parquet"  # the note that holds the SHA-256 of the file that is there
NEXT = "metrics.parquet next"  # of the file that is about to take its place
_BATCH = 50_000  # rows made into columns at a time: as Python's objects they take several times the memory
_FLOATS = tuple(name for name, kind in MEASUREMENTS.columns.items() if kind.startswith("BLOB"))


def export(database: Database) -> None:
    """Write metrics.parquet and note its SHA-256 in the index. Processes take turns."""
    places = database.places
    with (
        locked(places.metrics_lock, exclusive=True),
        locked(places.writing_lock, exclusive=False),
        atomic_path(places.metrics) as temporary,
    ):
        with database.reading() as connection:
            _write(temporary, all_rows(connection, places, MEASUREMENTS))
        # Noted before the file is in place: a crash in between must not look like damage.
        _note(database, NEXT, hash_file(temporary))
    _note(database, EXPORTED, None)


def _note(database: Database, name: str, value: str | None) -> None:
    """Note `value`; None: that of NEXT."""
    with database.writing() as connection:
        if value is None:
            value = connection.execute("SELECT value FROM notes WHERE name = ?", (NEXT,)).fetchone()[0]
        connection.execute(NOTES.deletion, (name,))
        connection.execute(NOTES.insertion, sealed(name, value))


def table_damage(database: Database) -> str | None:
    """What is wrong with metrics.parquet, or None; None too where nothing was ever exported."""
    places = database.places
    with locked(places.metrics_lock, exclusive=True), database.reading() as connection:
        notes = {row[0]: row[1] for row in all_rows(connection, places, NOTES)}
        if EXPORTED not in notes:
            return None if NEXT in notes or not places.metrics.exists() else "not exported from this index"
        try:
            found = hash_file(places.metrics)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
    return None if found in (notes[EXPORTED], notes.get(NEXT)) else "not the bytes that were exported (SHA-256)"


def _write(path: Path, rows: Iterator[Row]) -> None:
    import polars

    types: dict[str, Any] = {name: polars.Float64() for name in _FLOATS}
    types = {name: types.get(name, polars.Int64()) for name in MEASUREMENTS.columns}
    types |= {"state": polars.String(), "treatment": polars.String(), "crc": polars.UInt32()}
    frames = [polars.DataFrame(schema=types)]
    while batch := list(islice(rows, _BATCH)):
        columns: dict[str, Any] = dict(zip(types, zip(*batch, strict=True), strict=True))
        columns |= {name: [bytes_float(value) for value in columns[name]] for name in _FLOATS}
        frames.append(polars.DataFrame(columns, schema=types))
    polars.concat(frames).write_parquet(path)


def _read(path: Path) -> list[tuple[Any, ...]]:
    import polars

    # Eager, by the file's own bytes: a damaged one is an exception here and nothing later.
    return polars.read_parquet(path, columns=list(MEASUREMENTS.columns), use_statistics=False).rows()


def read_table(places: StorePlaces) -> Iterator[Row | None]:
    """The rows of metrics.parquet as those of the index; None for each that is damaged.

    A file that cannot be read at all gives one None, a missing file nothing.
    """
    import polars

    if not places.metrics.exists():
        return
    try:
        # In a thread: Ctrl-C and SIGTERM, raised in the main one, would be a panic to polars, and look like damage.
        with ThreadPoolExecutor(1) as pool:
            rows = pool.submit(_read, places.metrics).result()
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException, OSError, ValueError):
        yield None
        return
    floats = [name in _FLOATS for name in MEASUREMENTS.columns]
    for values in rows:
        try:
            row = tuple(
                float_bytes(value) if is_float else value for value, is_float in zip(values, floats, strict=True)
            )
            yield row if is_whole(row) else None
        except (TypeError, ValueError):
            yield None
