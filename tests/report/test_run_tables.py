"""The tables of a run against its rows, and where networks diverge."""

import dataclasses
import math

import pytest
from drawn_measurements import drawn, planned, spec_of

from fastwi.experiment.tree import OWN
from fastwi.report.rows import gains, point_rows
from fastwi.report.summary import Table
from fastwi.report.tables import run_tables

SPEC = spec_of({}, {"continue_children": True})


def tables(measurements, every, places):
    rows = point_rows(every[0], places[0], measurements)
    return rows, run_tables(rows, gains(SPEC, every, places, measurements))


def accuracy(rows, **where):
    (row,) = (row for row in rows if all(row[name] == value for name, value in where.items()))
    return row["test_accuracy_%"]


def test_numbers_are_those_of_the_rows(seed):
    every, places, tree = planned(SPEC)
    rows, (at, after) = tables(drawn(tree, seed), every, places)
    assert [row[:4] for row in at.rows] == [
        (row["network"], row["batch_norm"], f"{row['test_loss']:.4f}", f"{row['test_accuracy_%']:.2f}")
        for row in rows
        if row["stage"] == "interpolation"
    ]
    best = {}
    for treatment in ("own", "recomputed"):
        average, *children = (
            accuracy(rows, stage="interpolation", network=name, batch_norm=treatment)
            for name in ("average", "child 1", "child 2")
        )
        best[treatment] = average, max(children)
        assert [row[4] for row in at.rows if row[1] == treatment] == [f"{average - max(children):+.2f}", "", ""]
    for step, row in enumerate(after.rows, 1):
        now, *children = (
            accuracy(rows, stage="after", epoch=3 + step, network=name) for name in ("average", "child 1", "child 2")
        )
        less = (*best["own"], max(children))
        assert row[0] == f"+{step}"
        assert row[4:] == tuple(f"{now - each:+.2f}" for each in less)


@pytest.mark.parametrize("treatment", ["own", "recomputed"])
@pytest.mark.parametrize("network", ["average", "child"])
def test_nothing_is_compared_with_what_diverged(seed, treatment, network):
    every, places, tree = planned(SPEC)
    measurements, (place,) = drawn(tree, seed), places
    whole = tables(measurements, every, places)[1]
    state = place.average if network == "average" else place.ends[0]
    key = (state, OWN if treatment == OWN else [*place.treatments][1])
    measurements[key] = dataclasses.replace(measurements[key], test_loss=math.nan)
    at, after = tables(measurements, every, places)[1]
    shown = {row[1]: row[4] for row in at.rows if row[0] == "average"}
    assert shown[treatment] == "none: diverged"
    other = "recomputed" if treatment == OWN else OWN
    assert shown[other] == {row[1]: row[4] for row in whole[0].rows if row[0] == "average"}[other]
    assert all((row[4:6] == ("", "")) == (treatment == OWN) for row in after.rows)


def test_children_that_diverged_later_are_no_comparison(seed):
    every, places, tree = planned(SPEC)
    measurements, (place,) = drawn(tree, seed), places
    for states in place.children:
        measurements[states[-1], OWN] = dataclasses.replace(measurements[states[-1], OWN], test_loss=math.inf)
    _, after = tables(measurements, every, places)[1]
    assert [bool(row[6]) for row in after.rows] == [True, False]


def test_a_printed_table_keeps_brackets_and_numbers(capsys, monkeypatch):
    """In a pipe, 80 columns wide: headings may wrap, cells do not. Text is to the left, numbers are to the right."""
    monkeypatch.setenv("COLUMNS", "80")
    rows = tuple(
        (name, *[f"{-1.25 * i:+.2f} [-123.45, +678.90]" for i in range(5)]) for name in ("[bold]x", "long name")
    )
    table = Table("A title [95 %]", ("axes.[red]network", *["a heading of several words [95 %]"] * 5), rows)
    table.print()
    out = capsys.readouterr().out
    assert "[95 %]" in out.replace("\n", " ")
    for row in rows:
        (line,) = (line for line in out.splitlines() if row[0] in line)
        assert [cell.strip() for cell in line.strip("│").split("│")] == list(row)
        assert line.startswith(f"│ {row[0]} ")
        assert line.endswith(f"{row[-1]} │")
    assert table.numeric == [False, *[True] * 5]


def test_an_epoch_that_is_missing_leaves_the_others_in_their_place(seed):
    every, places, tree = planned(SPEC)
    measurements, (place,) = drawn(tree, seed), places
    whole = tables(measurements, every, places)[1][1].rows
    del measurements[place.after[0], OWN]
    assert [row[4:6] for row in tables(measurements, every, places)[1][1].rows] == [row[4:6] for row in whole[1:]]
