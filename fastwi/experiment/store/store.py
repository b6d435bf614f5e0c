"""The store, as sweeps use it: what is measured, which states are there, commit, drop."""

import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from fastwi.experiment.store.index import ATTEMPTS, CLAIMS, MEASUREMENTS, STATES, Index, Transaction, sealed
from fastwi.experiment.store.owner import KEPT, Owner, add_pins, live_owners
from fastwi.experiment.store.places import StorePlaces, check_directory
from fastwi.experiment.store.records import Measurement, StoredState
from fastwi.experiment.store.removal import collect, drop_states, mark_damaged
from fastwi.experiment.store.table import export
from fastwi.experiment.store.verify import Damage, examine
from fastwi.experiment.tree import MeasurementKey


class Store(Index):
    """A store directory. Any number of processes may have it open; its threads share one connection.

    Every method raises UserError, in one line, where the index is busy, full, not writable or (DamagedIndex) damaged.
    A context manager; closed, it is opened again by the next use.
    """

    def __init__(self, places: StorePlaces) -> None:
        super().__init__(places)
        self._owners: weakref.WeakSet[Owner] = weakref.WeakSet()

    @classmethod
    def open(cls, directory: str | os.PathLike[str], create: bool = True) -> "Store":
        """Open the store at `directory`; make one of an empty or missing directory where `create` is set.

        Raises UserError, in one line, for a directory of other things, a store of another version, a lost or
        damaged index, and a place that cannot be written.
        """
        places = StorePlaces(Path(directory))
        check_directory(places, create)
        store = cls(places)
        with store.reading():
            return store

    @property
    def directory(self) -> Path:
        """Where it is."""
        return self.places.directory

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """The measurements of `tasks`, the files of the states `keys`, and what others work on, all of one moment.

        That is: all tasks that live owners have claimed which were not made by this `Store`.
        """
        with self.reading() as transaction:
            found, files = _measurements(transaction, tasks), _state_files(transaction, keys)
            claims = {row[:2]: row[2] for row in transaction.rows(CLAIMS)}
        others = live_owners(self.places, {*claims.values()} - {owner.id for owner in self._owners})
        return found, files, {task for task, owner in claims.items() if owner in others}

    def commit(
        self, measurements: Iterable[Measurement], states: Iterable[StoredState], tasks: Iterable[MeasurementKey]
    ) -> list[MeasurementKey]:
        """Add measurements and states and end the claims on `tasks`, all in one transaction.

        Returns:
            Keys whose measurement was there already with a result that differs in any bit (`seconds` aside).
            The earlier one is kept.
        """
        measurements = list(measurements)
        with self.writing() as transaction:
            there = _measurements(transaction, (m.key for m in measurements))
            fresh: dict[MeasurementKey, Measurement] = {}
            conflicts: dict[MeasurementKey, None] = {}
            for m in measurements:
                first = there.get(m.key) or fresh.setdefault(m.key, m)
                if first.result() != m.result():
                    conflicts[m.key] = None
            transaction.add(MEASUREMENTS, (sealed(*m.columns()) for m in fresh.values()))
            transaction.add(STATES, (sealed(file.key, file.bytes, file.sha256) for file in states))
            transaction.delete(CLAIMS, tasks)
        return list(conflicts)

    def keep(self, keys: Iterable[str]) -> None:
        """Have the states `keys`, there already or not, survive every `drop_states`, of other sweeps too."""
        add_pins(self, keys, KEPT)

    def drop_states(self, keys: Iterable[str]) -> set[str]:
        """Remove states, but none that are kept or that another live owner has pinned or claimed; return those gone.

        Another: not made by this `Store`, whose owners' pins on `keys` end. Measurements stay.
        """
        return drop_states(self, keys, {owner.id for owner in self._owners})

    def mark_damaged(self, key: str) -> bool:
        """See `removal.mark_damaged`."""
        return mark_damaged(self, key)

    def owner(self) -> Owner:
        """A new owner, to claim tasks with: `with store.owner() as owner`."""
        owner = Owner(self)
        self._owners.add(owner)
        return owner

    def attempts(self) -> dict[MeasurementKey, int]:
        """How often each task was ever claimed."""
        counts: dict[MeasurementKey, int] = {}
        with self.reading() as transaction:
            for row in transaction.rows(ATTEMPTS):
                counts[row[1:3]] = counts.get(row[1:3], 0) + 1
        return counts

    def export(self) -> Path:
        """Write all measurements to metrics.parquet, sorted by state and treatment; return its path."""
        export(self)
        return self.places.metrics

    def verify(self, repair: bool = False) -> list[Damage]:
        """All damage there is. See `verify.examine`."""
        return examine(self, repair).damage

    def gc(self) -> dict[str, int]:
        """Remove what is of no use to any process. See `removal.collect`."""
        return collect(self)


def _measurements(
    transaction: Transaction, keys: Iterable[MeasurementKey] | None
) -> dict[MeasurementKey, Measurement]:
    rows = transaction.rows(MEASUREMENTS) if keys is None else transaction.of(MEASUREMENTS, keys)
    return {row[:2]: Measurement.of(*row[:-1]) for row in rows}


def _state_files(transaction: Transaction, keys: Iterable[str] | None) -> dict[str, StoredState]:
    rows = transaction.rows(STATES) if keys is None else transaction.of(STATES, ((key,) for key in keys))
    return {row[0]: StoredState(*row[:-1]) for row in rows}
