"""The results of a sweep: the rows of any one point, and all measurements as one table in long form.

A point's rows are those that `python -m fastwi.train` writes for it. The table has every measurement once, however
many points share it. Its columns are described in `COLUMNS`, which also goes into the file.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars

from fastwi.config.keys import KEYS
from fastwi.config.schema import Config
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepaxes import axis_value, other_axes
from fastwi.config.write import config_hash
from fastwi.experiment.keys import DataSummary
from fastwi.experiment.planner import PointStates
from fastwi.experiment.points import Point, child_tuples
from fastwi.experiment.tree import OWN, MeasurementKey, Tree

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

RECOMPUTED = "recomputed"

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
_SPAN_TYPES: dict[str, Any] = {
    "k": polars.Int64, "s": polars.Int64, "alpha": polars.Float64, "parent_seed": polars.Int64, "pair": polars.Int64,
    "network": polars.String, "child": polars.Int64, "noise": polars.Int64, "stage": polars.String,
    "point": polars.String, "last": polars.Int64, "first": polars.Int64, "treatment": polars.String,
}  # fmt: skip

_Row = tuple[str, int, str, str, str]  # stage, epochs done, network, state, treatment


def point_rows(
    point: Point, place: PointStates, measurements: "Mapping[MeasurementKey, Measurement]"
) -> list[dict[str, Any]]:
    """The rows that `python -m fastwi.train` writes to metrics.jsonl for `point`: same order, same keys.

    Left out are rows that have no measurement yet, and those of recomputed batch-norm statistics where the sweep
    doesn't measure them.
    """
    e = point.config.experiment
    end, children = e.k + e.s, {f"child {i}": states for i, states in enumerate(place.children, 1)}
    later = {"average": place.after, **{name: states[e.s :] for name, states in children.items()}}
    at_end = dict(zip(["average", *children], [place.average, *place.ends], strict=True))
    wanted: list[_Row] = [("parent", i, "parent", state, OWN) for i, state in enumerate(place.parent, 1)]
    for i in range(e.s):
        wanted += [("children", e.k + i + 1, name, states[i], OWN) for name, states in children.items()]
    for treatment in treatments(place) if (place.average, OWN) in measurements else ():
        wanted += [("interpolation", end, name, state, treatment) for name, state in at_end.items()]
    for i in range(e.after):
        wanted += [("after", end + i + 1, name, states[i], OWN) for name, states in later.items() if states]
    return [_row(*row, measurements[row[3:]]) for row in wanted if row[3:] in measurements]


def _row(stage: str, epoch: int, network: str, state: str, treatment: str, found: "Measurement") -> dict[str, Any]:
    batch_norm = OWN if treatment == OWN else RECOMPUTED
    row: dict[str, Any] = {"stage": stage, "epoch": epoch, "network": network, "batch_norm": batch_norm}
    if stage != "interpolation":
        row |= {"train_loss": found.train_loss, "learning_rate": found.learning_rate}
    return row | {"test_loss": found.test_loss, "test_accuracy_%": found.test_accuracy}


def treatments(place: PointStates) -> tuple[str, ...]:
    """The treatments of batch-norm statistics that are measured at a point's interpolation, own first."""
    return (OWN, place.recomputed) if place.recomputed else (OWN,)


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
    # Values of axes by their place on the axis: polars compares numbers.
    numbers = {path: {value: n for n, value in enumerate(spec.axes[i].values)} for path, i in axes.items()}
    spans = [
        (*(numbers[path][point.values[i]] for path, i in axes.items()), *span)
        for point, place in zip(points, places, strict=True)
        for span in _spans(point, place, tuples[point.tuple_index], dataset_of(point.config).digest)
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


def divergence(row: Mapping[str, Any]) -> str:
    """Which loss of one of `point_rows` is not finite, in words; empty where the network has not diverged."""
    if not math.isfinite(row.get("train_loss", 0.0)):
        return f"its training loss is {row['train_loss']}"
    if math.isfinite(row["test_loss"]):
        return ""
    treatment = " with recomputed batch-norm statistics" if row["batch_norm"] == RECOMPUTED else ""
    return f"its test loss{treatment} is {row['test_loss']}"


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
    for treatment in treatments(place):
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
