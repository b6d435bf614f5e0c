"""Rows out of the index, each checked. For many keys as for few."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedIndex
from fastwi.experiment.store.rows import Row, Table, is_whole, key_text

_SCANNED_FOR_ONE_FOUND = 4  # rows that are passed over in the time in which one is looked up by its key


def all_rows(connection: sqlite3.Connection, places: StorePlaces, table: Table) -> Iterator[Row]:
    """Every row, in the order of the table's key. Raises DamagedIndex at one whose checksum is wrong."""
    return _checked(connection.execute(_in_order(table)), places, table)


def rows_of_keys(
    connection: sqlite3.Connection, places: StorePlaces, table: Table, keys: Iterable[Sequence[Any]]
) -> Iterator[Row]:
    """The rows of those `keys` that are there, in the order of the table's key, each checked.

    Each key is a tuple of the columns of the table's key; the same key twice gives one row. To be called within a
    transaction where there are several. An empty table is not asked for any, so `keys` may be many at no cost.
    """
    if connection.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone() is None:
        return iter(())
    wanted = set(map(tuple, keys))
    (count,) = connection.execute("SELECT count FROM tallies WHERE name = ?", (table.name,)).fetchone() or (0,)
    width = len(table.key)
    if count < _SCANNED_FOR_ONE_FOUND * len(wanted):
        found = (row for row in connection.execute(_in_order(table)) if row[:width] in wanted)
    else:
        query = f"SELECT {table.names} FROM {table.name} WHERE {table.is_key}"
        found = (row for key in sorted(wanted) for row in connection.execute(query, key))
    return _checked(found, places, table)


def _in_order(table: Table) -> str:
    return f"SELECT {table.names} FROM {table.name} ORDER BY {', '.join(table.key)}"


def _checked(rows: Iterable[Row], places: StorePlaces, table: Table) -> Iterator[Row]:
    for row in rows:
        if not is_whole(row):
            raise DamagedIndex(
                f"{places.index}: the row {key_text(table, row)} of {table.name} is damaged (checksum); "
                f"`python -m fastwi.store verify --repair {places.directory}` removes it"
            )
        yield row
