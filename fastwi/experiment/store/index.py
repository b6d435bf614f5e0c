"""index.sqlite: its tables, transactions on it, and its errors in one line.

SQLite, because several processes write at once, each in small transactions that are on the disk when they return. It
keeps a rollback journal, which works on network file systems too, and is empty between transactions.

The last column of every row, `crc`, is the CRC-32 of `ascii` of the tuple of the other columns; a float is an 8-byte
blob. A damaged row is an error where it is read. A missing row is work that is not done yet.
"""

import contextlib
import os
import re
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fastwi.errors import UserError
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedIndex
from fastwi.files import locked, refusal

BUSY_SECONDS = 600.0  # a commit waits for all that read
_SCANNED_FOR_ONE_FOUND = 4  # rows that are read in sequence in the time in which one is found by its key

Row: TypeAlias = tuple[Any, ...]


class Table(NamedTuple):
    """A table: its columns, of which the first `width` are its key. Without types SQLite stores values as given."""

    name: str
    width: int
    columns: tuple[str, ...]

    @property
    def is_key(self) -> str:
        """The condition that a row has a key, whose values are parameters."""
        return " AND ".join(f"{name} = ?" for name in self.columns[: self.width])

    def selection(self, where: str = "true", order: str = "ASC") -> str:
        """The statement that reads rows, in the order of the key."""
        keys = ", ".join(f"{name} {order}" for name in self.columns[: self.width])
        return f"SELECT {', '.join(self.columns)} FROM {self.name} WHERE {where} ORDER BY {keys}"


FLOATS = ("train_loss", "learning_rate", "test_loss", "test_accuracy", "seconds")
MEASUREMENTS = Table("measurements", 2, ("state", "treatment", "epoch", *FLOATS, "crc"))
STATES = Table("states", 1, ("key", "bytes", "sha256", "crc"))
CLAIMS = Table("claims", 2, ("state", "treatment", "owner", "crc"))
PINS = Table("pins", 2, ("state", "owner", "crc"))
ATTEMPTS = Table("attempts", 1, ("number", "state", "treatment", "owner", "crc"))
TABLES = (MEASUREMENTS, STATES, CLAIMS, PINS, ATTEMPTS)


def sealed(*values: Any) -> Row:
    """A row: the values and their checksum."""
    return (*values, zlib.crc32(ascii(values).encode()))


def is_whole(row: Row) -> bool:
    """Whether a row's checksum is that of its other columns."""
    return sealed(*row[:-1]) == row


class Transaction:
    """An open transaction. All rows that it gives are checked: DamagedIndex at one whose checksum is wrong."""

    def __init__(self, connection: sqlite3.Connection, places: StorePlaces) -> None:
        self._connection, self._places = connection, places
        self.execute = connection.execute

    def rows(self, table: Table, where: str = "true", values: Sequence[Any] = ()) -> Iterator[Row]:
        """Every row, or those of a condition, in the order of the table's key."""
        return self._checked(table, self.execute(table.selection(where), values))

    def of(self, table: Table, keys: Iterable[Sequence[Any]] | None) -> Iterator[Row]:
        """The rows of those `keys` (None: all) that are there, in their order; the same key twice gives one row."""
        if keys is None:
            return self.rows(table)
        wanted, query = set(map(tuple, keys)), table.selection(table.is_key)
        many = _SCANNED_FOR_ONE_FOUND * len(wanted)
        (count,) = self.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table.name} LIMIT {many})").fetchone()
        if count < many:
            found = (row for row in self.execute(table.selection()) if row[: table.width] in wanted)
        else:
            found = (row for key in sorted(wanted) for row in self.execute(query, key))
        return self._checked(table, found)

    def add(self, table: Table, rows: Iterable[Row]) -> None:
        """Add rows, in the place of those with the same key."""
        values = ", ".join("?" * len(table.columns))
        self._connection.executemany(f"INSERT OR REPLACE INTO {table.name} VALUES ({values})", rows)

    def delete(self, table: Table, keys: Iterable[Sequence[Any]]) -> None:
        """Delete the rows of `keys`, where they are there."""
        self._connection.executemany(f"DELETE FROM {table.name} WHERE {table.is_key}", keys)

    def _checked(self, table: Table, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if not is_whole(row):
                what = f"the row {row[: table.width]!a} of {table.name} is damaged (checksum)"
                raise DamagedIndex(f"{self._places.index}: {what}; {self._places.rebuild_line}")
            yield row


class Index:
    """A connection to the index, opened when it is needed. The threads of a process share it, and take turns.

    A process must not be forked within a transaction; otherwise parent and child may both use the store afterwards.
    """

    def __init__(self, places: StorePlaces) -> None:
        self.places = places
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._held = contextlib.ExitStack()  # the connection, and a shared lock on index.lock
        _OPEN.add(self)

    def __del__(self) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self, begin: str = "BEGIN") -> Iterator[Transaction]:
        """A transaction: all that is read within the block is of one moment. Raises UserError for SQLite's errors."""
        with self.lock, translated(self.places):
            connection = self._open()
            try:  # from before the BEGIN: Ctrl-C may strike right after it, and other threads go on writing
                connection.execute(begin)
                yield Transaction(connection, self.places)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that writes: all of the block is committed at its end, or nothing of it.

        Processes get their turns in the order in which they ask. SQLite alone would let some wait for minutes.
        """
        with self.lock, translated(self.places):  # no fork while the turn is held
            self._open()  # which may take a turn
            with locked(self.places.turn_lock, exclusive=True), self.reading("BEGIN IMMEDIATE") as transaction:
                yield transaction

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            self._connection = None
            self._held.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            with contextlib.ExitStack() as stack:
                stack.enter_context(locked(self.places.index_lock, exclusive=False))  # waits for a rebuild
                _check_there(self.places)
                connection = stack.enter_context(contextlib.closing(connect(self.places.index)))
                if _has_log(connection):
                    connection.close()  # before the turn: the process that has it waits for all others to close
                    with locked(self.places.turn_lock, exclusive=True):
                        connection = stack.enter_context(contextlib.closing(connect(self.places.index)))
                        _end_log(connection)
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                    create_tables(connection)
                self._connection, self._held = connection, stack.pop_all()
        return self._connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection with this store's settings. A commit is on the disk when it returns."""
    connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    for setting in ("synchronous = FULL", "temp_store = MEMORY", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _has_log(connection: sqlite3.Connection) -> bool:
    mode: str = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return mode == "wal"


def _end_log(connection: sqlite3.Connection) -> None:
    """Replace the write-ahead log of an earlier version by a rollback journal, once no other process has it open."""
    end = time.monotonic() + BUSY_SECONDS
    while _has_log(connection):
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)  # SQLite does not wait here


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of an index, where another process has not done so."""
    connection.execute("BEGIN IMMEDIATE")
    for name, width, columns in TABLES:
        key = f"PRIMARY KEY ({', '.join(columns[:width])})"
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(columns)}, {key}) WITHOUT ROWID")
    connection.execute("COMMIT")


def _check_there(places: StorePlaces) -> None:
    # Before the look at the index: another process may be making the store, and makes the index first.
    begun = places.metrics.exists() or places.states.exists()
    lost = not places.index.exists() or places.index.stat().st_size == 0
    if places.rebuilt_index.exists() or (lost and begun):
        raise DamagedIndex(f"{places.index}: lost, or its rebuild was cut off; {places.rebuild_line}")


_MEANINGS = {
    "is full": "no space left on the device; free some and start again: nothing is lost",
    "readonly|unable to open": "not writable; check its permissions, or use another store",
    "locked": f"kept busy by other processes for {BUSY_SECONDS:.0f} s; start again when they have ended",
    "disk I/O error": "the system could not read or write it; check the space, the quota and the disk",
}


@contextlib.contextmanager
def translated(places: StorePlaces) -> Iterator[None]:
    """What SQLite and the system report within the block, as UserError: one line that names the fix."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
            raise  # a mistake in this package or its use, such as a value that SQLite does not have
        text = " ".join(str(error).split())
        if "readonly" in text and os.access(places.index, os.W_OK) and os.access(places.directory, os.W_OK):
            text = "an unknown version in its header"
        for pattern, meaning in _MEANINGS.items():
            if re.search(pattern, text):
                raise UserError(f"{places.index}: {meaning} ({text})") from error
        raise DamagedIndex(f"{places.index}: damaged ({text}); {places.rebuild_line}") from error
    except UnicodeDecodeError as error:  # of a message that quotes a damaged index
        raise DamagedIndex(f"{places.index}: damaged (not text); {places.rebuild_line}") from error
    except OSError as error:
        raise refusal(error, Path(error.filename or places.index)) from error


_OPEN: "weakref.WeakSet[Index]" = weakref.WeakSet()
_HELD: list[Index] = []  # between the two ends of a fork


def _before_fork() -> None:
    """Close all connections: SQLite's must not pass to a child. Waits for transactions of other threads."""
    _HELD[:] = list(_OPEN)
    for index in _HELD:
        index.lock.acquire()
        index.close()


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
