"""The store, as sweeps use it: what is measured, which states are there, commit, drop, collect garbage.

A state's row goes first and its file after it: a crash leaves a file without a row and not the reverse. The file goes
in a transaction of its own that looks again: a process that trains the state again claims it before it writes it.
"""

import os
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from fastwi.errors import UserError
from fastwi.experiment.store.index import (
    ATTEMPTS,
    CLAIMS,
    MEASUREMENTS,
    PINS,
    STATES,
    Index,
    Transaction,
    sealed,
    translated,
)
from fastwi.experiment.store.owner import KEPT, Owner, add_pins, live_owners, remove_dead
from fastwi.experiment.store.places import StorePlaces, check_directory
from fastwi.experiment.store.records import Measurement, StoredState
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.tree import MeasurementKey
from fastwi.files import locked

_BATCH = 100  # files a transaction; other processes wait for that long


class Store(Index, AbstractContextManager["Store"]):
    """A store directory, for any number of processes at once. A context manager; its next use opens it again.

    Every method raises UserError, in one line, where the index is busy, full, not writable or (DamagedIndex) damaged.
    """

    def __init__(self, places: StorePlaces) -> None:
        super().__init__(places)
        self.directory = places.directory
        self._owners: set[str] = set()

    @classmethod
    def open(cls, directory: str | os.PathLike[str], create: bool = True) -> "Store":
        """Open the store at `directory`; `create` makes one of an empty or missing directory."""
        places = StorePlaces(Path(directory))
        check_directory(places, create)
        store = cls(places)
        with store.reading():
            return store

    def __exit__(self, *_: object) -> None:
        self.close()

    def measurements(self, keys: Iterable[MeasurementKey] | None = None) -> dict[MeasurementKey, Measurement]:
        """Those of the measurements `keys` (default: all) that are there, each checked."""
        with self.reading() as transaction:
            return _measurements(transaction, keys)

    def states(self, keys: Iterable[str] | None = None) -> set[str]:
        """Those of the states `keys` (default: all) that the index has."""
        return set(self.state_files(keys))

    def state_files(self, keys: Iterable[str] | None = None) -> dict[str, StoredState]:
        """What the index knows of those of the states `keys` (default: all) that it has."""
        with self.reading() as transaction:
            return _state_files(transaction, keys)

    def look(
        self, tasks: Iterable[MeasurementKey], keys: Iterable[str]
    ) -> tuple[dict[MeasurementKey, Measurement], dict[str, StoredState], set[MeasurementKey]]:
        """The measurements of `tasks`, the files of the states `keys`, and what other live owners have claimed.

        All of one moment. Others are those that this `Store` did not make.
        """
        with self.reading() as transaction:
            found, files = _measurements(transaction, tasks), _state_files(transaction, keys)
            claims = {row[:2]: row[2] for row in transaction.rows(CLAIMS)}
        others = live_owners(self.places, {*claims.values()} - self._owners)
        return found, files, {task for task, owner in claims.items() if owner in others}

    def commit(
        self, measurements: Iterable[Measurement], states: Iterable[StoredState], tasks: Iterable[MeasurementKey]
    ) -> list[MeasurementKey]:
        """Add measurements and states and end the claims on `tasks`, all in one transaction.

        Returns the keys whose measurement was there with a result that differs in any bit. The earlier one is kept.
        """
        measurements = list(measurements)
        first = {m.key: m for m in reversed(measurements)}
        with self.writing() as transaction:
            there = _measurements(transaction, first)
            fresh = (m for key, m in first.items() if key not in there)
            transaction.add(MEASUREMENTS, (sealed(*m.columns()) for m in fresh))
            transaction.add(STATES, (sealed(file.key, file.bytes, file.sha256) for file in states))
            transaction.delete(CLAIMS, tasks)
        kept = first | there
        return list(dict.fromkeys(m.key for m in measurements if kept[m.key].result() != m.result()))

    def owner(self) -> Owner:
        """A new owner, to claim tasks with: `with store.owner() as owner`."""
        owner = Owner(self)
        self._owners.add(owner.id)
        return owner

    def attempts(self) -> dict[MeasurementKey, int]:
        """How often each task was ever claimed."""
        with self.reading() as transaction:
            return Counter(row[1:3] for row in transaction.rows(ATTEMPTS))

    def keep(self, keys: Iterable[str]) -> None:
        """Have the states `keys`, there already or not, survive every `drop_states`, of other sweeps too."""
        add_pins(self, keys, KEPT)

    def kept(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that any process has given to `keep`, whether their states are there yet or not."""
        with self.reading() as transaction:
            return {row[0] for row in transaction.of(PINS, ((key, KEPT) for key in keys))}

    def drop_states(self, keys: Iterable[str]) -> set[str]:
        """Remove states but not measurements; return those gone. The pins that this `Store` has on `keys` end.

        What is kept, or pinned or claimed by a live owner that this `Store` did not make, stays.
        """
        dropped = set[str]()
        for batch in _batches(list(dict.fromkeys(keys))):
            with self.writing() as transaction:
                wanted = self._wanted(transaction, batch, self._owners)
                gone = sorted(_state_files(transaction, batch).keys() - wanted)
                transaction.delete(STATES, [(key,) for key in gone])
                transaction.delete(PINS, [(key, owner) for key in batch for owner in self._owners])
            self._unlink_unwanted(gone)
            dropped.update(gone)
        return dropped

    def mark_damaged(self, key: str) -> bool:
        """Forget a damaged state and its measurements, so that it is trained again; its file goes to `damaged/`.

        Returns whether it was: not where the file is right, because another process wrote it again.
        """
        with self.writing() as transaction:
            if any(damage_of(self.places, file) is None for file in _state_files(transaction, [key]).values()):
                return False
            set_aside(self.places, self.places.metrics)  # or `rebuild` would bring back what is forgotten
            transaction.delete(STATES, [(key,)])
            transaction.execute(f"DELETE FROM {MEASUREMENTS.name} WHERE state = ?", (key,))
            # Before the commit: after it another process may write the state again.
            set_aside(self.places, self.places.state(key))
        return True

    def stray_states(self) -> set[str]:
        """States that have a file and that the index does not have: not committed yet, or lost from the index."""
        return state_paths(self.places).keys() - self.states()

    def gc(self) -> dict[str, int]:
        """Remove unfinished files, `stray_states`, what dead owners held, and `damaged/`.

        Nothing goes that a live owner pinned or claimed. If writing.lock is free, every unfinished file was left by a
        dead process. Returns `temporary`, `orphans` and `damaged` bytes; numbers of `claims` (with pins) and `locks`.
        UserError where the index is empty and there are states: it was lost.
        """
        places, temporary, strays = self.places, 0, self.stray_states()
        with self.reading() as transaction:
            if strays and not any(any(transaction.rows(table)) for table in (MEASUREMENTS, STATES, ATTEMPTS)):
                raise UserError(f"{places.index}: empty, and {places.states} is not; {places.rebuild_line}")
        claims, locks = remove_dead(self)
        with translated(places), locked(places.writing_lock, exclusive=True, wait=False) as alone:
            if alone:
                with self.reading() as transaction:
                    wanted = self._wanted(transaction, own={KEPT})
                found = [path for path in files_under(places.directory) if places.is_unfinished(path)]
                # A file system without working shared locks between machines still leaves claimed states alone.
                temporary = sum(_unlink(path) for path in found if places.key_of(path) not in wanted)
            damaged = sum(map(_unlink, files_under(places.damaged)))
        orphans = self._unlink_unwanted(sorted(strays))
        return {"temporary": temporary, "orphans": orphans, "damaged": damaged, "claims": claims, "locks": locks}

    def _unlink_unwanted(self, keys: Sequence[str]) -> int:
        """Remove the files of those states that the index does not have and no live owner wants; return the bytes.

        `keep` does not save these: whoever makes such a state claims it, and writes its file again.
        """
        freed = 0
        for batch in _batches(keys):
            with self.writing() as transaction:
                wanted = self._wanted(transaction, batch, {KEPT}) | _state_files(transaction, batch).keys()
                freed += sum(_unlink(self.places.state(key)) for key in batch if key not in wanted)
        return freed

    def _wanted(
        self, transaction: Transaction, keys: Sequence[str] | None = None, own: Collection[str] = ()
    ) -> set[str]:
        """States, of `keys` if given, that live owners besides `own` have pinned, or claimed and may be writing."""
        where = "true" if keys is None else f"state IN ({', '.join('?' * len(keys))})"
        held = [(row[0], row[-2]) for table in (PINS, CLAIMS) for row in transaction.rows(table, where, keys or ())]
        live = live_owners(self.places, {owner for _, owner in held}.difference(own))
        return {state for state, owner in held if owner in live}


def _measurements(
    transaction: Transaction, keys: Iterable[MeasurementKey] | None
) -> dict[MeasurementKey, Measurement]:
    return {row[:2]: Measurement.of(*row[:-1]) for row in transaction.of(MEASUREMENTS, keys)}


def _state_files(transaction: Transaction, keys: Iterable[str] | None) -> dict[str, StoredState]:
    rows = transaction.of(STATES, None if keys is None else ((key,) for key in keys))
    return {row[0]: StoredState(*row[:-1]) for row in rows}


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH))


def files_under(directory: Path) -> Iterator[Path]:
    """Every file below a directory. Directories and files that vanish meanwhile are passed over."""
    return (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)


def state_paths(places: StorePlaces) -> dict[str, Path]:
    """The files of states, by key, whether the index has them or not; unfinished ones are left out."""
    paths = (path for path in files_under(places.states) if not places.is_unfinished(path))
    return {key: path for path in paths if (key := places.key_of(path))}


def set_aside(places: StorePlaces, path: Path) -> None:
    """Move a file, if it is there, to `damaged/`."""
    places.damaged.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        os.replace(path, places.damaged / f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")


def _unlink(path: Path) -> int:
    """Remove a file; return its bytes, 0 where another process was faster."""
    with suppress(FileNotFoundError):
        size = path.stat(follow_symlinks=False).st_size
        path.unlink()
        return size
    return 0
