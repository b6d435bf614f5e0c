"""Rows out of the index, each checked. For many keys as for few."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedIndex
from fastwi.experiment.store.rows import Row, Table, is_whole, key_text


def all_rows(connection: sqlite3.Connection, places: StorePlaces, table: Table) -> Iterator[Row]:
    """Every row, in the order of the table's key. Raises DamagedIndex at one whose checksum is wrong."""
    keys = ", ".join(table.key)
    return _checked(connection.execute(f"SELECT {table.names} FROM {table.name} ORDER BY {keys}"), places, table)


def rows_of_keys(
    connection: sqlite3.Connection, places: StorePlaces, table: Table, keys: Iterable[Sequence[Any]]
) -> Iterator[Row]:
    """The rows of those `keys` that are there, as `all_rows` gives them.

    Each key is a tuple of the columns of the table's key; the same key twice gives one row.
    """
    columns = ", ".join(table.key)
    connection.execute("DROP TABLE IF EXISTS temp.wanted")
    connection.execute(f"CREATE TEMP TABLE wanted ({columns}, PRIMARY KEY ({columns})) WITHOUT ROWID")
    places_for = ", ".join("?" * len(table.key))
    connection.executemany(f"INSERT OR IGNORE INTO wanted VALUES ({places_for})", keys)
    names = ", ".join(f"found.{name}" for name in table.columns)
    match = " AND ".join(f"found.{name} = wanted.{name}" for name in table.key)
    query = f"SELECT {names} FROM temp.wanted CROSS JOIN {table.name} AS found ON {match}"
    rows = list(_checked(connection.execute(query), places, table))
    connection.execute("DROP TABLE temp.wanted")
    return iter(rows)


def _checked(cursor: sqlite3.Cursor, places: StorePlaces, table: Table) -> Iterator[Row]:
    for row in cursor:
        if not is_whole(row):
            raise DamagedIndex(
                f"{places.index}: the row {key_text(table, row)} of {table.name} is damaged (checksum); "
                f"`python -m fastwi.store verify --repair {places.directory}` removes it"
            )
        yield row
