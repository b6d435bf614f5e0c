"""Owners: processes that claim tasks and pin states, for as long as they live.

An owner is live as long as it holds an flock on its file. The system releases that when the process dies, by
kill -9 too, and on every machine of a shared file system with flock; no clock and no heartbeat is asked. What a dead
owner claimed or pinned is void.
"""

import contextlib
import itertools
import os
import platform
import sqlite3
import uuid
import weakref
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from fastwi.errors import UserError
from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import open_lock, take
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.rows import ATTEMPTS, CLAIMS, MEASUREMENTS, PINS, sealed
from fastwi.experiment.store.select import rows_of_keys
from fastwi.experiment.tree import MeasurementKey

KEPT = "kept"
"""The owner of pins that last: of the states that some sweep wants kept once it is done."""


class Owner:
    """One coordinating process. Made by `Store.owner`; a context manager, at whose end all is released.

    Not for use in a forked child.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places = database.places
        self._process = os.getpid()
        self.id = uuid.uuid4().hex
        self._path = self._places.owner(self.id)
        self._descriptor: int | None = _hold(self._path)
        _LIVE_HERE[self.id] = self

    def __enter__(self) -> "Owner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None and self._process == os.getpid():
            self._unlock()

    def claim(
        self,
        tasks: Sequence[MeasurementKey],
        again: Collection[MeasurementKey] = (),
        groups: Iterable[Collection[MeasurementKey]] = (),
    ) -> list[MeasurementKey]:
        """Take those of `tasks` that nobody live has and that are not measured yet; in one transaction.

        Args:
            tasks: (state, treatment); they come back in this order.
            again: tasks that are given though they are measured, because their state is needed once more.
            groups: of tasks, each is given as a whole or not at all; what this owner has already counts as given.

        Returns:
            The tasks that are this owner's now and were not before. Each is logged as an attempt.
        """
        self._check()
        tasks = list(dict.fromkeys((state, treatment) for state, treatment in tasks))
        again = {(state, treatment) for state, treatment in again}
        whole = [set(group) for group in groups]
        with self._database.writing() as connection:
            asked = {*tasks, *itertools.chain(*whole)}
            claims = {row[:2]: row[2] for row in rows_of_keys(connection, self._places, CLAIMS, asked)}
            measured = {row[:2] for row in rows_of_keys(connection, self._places, MEASUREMENTS, tasks)}
            live = live_owners(self._places, set(claims.values()))
            given = [
                task for task in tasks if claims.get(task) not in live and (task not in measured or task in again)
            ]
            have = {*given, *(task for task, owner in claims.items() if owner == self.id)}
            refused = {task for group in whole if not group <= have for task in group}
            given = [task for task in given if task not in refused]
            connection.executemany(CLAIMS.deletion, [task for task in given if task in claims])  # those of the dead
            connection.executemany(CLAIMS.insertion, [sealed(*task, self.id) for task in given])
            last = connection.execute("SELECT coalesce(max(number), 0) FROM attempts").fetchone()[0]
            attempts = (sealed(last + 1 + n, *task, self.id) for n, task in enumerate(given))
            connection.executemany(ATTEMPTS.insertion, attempts)
        return given

    def release(self, tasks: Iterable[MeasurementKey]) -> None:
        """Give back claims without a result. Those of others stay."""
        self._check()
        tasks = list(tasks)
        with self._database.writing() as connection:
            for task in tasks:
                connection.execute(f"{CLAIMS.deletion} AND owner = ?", (*task, self.id))

    def pin(self, keys: Iterable[str]) -> None:
        """Keep the states `keys` from being dropped by others, whether or not they are there yet.

        Pin first, then ask the store which are there.
        """
        self._check()
        add_pins(self._database, keys, self.id)

    def close(self) -> None:
        """Release every claim and pin, and the lock. Nothing happens the second time."""
        if self._descriptor is None or self._process != os.getpid():
            return
        try:
            # Where the index cannot be written they are void all the same, once the lock is gone.
            with contextlib.suppress(UserError), self._database.writing() as connection:
                for table in (CLAIMS, PINS):
                    connection.execute(f"DELETE FROM {table.name} WHERE owner = ?", (self.id,))
        finally:
            self._unlock()

    def _unlock(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        _LIVE_HERE.pop(self.id, None)
        with contextlib.suppress(OSError):
            self._path.unlink()
        if descriptor is not None:
            os.close(descriptor)

    def _check(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError("an owner belongs to the process that made it; make another in this one")
        if self._descriptor is None:
            raise RuntimeError("this owner is closed")


def add_pins(database: Database, keys: Iterable[str], owner: str) -> None:
    """Have `owner` pin states, those that it has pinned already among them."""
    rows = (sealed(key, owner) for key in sorted(set(keys)))
    with database.writing() as connection:
        connection.executemany(f"{PINS.insertion} ON CONFLICT DO NOTHING", rows)


def live_owners(places: StorePlaces, owners: Iterable[str]) -> set[str]:
    """Those of `owners` whose process lives."""
    # One's own are not tried: over NFS a process may get its own lock a second time.
    return {owner for owner in owners if owner == KEPT or owner in _LIVE_HERE or _is_live(places.owner(owner))}


def bury_dead(connection: sqlite3.Connection, places: StorePlaces) -> int:
    """Delete the claims and pins of dead owners, within a transaction; return how many."""
    buried = 0
    for table in (CLAIMS, PINS):
        owners = {owner for (owner,) in connection.execute(f"SELECT DISTINCT owner FROM {table.name}")}
        for owner in owners - live_owners(places, owners):
            buried += connection.execute(f"DELETE FROM {table.name} WHERE owner = ?", (owner,)).rowcount
    return buried


_LIVE_HERE: "weakref.WeakValueDictionary[str, Owner]" = weakref.WeakValueDictionary()


def _hold(path: Path) -> int:
    """Make and lock an owner's file."""
    while True:
        descriptor = open_lock(path)
        take(descriptor, path, exclusive=True)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.write(descriptor, f"{platform.node()} {os.getpid()}\n".encode())  # for people
                return descriptor
        os.close(descriptor)  # `gc` took the file for a dead owner's before it was locked


def _is_live(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not ours to read; better to wait than to do its work twice
    try:
        # Shared: two processes that ask at once must not take each other for the owner.
        return not take(descriptor, path, exclusive=False, wait=False)
    finally:
        os.close(descriptor)


def _after_fork_in_child() -> None:
    """The child's copies of the descriptors would keep the locks when the owner is killed."""
    for owner in list(_LIVE_HERE.values()):
        if owner._descriptor is not None:
            os.close(owner._descriptor)
            owner._descriptor = None
    _LIVE_HERE.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
