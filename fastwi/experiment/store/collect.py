"""gc: remove what no live process has a use for."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import locked, take
from fastwi.experiment.store.owner import bury_dead
from fastwi.experiment.store.places import StorePlaces, is_temporary
from fastwi.experiment.store.removal import unlink_unwanted, wanted_states
from fastwi.experiment.store.rows import STATES
from fastwi.experiment.store.select import all_rows
from fastwi.experiment.store.usage import files_under


@dataclass(frozen=True, slots=True)
class Freed:
    """What went: unfinished files, states without a row, and damaged files in bytes; claims, pins and locks of
    dead owners as counts."""

    temporary: int
    orphans: int
    damaged: int
    claims: int
    locks: int

    @property
    def bytes(self) -> int:
        """All bytes together."""
        return self.temporary + self.orphans + self.damaged


def collect(database: Database) -> Freed:
    """Remove files that were left unfinished, states that the index does not have, what dead owners held, and
    `damaged/`.

    Nothing goes that a live owner pinned or claimed. No clock is asked: whoever writes holds writing.lock, so if it
    is free every unfinished file was left by the dead. If it is not, only unfinished states that nobody live claims
    could be of the dead, and they wait for the next time.
    """
    places = database.places
    with database.writing() as connection:
        claims = bury_dead(connection, places)
    locks = _remove_dead_locks(places)
    temporary = _remove_unfinished(database)
    with database.reading() as connection:
        known = {row[0] for row in all_rows(connection, places, STATES)}
    keys = (places.key_of(path) for path in files_under(places.states) if not is_temporary(path))
    orphans = unlink_unwanted(database, sorted({key for key in keys if key is not None} - known))
    damaged = sum(_unlink(path) for path in files_under(places.damaged))
    return Freed(temporary, orphans, damaged, claims, locks)


def _remove_unfinished(database: Database) -> int:
    places = database.places
    with locked(places.writing_lock, exclusive=True, wait=False) as alone:
        if not alone:
            return 0
        with database.reading() as connection:
            wanted = wanted_states(connection, places, ())
        found = [path for path in files_under(places.directory) if is_temporary(path.relative_to(places.directory))]
        # A file system without working shared locks between machines still leaves claimed states be.
        freed = sum(_unlink(path) for path in found if places.key_of(path) not in wanted)
    for folder in places.directory.glob(".*.tmp/"):  # of a rebuild, which is over: it needs the index for itself
        with contextlib.suppress(OSError):
            folder.rmdir()
    return freed


def _remove_dead_locks(places: StorePlaces) -> int:
    removed = 0
    for path in files_under(places.owners):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            if path.suffix == ".lock" and take(descriptor, path, exclusive=True, wait=False):
                path.unlink(missing_ok=True)
                removed += 1
        finally:
            os.close(descriptor)
    return removed


def _unlink(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        size = path.stat(follow_symlinks=False).st_size
        path.unlink()
        return size
    return 0
