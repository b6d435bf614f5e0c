"""Every byte of a store against what was stored."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastwi.errors import UserError
from fastwi.experiment.store.index import STATES, TABLES, Index
from fastwi.experiment.store.places import check_directory
from fastwi.experiment.store.records import StoredState
from fastwi.experiment.store.removal import files_under, mark_damaged
from fastwi.experiment.store.states import damage_of
from fastwi.experiment.store.table import export, read_table

_LISTED = 20  # lines of SQLite's integrity check


@dataclass(frozen=True, slots=True)
class Damage:
    """Something damaged: what it is, and what fixes it, or what fixed it."""

    what: str
    fix: str

    @classmethod
    def of(cls, error: UserError) -> "Damage":
        """An error's line as both."""
        what, _, fix = str(error).partition("; ")
        return cls(what, fix)

    def line(self) -> str:
        """Both in one line."""
        return f"{self.what}; {self.fix}"


@dataclass(slots=True)
class Verification:
    """What was looked at, the damage found, and notes on what is no damage."""

    states: int = 0
    rows: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(index: Index, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check the card, the index, every state's file and metrics.parquet.

    With `repair`: damaged states are forgotten with their measurements, so that the next sweep trains them again; a
    damaged metrics.parquet is exported again. A damaged index needs `rebuild`, before anything else is checked.

    Args:
        progress: called with the bytes of states read and the bytes there are.
    """
    found = Verification()
    try:
        check_directory(index.places, create=False)
        states = _check_index(index, found)
    except UserError as error:
        found.damage.append(Damage.of(error))
    else:
        if not found.damage:
            _check_states(index, states, repair, progress, found)
            _check_table(index, repair, found)
            _note_strays(index, {state.key for state in states}, found)
    return found


def _check_index(index: Index, found: Verification) -> list[StoredState]:
    """The states that the index has. Raises DamagedIndex for a damaged row."""
    places = index.places
    with index.reading() as transaction:
        for (line,) in transaction.execute(f"PRAGMA integrity_check({_LISTED})"):
            if line != "ok":
                found.damage.append(Damage(f"{places.index}: {' '.join(line.split())}", places.rebuild_line))
        states = [StoredState(*row[:3]) for row in transaction.rows(STATES)]
        found.rows = sum(1 for table in TABLES for _ in transaction.rows(table))
    return states


def _check_states(
    index: Index,
    states: list[StoredState],
    repair: bool,
    progress: Callable[[int, int], None] | None,
    found: Verification,
) -> None:
    places = index.places
    total = sum(state.bytes for state in states)
    for state in states:
        damage = damage_of(places, state)
        found.states += 1
        found.bytes += state.bytes
        if progress is not None:
            progress(found.bytes, total)
        if damage is None or _is_fixed(index, state.key):
            continue
        fix = f"`python -m fastwi.store verify --repair {places.directory}` has it trained again"
        if repair and mark_damaged(index, state.key):
            fix = "forgotten; the next sweep trains it again"
        found.damage.append(Damage(f"{places.state(state.key)}: {damage}", fix))


def _is_fixed(index: Index, key: str) -> bool:
    """Whether another process has dropped the state, or written it again, since the index was read."""
    with index.reading() as transaction:
        rows = list(transaction.of(STATES, [(key,)]))
    return not rows or damage_of(index.places, StoredState(*rows[0][:3])) is None


def _check_table(index: Index, repair: bool, found: Verification) -> None:
    places = index.places
    damaged = sum(row is None for row in read_table(places))
    if not damaged:
        return
    fix = f"`python -m fastwi.store verify --repair {places.directory}` exports it again"
    if repair:
        export(index)
        fix = "exported again"
    found.damage.append(Damage(f"{places.metrics}: damaged, or {damaged} of its rows are", fix))


def _note_strays(index: Index, known: set[str], found: Verification) -> None:
    """Files that no row names: what a killed process left, or is being written now. Not damage."""
    places, paths = index.places, list(files_under(index.places.states))
    unfinished = sum(map(places.is_unfinished, paths))
    orphans = sum(not places.is_unfinished(path) and places.key_of(path) not in known for path in paths)
    if orphans:
        found.notes.append(f"{orphans} files under {places.states} that the index does not have (`gc` removes them)")
    if unfinished:
        found.notes.append(f"{unfinished} unfinished files under {places.states} (`gc` removes what is left over)")
