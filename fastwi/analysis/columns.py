"""The columns that name an average, in a sweep's gains and in studies: their unit, meaning and type."""

from typing import Any

import polars

from fastwi.config.keys import KEYS
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepaxes import other_axes

PAIR_COLUMNS = {
    "k": ("epochs", "epochs that the parent trained before cloning"),
    "s": ("epochs", "epochs that each child trained before averaging"),
    "alpha": ("1", "weight of the second child in the average; null: the plain mean"),
    "parent_seed": ("", "initialisation seed of the parent"),
    "pair": ("", "which tuple of the parent's children was averaged, from 0"),
}
"""Unit and meaning. Before them stand the sweep's axes beside k and s, by dotted name."""

PAIR_TYPES: dict[str, Any] = dict.fromkeys(PAIR_COLUMNS, polars.Int64) | {"alpha": polars.Float64}

_TYPES = {bool: polars.Boolean, int: polars.Int64, float: polars.Float64, str: polars.String}


def axis_types(spec: SweepSpec) -> dict[str, Any]:
    """The polars type of each axis beside k and s."""
    keys = [KEYS[path] for path in other_axes(spec)]
    return {key.path: polars.List(_TYPES[key.scalar]) if key.many else _TYPES[key.scalar] for key in keys}


def pair_types(spec: SweepSpec) -> dict[str, Any]:
    """Those, and `PAIR_TYPES`."""
    return axis_types(spec) | PAIR_TYPES
