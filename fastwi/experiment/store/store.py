"""The store, as sweeps use it: what is measured, which states are there, commit, load, drop."""

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fastwi.experiment.store.collect import Freed, collect
from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import refusal
from fastwi.experiment.store.owner import KEPT, Owner, add_pins, live_owners
from fastwi.experiment.store.places import StorePlaces, check_directory
from fastwi.experiment.store.records import DamagedState, Measurement, StoredState
from fastwi.experiment.store.removal import drop_states, mark_damaged
from fastwi.experiment.store.rows import (
    ATTEMPTS,
    CLAIMS,
    MEASUREMENTS,
    STATES,
    measurement_of,
    measurement_row,
    state_of,
    state_row,
)
from fastwi.experiment.store.select import all_rows, rows_of_keys
from fastwi.experiment.store.states import absent, read_state, write_state
from fastwi.experiment.store.table import export
from fastwi.experiment.store.usage import Sizes, measure_sizes
from fastwi.experiment.store.verify import Damage, examine
from fastwi.experiment.tree import MeasurementKey

if TYPE_CHECKING:
    import torch

    from fastwi.population import Layout, Population


class Store:
    """A store directory. Any number of processes may have it open; its threads share one connection.

    Every method that touches the index raises UserError, in one line, where it is busy, full, not writable or
    (DamagedIndex) damaged. A context manager; closing it leaves its owners be.
    """

    def __init__(self, places: StorePlaces) -> None:
        self.places = places
        self.database = Database(places)
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
        with store.database.reading():
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

    def close(self) -> None:
        """Close the connection to the index. The next use opens it again."""
        self.database.close()

    def measurements(self, keys: Iterable[MeasurementKey] | None = None) -> dict[MeasurementKey, Measurement]:
        """Those of the measurements `keys` (default: all) that are there, each checked."""
        with self.database.snapshot() as connection:
            if keys is None:
                rows = all_rows(connection, self.places, MEASUREMENTS)
            else:
                rows = rows_of_keys(connection, self.places, MEASUREMENTS, keys)
            return {row[:2]: measurement_of(row) for row in rows}

    def states(self, keys: Iterable[str] | None = None) -> set[str]:
        """Those of the states `keys` (default: all) that the index has."""
        return set(self.state_files(keys))

    def state_files(self, keys: Iterable[str] | None = None) -> dict[str, StoredState]:
        """What the index knows of those of the states `keys` (default: all) that it has."""
        with self.database.snapshot() as connection:
            if keys is None:
                rows = all_rows(connection, self.places, STATES)
            else:
                rows = rows_of_keys(connection, self.places, STATES, ((key,) for key in keys))
            return {row[0]: state_of(row) for row in rows}

    def state_file(self, key: str) -> StoredState:
        """What the index knows of the state `key`. Raises DamagedState where it does not have it."""
        files = self.state_files([key])
        if key not in files:
            raise absent(self.places, key)
        return files[key]

    def look(
        self, tasks: Iterable[MeasurementKey], keys: Iterable[str]
    ) -> tuple[dict[MeasurementKey, Measurement], dict[str, StoredState], set[MeasurementKey]]:
        """The measurements of `tasks`, the files of the states `keys`, and what others are at, all of one moment.

        That is: all tasks that live owners have claimed which were not made by this `Store`.
        """
        with self.database.snapshot() as connection:
            measured = rows_of_keys(connection, self.places, MEASUREMENTS, tasks)
            found = {row[:2]: measurement_of(row) for row in measured}
            stored = rows_of_keys(connection, self.places, STATES, ((key,) for key in keys))
            files = {row[0]: state_of(row) for row in stored}
            claims = {row[:2]: row[2] for row in all_rows(connection, self.places, CLAIMS)}
        others = live_owners(self.places, {*claims.values()} - {owner.id for owner in self._owners})
        return found, files, {task for task, owner in claims.items() if owner in others}

    def write_state(self, key: str, population: "Population") -> StoredState:
        """Write a state's file; `commit` what it returns. See `fastwi.experiment.store.states.write_state`."""
        return write_state(self.directory, key, population)

    def load_state(
        self, key: str, layout: "Layout | None" = None, device: "torch.device | str | None" = None
    ) -> "Population":
        """The state `key` as a population of one member on `device` (default: the CPU).

        Raises DamagedState where it is not there or its file is not what was stored, CheckpointError where it is
        of another network than `layout`.
        """
        state = self.state_file(key)
        while True:
            try:
                return read_state(self.directory, state, layout, device)
            except DamagedState:
                known, state = state, self.state_file(key)  # written anew by another process meanwhile?
                if state == known:
                    raise

    def commit(
        self, measurements: Iterable[Measurement], states: Iterable[StoredState], tasks: Iterable[MeasurementKey]
    ) -> list[MeasurementKey]:
        """Add measurements and states and end the claims on `tasks`, all in one transaction.

        Returns:
            Keys whose measurement was there already with a result that differs in any bit (`seconds` aside).
            The earlier one is kept.
        """
        fresh: dict[MeasurementKey, Measurement] = {}
        conflicts: dict[MeasurementKey, None] = {}
        for m in measurements:
            first = fresh.setdefault(m.key, m)
            if first is not m and first.result() != m.result():
                conflicts[m.key] = None
        files = {file.key: file for file in states}
        tasks = list(tasks)
        with self.database.writing() as connection:
            for row in rows_of_keys(connection, self.places, MEASUREMENTS, fresh):
                there = measurement_of(row)
                if fresh.pop(there.key).result() != there.result():
                    conflicts[there.key] = None
            connection.executemany(MEASUREMENTS.insertion, map(measurement_row, fresh.values()))
            connection.executemany(STATES.deletion, [(key,) for key in files])
            connection.executemany(STATES.insertion, map(state_row, files.values()))
            connection.executemany(CLAIMS.deletion, tasks)
        return list(conflicts)

    def keep(self, keys: Iterable[str]) -> None:
        """Have the states `keys`, there already or not, survive every `drop_states`, of other sweeps too."""
        add_pins(self.database, keys, KEPT)

    def drop_states(self, keys: Iterable[str]) -> set[str]:
        """Remove states, but none that are kept or that another live owner has pinned or claimed; return those gone.

        Another: not made by this `Store`, whose owners' pins on `keys` end. Measurements stay.
        """
        return drop_states(self.database, keys, {owner.id for owner in self._owners})

    def mark_damaged(self, key: str) -> bool:
        """Forget a damaged state and its measurements under every treatment, so that it is trained again.

        Its file goes to `damaged/`. A state whose file is right, because another process has mended it by now,
        is left alone. Returns whether it was forgotten.
        """
        return mark_damaged(self.database, key)

    def owner(self) -> Owner:
        """A new owner, to claim tasks with: `with store.owner() as owner`."""
        owner = Owner(self.database)
        self._owners.add(owner)
        return owner

    def attempts(self) -> dict[MeasurementKey, int]:
        """How often each task was ever claimed."""
        counts: dict[MeasurementKey, int] = {}
        with self.database.reading() as connection:
            for row in all_rows(connection, self.places, ATTEMPTS):
                counts[row[1:3]] = counts.get(row[1:3], 0) + 1
        return counts

    def claims(self) -> dict[MeasurementKey, str]:
        """Who has claimed what, dead owners among them."""
        with self.database.reading() as connection:
            return {row[:2]: row[2] for row in all_rows(connection, self.places, CLAIMS)}

    def export(self) -> Path:
        """Write all measurements to metrics.parquet, sorted by state and treatment; return its path."""
        export(self.database)
        return self.places.metrics

    def sizes(self) -> Sizes:
        """Bytes on the disk by kind."""
        return measure_sizes(self.places)

    def verify(self, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Sequence[Damage]:
        """All damage there is. `progress` is told bytes read and bytes in all. See `verify.examine`."""
        return examine(self.database, repair, progress).damage

    def gc(self) -> Freed:
        """Remove what nobody has a use for. See `collect.collect`."""
        try:
            return collect(self.database)
        except OSError as error:
            raise refusal(error, self.directory) from error
