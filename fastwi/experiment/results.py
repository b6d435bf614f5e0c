"""The results of a sweep: the rows of any one point, and all measurements as one table in long form.

A point's rows are those that `python -m fastwi.train` writes for it. The table has every measurement once, however
many points share it. Its columns are described in `COLUMNS`, which also goes into the file.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import polars

from fastwi.config.keys import KEYS
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepSpec
from fastwi.config.write import config_hash
from fastwi.experiment.planner import DataSummary, PointStates
from fastwi.experiment.points import Point, child_tuples
from fastwi.experiment.tree import OWN, MeasurementKey, Tree
from fastwi.files import atomic_path, to_json

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

RECOMPUTED = "recomputed"
K_AXIS, S_AXIS = "experiment.k", "experiment.s"

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

_TYPES = {bool: polars.Boolean, int: polars.Int64, float: polars.Float64, str: polars.String}
_OWNER_TYPES: dict[str, Any] = {
    "k": polars.Int64, "s": polars.Int64, "alpha": polars.Float64, "parent_seed": polars.Int64,
    "pair": polars.Int64, "network": polars.String, "child": polars.Int64, "noise": polars.Int64,
    "stage": polars.String, "point": polars.String,
}  # fmt: skip
_ROW_TYPES: dict[str, Any] = {
    "epoch": polars.Int64, "batch_norm": polars.String, "metric": polars.String, "unit": polars.String,
    "value": polars.Float64, "state": polars.String,
}  # fmt: skip

# What a stretch of states is in the table: values of the axes, then those of _OWNER_TYPES.
_Owner = tuple[Any, ...]


class Stage(str, Enum):
    """The part of the protocol that a measurement belongs to."""

    PARENT = "parent"
    CHILDREN = "children"
    INTERPOLATION = "interpolation"
    AFTER = "after"


def point_rows(
    point: Point, place: PointStates, measurements: "Mapping[MeasurementKey, Measurement]"
) -> list[dict[str, Any]]:
    """The rows that `python -m fastwi.train` writes to metrics.jsonl for `point`: same order, same keys.

    Left out are rows that have no measurement yet, and those of recomputed batch-norm statistics where the sweep
    doesn't measure them.
    """
    experiment, children = point.config.experiment, place.children
    k, end = experiment.k, experiment.k + experiment.s
    names = [f"child {i + 1}" for i in range(len(place.ends))]
    wanted: list[tuple[Stage, int, str, str, str]] = []  # stage, epoch, network, state, treatment
    for i, state in enumerate(place.parent):
        wanted.append((Stage.PARENT, i + 1, "parent", state, OWN))
    for epoch in range(k, end):
        for name, child in zip(names, children, strict=True):
            wanted.append((Stage.CHILDREN, epoch + 1, name, child[epoch - k], OWN))
    for treatment in treatments(place) if (place.average, OWN) in measurements else ():
        for name, state in zip(["average", *names], [place.average, *place.ends], strict=True):
            wanted.append((Stage.INTERPOLATION, end, name, state, treatment))
    for i, state in enumerate(place.after):
        wanted.append((Stage.AFTER, end + i + 1, "average", state, OWN))
        if experiment.continue_children:
            for name, child in zip(names, children, strict=True):
                wanted.append((Stage.AFTER, end + i + 1, name, child[experiment.s + i], OWN))
    return [_row(*row, measurements[row[3:]]) for row in wanted if row[3:] in measurements]


def treatments(place: PointStates) -> tuple[str, ...]:
    """The treatments of batch-norm statistics that are measured at a point's interpolation, own first."""
    return (OWN, place.recomputed) if place.recomputed else (OWN,)


def other_axes(spec: SweepSpec) -> dict[str, int]:
    """The axes beside k and s: dotted name to index among the sweep's axes."""
    return {axis.path: i for i, axis in enumerate(spec.axes) if axis.path not in (K_AXIS, S_AXIS)}


def axis_value(path: str, value: Any) -> Any:
    """An axis value in its key's own type: 0 is 0.0 where the key is a float."""
    key = KEYS[path]
    return tuple(key.scalar(each) for each in value) if key.many else key.scalar(value)


def axis_types(spec: SweepSpec) -> dict[str, Any]:
    """The polars type of each axis beside k and s."""
    return {
        path: polars.List(_TYPES[KEYS[path].scalar]) if KEYS[path].many else _TYPES[KEYS[path].scalar]
        for path in other_axes(spec)
    }


def missing_measurements(tree: Tree, measurements: "Mapping[MeasurementKey, Measurement]") -> int:
    """How many of the measurements of `tree` are not there."""
    return sum(key not in measurements for key in tree.measurement_keys())


def result_frame(
    spec: SweepSpec,
    points: Sequence[Point],
    places: Sequence[PointStates],
    measurements: "Mapping[MeasurementKey, Measurement]",
    dataset_of: Callable[[Config], DataSummary],
) -> polars.DataFrame:
    """All measurements of a sweep in long form, each once (columns: the axes beside k and s, then `COLUMNS`).

    Measurements that are not there yet are left out (`missing_measurements` counts them). `places[i]` is where the
    results of `points[i]` are, as `plan_tree` gives it; `dataset_of` is the function that was given there.
    """
    tree, axes, tuples = places[0].tree, other_axes(spec), child_tuples(spec)
    # By last state and treatment: states are chained, so spans with one last state are one span.
    spans: dict[tuple[int, str], tuple[int, _Owner]] = {}
    for point, place in zip(points, places, strict=True):
        digest = dataset_of(point.config).digest
        values = tuple(axis_value(path, point.values[i]) for path, i in axes.items())
        for last, first, treatment, owner in _spans(point, place, values, tuples[point.tuple_index], digest):
            known = spans.get((last, treatment))
            spans[last, treatment] = first, owner if known is None else _shared(known[1], owner)
    owners: dict[tuple[int, str], _Owner] = {}
    for (last, treatment), (first, owner) in spans.items():
        for node in tree.path(last, first):
            seen = owners.get((node, treatment))  # a longer span may hold a shorter one
            owners[node, treatment] = owner if seen is None else _shared(seen, owner)
    return _long(spec, tree, owners, measurements)


def divergence(row: Mapping[str, Any]) -> str:
    """Which loss of one of `point_rows` is not finite, in words; empty where the network has not diverged."""
    if not math.isfinite(row.get("train_loss", 0.0)):
        return f"its training loss is {row['train_loss']}"
    if math.isfinite(row["test_loss"]):
        return ""
    treatment = " with recomputed batch-norm statistics" if row["batch_norm"] == RECOMPUTED else ""
    return f"its test loss{treatment} is {row['test_loss']}"


def write_results(
    frame: polars.DataFrame, path: str | os.PathLike[str], columns: Mapping[str, tuple[str, str]] = COLUMNS
) -> None:
    """Write a table of results as Parquet, atomically; unit and meaning of its `columns` go into the file's metadata.

    They are there under "fastwi.columns", as JSON: {column: {"unit": ..., "help": ...}}, axes included.
    Raises UserError where the file cannot be written.
    """
    described: dict[str, dict[str, str]] = {}
    for name in frame.columns:
        if name in columns:
            unit, text = columns[name]
        elif name in KEYS:
            unit, text = KEYS[name].unit, KEYS[name].help
        else:
            continue
        described[name] = {"unit": unit, "help": text}
    with atomic_path(path) as temporary:
        frame.write_parquet(temporary, metadata={"fastwi.columns": to_json(described)})


def _row(stage: Stage, epoch: int, network: str, state: str, treatment: str, found: "Measurement") -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": stage.value, "epoch": epoch, "network": network,
        "batch_norm": OWN if treatment == OWN else RECOMPUTED,
    }  # fmt: skip
    if stage is not Stage.INTERPOLATION:
        row |= {"train_loss": found.train_loss, "learning_rate": found.learning_rate}
    return row | {"test_loss": found.test_loss, "test_accuracy_%": found.test_accuracy}


def _spans(
    point: Point, place: PointStates, axes: tuple[Any, ...], numbers: tuple[int, ...], digest: str
) -> Iterator[tuple[int, int, str, _Owner]]:
    """What a point measures: the last of states in a row (a node), epochs done before the first, treatment, owner."""
    config, seed, epochs = point.config, point.parent, place.tree.epochs
    k, s, seeds = config.experiment.k, config.experiment.s, config.seeds
    at_interpolation = Stage.INTERPOLATION.value
    parent = ("parent", None, seeds.parent_noise)
    if k:
        yield place.clone_node, 0, OWN, (*axes, None, None, None, seed, None, *parent, Stage.PARENT.value, None)
    for number, noise, last in zip(numbers, seeds.child_noise, place.last_nodes, strict=True):
        if epochs[last] > k:
            child = ("child", number, noise)
            yield last, k, OWN, (*axes, k, None, None, seed, None, *child, Stage.CHILDREN.value, None)
    name = config_hash(config, digest)
    mean = (*axes, k, s, point.alpha, seed, point.tuple_index, "average", None)
    for treatment in treatments(place):
        yield place.average_node, k + s - 1, treatment, (*mean, None, at_interpolation, name)
        for number, noise, end in zip(numbers, seeds.child_noise, place.end_nodes, strict=True):
            if treatment == OWN and (k or s):
                continue  # measured after the network's last epoch
            network = ("child", number, noise) if s else parent
            yield end, k + s - 1, treatment, (*axes, k, s, None, seed, None, *network, at_interpolation, None)
    if epochs[place.after_node] > k + s:
        yield place.after_node, k + s, OWN, (*mean, seeds.average_noise, Stage.AFTER.value, name)


def _shared(first: _Owner, second: _Owner) -> _Owner:
    """The owner of what two owners share: null where they differ."""
    if first == second:
        return first
    return tuple(a if a == b else None for a, b in zip(first, second, strict=True))


def _long(
    spec: SweepSpec,
    tree: Tree,
    owners: Mapping[tuple[int, str], _Owner],
    measurements: "Mapping[MeasurementKey, Measurement]",
) -> polars.DataFrame:
    """One row a metric of each measurement that is there, in columns of plain values."""
    numbers: dict[_Owner, int] = {}
    which: list[int] = []
    rows: dict[str, list[Any]] = {name: [] for name in _ROW_TYPES}
    columns = tuple(rows.values())
    for (node, treatment), owner in owners.items():
        state, epoch = tree.keys[node], tree.epochs[node]
        found = measurements.get((state, treatment))
        if found is None:
            continue
        number = numbers.setdefault(owner, len(numbers))
        batch_norm = OWN if treatment == OWN else RECOMPUTED
        for metric, unit in UNITS.items():
            value = getattr(found, metric)
            if value is not None:  # NaN is a measurement: of a network that diverged
                which.append(number)
                for column, each in zip(columns, (epoch, batch_norm, metric, unit, value, state), strict=True):
                    column.append(each)
    types = axis_types(spec)
    owned = polars.DataFrame(list(numbers), schema=types | _OWNER_TYPES, orient="row")
    long = polars.concat([owned[which], polars.DataFrame(rows, schema=_ROW_TYPES)], how="horizontal")
    return long.select(*types, *COLUMNS)
