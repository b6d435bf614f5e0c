"""Frames as files."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import polars

from fastwi.config.keys import KEYS
from fastwi.files import atomic_path, to_json


def write_frame(
    frame: polars.DataFrame, path: str | os.PathLike[str], columns: Mapping[str, tuple[str, str]]
) -> None:
    """Write `frame` as Parquet, atomically; unit and meaning of its `columns` go into the file's metadata.

    They are there under "fastwi.columns", as JSON: {column: {"unit": ..., "help": ...}}, axes of sweeps included.
    Raises UserError where the file cannot be written.
    """
    axes = {name: (KEYS[name].unit, KEYS[name].help) for name in frame.columns if name in KEYS}
    about = axes | dict(columns)
    described = {
        name: dict(zip(("unit", "help"), about[name], strict=True)) for name in frame.columns if name in about
    }
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary, metadata={"fastwi.columns": to_json(described)})


_ROW_TYPES = {
    "stage": polars.String, "epoch": polars.Int64, "network": polars.String, "batch_norm": polars.String,
    "train_loss": polars.Float64, "learning_rate": polars.Float64, "test_loss": polars.Float64,
    "test_accuracy_%": polars.Float64,
}  # fmt: skip


def rows_frame(rows: Iterable[Mapping[str, Any]]) -> polars.DataFrame:
    """The rows of metrics.jsonl as a frame; null where a row has no such column."""
    return polars.DataFrame([[row.get(name) for name in _ROW_TYPES] for row in rows], schema=_ROW_TYPES, orient="row")
