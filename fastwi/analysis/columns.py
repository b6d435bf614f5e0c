"""The row model: a table's columns, each with its unit, meaning and type declared once.

A row about an average begins with the sweep's axes beside k and s, by dotted name, and then `PAIR_COLUMNS`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars

from fastwi.config.schema import KEYS
from fastwi.config.sweep import SweepSpec, column_type, in_parts, other_axes


class Column(NamedTuple):
    """Unit, meaning and Polars type of a column. `in_parts`: a time in epochs, beside those of `IN_EPOCHS`."""

    unit: str
    help: str
    type: Any = polars.Float64
    in_parts: bool = False


Columns = Mapping[str, Column]

IN_EPOCHS = frozenset({"k", "s", "epoch", "epochs_after"})
"""Columns of times in epochs."""


def types_of(columns: Columns) -> dict[str, Any]:
    """The Polars type of each column."""
    return {name: column.type for name, column in columns.items()}


PAIR_COLUMNS: dict[str, Column] = {
    "k": Column("epochs", "epochs that the parent trained before cloning", polars.Int64),
    "s": Column("epochs", "epochs that each child trained before averaging", polars.Int64),
    "alpha": Column("1", "weight of the second child in the average; null: the plain mean"),
    "parent_seed": Column("", "initialisation seed of the parent", polars.Int64),
    "pair": Column("", "which tuple of the parent's children was averaged, from 0", polars.Int64),
}
TIME_COLUMNS: dict[str, Column] = {
    "k_iterations": Column("iterations", "training steps of the parent before cloning", polars.Int64),
    "s_iterations": Column("iterations", "training steps of each child before averaging", polars.Int64),
}
PAIR_TYPES = types_of(PAIR_COLUMNS)

_TYPES = {bool: polars.Boolean, int: polars.Int64, float: polars.Float64, str: polars.String}


def axis_types(spec: SweepSpec) -> dict[str, Any]:
    """The Polars type of each axis beside k and s."""
    types = {path: _TYPES[column_type(spec, path)] for path in other_axes(spec)}
    return {path: polars.List(kind) if KEYS[path].many else kind for path, kind in types.items()}


def schema(spec: SweepSpec, columns: Columns) -> dict[str, Any]:
    """The types of a table's columns: the axes beside k and s, then `columns`.

    Times in epochs are numbers with a fraction where the sweep has times within epochs.
    """
    types = types_of(columns)
    if in_parts(spec):
        times = [name for name, column in columns.items() if name in IN_EPOCHS or column.in_parts]
        types |= dict.fromkeys(times, polars.Float64)
    return axis_types(spec) | types
