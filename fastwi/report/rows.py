"""Measurements as rows: of a run, of all that a sweep measured, and of its averages.

A run's rows (metrics.jsonl) are `point_rows`. A sweep's table (results.parquet) has each measurement once, however
many points share it: `result_frame`. Its averages (gains.parquet) are `gains`, a row each.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import polars

from fastwi.analysis.columns import PAIR_COLUMNS, PAIR_TYPES, TIME_COLUMNS, Column, Columns, axis_types, schema
from fastwi.config.schema import KEYS
from fastwi.config.sweep import RECOMPUTED, Point, axis_value, child_tuples, other_axes, variant_of
from fastwi.config.write import config_hash
from fastwi.experiment.places import OverTime, PointStates
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.tree import MOVING, OWN, MeasurementKey
from fastwi.files import to_json, write_parquet

if TYPE_CHECKING:
    from fastwi.experiment.store import Measurement

Row = dict[str, Any]
Measured = Mapping[MeasurementKey, "Measurement"]
TREATMENTS = (OWN, RECOMPUTED)
OVER = {"best": "the best child", "mean": "the children's mean"}
"""What gains are taken over, in words."""
UNITS = {"train_loss": "nats", "learning_rate": "1", "test_loss": "nats", "test_accuracy": "%"}
"""The metrics, in the table's order, and their units."""
ACCURACY = "test_accuracy_%"

_INT, _TEXT, _LIST = polars.Int64, polars.String, polars.List(polars.Float64)

COLUMNS = {
    "k": Column("epochs", "epochs that the parent trained before cloning; null for the parent's own epochs", _INT),
    "s": Column("epochs", "epochs that each child trained before averaging; null before the first average", _INT),
    "alpha": Column("1", "weight of the second child in the average; null: the plain mean, or no average"),
    "parent_seed": PAIR_COLUMNS["parent_seed"],
    "pair": Column("", "which tuple of the parent's children was averaged, from 0; null where not one alone", _INT),
    "network": Column("", "parent, child or average; at s = 0 the children are the parent still", _TEXT),
    "child": Column("", "number of the child, from 1 within its parent and k", _INT),
    "noise": Column("", "noise seed of the network's training; null for an average not yet trained on", _INT),
    "stage": Column("", "parent, children (also where they are trained on), interpolation or after", _TEXT),
    "round": Column("", "round of cloning and averaging, from 1; null where all points have one, and before", _INT),
    "over_time": Column("", "which average over time (trajectory.averages) of the network; null: the network", _TEXT),
    "epoch": Column("epochs", "epochs done since initialisation", _INT),
    "iteration": Column("iterations", "training steps done since initialisation", _INT),
    "batch_norm": Column("", "batch-norm statistics at evaluation: own, or recomputed on training images", _TEXT),
    "metric": Column("", "what was measured: " + ", ".join(UNITS), _TEXT),
    "unit": Column("", "unit of value", _TEXT),
    "value": Column("see unit", "the measurement"),
    "point": Column("", "hash of the one configuration that has this row; null where several points share it", _TEXT),
    "state": Column("", "key of the network's state in the store", _TEXT),
}
"""Of results.parquet. Before them stand the axes of the sweep other than k and s, by dotted name, null where a
measurement serves several of an axis's values."""


def _treated(name: str) -> dict[str, Column]:
    """The columns of gains under one treatment of batch norm."""
    return {
        f"average_{name}_%": Column("%", f"test accuracy of the average at interpolation, {name} statistics"),
        f"children_{name}_%": Column("%", f"that of each child at interpolation, {name} statistics", _LIST),
        f"gain_best_{name}_points": Column("points", f"average less best child, both with {name} statistics"),
        f"gain_mean_{name}_points": Column("points", "average less the children's mean, likewise"),
    }


def _further(name: str, treatment: str) -> dict[str, Column]:
    """The columns of gains on the average's further training under one treatment of batch norm."""
    at = f"at interpolation, {treatment} statistics"
    return {
        f"{name}_%": Column(
            "%", f"test accuracy of the average at the end of each further epoch, {treatment} statistics", _LIST
        ),
        f"{name}_vs_average_points": Column("points", f"that less the average's {at}", _LIST),
        f"{name}_vs_best_points": Column("points", f"that less the best child's {at}", _LIST),
    }


GAIN_COLUMNS = {
    **PAIR_COLUMNS, **_treated(OWN), **_treated(RECOMPUTED),
    **_further("after", OWN), **_further("after_recomputed", RECOMPUTED), **TIME_COLUMNS,
}  # fmt: skip
"""Of gains.parquet, after the axes beside k and s. Null: not measured (yet), or a network of these diverged."""

_ROW_TYPES = {
    "stage": _TEXT, "round": _INT, "epoch": _INT, "iteration": _INT, "network": _TEXT, "over_time": _TEXT,
    "batch_norm": _TEXT, **dict.fromkeys(("train_loss", "learning_rate", "test_loss", ACCURACY), polars.Float64),
}  # fmt: skip

_SPAN_TYPES = PAIR_TYPES | {
    **{name: COLUMNS[name].type for name in ("network", "child", "noise", "stage", "round", "point")},
    "last": _INT, "first": _INT, "treatment": _TEXT, "over_time": _TEXT,
}  # fmt: skip


def write_frame(frame: polars.DataFrame, path: str | os.PathLike[str], columns: Columns) -> None:
    """Write `frame` as Parquet, atomically. Raises UserError where that fails.

    The metadata has under "fastwi.columns" each column's "unit" and "help", as JSON, those of axes too.
    """
    about = {name: Column(KEYS[name].unit, KEYS[name].help) for name in frame.columns if name in KEYS}
    about |= columns
    there = [name for name in frame.columns if name in about]
    described = {name: {"unit": about[name].unit, "help": about[name].help} for name in there}
    write_parquet(path, frame, {"fastwi.columns": to_json(described)})


def row_name(row: Row) -> str:
    """The network of a row of metrics.jsonl, with its average over time where it is one."""
    return " ".join(filter(None, (row["network"], row.get("over_time"))))


def rows_frame(rows: Iterable[Row]) -> polars.DataFrame:
    """The rows of metrics.jsonl as a frame; null where a row has no such column."""
    every = list(rows)
    parts = any(isinstance(row["epoch"], float) for row in every)
    types = _ROW_TYPES | ({"epoch": polars.Float64} if parts else {})
    return polars.DataFrame([[row.get(name) for name in types] for row in every], schema=types, orient="row")


def point_rows(point: Point, place: PointStates, measurements: Measured) -> list[Row]:
    """The rows of metrics.jsonl for `point`, in its order; without those that have no measurement (yet)."""
    tree, keys, names = place.tree, place.tree.keys, [f"child {i}" for i in range(1, len(place.ends) + 1)]
    # Stage, round, network, treatment and states.
    every = [OWN, *([RECOMPUTED] if place.recomputed else [])]
    lines = [("parent", 0, "parent", treatment, (*place.parent, *place.alone)) for treatment in every]
    for number, each in enumerate(place.rounds, 1):
        children = dict(zip(names, place.children_in(each), strict=True))
        for treatment in every:
            lines += [("children", number, name, treatment, states) for name, states in children.items()]
        at_end = {"average": each.average_node, **dict(zip(children, each.end_nodes, strict=True))}
        at_end |= {"parent": each.alone[0][0]} if each.alone else {}
        for treatment in each.treatments if (keys[each.average_node], OWN) in measurements else ():
            lines += [("interpolation", number, name, treatment, (keys[n],)) for name, n in at_end.items()]
    for treatment in every:
        lines.append(("after", number, "average", treatment, place.after))
        further = zip(names, place.children_on, strict=True)
        lines += [("after", number, name, treatment, states) for name, states in further]
    of_time = dict[MeasurementKey, tuple[str, str]]()
    for average in place.over_time:
        stage, name = _over_time_names(place, average)
        only = (keys[average.node],)
        for how in average.treatments.values():
            lines.append((stage, average.round + 1, name, how.name, only))
            of_time[only[0], how.name] = average.name, OWN if how.own else RECOMPUTED
    rows: list[Row] = []
    for stage, number, network, treatment, states in lines:
        batch_norm = OWN if treatment == OWN else RECOMPUTED
        for state in states:
            node = tree.nodes[state]
            filed = place.filed(state, treatment)
            found = measurements.get(filed)
            if found is None:
                continue
            row: Row = {"stage": stage, "epoch": tree.time(node), "iteration": tree.iterations[node]}
            row |= {"network": network, "batch_norm": batch_norm}
            if number and len(place.rounds) > 1 and stage != "parent":
                row["round"] = number
            if filed in of_time:
                row["over_time"], row["batch_norm"] = of_time[filed]
            if stage != "interpolation" and treatment == OWN and found.learning_rate is not None:
                row |= {"train_loss": found.train_loss, "learning_rate": found.learning_rate}
            rows.append(row | {"test_loss": found.test_loss, ACCURACY: found.test_accuracy})
    return sorted(rows, key=itemgetter("iteration"))  # and then as they are: networks side by side


def _over_time_names(place: PointStates, average: OverTime) -> tuple[str, str]:
    """The stage of an average over time, and its network as rows of metrics.jsonl call it."""
    name = f"child {average.child + 1}" if average.child >= 0 else average.network
    past = place.tree.time(average.node) > place.end and average.network != "parent"
    return "after" if past else {"child": "children"}.get(average.network, average.network), name


def gains(planned: PlannedSweep, measurements: Measured) -> polars.DataFrame:
    """One row a point (cell, parent, tuple, alpha) whose average and children are measured at interpolation.

    A point where one of them diverged under every treatment of batch norm is left out.
    """
    rows: list[Row] = []
    for point, place in zip(planned.points, planned.places, strict=True):
        networks = (place.average, *place.ends)
        row = variant_of(planned.spec, point) | {
            "k": place.k,
            "s": place.s,
            "alpha": point.alpha,
            "parent_seed": point.parent,
            "pair": point.tuple_index,
            "k_iterations": place.k_iterations,
            "s_iterations": place.s_iterations,
        }
        sound = False
        for name, treatment in zip(TREATMENTS, place.treatments, strict=False):
            accuracies = [_accuracy(measurements, (state, treatment)) for state in networks]
            if None not in accuracies:
                row[f"average_{name}_%"], *row[f"children_{name}_%"] = accuracies
                sound = True
        row["after_%"] = [_accuracy(measurements, (state, OWN)) for state in place.after]
        if place.recomputed:
            again = [place.filed(state, RECOMPUTED) for state in place.after]
            row["after_recomputed_%"] = [_accuracy(measurements, key) for key in again]
        if sound and all((state, OWN) in measurements for state in networks):
            rows.append(row)
    types = schema(planned.spec, GAIN_COLUMNS)
    frame = polars.DataFrame([[row.get(name) for name in types] for row in rows], schema=types, orient="row")
    column = polars.col
    for name in TREATMENTS:
        children = column(f"children_{name}_%").list
        for over, base in (("best", children.max()), ("mean", children.mean())):
            frame = frame.with_columns((column(f"average_{name}_%") - base).alias(f"gain_{over}_{name}_points"))
    for after, name in (("after", OWN), ("after_recomputed", RECOMPUTED)):
        best = column(f"children_{name}_%").list.max()
        for over, base in (("average", column(f"average_{name}_%")), ("best", best)):
            frame = frame.with_columns((column(f"{after}_%") - base).alias(f"{after}_vs_{over}_points"))
    return frame


def _accuracy(measurements: Measured, key: MeasurementKey) -> float | None:
    """Test accuracy in %; None where nothing was measured, or the network diverged in that very epoch."""
    found = measurements.get(key)
    return None if found is None or found.diverged else found.test_accuracy


def result_frame(planned: PlannedSweep, measurements: Measured) -> polars.DataFrame:
    """All measurements of a sweep that are there, in long form, each once."""
    spec, tree, types = planned.spec, planned.tree, schema(planned.spec, COLUMNS)
    axes, tuples = other_axes(spec), child_tuples(spec)
    many = any(len(place.rounds) > 1 for place in planned.places)
    # Values of axes by their place on the axis: polars compares numbers.
    numbers = {path: {value: n for n, value in enumerate(spec.axes[path])} for path in axes}
    spans = []
    for point, place in zip(planned.points, planned.places, strict=True):
        values = [
            numbers[path][value] for path, value in zip(spec.axes, point.values, strict=True) if path in numbers
        ]
        about = point, place, tuples[point.tuple_index], planned.inputs_of(point.config).digest, many
        spans += [(*values, *span, None) for span in _spans(*about)]
        spans += [(*values, *span) for span in _over_time_spans(*about)]
    span_types = _SPAN_TYPES | {name: types[name] for name in ("k", "s")}
    frame = polars.DataFrame(spans, schema=dict.fromkeys(axes, _INT) | span_types, orient="row")
    # States are chained: spans with one last state are one span, and a longer one may hold a shorter.
    frame = _shared(frame, "last", "first", "treatment")
    nodes = [tree.path(*span) for span in frame.select("last", "first").iter_rows()]
    frame = frame.with_columns(polars.Series("node", nodes, polars.List(_INT))).drop("last", "first")
    frame = frame.explode("node")
    # Spans with recomputed statistics are named by their last epoch's treatment; each epoch has its own.
    families = {id(place.recomputed): place.recomputed for place in planned.places}.values()
    recomputed = {treatment.name: family for family in families for treatment in family.values()}
    names = [
        recomputed[name][tree.epochs[node]].name if name in recomputed else name
        for node, name in frame.select("node", "treatment").iter_rows()
    ]
    frame = _shared(frame.with_columns(treatment=polars.Series(names, dtype=_TEXT)), "node", "treatment")
    states = [tree.keys[node] for node in frame["node"]]
    found = [measurements.get(name) for name in zip(states, frame["treatment"], strict=True)]
    own = polars.col("treatment").is_in([OWN, MOVING + OWN])
    frame = frame.with_columns(
        polars.Series("state", states, _TEXT),
        polars.Series("epoch", [tree.time(node) for node in frame["node"]], types["epoch"], strict=False),
        polars.Series("iteration", [tree.iterations[node] for node in frame["node"]], _INT),
        polars.when(own).then(polars.lit(OWN)).otherwise(polars.lit(RECOMPUTED)).alias("batch_norm"),
        *(polars.Series(name, [m and getattr(m, name) for m in found], polars.Float64) for name in UNITS),
        *(
            polars.Series(path, [axis_value(spec, path, each) for each in spec.axes[path]], kind).gather(frame[path])
            for path, kind in axis_types(spec).items()
        ),
    )
    kept = [name for name in (*axes, *COLUMNS) if name in frame.columns]
    long = frame.select(*kept, *UNITS).with_row_index("row")
    long = long.unpivot(list(UNITS), index=["row", *kept], variable_name="metric").drop_nulls("value")  # NaN stays
    long = long.with_columns(polars.col("metric").replace_strict(UNITS).alias("unit"))
    return long.sort("row", maintain_order=True).select(*axes, *COLUMNS)


def _spans(
    point: Point, place: PointStates, numbers: tuple[int, ...], digest: str, many: bool
) -> Iterator[tuple[Any, ...]]:
    """What a point measures, as `_SPAN_TYPES`: states in a row up to the node `last`, after iteration `first`.

    many: some point of the sweep has more than one round.
    """
    config, seed, seeds, k, s = point.config, point.parent, point.config.seeds, place.k, place.s
    epochs, done = place.tree.epochs, place.tree.iterations
    parent, at_end = ("parent", None, seeds.parent_noise), "interpolation"

    def every(last: int) -> list[str]:
        return [OWN, *([place.recomputed[epochs[last]].name] if place.recomputed else [])]

    alone = (node for each in place.rounds for node, _ in each.alone)
    for node in dict.fromkeys((place.clone_node, *alone, place.parent_node)):
        for treatment in every(node) if done[node] else ():
            yield None, None, None, seed, None, *parent, "parent", None, None, node, 0, treatment
    name = config_hash(config, digest)
    of_average = point.alpha, seed, point.tuple_index
    mean = (k, s, *of_average, "average", None)
    for at, each in enumerate(place.rounds, 1):
        number, average = at if many else None, done[each.average_node]
        # From the second round on children are of one average, as its own tuple's.
        of = (None, None, seed, None) if at == 1 else (s, *of_average)
        lasts = place.last_nodes if each is place.rounds[-1] else each.end_nodes
        for child, noise, *nodes in zip(numbers, seeds.child_noise, each.end_nodes, lasts, strict=True):
            for last in dict.fromkeys(nodes):  # a child that is averaged within an epoch may go on past it
                span = "children", number, None, last, each.first
                for treatment in every(last) if done[last] > each.first else ():
                    yield k, *of, "child", child, noise, *span, treatment
        for node, treatments in each.alone if not place.recomputed else ():
            for treatment in treatments.keys() - {OWN}:
                yield None, None, None, seed, None, *parent, "parent", None, None, node, done[node] - 1, treatment
        for treatment in each.treatments:
            yield *mean, None, at_end, number, name, each.average_node, average - 1, treatment
            for child, noise, end in zip(numbers, seeds.child_noise, each.end_nodes, strict=True):
                # Else it is measured after the network's last epoch.
                if (treatment != OWN and not place.recomputed) or not average:
                    network = ("child", child, noise) if s else parent
                    yield k, s, *of[1:], *network, at_end, number, None, end, average - 1, treatment
    for treatment in every(place.after_node) if done[place.after_node] > average else ():
        yield *mean, seeds.average_noise, "after", number, name, place.after_node, average, treatment


def _over_time_spans(
    point: Point, place: PointStates, numbers: tuple[int, ...], digest: str, many: bool
) -> Iterator[tuple[Any, ...]]:
    """The averages over time of a point, likewise, each with its name."""
    seeds, seed = point.config.seeds, point.parent
    for average in place.over_time:
        node, number = average.node, average.round + 1 if many else None
        names: tuple[Any, ...] = (None, None, None, seed, None, "parent", None, seeds.parent_noise)
        names += ("parent", None, None)
        whole = place.k, place.s, point.alpha, seed, point.tuple_index
        if average.network == "child":
            noise = seeds.child_noise[average.child]
            child = "child", numbers[average.child], noise
            of = whole if average.round else (place.k, None, None, seed, None)
            names = (*of, *child, "children", number, None)
        elif average.network == "average":
            name = config_hash(point.config, digest)
            names = (*whole, "average", None, seeds.average_noise, "after", number, name)
        for treatment in average.treatments.values():
            yield *names, node, place.tree.iterations[node] - 1, treatment.name, average.name


def _shared(frame: polars.DataFrame, *keys: str) -> polars.DataFrame:
    """A row for each combination of `keys`, in order, with what all of its rows share; null where they differ."""
    others = [polars.col(name) for name in frame.columns if name not in keys]
    return frame.group_by(keys, maintain_order=True).agg(
        polars.when(c.n_unique() == 1).then(c.first()) for c in others
    )
