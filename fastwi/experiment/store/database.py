"""index.sqlite: opened safely, and its errors told in one line.

Why SQLite: several processes write at once, each in small transactions that are on the disk when they return.
DuckDB, which would also store columns, locks its file for one writing process.

On a local disk the write-ahead log (WAL) is used: readers and a writer do not wait for each other. WAL needs shared
memory of one machine, so where the directory is on a network file system (`fastwi.experiment.store.filesystem`) it is
the rollback journal instead. A store that was once opened over a network stays with the journal: its file server sees
it as local, and the two do not mix. Either way a commit is flushed to the disk (synchronous = FULL).

Everybody who has the index open holds index.lock (shared). Who finds it free is alone: a log that a killed process
left is then checked before SQLite reads it, and the index is made where there is none.
"""

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator

from fastwi.errors import UserError
from fastwi.experiment.store.filesystem import network_type, open_lock, take
from fastwi.experiment.store.places import StorePlaces, rebuild_line
from fastwi.experiment.store.records import DamagedIndex
from fastwi.experiment.store.rows import TABLES, schema
from fastwi.experiment.store.wal import damage_in_wal

BUSY_SECONDS = 60.0


class Database:
    """A connection to the index, shared by the threads of one process, which take turns.

    It is opened when it is first needed. Around a fork it is closed and opened again on both sides: SQLite's locks
    do not pass to a child.
    """

    def __init__(self, places: StorePlaces) -> None:
        self.places = places
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._presence: int | None = None
        self._process = os.getpid()
        _OPEN.add(self)

    def __del__(self) -> None:
        if self._process == os.getpid():
            self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, to read from. Raises UserError, DamagedIndex among them, for what SQLite reports."""
        with self._lock, translated(self.places):
            yield self._open()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As `reading`; all that is read within the block is of one moment."""
        with self.reading() as connection:
            try:  # from before the BEGIN: Ctrl-C may strike right after it, and other threads go on writing
                connection.execute("BEGIN")
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block is committed at its end, or nothing of it."""
        with self.reading() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with self._lock:
            connection, self._connection = self._connection, None
            presence, self._presence = self._presence, None
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):  # a last checkpoint on a full disk: the log stays
                    connection.close()
            if presence is not None:
                os.close(presence)

    def _open(self) -> sqlite3.Connection:
        if self._process != os.getpid():
            raise RuntimeError("this store was forked in the middle of a transaction; open it anew in this process")
        if self._connection is None:
            self._presence = open_lock(self.places.index_lock)
            try:
                self._connection = self._connect(self._presence)
            except BaseException:
                self.close()
                raise
        return self._connection

    def _connect(self, presence: int) -> sqlite3.Connection:
        path = self.places.index_lock
        while True:
            alone = take(presence, path, exclusive=True, wait=False)
            if not alone:
                take(presence, path, exclusive=False)  # waits for who is alone now, until its index is ready
            if self.places.rebuilt_index.exists():
                raise DamagedIndex(f"{self.places.index}: its rebuilding was cut off; {rebuild_line(self.places)}")
            if alone:
                _check_alone(self.places)
            connection = connect(str(self.places.index))
            try:
                if alone:
                    _prepare(connection, self.places)
                elif _is_new(connection):
                    connection.close()
                    continue  # who was alone failed: try to be alone
                check_schema(connection, self.places)
                _check_mode(connection, self.places)
            except BaseException:
                connection.close()
                raise
            if alone:
                take(presence, path, exclusive=False)
            return connection


def connect(path: str) -> sqlite3.Connection:
    """A connection with this store's settings; transactions are begun and ended by hand."""
    connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    for setting in ("synchronous = FULL", "journal_size_limit = 0", "temp_store = MEMORY", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty index."""
    connection.execute("BEGIN IMMEDIATE")
    for _, _, statement in schema():
        connection.execute(statement)
    connection.executemany("INSERT INTO tallies VALUES (?, 0, 0)", [(table.name,) for table in TABLES])
    connection.execute("COMMIT")


def check_schema(connection: sqlite3.Connection, places: StorePlaces) -> None:
    """DamagedIndex where the tables are not the store's to the letter: a changed type would change values."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    if sorted(found) != sorted(schema()):
        raise DamagedIndex(f"{places.index}: damaged (its tables are not a store's); {rebuild_line(places)}")


def _check_alone(places: StorePlaces) -> None:
    """What can be checked only while no one has the index open."""
    if not places.index.exists() or places.index.stat().st_size == 0:
        if places.metrics.exists() or places.states.exists() or places.wal.exists():
            raise DamagedIndex(f"{places.index}: lost; {rebuild_line(places)}")
        return
    damage = damage_in_wal(places.wal)
    if damage is not None:
        raise DamagedIndex(f"{places.wal}: damaged ({damage}); {rebuild_line(places)}")
    with places.index.open("rb") as stream:
        head = stream.read(20)
    # Bytes 18 and 19: 1 for the rollback journal, 2 for WAL. SQLite would only become unable to write, and say so.
    if head[18:20] not in (b"\1\1", b"\2\2"):
        raise DamagedIndex(f"{places.index}: damaged (its header); {rebuild_line(places)}")


def _prepare(connection: sqlite3.Connection, places: StorePlaces) -> None:
    """Set the journal's mode, and make the tables of a new index. Only who is alone does this."""
    new = _is_new(connection)
    if network_type(places.directory):
        connection.execute("PRAGMA journal_mode = DELETE")
    elif new:
        connection.execute("PRAGMA journal_mode = WAL")
    if new:
        create_tables(connection)


def _is_new(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)


def _check_mode(connection: sqlite3.Connection, places: StorePlaces) -> None:
    kind = network_type(places.directory)
    if kind and connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        raise UserError(
            f"{places.index}: open on a machine where it is a local disk, and here it is on {kind}; "
            "end the processes there first"
        )


@contextlib.contextmanager
def translated(places: StorePlaces) -> Iterator[None]:
    """What SQLite and the system report within the block, as UserError: one line that names the mend."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
            raise  # a mistake in this package or its use, such as a value that no column takes
        raise _say(error, places) from error
    except UnicodeDecodeError as error:  # of a message that quotes a damaged index
        raise DamagedIndex(f"{places.index}: damaged (text that is none); {rebuild_line(places)}") from error
    except OSError as error:
        raise UserError(f"{places.index}: {error.strerror or error}") from error


def _say(error: sqlite3.Error, places: StorePlaces) -> UserError:
    text = " ".join(str(error).split())
    if "is full" in text:
        return UserError(f"{places.index}: no space left on the device; free some and start again: nothing is lost")
    if "readonly" in text or "unable to open" in text:
        return UserError(f"{places.index}: not writable ({text}); use another store, or see to its permissions")
    if "locked" in text:
        return UserError(
            f"{places.index}: other processes have kept it busy for {BUSY_SECONDS:.0f} s ({text}); "
            "start again when they are done"
        )
    if "disk I/O error" in text:
        return UserError(
            f"{places.index}: the system could not read or write it ({text}); "
            "see to the space, the quota and the disk, then start again"
        )
    return DamagedIndex(f"{places.index}: damaged ({text}); {rebuild_line(places)}")


_OPEN: "weakref.WeakSet[Database]" = weakref.WeakSet()
_HELD: list[Database] = []  # between the two ends of a fork
_ABANDONED: list[sqlite3.Connection] = []  # a child must not even close what it inherited


def _before_fork() -> None:
    _HELD[:] = list(_OPEN)
    for database in _HELD:
        database._lock.acquire()
        if database._connection is None or not database._connection.in_transaction:
            database.close()


def _after_fork_in_parent() -> None:
    while _HELD:
        _HELD.pop()._lock.release()


def _after_fork_in_child() -> None:
    for database in _HELD:
        if database._connection is None:
            database._process = os.getpid()
        else:
            _ABANDONED.append(database._connection)
    _after_fork_in_parent()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
