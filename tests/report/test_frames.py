"""A sweep's results: a point's rows as the protocol orders them, the table against one made by plain loops."""

import itertools
import json
import math
import random
from dataclasses import replace

import polars
import pytest
from drawn_measurements import INPUTS, made, spec_of

from fastwi.config.schema import times_alone
from fastwi.config.sweep import child_tuples, other_axes
from fastwi.config.time import Time, iterations_of
from fastwi.config.write import config_hash
from fastwi.errors import UserError
from fastwi.experiment.keys import Namer
from fastwi.experiment.store.records import infinite_loss
from fastwi.experiment.tree import OWN
from fastwi.report.rows import COLUMNS, UNITS, point_rows, result_frame, write_frame

PER_EPOCH = 2
BOTH = ("own", "recomputed")
ROWS = {
    "all of it": (
        {"k": 2, "s": 1, "after": 1, "continue_children": True}, {"alphas": (0.25,)},
        """
        parent 1 parent own, parent 2 parent own,
        children 3 child 1 own, children 3 child 2 own,
        interpolation 3 average own, interpolation 3 child 1 own, interpolation 3 child 2 own,
        interpolation 3 average recomputed, interpolation 3 child 1 recomputed, interpolation 3 child 2 recomputed,
        after 4 average own, after 4 child 1 own, after 4 child 2 own
        """,
    ),
    "every epoch": (
        {"k": 1, "s": 1, "after": 1, "continue_children": True, "measure": BOTH}, {"measure": ("own",)},
        """
        parent 1 parent own, parent 1 parent recomputed,
        children 2 child 1 own, children 2 child 2 own, children 2 child 1 recomputed, children 2 child 2 recomputed,
        interpolation 2 average own, interpolation 2 child 1 own, interpolation 2 child 2 own,
        interpolation 2 average recomputed, interpolation 2 child 1 recomputed, interpolation 2 child 2 recomputed,
        after 3 average own, after 3 child 1 own, after 3 child 2 own,
        after 3 average recomputed, after 3 child 1 recomputed, after 3 child 2 recomputed
        """,
    ),
    "s = 0": (
        {"k": 1, "s": 0, "after": 1}, {"parents": (3,), "measure": ("own",)},
        """
        parent 1 parent own,
        interpolation 1 average own, interpolation 1 child 1 own, interpolation 1 child 2 own, after 2 average own
        """,
    ),
    "k = 0": (
        {"k": 0, "s": 2, "after": 0}, {"measure": ("own",)},
        """
        children 1 child 1 own, children 1 child 2 own, children 2 child 1 own, children 2 child 2 own,
        interpolation 2 average own, interpolation 2 child 1 own, interpolation 2 child 2 own
        """,
    ),
    "the parent goes on": (
        {"k": 1, "s": 1, "after": 0, "continue_parent": "total"}, {"measure": ("own",)},
        """
        parent 1 parent own, parent 2 parent own, children 2 child 1 own, children 2 child 2 own,
        interpolation 2 average own, interpolation 2 child 1 own, interpolation 2 child 2 own,
        interpolation 2 parent own, parent 3 parent own
        """,
    ),
    "rounds": (
        {"k": 0, "s": 1, "rounds": 2, "after": 1, "pull": 0.5, "continue_children": True}, {"measure": ("own",)},
        """
        children 1 child 1 own, children 1 child 2 own,
        interpolation 1 average own, interpolation 1 child 1 own, interpolation 1 child 2 own,
        children 2 child 1 own, children 2 child 2 own,
        interpolation 2 average own, interpolation 2 child 1 own, interpolation 2 child 2 own,
        after 3 average own, after 3 child 1 own, after 3 child 2 own
        """,
    ),
    "k = s = 0": (
        {"k": 0, "s": 0, "after": 2}, {"measure": ("own",)},
        """
        interpolation 0 average own, interpolation 0 child 1 own, interpolation 0 child 2 own,
        after 1 average own, after 2 average own
        """,
    ),
}  # fmt: skip


def recomputed_at(place, epoch):
    """The name of the statistics that a network is measured with there."""
    return place.recomputed[math.ceil(epoch)].name if place.recomputed else [*place.treatments][1]


def state_of(row, place, s):
    """The state that a row of metrics.jsonl measures, from its names alone; `s` of all rounds as configured."""
    epoch, network = row["epoch"], row["network"]
    if network == "parent":
        return (*place.parent, *place.alone)[epoch - 1]
    if row["stage"] == "interpolation":
        at = place.rounds[row.get("round", 1) - 1]
        node = at.average_node if network == "average" else at.end_nodes[int(network[6:]) - 1]
        return place.tree.keys[node]
    if network == "average":
        return place.after[epoch - len(place.parent) - s - 1]
    return place.children[int(network[6:]) - 1][epoch - len(place.parent) - 1]


@pytest.mark.parametrize("name", ROWS)
def test_point_rows(name, seed):
    experiment, options, text = ROWS[name]
    sweep, measurements = made(spec_of({}, experiment, **options), seed)
    (point,), (place,) = sweep.points, sweep.places
    rows = point_rows(point, place, measurements)
    told = [" ".join(map(str, (row["stage"], row["epoch"], row["network"], row["batch_norm"]))) for row in rows]
    assert told == [each.strip() for each in text.split(",")]
    for row in rows:
        e = point.config.experiment
        state = state_of(row, place, e.s * e.rounds)
        number = max(1, min(row["epoch"] - e.k, e.rounds))
        assert row.pop("round", None) == (number if e.rounds > 1 and row["stage"] != "parent" else None)
        found = measurements[state, OWN if row["batch_norm"] == "own" else recomputed_at(place, row["epoch"])]
        trained = {"train_loss": found.train_loss, "learning_rate": found.learning_rate}
        assert row == {
            **{key: row[key] for key in ("stage", "epoch", "network", "batch_norm")},
            "iteration": PER_EPOCH * row["epoch"],
            **(trained if row["stage"] != "interpolation" and row["batch_norm"] == "own" else {}),
            "test_loss": found.test_loss, "test_accuracy_%": found.test_accuracy,
        }  # fmt: skip
    some = dict(list(measurements.items())[::2])
    assert 0 < len(point_rows(point, place, some)) < len(rows)
    del measurements[place.average, OWN]  # without it there is nothing to compare at interpolation
    left = [row for row in rows if (row["stage"], row["epoch"]) != ("interpolation", place.end)]
    for row in point_rows(point, place, measurements):
        row.pop("round", None)
        assert row == left.pop(0)
    assert not left


def test_averages_over_time_of_a_parent_that_goes_on_are_the_parents(seed):
    """Past the interpolation too."""
    experiment = {"k": 1, "s": 1, "continue_parent": "total"}
    sweep, measurements = made(spec_of({"trajectory.averages": [("ema",)]}, experiment), seed)
    (point,), (place,) = sweep.points, sweep.places
    rows = [row for row in point_rows(point, place, measurements) if "over_time" in row]
    past = {(row["network"], row["stage"]) for row in rows if row["epoch"] > place.end}
    assert past == {("parent", "parent"), ("average", "after")}


def test_divergence_in_words():
    assert infinite_loss(1.0, 1.0, True) == infinite_loss(None, 1.0, False) == ""
    assert infinite_loss(math.nan, 1.0, True) == "its training loss is nan"
    assert infinite_loss(1.0, math.inf, True) == "its test loss is inf"
    assert infinite_loss(None, math.inf, False) == "its test loss with recomputed batch-norm statistics is inf"


SPECS = {
    "plain": spec_of({"experiment.k": (0, 1, 3), "experiment.s": (1, 2)}, parents=(0, 5), children=4),
    "s0": spec_of({"experiment.s": (0, 2), "experiment.k": (2, 0)}, children=4),
    "axes": spec_of(
        {"optimizer.learning_rate": (0.1, 0.05), "experiment.s": (3, 1), "schedule.drop_epochs": ((3,), (80, 120))},
        {"continue_children": True}, parents=(1, 2), children=3, tuples="all", alphas=(0.0, 0.5),
    ),
    "every epoch": spec_of(
        {"augment.padding": (0, 2), "experiment.s": (0, 1, 3)}, {"k": 1, "measure": BOTH}, children=4,
    ),
    "every epoch, from 0": spec_of({"experiment.s": (0, 1)}, {"k": 0, "measure": BOTH}),
    "rounds": spec_of(
        {"experiment.rounds": (1, 3), "experiment.k": (0, 1),
         "experiment.continue_parent": ("none", "total", "each")},
        {"s": 2, "continue_children": True}, children=4,
    ),
    "rounds, every epoch": spec_of(
        {"experiment.rounds": (1, 2), "experiment.outer_step": (1.0, 0.5)}, {"k": 1, "s": 2, "measure": BOTH},
        children=4,
    ),
    "over time": spec_of(
        {"trajectory.averages": (("lawa", "ema"), ("swa",), ()), "trajectory.window": (2, 3),
         "experiment.rounds": (1, 2), "optimizer.ema_decay": (0.0, 0.9)},
        {"s": 3, "continue_children": True}, children=4,
    ),
    "after": spec_of(
        {"experiment.after": (0, 1, 3), "augment.padding": (0, 2)}, children=6, tuple_size=3, measure=("own",)
    ),
    "within epochs": spec_of(
        {"experiment.k": (Time("1it"), 2, Time("1ep1it")), "experiment.s": (Time("1it"), 1, Time("7it"))},
        {"continue_children": True, "after": Time("1ep1it")}, parents=(1, 2), children=4,
    ),
    "within every epoch, in rounds": spec_of(
        {"experiment.k": (Time("1it"), 2), "experiment.rounds": (1, 2)}, {"s": Time("3it"), "measure": BOTH},
    ),
}  # fmt: skip


def ends_of(first, last):
    """In epochs: the ends of those after `first` and before `last`, and that."""
    return [*range(math.floor(first) + 1, math.ceil(last)), *[last] * (last > first)]


def namer_of(sweep, point):
    return Namer(point.config, sweep.inputs_of(point.config))


def plain_table(sweep, measurements):
    """By (state, treatment, metric): every column's value where all points that share it agree, else None."""
    spec, seen = sweep.spec, {}

    def see(state, treatment, epoch, **facts):
        facts |= {"epoch": epoch, "iteration": PER_EPOCH * epoch}
        if (state, treatment) in measurements:
            for name, value in facts.items():
                seen.setdefault((state, treatment), {}).setdefault(name, set()).add(value)

    for point, place in zip(sweep.points, sweep.places, strict=True):
        e, seeds = point.config.experiment, point.config.seeds
        k, s, after = (iterations_of(time, PER_EPOCH) / PER_EPOCH for time in (e.k, e.s, e.after))
        ends = [k + number * s for number in range(e.rounds + 1)]
        values = dict(zip(spec.axes, point.values, strict=True))
        common = {path: values[path] for path in other_axes(spec)} | {"parent_seed": point.parent}
        many = any(each.config.experiment.rounds > 1 for each in sweep.points)
        none = dict.fromkeys(("k", "s", "alpha", "pair", "child", "point", "round", "over_time"))
        later = {"s": s, "alpha": point.alpha, "pair": point.tuple_index}  # from the second round on
        parent = {"network": "parent", "noise": point.parent}

        def every(state, epoch, place=place, **facts):
            """Measured after an epoch of training."""
            see(state, OWN, epoch, **facts)
            if place.recomputed:
                see(state, recomputed_at(place, epoch), epoch, **facts)

        again = times_alone(e)
        alone = (ends[-1] - k) * again + after * (again > 0)
        path = dict(zip(ends_of(0, k) + ends_of(k, k + alone), place.parent + place.alone, strict=True))
        for epoch, state in path.items():
            every(state, epoch, **(common | none | parent | {"stage": "parent"}))
        for number, times in itertools.product(range(1, e.rounds + 1), sorted({1, again} - {0}) if again else ()):
            epoch = k + number * s * times
            name = namer_of(sweep, point).recomputed(seeds.statistics_noise, e.recompute_images, int(epoch)).name
            see(path[epoch], name, **(common | none | parent | {"stage": "parent", "epoch": epoch}))
        for i, (number, states) in enumerate(zip(child_tuples(spec)[point.tuple_index], place.children, strict=True)):
            child = {"network": "child", "child": number, "noise": point.parent * 1_000_000 + number, "k": k}
            spans = [*enumerate(itertools.pairwise(ends), 1)]
            spans += [(e.rounds, (ends[-1], ends[-1] + after))] if e.continue_children else []
            times = [(at, epoch) for at, span in spans for epoch in ends_of(*span)]
            for (at, epoch), state in zip(times, states, strict=True):
                of = {"round": at if many else None} | (later if at > 1 else {})
                every(state, epoch, **(common | none | child | of | {"stage": "children"}))
            who = child if s else parent
            for number, each in enumerate(place.rounds, 1):
                end = place.tree.keys[each.end_nodes[i]]
                at = {"k": k, "s": s, "stage": "interpolation", "epoch": ends[number]}
                at |= {"round": number if many else None} | (later if number > 1 else {})
                for treatment in each.treatments.keys() - {OWN} if not (place.recomputed and k + s) else ():
                    see(end, treatment, **(common | none | who | at))
                if s == k == 0:
                    see(end, OWN, **(common | none | who | at))
        average = {
            "network": "average", "k": k, "s": s, "alpha": point.alpha, "pair": point.tuple_index, "child": None,
            "point": config_hash(point.config, INPUTS.digest), "over_time": None,
        }  # fmt: skip
        for number, each in enumerate(place.rounds, 1):
            average["round"] = number if many else None
            at = {"stage": "interpolation", "epoch": ends[number], "noise": None}
            for treatment in each.treatments:
                see(place.tree.keys[each.average_node], treatment, **(common | average | at))
        for each in place.over_time:
            about = {
                "parent": none | parent | {"stage": "parent"},
                "child": none | {"network": "child", "stage": "children", "k": k},
                "average": average | {"noise": seeds.average_noise, "stage": "after"},
            }[each.network]
            if each.network == "child":
                number = child_tuples(spec)[point.tuple_index][each.child]
                about |= {"child": number, "noise": point.parent * 1_000_000 + number}
                about |= {"round": each.round + 1 if many else None} | (later if each.round else {})
            epoch = place.tree.iterations[each.node] / PER_EPOCH
            for treatment in each.treatments.values():
                see(place.tree.keys[each.node], treatment.name, epoch, **(common | about | {"over_time": each.name}))
        for epoch, state in zip(ends_of(ends[-1], ends[-1] + after), place.after, strict=True):
            every(state, epoch, **(common | average | {"stage": "after", "noise": seeds.average_noise}))
    table = {}
    for (state, treatment), facts in seen.items():
        row = {name: values.pop() if len(values) == 1 else None for name, values in facts.items()}
        row |= {"state": state, "batch_norm": "own" if treatment.endswith(OWN) else "recomputed"}
        for metric, unit in UNITS.items():
            value = getattr(measurements[state, treatment], metric)
            if value is not None:
                table[state, row["batch_norm"], row["over_time"], metric] = row | {
                    "metric": metric,
                    "unit": unit,
                    "value": value,
                }
    return table


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("partly", [False, True])
def test_frame(name, partly, seed):
    spec = SPECS[name]
    sweep, measurements = made(spec, seed)
    if partly:
        lost = random.Random(seed).sample(sorted(measurements), len(measurements) // 3)
        for key in lost:
            del measurements[key]
    frame = result_frame(sweep, measurements)
    assert frame.columns == [*other_axes(spec), *COLUMNS]
    assert frame.height == sum(
        getattr(measurement, metric) is not None for measurement in measurements.values() for metric in UNITS
    )
    expected = plain_table(sweep, measurements)
    found = {}
    for row in frame.iter_rows(named=True):
        row = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        found[row["state"], row["batch_norm"], row["over_time"], row["metric"]] = row
    assert len(found) == frame.height
    assert found == expected


def test_frame_keeps_the_order_of_points_and_metrics(seed):
    sweep, measurements = made(SPECS["plain"], seed)
    frame = result_frame(sweep, measurements)
    first = sweep.places[0]
    expected = [*first.parent, first.children[0][0], first.children[1][0], first.average]
    assert list(dict.fromkeys(frame["state"]))[: len(expected)] == expected
    assert frame["metric"][:4].to_list() == list(UNITS)
    assert frame["parent_seed"].unique(maintain_order=True).to_list() == [0, 5]


def test_a_diverged_network_stays_in_the_table(seed):
    sweep, measurements = made(SPECS["plain"], seed)
    key = (sweep.places[0].after[0], OWN)
    measurements[key] = replace(measurements[key], test_loss=math.nan)
    (value,) = result_frame(sweep, measurements).filter(state=key[0], metric="test_loss")["value"]
    assert math.isnan(value)


def test_file(tmp_path, seed):
    sweep, measurements = made(SPECS["axes"], seed)
    frame = result_frame(sweep, measurements)
    assert result_frame(sweep, {}).equals(frame.clear())  # nothing measured
    path = tmp_path / "sweep" / "results.parquet"
    write_frame(frame, path, COLUMNS)
    assert polars.read_parquet(path).equals(frame)
    assert [each.name for each in path.parent.iterdir()] == ["results.parquet"]
    described = json.loads(polars.read_parquet_metadata(path)["fastwi.columns"])
    assert list(described) == frame.columns
    assert described["epoch"] == {"unit": "epochs", "help": COLUMNS["epoch"].help}
    assert described["optimizer.learning_rate"]["help"].startswith("initial learning rate")
    with pytest.raises(UserError, match=r"results\.parquet.*cannot be written"):
        write_frame(frame, path / "results.parquet", COLUMNS)  # a file where the directory should be
