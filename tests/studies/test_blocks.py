"""blocks: each number against the stored networks with one block moved by hand."""

import numpy as np
import pytest
from studied import bars, by_cell, check, column, measured, mixed, presented, state_of, studied_sweep
from torch import nn

from fastwi.analysis import block_groups

NAMES = ["all", "conv", "bn", *(f"blocks.{i}" for i in range(9)), "linear"]


@pytest.fixture(scope="module")
def frames(opened):
    return measured("blocks", opened, cells=("1,1",))


def test_blocks_are_moved_one_at_a_time(opened, frames, seed):
    frame = frames["blocks"]
    assert frame.sort("block_number")["block"].unique(maintain_order=True).to_list() == NAMES
    assert frame.height == 2 * 2 * 2 * len(NAMES)
    rows = list(frame.iter_rows(named=True))
    wholes = [row for row in rows if row["block"] == "all"]
    for row in [wholes[0], *(rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:5])]:
        ends = [state_of(opened, end) for end in by_cell(opened)[1, 1, row["parent_seed"]].place.ends]
        own, other = ends if row["rest"] == "A" else ends[::-1]
        middle = mixed((0.5, own), (0.5, other))
        inside = [name for name in own if row["block"] == "all" or f"{name}.".startswith(f"{row['block']}.")]
        assert inside
        loss = check(opened, row, own | {name: middle[name] for name in inside}, "test")
        # What the row says of the network that the rest is of.
        before = row | {
            "test_loss_nats": row["test_loss_nats"] - row["test_loss_change_nats"],
            "test_error_%": row["test_error_%"] - row["test_error_change_points"],
        }
        assert check(opened, before, own, "test") == pytest.approx(loss - row["test_loss_change_nats"], rel=2e-4)
    assert frame["test_loss_change_nats"].n_unique() > frame.height / 2


def test_a_block_whose_name_is_a_number_is_shown_with_its_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert block_groups(network) == {"0 Conv2d": ["0"], "1 BatchNorm2d": ["1"], "3 Linear": ["3"]}


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.norm, self.all = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Linear(4, classes)
    def forward(self, x):
        return self.all(self.norm(self.first(x)).relu().mean((2, 3)))
"""


def test_the_average_is_whole_whatever_parts_a_network_has(digits_directory, tmp_path_factory, tmp_path):
    """A batch norm without parameters is in no block, and a part may be called `all`."""
    (tmp_path / "net.py").write_text(NETWORK)
    model = ("--model.name", f"{tmp_path}/net.py:Net", "--model.width", "1")
    flags = (*model, "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as opened:
        frame = measured("blocks", opened)["blocks"]
        assert frame["block"].unique(maintain_order=True).to_list() == ["all", "first", "all (part)"]
        assert frame["block_number"].unique(maintain_order=True).to_list() == [-1, 0, 1]
        test = opened.resources.splits(opened.planned.points[0].config)[1]
        for parent in (0, 1):
            place = by_cell(opened)[1, 1, parent].place
            averaged = opened.resources.engine(opened.planned.points[0].config).evaluate(
                opened.states([place.average]), test
            )
            rows = frame.filter(parent_seed=parent, block="all", batch_norm="averaged")
            assert rows["test_loss_nats"].to_list() == pytest.approx([float(averaged.loss_M[0])] * 2, rel=1e-6)


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("blocks", frames, tmp_path)
    assert column(tables[0], "block") == NAMES
    assert "n = 2: too few parents" in tables[0].title
    heights = bars("blocks", frames)
    averages = frames["blocks"].filter(block="all", batch_norm="averaged")
    for table, title, name, digits in zip(
        tables,
        ("Train error", "Test error", "Train loss", "Test loss"),
        ("train_error_change_points", "test_error_change_points", "train_loss_change_nats", "test_loss_change_nats"),
        (2, 2, 4, 4),
        strict=True,
    ):
        assert table.title.startswith(title)
        assert "the plain average" in table.title
        assert column(table, "averaged")[0].startswith(f"{averages[name].mean():+.{digits}f}")
    assert heights["test error change (points)"][0] == pytest.approx(averages["test_error_change_points"].mean())
    assert heights["test loss change (nats)"][0] == pytest.approx(averages["test_loss_change_nats"].mean())
    for text in ("blocks.8", "dots: each parent", "k = 1, s = 1; n = 2 parents, 2 pairs"):
        assert text in drawn
