"""States leave the store: dropped, found damaged, or left by a dead process.

A state's row goes first and its file after it, so that a crash leaves a file without a row and not the reverse. The
file goes within a transaction of its own that looks again: a process that trains the state again claims it before it
writes the file.
"""

import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from fastwi.experiment.store.index import MEASUREMENTS, PINS, STATES, Index
from fastwi.experiment.store.owner import remove_dead, wanted_states
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import StoredState
from fastwi.experiment.store.states import damage_of
from fastwi.files import locked, refusal

_BATCH = 100  # files a transaction; other processes wait for that long


def drop_states(index: Index, keys: Iterable[str], own: Collection[str]) -> set[str]:
    """Remove states that no live owner but those of `own` has pinned or claimed; return those that went.

    Those that stay lose the pins of `own`: of the owners that need a state, the last to drop it removes it.
    """
    dropped = set[str]()
    for batch in _batches(list(dict.fromkeys(keys))):
        with index.writing() as transaction:
            wanted = wanted_states(transaction, index.places, own, batch)
            there = {row[0] for row in transaction.of(STATES, ((key,) for key in batch))}
            gone = sorted(there - wanted)
            transaction.delete(STATES, [(key,) for key in gone])
            transaction.delete(PINS, [(key, owner) for key in batch for owner in own])
        unlink_unwanted(index, gone)
        dropped.update(gone)
    return dropped


def unlink_unwanted(index: Index, keys: Sequence[str]) -> int:
    """Remove the files of those states that the index does not have and no live owner wants; return the bytes."""
    freed = 0
    for batch in _batches(keys):
        with index.writing() as transaction:
            wanted = wanted_states(transaction, index.places, keys=batch)
            wanted.update(row[0] for row in transaction.of(STATES, ((key,) for key in batch)))
            freed += sum(_unlink(index.places.state(key)) for key in batch if key not in wanted)
    return freed


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH))


def mark_damaged(index: Index, key: str) -> bool:
    """Forget a damaged state and its measurements under every treatment, so that it is trained again.

    Its file goes to `damaged/`. A state whose file is right, because another process has written it again, is left
    alone. Returns whether it was forgotten.
    """
    places = index.places
    with index.writing() as transaction:
        if any(damage_of(places, StoredState(*row[:3])) is None for row in transaction.of(STATES, [(key,)])):
            return False
        transaction.delete(STATES, [(key,)])
        transaction.execute(f"DELETE FROM {MEASUREMENTS.name} WHERE state = ?", (key,))
        # Before the commit: after it another process may write the state again.
        set_aside(places, places.state(key))
    return True


def set_aside(places: StorePlaces, path: Path) -> None:
    """Move a file, if it is there, to `damaged/`."""
    try:
        places.damaged.mkdir(exist_ok=True)
        os.replace(path, places.damaged / f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refusal(error, path) from error


def collect(index: Index) -> dict[str, int]:
    """Remove unfinished files, states that the index does not have, what dead owners held, and `damaged/`.

    Nothing goes that a live owner pinned or claimed. No clock is asked: a process that writes a file holds
    writing.lock, so if that is free every unfinished file was left by a dead process.

    Returns what went: `temporary`, `orphans` and `damaged` in bytes; `claims` (with pins) and `locks` as counts.
    """
    places, temporary = index.places, 0
    claims, locks = remove_dead(index)
    with locked(places.writing_lock, exclusive=True, wait=False) as alone:
        if alone:
            with index.reading() as transaction:
                wanted = wanted_states(transaction, places)
            found = [path for path in files_under(places.directory) if places.is_unfinished(path)]
            # A file system without working shared locks between machines still leaves claimed states alone.
            temporary = sum(_unlink(path) for path in found if places.key_of(path) not in wanted)
    with index.reading() as transaction:
        known = {row[0] for row in transaction.rows(STATES)}
    keys = {places.key_of(path) for path in files_under(places.states) if not places.is_unfinished(path)}
    orphans = unlink_unwanted(index, sorted(key for key in keys if key is not None and key not in known))
    damaged = sum(map(_unlink, files_under(places.damaged)))
    return {"temporary": temporary, "orphans": orphans, "damaged": damaged, "claims": claims, "locks": locks}


def files_under(directory: Path) -> Iterator[Path]:
    """Every file below a directory. Directories and files that vanish meanwhile are passed over."""
    return (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)


def _unlink(path: Path) -> int:
    """Remove a file; return its bytes, 0 where another process was faster."""
    try:
        size = path.stat(follow_symlinks=False).st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise refusal(error, path) from error
    return size
