"""plane: each number against the stored networks summed by hand; what its figure says of losses out of range."""

import numpy as np
import polars
import pytest
import torch
from studied import by_cell, check, measured, mixed, presented, state_of, studied_sweep

from fastwi.errors import UserError


@pytest.fixture(scope="module")
def frames(opened):
    return measured("plane", opened, alphas=4)


def test_the_plane_holds_the_parent_and_the_pair(opened, frames, seed):
    grid, points = frames["plane"], frames["points"]
    assert grid.height == 2 * 16
    assert grid.select("k", "s", "parent_seed", "pair").unique().rows() == [(2, 2, 0, 0)]  # of the largest k and s
    place = by_cell(opened)[2, 2, 0].place
    parent, a, b = (state_of(opened, key) for key in (place.clone, *place.ends))
    flat = [torch.cat([s[n].flatten() for n in s if n.endswith(("weight", "bias"))]) for s in (parent, a, b)]
    at = {row["point"]: np.array([row["x_l2"], row["y_l2"]]) for row in points.iter_rows(named=True)}
    for (first, i), (second, j) in ((("parent", 0), ("A", 1)), (("parent", 0), ("B", 2)), (("A", 1), ("B", 2))):
        expected = float(torch.linalg.vector_norm(flat[i] - flat[j]))
        assert np.linalg.norm(at[first] - at[second]) == pytest.approx(expected, rel=1e-9)
    named = {"parent": parent, "A": a, "B": b, "average": mixed((0.5, a), (0.5, b))}
    for row in points.iter_rows(named=True):
        check(opened, row, named[row["point"]], "test")
    spanned = np.array([[1, 1, 1], *zip(at["parent"], at["A"], at["B"], strict=True)])
    checked = 0
    for i in np.random.default_rng(seed).permutation(grid.height)[:6]:
        row = grid.row(int(i), named=True)
        weights = np.linalg.solve(spanned, [1, row["x_l2"], row["y_l2"]])
        network = mixed(*zip(weights.tolist(), (parent, a, b), strict=True))
        negative = any((value < 0).any() for name, value in network.items() if name.endswith("running_var"))
        if row["batch_norm"] == "averaged" and negative:
            assert row["test_loss_nats"] is None
        else:
            check(opened, row, network, "test", rel=2e-3)  # outside of the triangle weights cancel
            checked += 1
    assert checked
    chosen = measured("plane", opened, alphas=2, cells=("1,1",), treatments=("recomputed",))["plane"]
    assert chosen.select("k", "s").unique().rows() == [(1, 1)]


def test_only_the_states_of_its_own_pair_are_needed(digits_directory, tmp_path_factory):
    """Of a sweep that is not finished: the children of s = 9 are not trained."""
    flags = ("--axes.experiment.s", "[1, 9]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags, trains=False) as unfinished:
        frames = measured("plane", unfinished, alphas=2, cells=("1,1",), treatments=("averaged",))
        assert frames["points"].height == 4
        for study, cell in (("plane", "1,9"), ("blocks", ""), ("connectivity", "")):
            with pytest.raises(UserError, match="the first at epoch"):
                measured(study, unfinished, cells=(cell,) if cell else (), alphas=2)


def test_a_plane_needs_three_networks(digits_directory, tmp_path_factory):
    with (
        studied_sweep(digits_directory, tmp_path_factory, "--axes.experiment.s", "0", trains=False) as same,
        pytest.raises(UserError, match="are equal; a plane needs three different networks"),
    ):
        measured("plane", same, alphas=2)


def test_losses_that_are_out_of_range_are_clipped_and_said(frames, tmp_path):
    tables, drawn = presented("plane", frames, tmp_path / "plain")
    assert "n = 1: nothing can be concluded" in tables[0].title
    assert "darkest colour" not in drawn
    assert "grey" not in drawn
    number = polars.int_range(polars.len())
    loss = polars.when(number == 0).then(1e4).when(number == 1).then(None).otherwise(polars.col("test_loss_nats"))
    holed = {**frames, "plane": frames["plane"].with_columns(loss.alias("test_loss_nats"))}
    _, drawn = presented("plane", holed, tmp_path / "holed")
    assert "up to 1e+04" in drawn
    assert "grey: a batch-norm variance is negative" in drawn
