"""The tables of a run against its rows, and where networks diverge."""

import dataclasses
import math
import re
import sys

import pytest
from drawn_measurements import made, spec_of

from fastwi.config.time import Time
from fastwi.experiment.tree import OWN
from fastwi.report.rows import gains, point_rows
from fastwi.report.summary import Table
from fastwi.report.tables import run_tables

SPEC = spec_of({}, {"continue_children": True})
BOTH = ("own", "recomputed")
STATES = {
    "nothing": lambda place: (),
    "average": lambda place: [(place.average, OWN)],
    "average, recomputed": lambda place: [(place.average, [*place.treatments][1])],
    "child, recomputed": lambda place: [(place.ends[0], [*place.treatments][1])],
    "child": lambda place: [(place.ends[0], OWN)],
    "children later": lambda place: [(states[-1], OWN) for states in place.children],
    "average later": lambda place: [(place.after[-1], OWN)],
    "child later, in training": lambda place: [(place.children[0][-1], OWN)],
    "average later, in training": lambda place: [(place.after[-1], OWN)],
}
"""What diverges, by its states and treatments; in training: its training loss alone."""


def less(value, others):
    return f"{value - max(others):+.2f}" if all(map(math.isfinite, (value, *others))) else ""


@pytest.mark.parametrize("measure", [BOTH[:1], BOTH], ids=len)
@pytest.mark.parametrize("diverged", STATES)
def test_tables_are_those_of_the_rows(seed, diverged, measure):
    """Nothing is compared with what diverged."""
    sweep, measurements = made(spec_of({}, {"continue_children": True, "measure": measure}), seed)
    (place,) = sweep.places
    loss = "train_loss" if "training" in diverged else "test_loss"
    for key in STATES[diverged](place):
        measurements[key] = dataclasses.replace(measurements[key], **{loss: math.inf})
    rows = point_rows(sweep.points[0], place, measurements)
    at, *tables = run_tables(rows, gains(sweep, measurements), 3)
    accuracy = {}  # NaN: it diverged
    numbers = {}
    for row in rows:
        finite = math.isfinite(row["test_loss"]) and math.isfinite(row.get("train_loss") or 0)
        place_of = row["stage"], row["epoch"], row["network"], row["batch_norm"]
        accuracy[place_of] = row["test_accuracy_%"] if finite else math.nan
        losses = [f"{row[name]:.4f}" for name in ("train_loss", "test_loss") if name in row]
        numbers[place_of] = (*losses, f"{row['test_accuracy_%']:.2f}")
    expected = []
    for row in (row for row in rows if row["stage"] == "interpolation"):
        name, treatment = row["network"], row["batch_norm"]
        average, *children = (accuracy["interpolation", 3, n, treatment] for n in ("average", "child 1", "child 2"))
        gain = (less(average, children) or "none: diverged") if name == "average" else ""
        expected.append((name, treatment, *numbers["interpolation", 3, name, treatment], gain))
    assert list(at.rows) == expected
    for treatment, after in zip(measure, tables, strict=True):
        average, *children = (accuracy["interpolation", 3, n, treatment] for n in ("average", "child 1", "child 2"))
        whole = not math.isnan(sum((average, *children)))
        for epoch, row in enumerate(after.rows, 1):
            now, *beside = (accuracy["after", 3 + epoch, n, treatment] for n in ("average", "child 1", "child 2"))
            sound = [each for each in beside if not math.isnan(each)]
            compared = (less(now, [average]), less(now, children)) if whole else ("", "")
            shown = numbers["after", 3 + epoch, "average", treatment]
            assert row == (f"+{epoch}", *shown, *compared, less(now, sound) if sound else "")
        assert len(after.rows) == 2


def test_of_several_rounds_the_last_is_shown(seed):
    sweep, measurements = made(spec_of({}, {"rounds": 2}), seed)
    rows = point_rows(sweep.points[0], sweep.places[0], measurements)
    at, _ = run_tables(rows, gains(sweep, measurements), 4)
    assert [row[:4] for row in at.rows] == [
        (r["network"], r["batch_norm"], f"{r['test_loss']:.4f}", f"{r['test_accuracy_%']:.2f}")
        for r in rows if (r["stage"], r.get("round")) == ("interpolation", 2)
    ]  # fmt: skip


def test_averages_over_time_are_not_compared_with_what_diverged(seed):
    """Of two rounds, each of which has averages of the children."""
    sweep, measurements = made(spec_of({"trajectory.averages": [("ema",)]}, {"rounds": 2, "s": 2}), seed)
    (place,) = sweep.places
    last = [average for average in place.over_time if average.network == "average"][-1]
    over_time = place.tree.keys[last.node], OWN

    def table_of(found):
        rows = point_rows(sweep.points[0], place, found)
        return rows, run_tables(rows, gains(sweep, found), 6)[-1].rows

    def compared(key, **loss):
        found = {**measurements, key: dataclasses.replace(measurements[key], **loss)}
        return {row[0]: bool(row[-1]) for row in table_of(found)[1] if row[3] == OWN}

    rows, shown = table_of(measurements)
    assert len({row[:2] + row[3:4] for row in shown}) == len(shown)
    for name, over, epoch, treatment, accuracy, difference in shown:
        same = [row for row in rows if (row["network"], row["batch_norm"]) == (name, treatment)]
        last = [row for row in same if row.get("over_time") == over][-1]
        beside = {row["test_accuracy_%"] for row in same if "over_time" not in row and row["epoch"] == last["epoch"]}
        assert (epoch, accuracy) == (str(last["epoch"]), f"{last['test_accuracy_%']:.2f}")
        assert [difference] == ([f"{last['test_accuracy_%'] - each:+.2f}" for each in beside] or [""])
    whole = compared(over_time)
    assert all(whole[name] for name in ("parent", "child 1", "average"))
    network = (place.after[-1], OWN)
    for key, loss in ((network, "test_loss"), (network, "train_loss"), (over_time, "test_loss")):
        assert compared(key, **{loss: math.nan}) == {**whole, "average": False}


@pytest.mark.parametrize("after", [2, Time("3it")])
def test_an_epoch_that_is_missing_leaves_the_others_in_their_place(seed, after):
    sweep, measurements = made(spec_of({}, {"continue_children": True, "after": after}), seed)
    (place,) = sweep.places

    def trained_on():
        rows = point_rows(sweep.points[0], place, measurements)
        return run_tables(rows, gains(sweep, measurements), 3)[1].rows

    whole = trained_on()
    del measurements[place.after[0], OWN]
    assert trained_on() == whole[1:]


def test_without_the_average_at_interpolation_its_epochs_are_compared_with_the_children_alone(seed):
    sweep, measurements = made(SPEC, seed)
    (place,) = sweep.places
    _, whole = run_tables(point_rows(sweep.points[0], place, measurements), gains(sweep, measurements), 3)
    del measurements[place.average, OWN]
    at, after = run_tables(point_rows(sweep.points[0], place, measurements), gains(sweep, measurements), 3)
    assert at.rows == ()
    assert [row[0] for row in after.rows] == ["+1", "+2"]
    assert after.rows == tuple((*row[:4], "", "", row[6]) for row in whole.rows)
    assert at.markdown().count("\n") == 4


def test_markdown_keeps_bars_within_cells():
    """As an axis of networks has them, whose files have any names."""
    lines = Table("A title", ("a|b", "gain"), (("n|t.py:Net", "+1.00"),)).markdown().splitlines()
    assert [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in lines[2:]] == [
        [r"a\|b", "gain"], ["---", "---"], [r"n\|t.py:Net", "+1.00"],
    ]  # fmt: skip


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


@pytest.mark.parametrize(("columns", "parts"), [(60, 3), (80, 2), (200, 1), (25, 0)])
def test_a_table_wider_than_the_terminal_is_printed_in_parts(capsys, monkeypatch, columns, parts):
    """Every cell is whole, and each part names its rows; on the narrowest terminal each cell has its own line."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    names = ("k", "s", "parents", "gain, own [95 %]", "beats all, own (%)", "gain, recomputed [95 %]", "note")
    rows = [
        (f"{k}", f"{s}", "5", f"+{k}.{s}1 [-123.45, +678.90]", f"{k}{s}", f"-{k}.{s}2 [-23.45, +8.90]",
         f"what {k}{s} is")
        for k in (3, 4) for s in (6, 7)
    ]  # fmt: skip
    Table("A title", names, tuple(rows)).print()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns or not parts
    if not parts:
        printed = [line.partition(": ")[2] for line in lines[1:] if line]
        assert printed == [cell for row in rows for cell in row]
        return
    body = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert len(body) == parts * len(rows)
    for i, row in enumerate(rows):
        printed = body[i :: len(rows)]
        assert all(part[:2] == [*row[:2]] for part in printed)
        assert [*row[:2], *(cell for part in printed for cell in part[2:])] == [*row]
