"""The table of a run's further epochs, where networks fall away."""

from fastwi.report.summary import after_table


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
