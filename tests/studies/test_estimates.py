"""What figures of studies draw of an estimate."""

import itertools
import random
from statistics import fmean

import matplotlib
import polars
import pytest
from matplotlib.figure import Figure

from fastwi.analysis.statistics import mean_estimate
from fastwi.report.drawing import TREATMENT_COLOURS, Sheet, draw_spread, spread_text
from fastwi.report.estimates import (
    SAME,
    by_end,
    cell_heading,
    cells_of,
    estimate_at_interpolation,
    estimate_of,
    estimates_by,
    shown,
    titled,
)
from fastwi.report.study import shown_once


@pytest.mark.parametrize("across", [False, True])
def test_an_interval_is_a_line_and_few_parents_are_dots(across):
    axis = Figure().subplots()
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    five, four, equal = (mean_estimate(v, range(len(v))) for v in (values, values[:4], [3.0] * 6))
    for place, estimate in enumerate((five, four, equal, None)):
        draw_spread(axis, estimate, float(place), "red", across)
    drawn = [(line.get_ydata(), line.get_xdata())[:: -1 if across else 1] for line in axis.lines]
    assert [list(along) for along, _ in drawn] == [[five.low, five.high], values[:4], [3.0] * 6]
    assert [list(at) for _, at in drawn] == [[0.0] * 2, [1.0] * 4, [2.0] * 6]
    assert [line.get_linestyle() == "None" for line in axis.lines] == [False, True, True]
    assert spread_text((five, four, None)) == "bars: 95 % interval over parents; dots: each parent"
    assert spread_text((None,)) == ""


def test_bars_are_the_means_of_their_place_and_colour(seed):
    draw = random.Random(seed)
    names = ["batch_norm", "split", "parent_seed", "pair"]
    rows = [(*at, draw.uniform(-1, 1)) for at in itertools.product(("own", "recomputed"), (1, 2, 3), range(5), (0,))]
    sheet = Sheet(1, 1)
    axis = sheet.axes[0, 0]
    sheet.bars(axis, polars.DataFrame(rows, schema=[*names, "gain"], orient="row"), "gain", "split")
    for bar, (kind, split) in zip(axis.patches, itertools.product(("own", "recomputed"), (1, 2, 3)), strict=True):
        assert bar.get_height() == pytest.approx(fmean(row[-1] for row in rows if row[:2] == (kind, split)))
        assert abs(bar.get_x() + bar.get_width() / 2 - (split - 1)) < 0.5
        assert matplotlib.colors.same_color(bar.get_facecolor()[:3], TREATMENT_COLOURS[kind])


def test_headings_promise_intervals_where_there_are_some():
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    for count, some in ((5, True), (4, False)):
        estimate = mean_estimate(values[:count], range(count))
        table = titled("Gain [95 %]", ("k", "own [95 %]"), [["[3]", shown(estimate, count)]], [estimate])
        assert ("[95 %]" in table.title, "[95 %]" in table.columns[1]) == (some, some)
        assert ("n = 4: too few" in table.title) == (not some)


@pytest.mark.parametrize("value", [1.5, None, float("nan")])
def test_rows_of_recomputed_statistics_that_repeat_the_others_are_not_shown(value):
    """The frames that are stored keep them; the others may have more rows."""
    rows = [("averaged", 0, 0.5), ("averaged", 1, value), ("averaged", 2, 3.0)]
    again = [("recomputed", 0, 0.5), ("recomputed", 1, value)]
    columns = ["batch_norm", "pair", "loss"]
    frames = {
        "same": polars.DataFrame([*rows, *again], schema=columns, orient="row"),
        "other": polars.DataFrame({"pair": [1, 2]}),
    }
    kept, note = shown_once(frames)
    assert kept["same"].equals(frames["same"][:3])
    assert kept["other"].equals(frames["other"])
    assert note == SAME
    for different in (("recomputed", 1, 7.0), ("recomputed", 3, 0.5)):
        frame = polars.DataFrame([*rows, again[0], different], schema=columns, orient="row")
        kept, note = shown_once({"different": frame})
        assert kept["different"].equals(frame)
        assert note == ""
    alone = frames["same"][3:]
    kept, note = shown_once({"alone": alone})
    assert (kept["alone"].height, note) == (2, "")


def test_a_pair_counts_once_whatever_the_axes_of_its_further_training_are():
    """Null, and what another axis changes, too."""
    rows = [
        {"schedule.at_average": at, "model.name": name, "k": 1, "s": 1, "alpha": None,
         "parent_seed": parent, "pair": 0, "gain": None if parent == 3 else float(parent)}
        for at in ("keep", "anneal") for name in "ab" for parent in range(4)
    ]  # fmt: skip
    frame = polars.DataFrame(rows)
    once, all_rows = estimate_at_interpolation(frame, "gain"), estimate_of(frame, "gain")
    assert (once.value, once.n_parents, once.n_pairs, all_rows.n_pairs) == (all_rows.value, 3, 6, 12)
    assert estimate_at_interpolation(frame.filter(parent_seed=3), "gain") is None


def test_a_heading_names_all_that_a_cell_has():
    rows = polars.DataFrame({"parent_seed": [0, 1], "pair": [0, 0]})
    axes = ["optimizer.momentum"]
    assert cell_heading([*axes, "k", "s"], (0.5, 1, 2), rows, "more").split("\n") == [
        "k = 1, s = 2; n = 2 parents, 2 pairs", "optimizer.momentum = 0.5", "more",
    ]  # fmt: skip
    assert cell_heading([*axes, "k", "s", "alpha"], (0.5, 1, 2, 0.25), rows).startswith("k = 1, s = 2, alpha = 0.25;")


def test_part_of_the_cells_is_drawn():
    frame = polars.DataFrame({"k": [3, 2, 1], "s": 1, "parent_seed": 0, "pair": 0})
    first, last = (cells_of(frame, most=2, last=which) for which in (False, True))
    assert [cell.values for cell in first[0]] == [(3, 1), (2, 1)]
    assert [cell.values for cell in last[0]] == [(2, 1), (1, 1)]
    assert ("first 2 of 3" in first[1], "last 2 of 3" in last[1]) == (True, True)
    for most in (0, 3):
        found, part = cells_of(frame, most=most)
        assert (len(found), part) == (3, "")


def test_a_pair_counts_where_it_has_a_value_and_once():
    """Also where it has a row for each of its children."""
    frame = polars.DataFrame({
        "k": 1, "s": 1, "parent_seed": [0, 0, 1, 1], "pair": [0, 1, 0, 1], "gain": [1.0, None, 2.0, 4.0],
    })  # fmt: skip
    for rows in (frame, polars.concat([frame, frame])):
        ((names, estimate),) = estimates_by(rows, ["k", "s"], "gain")
        assert (names, estimate.value, estimate.n_parents, estimate.n_pairs) == (["1", "1"], 2.0, 2, 3)


def test_one_end_for_several_s_is_drawn_in_place_of_s():
    for k, s, expected in (
        ([1, 2], [3, 2], ([4, 4], "k + s")),
        ([1, 2], [3, 3], ([3, 3], "s")),
        ([1, 1], [3, 3], ([3, 3], "s")),  # one cell
    ):
        drawn, name = by_end(polars.DataFrame({"k": k, "s": s}))
        assert (drawn["s"].to_list(), name) == expected
