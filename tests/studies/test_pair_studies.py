"""connectivity, blocks, plane: each number against the stored networks interpolated and evaluated by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from finished_sweeps import close, contents, mixed, pair, plainly, stored, trained

from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import chosen_lines
from fastwi.config.analysis import AnalysisOptions
from fastwi.config.sweepfile import read_sweep_request
from fastwi.data.resident import load_split
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.studies import blocks as blocks_report
from fastwi.studies import connectivity as connectivity_report
from fastwi.studies import plane as plane_report
from fastwi.studies.blocks import measure as blocks
from fastwi.studies.connectivity import line_places
from fastwi.studies.connectivity import measure as connectivity
from fastwi.studies.plane import measure as plane

TREATMENTS = ("averaged", "recomputed")
Frames = dict[str, polars.DataFrame]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sweep_file(digits_directory, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("studies"), digits_directory)


@pytest.fixture(scope="module")
def images(digits_directory):
    """The images that the sweep trained and tested on."""
    cpu = torch.device("cpu")
    return {s: load_split(digits_directory, s, cpu, n)[0] for s, n in (("train", 100), ("test", 50))}


def run(study: Callable, sweep_file: Path, flags: tuple[str, ...] = (), **options: object) -> Frames:
    """The study's frames; the store is as before, and progress ended at its total."""
    store = sweep_file.parent / "store"
    before = contents(store)
    told: list[tuple[int, int]] = []
    spec = read_sweep_request(["--config", str(sweep_file), *flags]).spec
    with OpenedSweep(spec) as opened:
        attempts = opened.store.attempts()
        frames = study(opened, AnalysisOptions(**options), lambda done, total: told.append((done, total)))  # type: ignore[arg-type]
        assert opened.store.attempts() == attempts
    assert contents(store) == before
    assert told[0][0] == 0
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] > 0
    return frames


@pytest.fixture(scope="module")
def lines(sweep_file) -> Frames:
    return run(connectivity, sweep_file, alphas=4, pairs=1)


def test_the_line_is_that_of_the_stored_networks(lines, sweep_file, images, seed):
    line = lines["line"]
    assert line.columns[:4] == ["k", "s", "parent_seed", "pair"]
    places = [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    assert line.height == 2 * 2 * len(TREATMENTS) * len(places)
    assert set(line["pair"]) == {0}
    rows = list(line.iter_rows(named=True))
    for i in np.random.default_rng(seed).permutation(len(rows))[:10]:
        row = rows[i]
        a, b = pair(sweep_file, row["s"], row["parent_seed"])
        network = mixed((1 - row["alpha"], a), (row["alpha"], b))
        for split in ("train", "test"):
            loss, error, slack = plainly(
                network, row["batch_norm"], images["train"], images[split], row["k"] + row["s"]
            )
            assert close(row[f"{split}_loss_nats"], loss), row
            assert abs(row[f"{split}_error_%"] - error) <= slack + 1e-9, row
    assert np.allclose(sorted(set(line["alpha"])), places, rtol=0, atol=1e-15)


def test_ends_are_what_the_sweep_measured(lines, sweep_file):
    results = polars.read_parquet(sweep_file.parent / "sweeps" / "grid" / "results.parquet")
    ends = lines["line"].filter(polars.col("alpha") == 1, polars.col("batch_norm") == "averaged")
    for row in ends.iter_rows(named=True):
        found = results.filter(stage="children", epoch=1 + row["s"], noise=row["parent_seed"] * 1_000_000 + 2)
        values = dict(zip(found["metric"], found["value"], strict=True))
        assert row["test_loss_nats"] == values["test_loss"]
        assert row["test_error_%"] == 100 - values["test_accuracy"]


def test_the_middle_is_the_average_that_the_sweep_measured(lines, sweep_file):
    """Under recomputed statistics too: on the very images that the sweep recomputed them on."""
    results = polars.read_parquet(sweep_file.parent / "sweeps" / "grid" / "results.parquet")
    middle = lines["line"].filter(polars.col("alpha") == 0.5)
    assert middle.height == 2 * 2 * 2
    for row in middle.iter_rows(named=True):
        batch_norm = {"averaged": "own", "recomputed": "recomputed"}[row["batch_norm"]]
        found = results.filter(
            stage="interpolation", network="average", batch_norm=batch_norm,
            **{name: row[name] for name in ("k", "s", "parent_seed", "pair")},
        )  # fmt: skip
        values = dict(zip(found["metric"], found["value"], strict=True))
        assert row["test_loss_nats"] == values["test_loss"]
        assert row["test_error_%"] == 100 - values["test_accuracy"]


def test_barriers_and_gains_are_those_of_the_line(lines):
    barrier = lines["barrier"]
    assert barrier.height == 2 * 2 * len(TREATMENTS) * 2
    for row in barrier.iter_rows(named=True):
        names = ("k", "s", "parent_seed", "pair", "batch_norm")
        line = lines["line"].filter(**{name: row[name] for name in names}).sort("alpha")
        alpha = line["alpha"].to_numpy()
        assert row["places"] == 4
        for column, unit, value in (("error_%", "points", "error"), ("loss_nats", "nats", "loss")):
            every = line[f"{row['split']}_{column}"].to_numpy()
            first, last = every[0], every[-1]
            on = alpha != 0.5  # not among 4 evenly spaced places
            assert np.isclose(row[f"barrier_{value}_{unit}"], every[on].max() - (first + last) / 2, rtol=1e-12)
            excess = (every - (1 - alpha) * first - alpha * last)[on].max()
            assert np.isclose(row[f"barrier_{value}_linear_{unit}"], excess, rtol=1e-12, atol=1e-12)
            assert row[f"alpha_of_largest_{value}"] == alpha[on][every[on].argmax()]
            (middle,) = every[~on]
            assert np.isclose(row[f"gain_mean_{unit}"], (first + last) / 2 - middle, rtol=1e-12, atol=1e-12)
            assert np.isclose(row[f"gain_best_{unit}"], min(first, last) - middle, rtol=1e-12, atol=1e-12)
    assert barrier["gain_mean_nats"].n_unique() == barrier.height


def test_places_beyond_the_ends_have_no_part_in_a_barrier():
    alphas_L, counts_L = line_places(AnalysisOptions(alphas=5, low=-0.5, high=1.5))
    assert alphas_L.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert counts_L.all()
    alphas_L, counts_L = line_places(AnalysisOptions())
    assert len(alphas_L) == 31
    assert counts_L.sum() == 30
    assert alphas_L[~counts_L] == [0.5]
    alphas_L, counts_L = line_places(AnalysisOptions(alphas=2, low=0.2, high=0.4))
    assert alphas_L.tolist() == [0.0, 0.2, 0.4, 0.5, 1.0]
    assert counts_L.tolist() == [True, True, True, False, True]


def test_cells_pairs_and_images_are_chosen(sweep_file, images):
    options = {"cells": ("1,2",), "treatments": ("averaged",), "alphas": 2, "train_images": 10, "test_images": 20}
    line = run(connectivity, sweep_file, **options)["line"]
    assert set(line["s"]) == {2}
    assert set(line["pair"]) == {0, 1}
    assert line.height == 2 * 2 * 3
    row = line.row(-1, named=True)
    assert row["train_error_%"] % 10 == pytest.approx(0, abs=1e-9)
    assert row["test_error_%"] % 5 == pytest.approx(0, abs=1e-9)


def test_points_that_differ_in_alpha_share_one_line(sweep_file):
    flags = ("--sweep.alphas", "0.25,0.75", "--axes.experiment.s", "1")
    line = run(connectivity, sweep_file, flags, alphas=2, pairs=1, treatments=("averaged",))["line"]
    assert line.height == 2 * 3


def test_blocks_are_moved_one_at_a_time(sweep_file, images, seed):
    frame = run(blocks, sweep_file, cells=("1,1",), pairs=1)["blocks"]
    names = ["all", "conv", "bn", *(f"blocks.{i}" for i in range(9)), "linear"]
    assert frame.sort("block_number")["block"].unique(maintain_order=True).to_list() == names
    assert frame.height == 2 * 2 * 2 * len(names)
    rows = list(frame.iter_rows(named=True))
    wholes = [row for row in rows if row["block"] == "all"]
    for row in [wholes[0], *(rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:6])]:
        a, b = pair(sweep_file, 1, row["parent_seed"])
        own, other = (a, b) if row["rest"] == "A" else (b, a)
        middle = mixed((0.5, own), (0.5, other))
        inside = [name for name in own if row["block"] == "all" or f"{name}.".startswith(f"{row['block']}.")]
        assert inside
        network = own | {name: middle[name] for name in inside}
        for split in ("train", "test"):
            loss, error, slack = plainly(
                network, row["batch_norm"], images["train"], images[split], row["k"] + row["s"]
            )
            before, error_before, slack_before = plainly(
                own, row["batch_norm"], images["train"], images[split], row["k"] + row["s"]
            )
            assert close(row[f"{split}_loss_nats"], loss), row
            # A small change is the difference of two losses, each with its own rounding.
            assert abs(row[f"{split}_loss_change_nats"] - (loss - before)) < 1e-4 * (loss + before), row
            change = error - error_before
            assert abs(row[f"{split}_error_change_points"] - change) <= slack + slack_before + 1e-9, row
    assert frame["test_loss_change_nats"].n_unique() > frame.height / 2


def test_the_plane_holds_the_parent_and_the_pair(sweep_file, images, seed):
    frames = run(plane, sweep_file, alphas=4)
    grid, points = frames["plane"], frames["points"]
    assert grid.height == 2 * 16
    assert grid.select("k", "s", "parent_seed", "pair").unique().rows() == [(1, 2, 0, 0)]
    parent = stored(sweep_file, stage="parent", epoch=1, parent_seed=0)
    a, b = pair(sweep_file, 2, 0)
    flat = [torch.cat([s[n].flatten() for n in s if n.endswith(("weight", "bias"))]) for s in (parent, a, b)]
    distances = {("parent", "A"): (0, 1), ("parent", "B"): (0, 2), ("A", "B"): (1, 2)}
    at = {row["point"]: np.array([row["x_l2"], row["y_l2"]]) for row in points.iter_rows(named=True)}
    for (first, second), (i, j) in distances.items():
        found, expected = np.linalg.norm(at[first] - at[second]), float(torch.linalg.vector_norm(flat[i] - flat[j]))
        assert np.isclose(found, expected, rtol=1e-9)
    named = {"parent": parent, "A": a, "B": b, "average": mixed((0.5, a), (0.5, b))}
    for row in points.iter_rows(named=True):
        loss, error, slack = plainly(named[row["point"]], row["batch_norm"], images["train"], images["test"], 3)
        assert close(row["test_loss_nats"], loss)
        assert abs(row["test_error_%"] - error) <= slack + 1e-9
    spanned = np.array([[1, 1, 1], *zip(at["parent"], at["A"], at["B"], strict=True)])
    checked = 0
    for i in np.random.default_rng(seed).permutation(grid.height)[:6]:
        row = grid.row(int(i), named=True)
        weights = np.linalg.solve(spanned, [1, row["x_l2"], row["y_l2"]])
        network = mixed(*zip(weights.tolist(), (parent, a, b), strict=True))
        negative = any((value < 0).any() for name, value in network.items() if name.endswith("running_var"))
        if row["batch_norm"] == "averaged" and negative:
            assert row["test_loss_nats"] is None
            continue
        loss, _, _ = plainly(network, row["batch_norm"], images["train"], images["test"], 3)
        # Outside of the triangle weights cancel, and so does precision.
        assert np.isclose(row["test_loss_nats"], loss, rtol=2e-3), row
        checked += 1
    assert checked
    chosen = run(plane, sweep_file, alphas=2, cells=("1,1",), treatments=("recomputed",))["plane"]
    assert chosen.select("k", "s").unique().rows() == [(1, 1)]


@pytest.mark.parametrize(
    ("flags", "options", "message"),
    [
        (("--axes.experiment.k", "1,4"), {}, "lacks 16 states, the first at epoch 5; run the sweep"),
        (("--sweep.tuple_size", "4"), {}, "sweep.tuple_size: 4; this study is of pairs; sweep tuples of 2"),
        ((), {"train_images": 101}, "analysis.train_images: 101 is more than the sweep's 100; lower it, or give 0"),
        ((), {"test_images": 51}, "analysis.test_images: 51 is more than the sweep's 50; lower it, or give 0"),
    ],
)
@pytest.mark.parametrize("study", [connectivity, blocks])
def test_refusals(sweep_file, study, flags, options, message):
    with pytest.raises(UserError) as caught:
        run(study, sweep_file, flags, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plane_needs_three_networks(sweep_file):
    with pytest.raises(UserError, match="are equal; a plane needs three different networks"):
        run(plane, sweep_file, ("--axes.experiment.s", "0"))


def test_tables_count_parents_and_have_no_interval_of_two(lines):
    tables = {table.title.partition(",")[0]: table for table in connectivity_report.tables(lines)}
    table = tables["Loss barrier over the mean of the ends' losses"]
    assert "n = 2: too few parents" in table.title
    assert "[" not in table.title
    assert table.columns[:4] == ("k", "s", "parents", "pairs")
    values = lines["barrier"].filter(s=2, split="test", batch_norm="recomputed")["barrier_loss_nats"]
    cell = table.rows[1][table.columns.index("test, recomputed")]
    assert table.rows[1][:4] == ("1", "2", "2", "2")
    assert cell == f"{values.mean():+.4f} (n = 2)"
    one = {name: frame.filter(parent_seed=0) for name, frame in lines.items()}
    for table in connectivity_report.tables(one):
        assert "n = 1: nothing can be concluded" in table.title
        assert all("[" not in cell and "(n = 1)" in cell for row in table.rows for cell in row[4:])


def test_what_is_not_defined_is_said_and_drawn(lines, tmp_path):
    holes = {
        name: frame.with_columns(
            polars.when(polars.col("batch_norm") == "averaged").then(None).otherwise(polars.col(column)).alias(column)
            for column, kind in frame.schema.items()
            if kind == polars.Float64 and column != "alpha"
        )
        for name, frame in lines.items()
    }
    assert "not defined" in connectivity_report.tables(holes)[0].markdown()
    connectivity_report.draw(holes, tmp_path / "figure.png", "Holes")
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_figures_of_one_cell(sweep_file, tmp_path):
    how = {"cells": ("1,1",), "pairs": 1, "treatments": ("averaged",), "alphas": 2}
    for study, report in ((connectivity, connectivity_report), (blocks, blocks_report), (plane, plane_report)):
        frames = run(study, sweep_file, **how)
        path = tmp_path / study.__module__.rpartition(".")[2] / "figure.png"
        report.draw(frames, path, study.__module__.rpartition(".")[2])
        assert {each.suffix for each in path.parent.iterdir()} == {".png", ".pdf", ".svg"}
        assert all(each.stat().st_size > 1000 for each in path.parent.iterdir())
        for table in report.tables(frames):
            assert table.rows
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_lines_of_a_child_that_diverged_are_left_out(sweep_file):
    with OpenedSweep(read_sweep_request(["--config", str(sweep_file)]).spec) as opened:
        every = chosen_lines(opened, AnalysisOptions())
        shortest = min(every, key=lambda pair: pair.s)
        key = (shortest.place.ends[1], OWN)
        opened.measured[key] = dataclasses.replace(opened.measured[key], train_loss=float("inf"))
        left = [pair.columns() for pair in chosen_lines(opened, AnalysisOptions())]
    # Gone with the pair are those of the same child trained on: nothing is made of it.
    gone = [pair for pair in every if pair.columns() not in left]
    assert {pair.s for pair in gone} == {1, 2}
    assert len(gone) == 2
    assert {(pair.point.parent, pair.point.tuple_index) for pair in gone} == {
        (shortest.point.parent, shortest.point.tuple_index)
    }
