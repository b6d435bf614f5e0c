"""Gains and tables of a sweep, against one run's own rows and against plain loops."""

import dataclasses
import itertools
import math
from statistics import fmean

import polars
import pytest
from drawn_measurements import made, planned, spec_of

from fastwi.analysis.statistics import mean_estimate
from fastwi.config.sweep import other_axes
from fastwi.config.time import Time
from fastwi.experiment.tree import OWN
from fastwi.report.claims import judge
from fastwi.report.effects import differences
from fastwi.report.rows import GAIN_COLUMNS, gains, point_rows
from fastwi.report.tables import after_table, cell_table, summary_markdown, sweep_tables

TREATMENTS = ("own", "recomputed")
SPECS = {
    "grid": spec_of(
        {"experiment.k": (0, 1, 3), "experiment.s": (1, 2)}, parents=(0, 5, 7, 8, 9), children=4, name="grid"
    ),
    "axes": spec_of(
        {"schedule.drop_epochs": ((3,), (80, 120)), "experiment.s": (0, 1), "optimizer.nesterov": (True, False)},
        {"after": 11},
        parents=(1, 2),
        children=3,
        tuples="all",
        alphas=(0.25, 0.5),
    ),
    "every epoch": spec_of({"experiment.k": (0, 2)}, {"after": 3, "measure": TREATMENTS}, parents=(0, 5), children=4),
    "own": spec_of({"experiment.k": (2,)}, {"after": 0}, children=6, tuple_size=3, measure=("own",)),
}


def accuracies(rows, **where):
    return [r["test_accuracy_%"] for r in rows if all(r[name] == value for name, value in where.items())]


def expected_gains(point, rows, measure):
    """A row of gains.parquet, from the rows of the run alone."""
    e = point.config.experiment
    row = {"k": e.k, "s": e.s, "alpha": point.alpha, "parent_seed": point.parent, "pair": point.tuple_index}
    for name in TREATMENTS:
        average, *children = accuracies(rows, stage="interpolation", batch_norm=name) or [None]
        row[f"average_{name}_%"], row[f"children_{name}_%"] = average, children or None
        row[f"gain_best_{name}_points"] = average - max(children) if name in measure else None
        row[f"gain_mean_{name}_points"] = average - fmean(children) if name in measure else None
    for name, text in (("own", "after"), ("recomputed", "after_recomputed")):
        there = name in point.config.experiment.measure
        after = accuracies(rows, stage="after", network="average", batch_norm=name)
        row[f"{text}_%"] = after if there else None
        for over in ("average", "best"):
            base = there and (row[f"average_{name}_%"] if over == "average" else max(row[f"children_{name}_%"]))
            row[f"{text}_vs_{over}_points"] = [each - base for each in after] if there else None
    at = next(row for row in rows if row["stage"] == "interpolation")
    steps = at["iteration"] / max(1, at["epoch"])
    return row | {"k_iterations": e.k * steps, "s_iterations": e.s * steps}


@pytest.mark.parametrize("name", SPECS)
def test_gains_are_those_of_each_run(name, seed):
    spec = SPECS[name]
    sweep, measurements = made(spec, seed)
    frame = gains(sweep, measurements)
    axes = other_axes(spec)
    assert frame.columns == [*axes, *GAIN_COLUMNS]
    assert frame.height == len(sweep.points)
    for point, place, row in zip(sweep.points, sweep.places, frame.iter_rows(named=True), strict=True):
        expected = expected_gains(point, point_rows(point, place, measurements), spec.options.measure)
        values = dict(zip(spec.axes, point.values, strict=True))
        for path in axes:
            value = row.pop(path)
            assert (tuple(value) if isinstance(value, list) else value) == values[path]
        assert list(row) == list(expected)
        for name, value in expected.items():
            assert row[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


def shown(values, rows, parents):
    """A mean over parents as tables show it; `parents` and `rows` are all that the cell has."""
    there = [(value, parent) for value, parent in zip(values, parents, strict=True) if value is not None]
    estimate = mean_estimate([value for value, _ in there], [parent for _, parent in there])
    n = estimate.n_parents
    more = "" if len(there) == rows else f", {len(there)} pairs"
    interval = f" [{estimate.low:+.2f}, {estimate.high:+.2f}]" if n >= 5 else ""
    whole = len(there) == rows and interval
    return f"{estimate.value:+.2f}{interval}" + ("" if whole else f" (n = {n}{more})")


def text(value):
    listed = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
    return listed.lower() if isinstance(value, bool) else listed


def cells_of(frame, names):
    """What names each cell, parents and pairs as text; and its rows and their parents."""
    found = {}
    for row in frame.to_dicts():
        found.setdefault(tuple(text(row[name]) for name in names), []).append(row)
    for named, rows in found.items():
        parents = [row["parent_seed"] for row in rows]
        yield (*named, str(len(set(parents))), str(len(rows))), rows, parents


@pytest.mark.parametrize("name", SPECS)
def test_tables_of_cells(name, seed):
    spec = SPECS[name]
    sweep, measurements = made(spec, seed)
    frame = gains(sweep, measurements)
    alphas = ["alpha"] if frame["alpha"].null_count() == 0 else []
    names = [*other_axes(spec), "k", "s", *alphas]
    for over in ("best", "mean"):
        table = cell_table(frame, over)
        assert table.columns[: len(names) + 2] == (*names, "parents", "pairs")
        expected = []
        for named, rows, parents in cells_of(frame, names):
            row = [*named]
            for treatment in spec.options.measure:
                row.append(shown([r[f"gain_{over}_{treatment}_points"] for r in rows], len(rows), parents))
                wins = sum(r[f"gain_best_{treatment}_points"] > 0 for r in rows)
                row.append(f"{100 * wins / len(rows):.0f}")
            expected.append(tuple(row))
        assert list(table.rows) == expected
    most = frame["after_%"].list.len().max()
    epochs = [e for e in (1, 2, 3, 5, 10, 11) if e <= most]  # of many, some and the last
    for against, treatment in itertools.product(("best", "average"), spec.base.experiment.measure):
        table = after_table(frame, against, treatment)
        assert table.columns[len(names) + 2 :] == tuple(f"+{epoch}" for epoch in epochs)
        assert [text in table.title for text in ("best child", treatment)] == [against == "best", True]
        lists = f"after_vs_{against}_points" if treatment == "own" else f"after_recomputed_vs_{against}_points"
        assert list(table.rows) == [
            (*named, *(shown([r[lists][epoch - 1] for r in rows], len(rows), parents) for epoch in epochs))
            for named, rows, parents in cells_of(frame, names)
        ]
    if name == "axes":
        last = frame.with_columns(x=polars.col("after_vs_best_points").list.last())
        axis = "optimizer.nesterov"  # which differs from the first step on
        ((_, _, rows),) = differences(last, axis, ["x"])
        effect = sweep_tables(frame)[-1].rows[-1]
        assert (effect[0], effect[-1]) == (axis, shown(rows["x"], rows.height, rows["parent_seed"]))


def test_what_diverged_gives_no_gain(seed):
    """Where its loss is NaN or infinite the accuracy is that of a constant."""
    sweep, measurements = made(SPECS["grid"], seed)
    again = [*sweep.places[0].treatments][1]

    def diverge(key, **loss):
        measurements[key] = dataclasses.replace(measurements[key], **loss)

    diverge((sweep.places[2].after[-1], OWN), train_loss=math.nan)
    diverge((sweep.places[0].average, OWN), test_loss=math.inf)
    diverge((sweep.places[1].ends[0], again), test_loss=math.inf)
    first, second, third, *others = gains(sweep, measurements).iter_rows(named=True)
    assert first["gain_best_own_points"] is first["average_own_%"] is first["children_own_%"] is None
    assert set(first["after_vs_average_points"]) == set(first["after_vs_best_points"]) == {None}
    assert first["gain_best_recomputed_points"] is not None
    assert second["gain_mean_recomputed_points"] is None
    assert second["gain_mean_own_points"] is not None
    for name in ("after_%", "after_vs_average_points", "after_vs_best_points"):
        assert [value is None for value in third[name]] == [False, True]
        assert all(None not in other[name] for other in others)
    diverge((sweep.places[0].average, again), test_loss=math.nan)
    assert gains(sweep, measurements).height == len(sweep.points) - 1


def test_one_parent_has_no_interval(seed):
    frame = gains(*made(SPECS["own"], seed))
    assert not any("[" in name for name in cell_table(frame).columns)
    (row,) = cell_table(frame.with_columns(gain_best_own_points=0.0)).rows
    assert row[-1] == "0"  # a draw is no win
    summary = summary_markdown(SPECS["own"], frame, frame.height)
    assert "n = 1: nothing can be concluded." in summary
    assert "trained on" not in summary  # no epochs after


def test_a_sweep_partly_done(seed):
    spec = SPECS["grid"]
    sweep, measurements = made(spec, seed)
    del measurements[sweep.places[0].average, OWN]  # k = 0, s = 1, parent 0, its first pair
    del measurements[sweep.places[1].average, [*sweep.places[1].treatments][1]]
    del measurements[sweep.places[-1].after[1], OWN]  # k = 3, s = 2, parent 9, its second pair
    frame = gains(sweep, measurements)
    assert frame.height == len(sweep.points) - 1
    assert frame["gain_best_recomputed_points"].null_count() == 1
    assert frame["after_%"][-1].to_list()[1] is None
    first, last = cell_table(frame).rows[0], after_table(frame).rows[-1]
    assert first[2:4] == ("5", "9")
    assert first[6].endswith("(n = 4, 8 pairs)")
    there = frame.filter(k=0, s=1)["gain_best_recomputed_points"].drop_nulls()
    assert first[7] == f"{100 * (there > 0).sum() / 8:.0f}"
    assert last[-1].endswith("(n = 5, 9 pairs)")
    assert last[-2].endswith("]")
    summary = summary_markdown(spec, frame, len(sweep.points), len(sweep.tree.measurement_keys()) - len(measurements))
    assert "59 of 60 averages measured; missing: 3 measurements" in summary
    assert summary.startswith("# grid\n")
    assert summary.count("| k | s |") == 4
    assert "- experiment.k: 0, 1, 3" in summary
    assert "- 5 parents, 4 children of each at each k, 2 averaged together (disjoint)" in summary


def test_times_within_epochs_are_named_by_their_iterations(seed):
    """The average is measured at ends of epochs, and at its own."""
    experiment = {"s": Time("1it"), "after": Time("1ep1it")}
    frame = gains(*made(spec_of({"experiment.k": (Time("1it"), Time("1ep1it"))}, experiment), seed))
    assert after_table(frame).columns[-2:] == ("end 1", "end 2")
    first, second, *_ = (claim.found.details for claim in judge(frame, {}))
    assert {detail.what.partition(";")[0] for detail in first} == {"k = 1it, s = 1it", "k = 3it, s = 1it"}
    assert {detail.what.partition(",")[0] for detail in second} == {"end 1 of an epoch", "end 2 of an epoch"}


def test_nothing_measured():
    spec = SPECS["grid"]
    sweep = planned(spec)
    frame = gains(sweep, {})
    assert frame.height == 0
    summary = summary_markdown(spec, frame, len(sweep.points), len(sweep.tree.measurement_keys()))
    assert "0 of 60 averages measured" in summary
    assert "|" not in summary
