"""Owners: processes that claim tasks and pin states, for as long as they live.

An owner is live as long as it holds an flock on its file, which the system releases when the process ends, by kill -9
too, and on every machine of a shared file system with flock. No clock is asked. What a dead owner held is void.
"""

import contextlib
import itertools
import os
import platform
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from fastwi.errors import UserError
from fastwi.experiment.store.index import ATTEMPTS, CLAIMS, MEASUREMENTS, PINS, STATES, Index, Transaction, sealed
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.tree import MeasurementKey
from fastwi.files import lock, open_lock, refusal

KEPT = "kept"
"""The owner of pins that last: of the states that some sweep wants kept once it is done."""


class Owner(contextlib.AbstractContextManager["Owner"]):
    """One coordinating process, made by `Store.owner`. A context manager: all is released at its end."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.id = uuid.uuid4().hex
        self._path = index.places.owners / f"{self.id}.lock"
        self._descriptor: int | None = _hold(self._path)
        _LIVE_HERE[self.id] = self

    def __exit__(self, *_: object) -> None:
        self.close()

    def claim(
        self,
        tasks: Sequence[MeasurementKey],
        again: Collection[MeasurementKey] = (),
        groups: Iterable[Collection[MeasurementKey]] = (),
    ) -> list[MeasurementKey]:
        """Take those of `tasks` that no live owner has and that are not measured yet; in one transaction.

        Tasks of `again` are given though they are measured, unless their states are there by now, which another
        process has then made again. Each of `groups` is given as a whole or not at all; what this owner has already
        counts as given. Returns, in their order, the tasks that are this owner's now and were not before. Each is
        logged as an attempt.
        """
        self._check()
        tasks, groups = list(dict.fromkeys(tasks)), list(map(set, groups))
        with self._index.writing() as transaction:
            claims = {row[:2]: row[2] for row in transaction.of(CLAIMS, {*tasks, *itertools.chain(*groups)})}
            stored = {row[0] for row in transaction.of(STATES, {task[:1] for task in again})}
            done = {row[:2] for row in transaction.of(MEASUREMENTS, tasks)}
            done.difference_update(task for task in again if task[0] not in stored)
            live = live_owners(self._index.places, claims.values())
            free = [task for task in tasks if claims.get(task) not in live and task not in done]
            have = {*free, *(task for task, owner in claims.items() if owner == self.id)}
            refused = {task for group in groups if not have.issuperset(group) for task in group}
            given = [task for task in free if task not in refused]
            transaction.add(CLAIMS, [sealed(*task, self.id) for task in given])
            (last,) = transaction.execute("SELECT coalesce(max(number), 0) FROM attempts").fetchone()
            transaction.add(ATTEMPTS, (sealed(last + n, *task, self.id) for n, task in enumerate(given, 1)))
        return given

    def release(self, tasks: Iterable[MeasurementKey]) -> None:
        """Give back claims without a result. Those of others stay."""
        self._check()
        with self._index.writing() as transaction:
            mine = [row[:2] for row in transaction.of(CLAIMS, tasks) if row[2] == self.id]
            transaction.delete(CLAIMS, mine)

    def pin(self, keys: Iterable[str]) -> None:
        """Keep the states `keys` from being dropped by others. Pin first, then ask the store which are there."""
        add_pins(self._index, keys, self.id)

    def close(self) -> None:
        """Release every claim and pin, and the lock. Nothing happens the second time."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            # Where the index cannot be written they are void all the same, once the lock is gone.
            with contextlib.suppress(UserError), self._index.writing() as transaction:
                _delete_held(transaction, self.id)
        finally:
            _LIVE_HERE.pop(self.id, None)
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(descriptor)

    def _check(self) -> None:
        if self._descriptor is None:
            raise RuntimeError("this owner is closed, or of another process; make another one")


def add_pins(index: Index, keys: Iterable[str], owner: str) -> None:
    """Have `owner` pin states, those that it has pinned already among them."""
    with index.writing() as transaction:
        transaction.add(PINS, (sealed(key, owner) for key in set(keys)))


def live_owners(places: StorePlaces, owners: Iterable[str]) -> set[str]:
    """Those of `owners` whose process lives."""
    # One's own are not tried: over NFS a process may get its own lock a second time.
    return {owner for owner in set(owners) if owner == KEPT or owner in _LIVE_HERE or _is_live(places, owner)}


def remove_dead(index: Index) -> tuple[int, int]:
    """Remove what dead owners have left; returns the number of claims and pins, and that of locks."""
    places = index.places
    with index.writing() as transaction:
        owners = {row[-2] for table in (CLAIMS, PINS) for row in transaction.rows(table)}
        held = sum(_delete_held(transaction, owner) for owner in owners - live_owners(places, owners))
    locks = 0
    for path in places.owners.glob("*.lock"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if lock(descriptor, path, exclusive=True, wait=False):
                    path.unlink(missing_ok=True)
                    locks += 1
            finally:
                os.close(descriptor)
    return held, locks


def _delete_held(transaction: Transaction, owner: str) -> int:
    statements = (f"DELETE FROM {table.name} WHERE owner = ?" for table in (CLAIMS, PINS))
    return sum(transaction.execute(statement, (owner,)).rowcount for statement in statements)


_LIVE_HERE: dict[str, Owner] = {}


def _hold(path: Path) -> int:
    """Make and lock an owner's file."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            descriptor = open_lock(path)
            stack.callback(os.close, descriptor)
            lock(descriptor, path, exclusive=True)
            # `gc` may have taken the file for a dead owner's before it was locked.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                try:
                    os.write(descriptor, f"{platform.node()} {os.getpid()}\n".encode())  # for people
                except OSError as error:
                    raise refusal(error, path) from error
                stack.pop_all()
                return descriptor


def _is_live(places: StorePlaces, owner: str) -> bool:
    path = places.owners / f"{owner}.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's perhaps; better to wait than to do its work twice
    try:
        # Shared: two processes that ask at once must not take each other for the owner.
        return not lock(descriptor, path, exclusive=False, wait=False)
    finally:
        os.close(descriptor)


def _after_fork_in_child() -> None:
    """The child's copies of the descriptors would keep the locks when the owner is killed."""
    while _LIVE_HERE:
        _, owner = _LIVE_HERE.popitem()
        if owner._descriptor is not None:
            os.close(owner._descriptor)
            owner._descriptor = None


os.register_at_fork(after_in_child=_after_fork_in_child)
