"""plane: each number against the stored networks summed by hand; what its figure says of losses out of range."""

import numpy as np
import polars
import pytest
import torch
from matplotlib.tri import LinearTriInterpolator
from studied import WITHIN, by_cell, check, measured, mixed, presented, state_of, studied_sweep

from fastwi.errors import UserError
from fastwi.studies import plane


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
            assert row["test_loss_nats"] is row["test_error_%"] is None
        else:
            check(opened, row, network, "test", rel=2e-3)  # outside of the triangle weights cancel
            checked += 1
    assert checked
    chosen = measured("plane", opened, alphas=2, cells=("1,1",), treatments=("recomputed",))["plane"]
    assert chosen.select("k", "s").unique().rows() == [(1, 1)]


def test_the_largest_k_where_some_are_within_epochs(digits_directory, tmp_path_factory, opened):
    with studied_sweep(digits_directory, tmp_path_factory, *WITHIN) as within:
        points = measured("plane", within, alphas=2, treatments=("averaged",))["points"]
    assert points.select("k", "s").unique().row(0) == pytest.approx((4 / 3, 2 / 3))  # epochs have 3 iterations


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


def test_each_panel_has_the_statistics_that_it_names(frames, monkeypatch):
    triangulated, seen = plane._triangulated, []

    def watched(*drawn: polars.DataFrame):
        seen.append([set(frame["batch_norm"]) for frame in drawn])
        return triangulated(*drawn)

    monkeypatch.setattr(plane, "_triangulated", watched)
    titles = [axis.get_title() for axis in plane.draw(frames, "").axes[:2]]
    assert titles == [f"{name} batch-norm statistics" for name in ("averaged", "recomputed")]
    assert seen == [[{"averaged"}] * 2, [{"recomputed"}] * 2]


def test_losses_that_are_out_of_range_are_clipped_and_said(frames, tmp_path):
    tables, drawn = presented("plane", frames, tmp_path / "plain")
    assert "n = 1: nothing can be concluded" in tables[0].title
    shown = frames["points"].select("x_l2", "y_l2", "test_loss_nats", "test_error_%").row(1)
    assert tables[0].rows[1][-4:] == tuple(
        f"{value:.{digits}f}" for value, digits in zip(shown, (3, 3, 4, 4), strict=True)
    )
    assert "darkest colour" not in drawn
    assert "grey" not in drawn
    number = polars.int_range(polars.len())
    loss = polars.when(number == 0).then(1e4).when(number == 1).then(None).otherwise(polars.col("test_loss_nats"))
    holed = {**frames, "plane": frames["plane"].with_columns(loss.alias("test_loss_nats"))}
    _, drawn = presented("plane", holed, tmp_path / "holed")
    assert "up to 1e+04" in drawn
    assert "grey: a batch-norm variance is negative" in drawn


@pytest.mark.parametrize("points", [3, 8])  # the named networks between the grid's places; three of them on it
def test_what_is_contoured_has_the_losses_of_the_named_networks(points):
    """However coarse the grid, the loss between its places is that of the networks that lie there."""
    losses = {(0.0, 0.0): 0.5, (5.0, 0.0): 0.1, (2.0, 4.0): 0.2, (3.5, 2.0): 3.0}
    columns = ["x_l2", "y_l2", "test_loss_nats"]
    named = polars.DataFrame([(*at, loss) for at, loss in losses.items()], schema=columns, orient="row")
    places = [(x, y) for y in np.linspace(-0.8, 4.8, points) for x in np.linspace(-1, 6, points)]
    rows = [(*at, losses.get(tuple(np.round(at, 9)), 1.0)) for at in places]
    assert sum(loss != 1.0 for *_, loss in rows) == (3 if points == 8 else 0)
    grid = polars.DataFrame(rows, schema=columns, orient="row")

    def loss_at(x: float, y: float, frame: polars.DataFrame) -> float | None:
        found, triangles = plane._triangulated(frame, named)
        value = LinearTriInterpolator(triangles, found["test_loss_nats"].fill_null(0.0).to_numpy())(x, y)
        return None if value.mask else float(value)

    for (x, y), loss in losses.items():
        assert loss_at(x + 1e-7, y + 1e-7, grid) == pytest.approx(loss, abs=1e-5)
    undefined = polars.when(polars.col("x_l2") > -0.9).then("test_loss_nats")
    holed = grid.with_columns(test_loss_nats=undefined)
    assert loss_at(-0.5, -0.5, grid) is not None
    assert loss_at(-0.5, -0.5, holed) is None
    assert loss_at(3.5, 2.0, holed) == pytest.approx(3.0)
