"""calibration: numbers of each network against the stored networks in float64, and what averaging improves."""

from types import SimpleNamespace

import numpy as np
import polars
import pytest
import torch
from studied import (
    bars,
    by_cell,
    column,
    logits,
    mean_state,
    measured,
    presented,
    state_of,
    studied_sweep,
    tables_at_two_alphas,
    treated,
)

from fastwi.analysis import calibration_of, dataset_from_arrays
from fastwi.config.schema import Config, DataConfig
from fastwi.data.corruptions import corrupted
from fastwi.studies.calibration import MEASURES, _images, improvements


@pytest.fixture(scope="module")
def frames(opened):
    return measured("calibration", opened, corruptions=("jpeg", "contrast"), severities=(5, 1), cells=("1,2", "2,1"))


def test_each_network_is_measured_on_the_same_images(opened, frames, seed):
    frame = frames["calibration"]
    images = [("test", 0), ("jpeg", 1), ("jpeg", 5), ("contrast", 1), ("contrast", 5)]
    assert list(frame.select("images", "severity").unique(maintain_order=True).rows()) == images
    assert frame.height == 2 * 2 * 2 * len(images) * 5  # cells, parents, treatments, networks
    assert frame["network"].value_counts().sort("network")["count"].to_list() == [40, 80, 40, 40]
    _, test = opened.resources.splits(opened.planned.points[0].config)
    close = dict.fromkeys(("error_%", "ece_%", "adaptive_ece_%"), 0)
    for i in np.random.default_rng(seed).permutation(frame.height)[:12]:
        row = frame.row(int(i), named=True)
        place = by_cell(opened)[row["k"], row["s"], row["parent_seed"]].place
        ends = [state_of(opened, end) for end in place.ends]
        states = {
            "parent": [state_of(opened, place.clone)],
            "child": ends[row["child"] - 1 : row["child"]] if row["child"] else [],
            "average": [mean_state(ends)],
            "ensemble": ends,
        }[row["network"]]
        dataset = test
        if row["severity"]:
            pixels = corrupted(test.images_NHWC.numpy(), row["images"], row["severity"])
            assert (pixels != test.images_NHWC.numpy()).any()
            dataset = type(test)(torch.from_numpy(pixels), test.labels_N, test.table_C256, test.classes)
        logs = []
        for state in states:
            z_NK = logits(opened, treated(opened, state, row["batch_norm"], row["k"] + row["s"]), dataset)
            logs.append(z_NK - np.logaddexp.reduce(z_NK, axis=1)[:, None])
        log_NK = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
        of = calibration_of(torch.from_numpy(log_NK), test.labels_N)
        expected = {
            "error_%": of.error, "loss_nats": of.loss, "ece_%": of.calibration_error,
            "adaptive_ece_%": of.adaptive_calibration_error, "brier": of.brier, "temperature": of.temperature,
            "scaled_loss_nats": of.scaled_loss,
        }  # fmt: skip
        for name, rel in (("loss_nats", 2e-4), ("brier", 2e-3), ("temperature", 2e-2), ("scaled_loss_nats", 2e-2)):
            assert row[name] == pytest.approx(expected[name], rel=rel), (name, row)
        # An image near a bin's edge, or with two classes alike, may be counted elsewhere.
        for name in close:
            assert row[name] == pytest.approx(expected[name], abs=4.01), (name, row)
            close[name] += abs(row[name] - expected[name]) < 0.05
    assert min(close.values()) >= 9
    assert frame["loss_nats"].n_unique() > frame.height / 2


def test_corrupted_images_are_of_each_dataset(seed):
    draw, at = np.random.default_rng(seed), ("contrast", 5)
    sets = {name: draw.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8) for name in ("one", "other")}
    datasets = {
        name: dataset_from_arrays(pixels, np.arange(3), [0.5] * 3, [0.25] * 3, "cpu") for name, pixels in sets.items()
    }
    bench = SimpleNamespace(part=lambda config, split: (datasets[config.data.path], None))
    made: dict = {}
    for name, pixels in sets.items():
        found = _images(bench, SimpleNamespace(config=Config(data=DataConfig(path=name))), *at, made)
        assert torch.equal(found.images_NHWC, torch.from_numpy(corrupted(pixels, *at)))


def test_the_average_of_clean_images_is_what_the_sweep_measured(opened, frames):
    for (k, s, parent), pair in by_cell(opened).items():
        rows = frames["calibration"].filter(k=k, s=s, parent_seed=parent, images="test", network="average")
        for row in rows.to_dicts():
            treatment = dict(zip(("own", "recomputed"), pair.place.treatments, strict=True))[row["batch_norm"]]
            found = opened.measured[pair.place.average, treatment]
            assert row["error_%"] == pytest.approx(100 - found.test_accuracy)
            assert row["loss_nats"] == pytest.approx(found.test_loss, rel=1e-5)


def test_own_statistics_are_averaged_where_the_average_is_trained_on_with_recomputed_ones(
    digits_directory, tmp_path_factory, opened
):
    flags = (
        "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--sweep.parents", "[0]",
        "--experiment.after", "0", "--experiment.batch_norm", "recompute",
    )  # fmt: skip
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep:
        frame = measured("calibration", sweep)["calibration"].filter(network="average")
        (place,) = sweep.planned.places
        expected = [sweep.measured[place.average, treatment].test_loss for treatment in place.treatments]
    assert frame["batch_norm"].to_list() == ["own", "recomputed"]
    assert frame["loss_nats"].to_list() == pytest.approx(expected, rel=1e-5)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_improvements_are_paired(frames):
    frame = frames["calibration"]
    found = improvements(frame, "child")
    assert found.height == 2 * 2 * 2 * (3 + 1)  # severities are averaged over, and then corruptions
    for row in found.filter(polars.col("images") != "all corruptions").to_dicts()[::5]:
        keys = {name: row[name] for name in ("k", "s", "parent_seed", "batch_norm", "images")}
        rows = frame.filter(**keys)
        children = rows.filter(network="child")["brier"].mean()
        assert row["brier"] == pytest.approx(children - rows.filter(network="average")["brier"].mean())
        together = found.filter(**keys | {"images": "all corruptions"})["brier"].item()
        del keys["images"]
        both = found.filter(polars.col("images").is_in(["jpeg", "contrast"]), **keys)
        assert together == pytest.approx(both["brier"].mean())
    other = improvements(frame, "ensemble")
    assert (other["brier"] - found["brier"]).abs().max() > 1e-4
    # One child without a value: no mean of the others in its place.
    hole = (polars.col("child") == 1) & (polars.col("severity") == 5) & (polars.col("images") == "jpeg")
    holes = improvements(frame.with_columns(polars.when(hole).then(None).otherwise("brier").alias("brier")), "child")
    assert (holes["brier"].is_null() == holes["images"].is_in(["jpeg", "all corruptions"])).all()


def test_tables_and_figure(frames, tmp_path):
    (first, corruption, *others), drawn = presented("calibration", frames, tmp_path)
    assert {row[2] for row in first.rows} == {"test"}
    assert {row[2] for row in corruption.rows} == {"test", "jpeg", "contrast", "all corruptions"}
    assert len({row[:4] for row in (*first.rows, *corruption.rows)}) == len(first.rows) + len(corruption.rows) - 8
    clean, bad = (
        frames["calibration"].filter((polars.col("severity") > 0) == bad, batch_norm="own") for bad in (0, 1)
    )
    brier = dict(clean.group_by("network").agg(polars.col("brier").mean()).rows())
    for words, over in (("the children's mean", "child"), ("their ensemble", "ensemble")):
        (row,) = (row for row in first.rows if row[:4] == ("Brier score", words, "test", "own"))
        assert row[4].startswith(f"{brier[over] - brier['average']:+.3f}")
    heights = bars("calibration", frames)
    for label, frame, name in (
        ("test error (%)", clean, "error_%"),
        ("test loss (nats)", clean, "loss_nats"),
        ("calibration error (%)", clean, "ece_%"),
        ("Brier score", clean, "brier"),
        ("error, corrupted images (%)", bad, "error_%"),
        ("calibration error, corrupted images (%)", bad, "ece_%"),
    ):
        assert heights[label][0] == pytest.approx(frame.filter(k=1, s=2, network="child")[name].mean())
    assert {row[-1] for row in first.rows} == {"not settled (n = 2)"}
    assert {row[-2] for row in corruption.rows} == {"4"}  # pairs of both cells; severities count once
    assert len(others) == len(MEASURES)
    for table, name in zip(others, MEASURES, strict=True):
        means = clean.filter(network="child").group_by("k", "s", maintain_order=True).agg(polars.col(name).mean())
        assert len(table.rows) == means.height
        for shown, mean in zip(column(table, "child, own"), means[name], strict=True):
            assert mean is None or shown.startswith(f"{mean:+.3f} ")
    for text in ("k = 1, s = 2", "ensemble", "dots: each parent", "corrupted images"):
        assert text in drawn
    apart = tables_at_two_alphas("calibration", frames)[-1]
    assert set(column(apart, "alpha")) == {"0.25", "0.75"}


def test_clean_images_alone_and_what_is_not_defined(opened, tmp_path):
    found = measured("calibration", opened, cells=("1,1",), treatments=("averaged",), test_images=20)
    frame = found["calibration"]
    assert set(frame["batch_norm"]) == {"own"}
    assert set(frame["images"]) == {"test"}
    errors = frame["error_%"].to_numpy()
    assert errors == pytest.approx(5 * np.round(errors / 5))  # of 20 images
    holes = {"calibration": frame.with_columns(polars.lit(None, polars.Float64).alias("ece_%"))}
    tables, drawn = presented("calibration", holes, tmp_path)
    assert "not defined" in tables[3].markdown()
    assert "corrupted" not in drawn
