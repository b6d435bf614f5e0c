"""The tables of index.sqlite, and rows that carry a checksum.

The last column of every row, `crc`, is the CRC-32 of the ASCII form that Python's `ascii` gives the tuple of the
other columns. A float is an 8-byte blob. The table `tallies` counts the rows of each other table and sums their
crc, kept by triggers: a row that vanishes is missed, which its own checksum could not tell.
"""

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastwi.experiment.store.records import Measurement, StoredState, bytes_float, float_bytes

Row: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns in order with their SQL types, the last the checksum; `key` names the primary key's."""

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]

    @property
    def names(self) -> str:
        """The columns, for SQL."""
        return ", ".join(self.columns)

    @property
    def insertion(self) -> str:
        """The statement that adds a row."""
        return f"INSERT INTO {self.name} ({self.names}) VALUES ({', '.join('?' * len(self.columns))})"

    @property
    def deletion(self) -> str:
        """The statement that deletes the row of a key."""
        return f"DELETE FROM {self.name} WHERE {self.is_key}"

    @property
    def is_key(self) -> str:
        """The condition that a row has a key, which is to be filled in."""
        return " AND ".join(f"{name} = ?" for name in self.key)

    def statements(self) -> list[tuple[str, str, str]]:
        """What makes the table and its tally: (type, name, SQL), as SQLite's schema lists them."""
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        made = [
            (
                "table",
                self.name,
                f"CREATE TABLE {self.name} ({columns}, PRIMARY KEY ({', '.join(self.key)})) WITHOUT ROWID",
            )
        ]
        for event, row, sign in (("INSERT", "NEW", "+"), ("DELETE", "OLD", "-")):
            name = f"{self.name}_{event.lower()}"
            made.append(
                (
                    "trigger",
                    name,
                    f"CREATE TRIGGER {name} AFTER {event} ON {self.name} BEGIN UPDATE tallies "
                    f"SET count = count {sign} 1, total = total {sign} {row}.crc WHERE name = '{self.name}'; END",
                )
            )
        return made


def _table(table: str, primary: str, /, **columns: str) -> Table:
    return Table(table, columns | {"crc": "INTEGER NOT NULL"}, tuple(primary.split()))


_TEXT, _INTEGER, _FLOAT = "TEXT NOT NULL", "INTEGER NOT NULL", "BLOB NOT NULL"
MEASUREMENTS = _table(
    "measurements", "state treatment",
    state=_TEXT, treatment=_TEXT, epoch=_INTEGER, train_loss="BLOB", learning_rate="BLOB",
    test_loss=_FLOAT, test_accuracy=_FLOAT, seconds=_FLOAT,
)  # fmt: skip
STATES = _table("states", "key", key=_TEXT, bytes=_INTEGER, sha256=_TEXT)
CLAIMS = _table("claims", "state treatment", state=_TEXT, treatment=_TEXT, owner=_TEXT)
PINS = _table("pins", "state owner", state=_TEXT, owner=_TEXT)
ATTEMPTS = _table("attempts", "number", number=_INTEGER, state=_TEXT, treatment=_TEXT, owner=_TEXT)
NOTES = _table("notes", "name", name=_TEXT, value=_TEXT)
TABLES = (MEASUREMENTS, STATES, CLAIMS, PINS, ATTEMPTS, NOTES)
TALLIES = "CREATE TABLE tallies (name TEXT PRIMARY KEY, count INTEGER NOT NULL, total INTEGER NOT NULL) WITHOUT ROWID"


def schema() -> list[tuple[str, str, str]]:
    """All of the index: (type, name, SQL) of each table and trigger."""
    return [("table", "tallies", TALLIES)] + [made for table in TABLES for made in table.statements()]


def sealed(*values: Any) -> Row:
    """A row: the values and their checksum."""
    return (*values, zlib.crc32(ascii(values).encode()))


def is_whole(row: Sequence[Any]) -> bool:
    """Whether a row's checksum is that of its other columns."""
    return zlib.crc32(ascii(tuple(row[:-1])).encode()) == row[-1]


def key_text(table: Table, row: Sequence[Any]) -> str:
    """The key of a row, which may be damaged, for a line of text."""
    return " ".join(ascii(value)[1:-1] if isinstance(value, str) else ascii(value) for value in row[: len(table.key)])


def measurement_row(m: Measurement) -> Row:
    """A measurement as a row."""
    floats = (m.train_loss, m.learning_rate, m.test_loss, m.test_accuracy, m.seconds)
    return sealed(m.state, m.treatment, int(m.epoch), *map(float_bytes, floats))


def measurement_of(row: Sequence[Any]) -> Measurement:
    """The inverse of `measurement_row`, for a row that is whole."""
    state, treatment, epoch, *floats, _ = row
    # Of millions of rows there are two or three treatments.
    return Measurement(state, sys.intern(treatment), epoch, *map(bytes_float, floats))  # type: ignore[arg-type]


def state_row(file: StoredState) -> Row:
    """A state's file as a row."""
    return sealed(file.key, int(file.bytes), file.sha256)


def state_of(row: Sequence[Any]) -> StoredState:
    """The inverse of `state_row`."""
    return StoredState(*row[:3])
