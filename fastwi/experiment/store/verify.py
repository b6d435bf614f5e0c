"""Every byte of a store against what was stored."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from fastwi.errors import UserError
from fastwi.experiment.store.database import Database, check_schema
from fastwi.experiment.store.places import StorePlaces, check_directory, is_temporary, rebuild_line
from fastwi.experiment.store.records import DamagedIndex, StoredState
from fastwi.experiment.store.removal import mark_damaged
from fastwi.experiment.store.rows import NOTES, STATES, TABLES, Row, Table, is_whole, key_text, state_of
from fastwi.experiment.store.select import rows_of_keys
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.store.table import export, table_damage
from fastwi.experiment.store.usage import files_under

_LISTED = 20  # lines of SQLite's integrity check


@dataclass(frozen=True, slots=True)
class Damage:
    """Something damaged: what it is, and what mends it, or what mended it."""

    what: str
    mend: str

    def line(self) -> str:
        """Both in one line."""
        return f"{self.what}; {self.mend}"


@dataclass(slots=True)
class Verification:
    """What was looked at, the damage found, and notes on what is no damage."""

    states: int = 0
    rows: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    structure_broken: bool = False


def examine(
    database: Database, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Check the card, the index's structure, every row, every state's file and metrics.parquet.

    With `repair`: damaged states are forgotten with their measurements, so that the next sweep trains them again;
    damaged rows are deleted; a damaged metrics.parquet is exported again. A broken index needs `rebuild`, and
    hides damage elsewhere until then.

    Args:
        progress: called with the bytes of states read and the bytes there are.
    """
    found = Verification()
    places = database.places
    try:
        check_directory(places, create=False)
    except UserError as error:
        found.damage.append(damage_of_error(error))
        return found
    states = _check_index(database, repair, found)
    _check_states(database, states, repair, progress, found)
    if not found.structure_broken:
        _check_table(database, repair, found)
    _note_strays(places, {state.key for state in states}, found)
    return found


def _check_index(database: Database, repair: bool, found: Verification) -> list[StoredState]:
    """The states that the index has by whole rows."""
    places, states = database.places, []
    try:
        with database.snapshot() as connection:
            check_schema(connection, places)
            for (line,) in connection.execute(f"PRAGMA integrity_check({_LISTED})"):
                if line != "ok":
                    _broken(places, " ".join(line.split()), found)
            damaged = {table.name: _check_table_rows(connection, places, table, found) for table in TABLES}
            for row in connection.execute(f"SELECT {STATES.names} FROM states"):
                if is_whole(row):
                    states.append(state_of(row))
    except DamagedIndex as error:
        found.structure_broken = True
        found.damage.append(damage_of_error(error))
        return states
    for table in TABLES:
        mend = _mend_rows(database, table, damaged[table.name], repair and not found.structure_broken)
        for row in damaged[table.name]:
            what = f"{places.index}: row {key_text(table, row)} of {table.name} (checksum)"
            found.damage.append(Damage(what, mend))
    return states


def damage_of_error(error: UserError) -> Damage:
    """An error's line as what and mend."""
    what, _, mend = str(error).partition("; ")
    return Damage(what, mend)


def _broken(places: StorePlaces, what: str, found: Verification) -> None:
    found.structure_broken = True
    found.damage.append(Damage(f"{places.index}: {what}", rebuild_line(places)))


def _check_table_rows(
    connection: sqlite3.Connection, places: StorePlaces, table: Table, found: Verification
) -> list[Row]:
    """The damaged rows of a table. That none is missing or out of order is the structure's business."""
    damaged, count, total, before = [], 0, 0, None
    for row in connection.execute(f"SELECT {table.names} FROM {table.name}"):
        key = row[: len(table.key)]
        if is_whole(row):
            total += row[-1]
            if before is not None and not before < key:
                _broken(places, f"{table.name} is not in order at {key_text(table, row)}", found)
            before = key
        else:
            damaged.append(row)
        count += 1
    found.rows += count
    tally = connection.execute("SELECT count, total FROM tallies WHERE name = ?", (table.name,)).fetchone()
    # A damaged row's checksum says nothing of what the sum should be; it is reported by itself.
    if tally is None or tally[0] != count or (not damaged and tally[1] != total):
        _broken(places, f"{table.name} has {count} rows that do not add up to its tally", found)
    return damaged


def _mend_rows(database: Database, table: Table, rows: list[Row], repair: bool) -> str:
    if not repair or not rows:
        return f"`python -m fastwi.store verify --repair {database.places.directory}` deletes it"
    with database.writing() as connection:
        for row in rows:
            connection.execute(table.deletion, row[: len(table.key)])
        # The triggers have taken damaged checksums off the sum: reckon it anew.
        connection.execute(
            f"UPDATE tallies SET count = (SELECT count(*) FROM {table.name}), "
            f"total = (SELECT coalesce(sum(crc), 0) FROM {table.name}) WHERE name = ?",
            (table.name,),
        )
    if table is NOTES:
        export(database)
    return "deleted; the next sweep works it out again"


def _check_states(
    database: Database,
    states: list[StoredState],
    repair: bool,
    progress: Callable[[int, int], None] | None,
    found: Verification,
) -> None:
    places = database.places
    total = sum(state.bytes for state in states)
    for state in states:
        damage = damage_of(places, state)
        found.states += 1
        found.bytes += state.bytes
        if progress is not None:
            progress(found.bytes, total)
        if damage is None or _is_mended(database, state, found):
            continue
        mend = f"`python -m fastwi.store verify --repair {places.directory}` has it trained again"
        if repair and not found.structure_broken and mark_damaged(database, state.key):
            mend = "forgotten; the next sweep trains it again"
        found.damage.append(Damage(f"{places.state(state.key)}: {damage}", mend))


def _is_mended(database: Database, state: StoredState, found: Verification) -> bool:
    """Whether another process has dropped the state, or written it anew, since the index was read."""
    if found.structure_broken:
        return False
    with database.reading() as connection:
        rows = list(rows_of_keys(connection, database.places, STATES, [(state.key,)]))
    return not rows or damage_of(database.places, state_of(rows[0])) is None


def _check_table(database: Database, repair: bool, found: Verification) -> None:
    try:
        damage = table_damage(database)
    except DamagedIndex:
        return  # a damaged note: reported with its row
    if damage is None:
        return
    mend = f"`python -m fastwi.store verify --repair {database.places.directory}` exports it again"
    if repair:
        export(database)
        mend = "exported again"
    found.damage.append(Damage(f"{database.places.metrics}: {damage}", mend))


def _note_strays(places: StorePlaces, known: set[str], found: Verification) -> None:
    """Files that no row names: what a killed process left, or is being written now. Not damage."""
    orphans = unfinished = 0
    for path in files_under(places.states):
        if is_temporary(path.relative_to(places.directory)):
            unfinished += 1
        elif places.key_of(path) not in known:
            orphans += 1
    if orphans:
        found.notes.append(f"{orphans} files under {places.states} that the index does not have (`gc` removes them)")
    if unfinished:
        found.notes.append(f"{unfinished} unfinished files under {places.states} (`gc` removes what is left over)")
