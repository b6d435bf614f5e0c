"""Frames of results, and frames as files.

A sweep's frame has every measurement once, in long form, however many points share it. Its columns are described in
`COLUMNS`, which also goes into the file.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars

from fastwi.analysis.columns import PAIR_TYPES, axis_types
from fastwi.config.keys import KEYS
from fastwi.config.schema import Config
from fastwi.config.sweep import RECOMPUTED, SweepSpec
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.sweeppoints import Point, child_tuples
from fastwi.config.write import config_hash
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.planner import PointStates
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.files import atomic_path, to_json
from fastwi.report.rows import ACCURACY

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

UNITS = {"train_loss": "nats", "learning_rate": "1", "test_loss": "nats", "test_accuracy": "%"}
"""The metrics, in the table's order, and their units."""

COLUMNS = {
    "k": ("epochs", "epochs that the parent trained before cloning; null for the parent's own epochs"),
    "s": ("epochs", "epochs that each child trained before averaging; null for the epochs of parent and children"),
    "alpha": ("1", "weight of the second child in the average; null: the plain mean, or no average"),
    "parent_seed": ("", "initialisation seed of the parent"),
    "pair": ("", "which tuple of the parent's children was averaged, from 0; null where it is no one tuple's"),
    "network": ("", "parent, child or average; at s = 0 the children are the parent still"),
    "child": ("", "number of the child, from 1 within its parent and k"),
    "noise": ("", "noise seed that the network was trained under; null for an average not yet trained on"),
    "stage": ("", "parent, children (also where they are trained on), interpolation or after"),
    "epoch": ("epochs", "epochs done since initialisation"),
    "batch_norm": ("", "batch-norm statistics at evaluation: own, or recomputed on training images"),
    "metric": ("", "what was measured: " + ", ".join(UNITS)),
    "unit": ("", "unit of value"),
    "value": ("see unit", "the measurement"),
    "point": ("", "hash of the configuration that gives this row's point alone; null where several points share it"),
    "state": ("", "key of the network's state in the store"),
}
"""Unit and meaning of each column. Before them stand the axes of the sweep other than k and s, by dotted name, null
where a measurement serves several of an axis's values."""

_SPAN_TYPES = PAIR_TYPES | {
    "network": polars.String, "child": polars.Int64, "noise": polars.Int64, "stage": polars.String,
    "point": polars.String, "last": polars.Int64, "first": polars.Int64, "treatment": polars.String,
}  # fmt: skip

_ROW_TYPES = {
    "stage": polars.String, "epoch": polars.Int64, "network": polars.String, "batch_norm": polars.String,
    "train_loss": polars.Float64, "learning_rate": polars.Float64, "test_loss": polars.Float64,
    ACCURACY: polars.Float64,
}  # fmt: skip


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


def rows_frame(rows: Iterable[Mapping[str, Any]]) -> polars.DataFrame:
    """The rows of metrics.jsonl as a frame; null where a row has no such column."""
    return polars.DataFrame([[row.get(name) for name in _ROW_TYPES] for row in rows], schema=_ROW_TYPES, orient="row")


def result_frame(
    spec: SweepSpec,
    points: Sequence[Point],
    places: Sequence[PointStates],
    measurements: "Mapping[MeasurementKey, Measurement]",
    inputs_of: Callable[[Config], Inputs],
) -> polars.DataFrame:
    """All measurements of a sweep in long form, each once (columns: the axes beside k and s, then `COLUMNS`).

    Measurements that are not there yet are left out. `places[i]` is where the results of `points[i]` are; `inputs_of`
    says what configurations were planned on.
    """
    tree, axes, tuples = places[0].tree, other_axes(spec), child_tuples(spec)
    # Values of axes by their place on the axis: polars compares numbers.
    numbers = {path: {value: n for n, value in enumerate(spec.axes[i].values)} for path, i in axes.items()}
    spans = [
        (*(numbers[path][point.values[i]] for path, i in axes.items()), *span)
        for point, place in zip(points, places, strict=True)
        for span in _spans(point, place, tuples[point.tuple_index], inputs_of(point.config).digest)
    ]
    frame = polars.DataFrame(spans, schema=dict.fromkeys(axes, polars.Int64) | _SPAN_TYPES, orient="row")
    # States are chained: spans with one last state are one span, and a longer one may hold a shorter.
    frame = _shared(frame, "last", "first", "treatment")
    nodes = [tree.path(*span) for span in frame.select("last", "first").iter_rows()]
    frame = frame.with_columns(polars.Series("node", nodes, polars.List(polars.Int64))).drop("last", "first")
    frame = _shared(frame.explode("node"), "node", "treatment")
    states = [tree.keys[node] for node in frame["node"]]
    found = [measurements.get(name) for name in zip(states, frame["treatment"], strict=True)]
    own = polars.col("treatment") == OWN
    frame = frame.with_columns(
        polars.Series("state", states, polars.String),
        polars.Series("epoch", [tree.epochs[node] for node in frame["node"]], polars.Int64),
        polars.when(own).then(polars.lit(OWN)).otherwise(polars.lit(RECOMPUTED)).alias("batch_norm"),
        *(polars.Series(name, [m and getattr(m, name) for m in found], polars.Float64) for name in UNITS),
        *(
            polars.Series(path, [axis_value(path, each) for each in spec.axes[i].values], kind).gather(frame[path])
            for (path, i), kind in zip(axes.items(), axis_types(spec).values(), strict=True)
        ),
    )
    kept = [name for name in (*axes, *COLUMNS) if name in frame.columns]
    long = frame.select(*kept, *UNITS).with_row_index("row")
    long = long.unpivot(list(UNITS), index=["row", *kept], variable_name="metric").drop_nulls("value")  # NaN stays
    long = long.with_columns(polars.col("metric").replace_strict(UNITS).alias("unit"))
    return long.sort("row", maintain_order=True).select(*axes, *COLUMNS)


def _spans(point: Point, place: PointStates, numbers: tuple[int, ...], digest: str) -> Iterator[tuple[Any, ...]]:
    """What a point measures, as `_SPAN_TYPES`: states in a row up to the node `last`, after `first` epochs."""
    config, seed, epochs = point.config, point.parent, place.tree.epochs
    k, s, seeds = config.experiment.k, config.experiment.s, config.seeds
    parent, at_end = ("parent", None, seeds.parent_noise), "interpolation"
    if k:
        yield None, None, None, seed, None, *parent, "parent", None, place.clone_node, 0, OWN
    for number, noise, last in zip(numbers, seeds.child_noise, place.last_nodes, strict=True):
        if epochs[last] > k:
            yield k, None, None, seed, None, "child", number, noise, "children", None, last, k, OWN
    name = config_hash(config, digest)
    mean = (k, s, point.alpha, seed, point.tuple_index, "average", None)
    for treatment in place.treatments:
        yield *mean, None, at_end, name, place.average_node, k + s - 1, treatment
        for number, noise, end in zip(numbers, seeds.child_noise, place.end_nodes, strict=True):
            if treatment != OWN or not (k or s):  # else it is measured after the network's last epoch
                network = ("child", number, noise) if s else parent
                yield k, s, None, seed, None, *network, at_end, None, end, k + s - 1, treatment
    if epochs[place.after_node] > k + s:
        yield *mean, seeds.average_noise, "after", name, place.after_node, k + s, OWN


def _shared(frame: polars.DataFrame, *keys: str) -> polars.DataFrame:
    """A row for each combination of `keys`, in order, with what all of its rows share; null where they differ."""
    others = [polars.col(name) for name in frame.columns if name not in keys]
    return frame.group_by(keys, maintain_order=True).agg(
        polars.when(c.n_unique() == 1).then(c.first()) for c in others
    )
