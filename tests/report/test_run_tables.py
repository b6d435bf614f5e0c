"""The tables of a run, where networks fall away."""

import math

from fastwi.report.summary import after_table, gain, interpolation_table


def row(stage: str, epoch: int, network: str, accuracy: float) -> dict:
    return {
        "stage": stage, "epoch": epoch, "network": network, "batch_norm": "own", "test_accuracy_%": accuracy,
        "train_loss": 1.0, "test_loss": 1.0,
    }  # fmt: skip


def test_the_average_goes_on_where_all_continued_children_diverged():
    rows = [
        row("interpolation", 4, name, value) for name, value in (("average", 60), ("child 1", 50), ("child 2", 55))
    ]
    rows += [row("after", 5, name, value) for name, value in (("average", 58), ("child 1", 56), ("child 2", 57))]
    rows += [row("after", 6, "average", 61)]
    table = after_table(rows)
    assert table.columns[-1] == "vs child trained on"
    assert [cells[-3:] for cells in table.rows] == [("-2.00", "+3.00", "+1.00"), ("+1.00", "+6.00", "")]


def test_no_gain_where_a_network_diverged():
    rows = [
        {**row("interpolation", 4, name, value), "batch_norm": treatment}
        for treatment in ("own", "recomputed")
        for name, value in (("average", 60), ("child 1", 50), ("child 2", 55))
    ]
    for place in (0, 4):
        broken = [{**each, "test_loss": math.nan} if i == place else each for i, each in enumerate(rows)]
        treatment, other = ("own", "recomputed") if place == 0 else ("recomputed", "own")
        assert gain(broken, treatment) is None
        assert gain(broken, other) == (5, 7.5)
        shown = {cells[1]: cells[-1] for cells in interpolation_table(broken).rows if cells[0] == "average"}
        assert shown == {treatment: "none: diverged", other: "+5.00"}
    broken = [{**rows[0], "test_loss": math.inf}, *rows[1:], row("after", 5, "average", 58)]
    assert [cells[-2:] for cells in after_table(broken).rows] == [("", "+3.00")]
