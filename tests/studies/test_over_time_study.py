"""The study `over_time`, against the sweep's table of results and the stored states."""

import polars
import pytest
from studied import OVER_TIME, accuracy, column, logits, measured, mixed, presented, state_of, studied_sweep, unclear

from fastwi.analysis.statistics import mean_estimate
from fastwi.errors import UserError
from fastwi.report.rows import result_frame
from fastwi.studies.over_time import STUDY


@pytest.fixture(scope="module")
def over_time(digits_directory, tmp_path_factory, opened):
    with studied_sweep(digits_directory, tmp_path_factory, *OVER_TIME) as sweep:
        yield sweep


def test_averages_over_time_beside_their_networks(over_time, tmp_path):
    found = measured("over_time", over_time)["over_time"]
    table = result_frame(over_time.planned, over_time.measured).filter(metric="test_accuracy")
    for row in found.iter_rows(named=True):
        here = table.filter(
            polars.col("child").eq_missing(row["child"]),
            polars.col("pair").is_null() | (polars.col("pair") == row["pair"]),
            parent_seed=row["parent_seed"], network=row["network"], epoch=row["epoch"], batch_norm=row["batch_norm"],
        )  # fmt: skip
        (average,) = here.filter(over_time=row["over_time"])["value"]
        own = here.filter(polars.col("over_time").is_null())["value"].to_list()
        assert row["over_time_%"] == average
        if own:
            assert (row["network_%"], row["gain_points"]) == (own[0], pytest.approx(average - own[0]))
        else:  # recomputed statistics of a network that is not at its interpolation
            assert row["network_%"] is row["gain_points"] is None
            assert row["batch_norm"] == "recomputed"
    of_iterations = polars.col("over_time") == "ema_iteration"
    assert found.filter(of_iterations)["gain_points"].n_unique() > 2
    (every,) = STUDY.tables({"over_time": found})  # each network after its own last epoch
    last = dict(zip(column(every, "network"), column(every, "epoch"), strict=True))
    assert last == {"parent": "1", "child": "2", "average": "3"}
    found = found.filter(~of_iterations)
    # k = s = after = 1: a child has two states, its parent's and its own; the others have one.
    assert set(found["network"]) == {"child"}
    assert found.height == 2 * 4 * 3 * 2  # parents, children in pairs, averages, treatments
    pair = over_time.planned.places[0]
    states = [state_of(over_time, key) for key in (pair.clone, pair.ends[0])]
    test = over_time.resources.splits(over_time.planned.points[0].config)[1]
    logits_NK = logits(over_time, mixed((0.5, states[0]), (0.5, states[1])), test)
    first = found.filter(parent_seed=0, child=1, over_time="lawa", batch_norm="own")
    assert first["over_time_%"].item() == pytest.approx(accuracy(logits_NK, test), abs=unclear(logits_NK) + 1e-9)
    tables, svg = presented("over_time", {"over_time": found}, tmp_path)
    assert "child: k = 1, s = " in svg
    earlier = found.with_columns(epoch=polars.col("epoch") - 1, gain_points=99.0)
    assert STUDY.tables({"over_time": polars.concat([earlier, found])}) == tables
    rows = found.filter(over_time="ema", batch_norm="own")
    value = mean_estimate(rows["gain_points"].to_numpy(), rows["parent_seed"].to_list()).value
    (shown,) = (row for row in tables[0].rows if {"ema", "own"} <= set(row))
    assert any(cell.startswith(f"{value:+.2f}") for cell in shown)
    lines = {line.get_label(): line.get_ydata() for line in STUDY.draw({"over_time": found}, "").axes[0].lines}
    assert lines["ema"] == pytest.approx([value])
    assert set(column(tables[0], "pairs")) == {"4"}  # of two children each
    assert set(column(tables[0], "over_time")) == {"lawa", "swa", "ema"}


def test_a_sweep_without_averages_over_time_is_refused(opened):
    with pytest.raises(UserError, match=r"^trajectory\.averages: "):
        measured("over_time", opened)
