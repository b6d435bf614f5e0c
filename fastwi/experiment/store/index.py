"""index.sqlite: its tables, transactions on it, and its errors in one line.

SQLite, because several processes write at once, each in small transactions that are on the disk when they return.
On a local disk its write-ahead log (WAL) lets readers and a writer work at the same time. WAL needs shared memory of
one machine, so on a network file system the rollback journal is used instead. A store that was once opened over a
network stays with the journal: its file server sees it as local, and the two do not mix.

The last column of every row, `crc`, is the CRC-32 of `ascii` of the tuple of the other columns, its key among them; a
float is an 8-byte blob. A damaged row is an error where it is read. A missing row is work that is not done yet.
SQLite drops the transactions of a damaged log from the damage on, without an error. So the log that a killed process
left is checked before SQLite opens it: see `log_is_whole`.
"""

import contextlib
import os
import re
import sqlite3
import struct
import threading
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fastwi.errors import UserError
from fastwi.experiment.store.places import StorePlaces, network_type
from fastwi.experiment.store.records import DamagedIndex
from fastwi.files import lock, open_lock, refusal

BUSY_SECONDS = 60.0
_SCANNED_FOR_ONE_FOUND = 4  # rows that are passed over in the time in which one is looked up by its key

Row: TypeAlias = tuple[Any, ...]


class Table(NamedTuple):
    """A table: its columns, of which the first `width` are its key. Without types SQLite stores values as given."""

    name: str
    width: int
    columns: tuple[str, ...]

    def insertion(self, or_else: str = "REPLACE") -> str:
        """The statement that adds a row, in the place of one with the same key; with "IGNORE" that one stays."""
        return f"INSERT OR {or_else} INTO {self.name} VALUES ({', '.join('?' * len(self.columns))})"

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
    return zlib.crc32(ascii(row[:-1]).encode()) == row[-1]


class Transaction:
    """An open transaction. All rows that it gives are checked: DamagedIndex at one whose checksum is wrong."""

    def __init__(self, connection: sqlite3.Connection, places: StorePlaces) -> None:
        self.execute, self._many, self._places = connection.execute, connection.executemany, places

    def rows(self, table: Table, where: str = "true", values: Sequence[Any] = ()) -> Iterator[Row]:
        """Every row, or those of a condition, in the order of the table's key."""
        return self._checked(self.execute(table.selection(where), values), table)

    def of(self, table: Table, keys: Iterable[Sequence[Any]] | None) -> Iterator[Row]:
        """The rows of those `keys` (None: all) that are there, in their order; the same key twice gives one row."""
        if keys is None:
            return self.rows(table)
        if self.is_empty(table):
            return iter(())
        wanted = set(map(tuple, keys))
        many = _SCANNED_FOR_ONE_FOUND * len(wanted)
        (count,) = self.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table.name} LIMIT {many})").fetchone()
        if count < many:
            found = (row for row in self.execute(table.selection()) if row[: table.width] in wanted)
        else:
            query = table.selection(table.is_key)
            found = (row for key in sorted(wanted) for row in self.execute(query, key))
        return self._checked(found, table)

    def is_empty(self, table: Table) -> bool:
        """Whether a table has no rows."""
        return self.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone() is None

    def add(self, table: Table, rows: Iterable[Row], or_else: str = "REPLACE") -> None:
        """Add rows, in the place of those with the same key; with "IGNORE" those stay."""
        self._many(table.insertion(or_else), rows)

    def delete(self, table: Table, keys: Iterable[Sequence[Any]]) -> None:
        """Delete the rows of `keys`, where they are there."""
        self._many(f"DELETE FROM {table.name} WHERE {table.is_key}", keys)

    def _checked(self, rows: Iterable[Row], table: Table) -> Iterator[Row]:
        for row in rows:
            if not is_whole(row):
                what = f"the row {row[: table.width]!a} of {table.name} is damaged (checksum)"
                raise DamagedIndex(f"{self._places.index}: {what}; {self._places.rebuild_line}")
            yield row


class Index:
    """A connection to the index, opened when it is needed. The threads of a process share it, and take turns.

    Around a fork it is closed: SQLite's locks do not pass to a child. Within a transaction it stays open in the
    parent, and the child cannot use a store. A process that has the index open holds index.lock.
    """

    def __init__(self, places: StorePlaces) -> None:
        self.places = places
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._presence: int | None = None
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
                if connection not in _LEFT:  # not in a child that was forked within the block
                    connection.execute("COMMIT")
            finally:
                if connection not in _LEFT and connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")

    def writing(self) -> contextlib.AbstractContextManager[Transaction]:
        """A transaction that writes: all of the block is committed at its end, or nothing of it."""
        return self.reading("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self.lock:
            connection, self._connection = self._connection, None
            presence, self._presence = self._presence, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):  # a last checkpoint on a full disk: the log stays
                    connection.close()
            if presence is not None:
                os.close(presence)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if _LEFT:
                raise RuntimeError("this process was forked within a store's transaction; use the store in another")
            path = self.places.index_lock
            self._presence = open_lock(path)
            try:
                alone = lock(self._presence, path, exclusive=True, wait=False)
                if not alone:
                    lock(self._presence, path, exclusive=False)  # waits for a process that is alone now
                _check_there(self.places)
                if alone:  # for to close a file ends the locks that this process has on it
                    _check_files(self.places)
                self._connection = connect(self.places.index)
                _prepare(self._connection, self.places, alone)
                lock(self._presence, path, exclusive=False)
            except BaseException:
                self.close()
                raise
        return self._connection


def connect(path: Path) -> sqlite3.Connection:
    """A connection with this store's settings. A commit is on the disk when it returns."""
    connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    for setting in ("synchronous = FULL", "journal_size_limit = 0", "temp_store = MEMORY", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of an index, where another process has not done so."""
    connection.execute("BEGIN IMMEDIATE")
    for name, width, columns in TABLES:
        key = f"PRIMARY KEY ({', '.join(columns[:width])})"
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(columns)}, {key}) WITHOUT ROWID")
    connection.execute("COMMIT")


def _check_there(places: StorePlaces) -> None:
    lost = not places.index.exists() or places.index.stat().st_size == 0
    if places.rebuilt_index.exists() or (lost and any(map(Path.exists, (places.metrics, places.states, places.wal)))):
        raise DamagedIndex(f"{places.index}: lost, or its rebuild was cut off; {places.rebuild_line}")


def _check_files(places: StorePlaces) -> None:
    """DamagedIndex for damage that SQLite does not report as such."""
    if not log_is_whole(places.wal):
        what = "damaged, and SQLite would drop transactions from it"
        left = "from what is left of it, metrics.parquet and the states"
        raise DamagedIndex(f"{places.wal}: {what}; {places.rebuild_line} {left}")
    if places.index.exists():
        with open(places.index, "rb") as stream:
            versions = stream.read(20)[18:]
        if versions not in (b"", b"\1\1", b"\2\2"):
            raise DamagedIndex(f"{places.index}: damaged (the versions in its header); {places.rebuild_line}")


def log_is_whole(path: Path) -> bool:
    """Whether SQLite recovers the last transaction in a WAL file, if there is any (sqlite.org/fileformat2.html).

    A process that is killed between two system calls of the first commit after a checkpoint leaves a log that looks
    damaged in its last frame. It is taken for damaged: a rebuild then costs time and loses nothing.
    """
    log = path.read_bytes() if path.exists() else b""
    if len(log) <= 32:
        return True
    magic, _, page = struct.unpack_from(">3I", log)
    order = ">" if magic & 1 else "<"
    sums = _wal_sums(log[:24], order, (0, 0))
    if magic not in (0x377F0682, 0x377F0683) or sums != struct.unpack_from(">2I", log, 24):
        return False
    whole = True
    for start in range(32, len(log) - page - 23, 24 + page):
        commit, *salts = struct.unpack_from(">4xI4s4s", log, start)
        of_this_log = [salts[0] == log[16:20], salts[1] == log[20:24]]
        if whole and all(of_this_log):
            sums = _wal_sums(log[start : start + 8] + log[start + 24 : start + 24 + page], order, sums)
            whole = sums == struct.unpack_from(">2I", log, start + 16)
        else:
            whole = False
        # Frames from before a checkpoint have two other salts; damage to one leaves the other.
        if not whole and commit and any(of_this_log):
            return False
    return True


def _wal_sums(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, two in struct.iter_unpack(f"{order}2I", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return first, second


def _prepare(connection: sqlite3.Connection, places: StorePlaces, alone: bool) -> None:
    """Set the journal mode where no other process has the index open, and create the tables of a new one."""
    (new,) = connection.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()
    network = network_type(places.directory)
    if alone and (network or new):
        connection.execute(f"PRAGMA journal_mode = {'DELETE' if network else 'WAL'}")
    if network and connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        local = "open on a machine where it is on a local disk"
        raise UserError(f"{places.index}: {local}, and here it is on {network}; end the processes there first")
    if new:
        create_tables(connection)


_MEANINGS = {
    "is full": "no space left on the device; free some and start again: nothing is lost",
    "readonly|unable to open": "not writable; check its permissions, or use another store",
    "locked": f"kept busy by other processes for {BUSY_SECONDS:.0f} s; start again when they are done",
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
_LEFT: list[sqlite3.Connection] = []  # the parent's, in a child: not to be closed, for that rolls back


def _before_fork() -> None:
    _HELD[:] = list(_OPEN)
    for index in _HELD:
        index.lock.acquire()  # waits for transactions of other threads
        if index._connection is None or not index._connection.in_transaction:
            index.close()


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().lock.release()


def _after_fork_in_child() -> None:
    for index in _HELD:
        if index._connection is not None:
            _LEFT.append(index._connection)
            index._connection = None
            index.close()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
