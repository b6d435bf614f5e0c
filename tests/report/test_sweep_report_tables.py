"""Gains, cells and tables of a sweep, against one run's own summary and against plain loops."""

import dataclasses
import json
import math
import re
from statistics import fmean

import polars
import pytest
from drawn_measurements import drawn, planned, spec_of

from fastwi.analysis.statistics import mean_estimate
from fastwi.config.schema import KEYS
from fastwi.experiment.tree import OWN
from fastwi.report.rows import GAIN_COLUMNS, gains, point_rows, write_frame
from fastwi.report.tables import after_table, cell_table, cells, summary_markdown

SPECS = {
    "grid": spec_of(
        {"experiment.k": (0, 1, 3), "experiment.s": (1, 2)}, parents=(0, 5, 7, 8, 9), children=4, name="grid"
    ),
    "axes": spec_of(
        {"schedule.drop_epochs": ((3,), (80, 120)), "experiment.s": (0, 1), "optimizer.nesterov": (True, False)},
        {"after": 11}, parents=(1, 2), children=3, tuples="all", alphas=(0.25, 0.5),
    ),
    "own": spec_of({"experiment.k": (2,)}, {"after": 0}, children=6, tuple_size=3, measure=("own",)),
}  # fmt: skip


def gain(rows, treatment):
    """Of a run's rows: accuracy of the average less that of the best child, and less the children's mean."""
    at = [r for r in rows if r["stage"] == "interpolation" and r["batch_norm"] == treatment]
    average, *children = [r["test_accuracy_%"] for r in at]
    return average - max(children), average - fmean(children)


@pytest.fixture(params=SPECS)
def sweep(request, seed):
    """A sweep: spec, points, places, measurements."""
    spec = SPECS[request.param]
    every, places, tree = planned(spec)
    return spec, every, places, drawn(tree, seed)


def test_gains_are_those_of_each_run(sweep):
    spec, every, places, measurements = sweep
    frame = gains(spec, every, places, measurements)
    assert frame.height == len(every)
    assert [name for name in frame.columns if name not in KEYS] == list(GAIN_COLUMNS)
    for point, place, row in zip(every, places, frame.iter_rows(named=True), strict=True):
        rows = point_rows(point, place, measurements)
        e = point.config.experiment
        found = (row["k"], row["s"], row["alpha"], row["parent_seed"], row["pair"])
        assert found == (e.k, e.s, point.alpha, point.parent, point.tuple_index)
        for i, axis in enumerate(spec.axes):
            if axis.path in row:
                value = row[axis.path]
                assert (tuple(value) if isinstance(value, list) else value) == point.values[i]
        for treatment in ("own", "recomputed"):
            if treatment not in spec.options.measure:
                assert row[f"average_{treatment}_%"] is row[f"gain_best_{treatment}_points"] is None
                continue
            best, mean = gain(rows, treatment)
            assert row[f"gain_best_{treatment}_points"] == pytest.approx(best, abs=1e-12)
            assert row[f"gain_mean_{treatment}_points"] == pytest.approx(mean, abs=1e-12)
            at = [r for r in rows if r["stage"] == "interpolation" and r["batch_norm"] == treatment]
            shown = [row[f"average_{treatment}_%"], *row[f"children_{treatment}_%"]]
            assert shown == [r["test_accuracy_%"] for r in at]
        own = [r["test_accuracy_%"] for r in rows if r["stage"] == "interpolation" and r["batch_norm"] == "own"]
        after = [r["test_accuracy_%"] for r in rows if r["stage"] == "after" and r["network"] == "average"]
        assert row["after_%"] == after
        assert len(after) == e.after
        assert row["after_vs_average_points"] == pytest.approx([a - own[0] for a in after], abs=1e-12)
        assert row["after_vs_best_points"] == pytest.approx([a - max(own[1:]) for a in after], abs=1e-12)


def test_cells(sweep):
    spec, every, places, measurements = sweep
    found = cells(gains(spec, every, places, measurements))
    expected = {}
    for point, place in zip(every, places, strict=True):
        at = {path.path: value for path, value in zip(spec.axes, point.values, strict=True)}
        k, s = point.config.experiment.k, point.config.experiment.s
        others = tuple(item for item in at.items() if item[0] not in ("experiment.k", "experiment.s"))
        rows = point_rows(point, place, measurements)
        expected.setdefault((others, k, s, point.alpha), []).append((point.parent, rows))
    assert [(cell.axes, cell.k, cell.s, cell.alpha) for cell in found] == list(expected)
    for cell in found:
        runs = expected[cell.axes, cell.k, cell.s, cell.alpha]
        parents = dict.fromkeys(parent for parent, _ in runs)
        assert (cell.parents, cell.pairs) == (len(parents), len(runs))
        assert set(cell.gains) == {(name, over) for name in spec.options.measure for over in ("best", "mean")}
        for (treatment, over), estimate in cell.gains.items():
            by_run = [(parent, gain(rows, treatment)[over == "mean"]) for parent, rows in runs]
            means = [fmean(value for parent, value in by_run if parent == each) for each in parents]
            assert estimate.value == pytest.approx(fmean(means), abs=1e-12)
            interval = mean_estimate([value for _, value in by_run], [parent for parent, _ in by_run])
            assert (estimate.low, estimate.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
            assert estimate.conclusive == (len(parents) >= 5)
        for treatment, share in cell.wins.items():
            wins = sum(gain(rows, treatment)[0] > 0 for _, rows in runs)
            assert share == pytest.approx(100 * wins / len(runs))


def test_an_average_that_diverges_has_no_accuracy(seed):
    """Where its loss is NaN or infinite the accuracy is that of a constant, and no loss of a gain."""
    every, places, tree = planned(SPECS["grid"])
    measurements = drawn(tree, seed)
    key = (places[0].after[-1], OWN)
    measurements[key] = dataclasses.replace(measurements[key], train_loss=float("nan"))
    row, *others = gains(SPECS["grid"], every, places, measurements).iter_rows(named=True)
    for name in ("after_%", "after_vs_average_points", "after_vs_best_points"):
        assert row[name][-1] is None
        assert None not in row[name][:-1]
        assert all(None not in other[name] for other in others)


def test_what_diverged_at_interpolation_gives_no_gain(seed):
    every, places, tree = planned(SPECS["grid"])
    measurements = drawn(tree, seed)
    for key in ((places[0].average, OWN), (places[1].ends[0], [*places[1].treatments][1])):
        measurements[key] = dataclasses.replace(measurements[key], test_loss=math.inf)
    first, second, *others = gains(SPECS["grid"], every, places, measurements).iter_rows(named=True)
    assert first["gain_best_own_points"] is first["average_own_%"] is first["children_own_%"] is None
    assert set(first["after_vs_average_points"]) == set(first["after_vs_best_points"]) == {None}
    assert first["gain_best_recomputed_points"] is not None
    assert second["gain_mean_recomputed_points"] is None
    assert second["gain_mean_own_points"] is not None
    assert all(None not in row.values() for row in others if row["alpha"] is not None)
    key = (places[0].average, [*places[0].treatments][1])
    measurements[key] = dataclasses.replace(measurements[key], test_loss=math.nan)
    assert gains(SPECS["grid"], every, places, measurements).height == len(every) - 1


def numbers(text):
    return [float(each) for each in re.findall(r"[-+]\d+\.\d+", text)]


def test_cell_table(seed):
    every, places, tree = planned(SPECS["grid"])
    found = cells(gains(SPECS["grid"], every, places, drawn(tree, seed)))
    for over in ("best", "mean"):
        table = cell_table(found, over)
        assert table.columns[:4] == ("k", "s", "parents", "pairs")
        assert [row[:4] for row in table.rows] == [
            (str(k), str(s), "5", "10") for k in (0, 1, 3) for s in (1, 2)
        ]  # fmt: skip
        for row, cell in zip(table.rows, found, strict=True):
            for column, name in ((4, "own"), (6, "recomputed")):
                assert name in table.columns[column]
                e = cell.gains[name, over]
                assert numbers(row[column]) == pytest.approx([e.value, e.low, e.high], abs=0.00501)
                assert float(row[column + 1]) == pytest.approx(cell.wins[name], abs=0.501)


def test_one_parent_has_no_interval(seed):
    every, places, tree = planned(SPECS["own"])
    found = cells(gains(SPECS["own"], every, places, drawn(tree, seed)))
    table = cell_table(found)
    assert [row[:4] for row in table.rows] == [("2", "1", "1", "2")]
    assert table.rows[0][4].endswith("(n = 1)")
    assert "[" not in table.rows[0][4]
    assert not any("recomputed" in name for name in table.columns)
    text = summary_markdown(SPECS["own"], found, len(every))
    assert "n = 1: nothing can be concluded." in text
    assert "trained on" not in text  # no epochs after


def test_after_table_shows_some_of_many_epochs(seed):
    spec = SPECS["axes"]
    every, places, tree = planned(spec)
    found = cells(gains(spec, every, places, drawn(tree, seed)))[:5]
    for against in ("best", "average"):
        table = after_table(found, against)
        epochs = table.columns[7:]
        assert table.columns[:7] == (
            "schedule.drop_epochs", "optimizer.nesterov", "k", "s", "alpha", "parents", "pairs",
        )  # fmt: skip
        assert epochs == ("+1", "+2", "+3", "+5", "+10", "+11")
        assert table.rows[0][:5] == ("[3]", "true", "2", "0", "0.25")
        for row, cell in zip(table.rows, found, strict=True):
            for name, text in zip(epochs, row[7:], strict=True):
                values = [each[int(name) - 1] for each in cell.rows[f"after_vs_{against}_points"].to_list()]
                expected = mean_estimate(values, cell.rows["parent_seed"].to_list())
                assert expected.low is None
                assert text == f"{expected.value:+.2f} (n = 2)"


def test_a_sweep_partly_done(seed):
    spec = SPECS["grid"]
    every, places, tree = planned(spec)
    measurements = drawn(tree, seed)
    del measurements[places[0].average, OWN]  # k = 0, s = 1, parent 0, its first pair
    del measurements[places[1].average, [*places[1].treatments][1]]
    del measurements[places[-1].after[1], OWN]  # k = 3, s = 2, parent 9, its second pair
    frame = gains(spec, every, places, measurements)
    assert frame.height == len(every) - 1
    assert frame["gain_best_recomputed_points"].null_count() == 1
    assert frame["after_%"][-1].to_list()[1] is None
    found = cells(frame)
    assert (found[0].pairs, found[0].parents, found[-1].pairs) == (9, 5, 10)
    assert found[0].gains["own", "best"].n_pairs == 9
    assert found[0].gains["recomputed", "best"].n_pairs == 8
    assert cell_table(found).rows[0][6].endswith("(n = 4, 8 pairs)")
    last = after_table(found).rows[-1]
    assert last[-1].endswith("(n = 5, 9 pairs)")
    assert last[-2].endswith("]")
    text = summary_markdown(spec, found, len(every), len(tree.measurement_keys()) - len(measurements))
    assert "59 of 60 averages measured; 3 measurements are missing" in text
    assert text.startswith("# grid\n")
    assert text.count("| k | s |") == 4
    assert "- experiment.k: 0, 1, 3" in text


def test_nothing_measured():
    spec = SPECS["grid"]
    every, places, tree = planned(spec)
    frame = gains(spec, every, places, {})
    assert frame.height == 0
    assert cells(frame) == []
    text = summary_markdown(spec, [], len(every), len(tree.measurement_keys()))
    assert "0 of 60 averages measured" in text
    assert "|" not in text
    assert cell_table([]).rows == after_table([]).rows == ()


def test_gains_file_says_what_its_columns_are(tmp_path, seed):
    spec = SPECS["axes"]
    every, places, tree = planned(spec)
    frame = gains(spec, every, places, drawn(tree, seed))
    write_frame(frame, tmp_path / "gains.parquet", GAIN_COLUMNS)
    assert polars.read_parquet(tmp_path / "gains.parquet").equals(frame)
    described = json.loads(polars.read_parquet_metadata(tmp_path / "gains.parquet")["fastwi.columns"])
    assert list(described) == frame.columns
    assert described["gain_mean_own_points"]["unit"] == "points"
