"""curvature against the stored networks, measured one by one; contrasts by plain loops."""

import numpy as np
import polars
import pytest
import torch
from studied import (
    bars,
    by_cell,
    column,
    logits,
    losses,
    mean_state,
    measured,
    presented,
    state_of,
    studied_sweep,
    tables_at_two_alphas,
    treated,
)
from torch.nn import functional

from fastwi.analysis import Curvature, measure_curvature
from fastwi.analysis.measuring import Bench
from fastwi.config.sweep import AnalysisOptions
from fastwi.data.noise import Noise
from fastwi.engine.choose import build_network
from fastwi.kernels.augment import augment
from fastwi.studies.curvature import QUANTITIES, STUDY, _contrasts

OPTIONS = {
    "curvature_images": 40, "curvature_vectors": 3, "curvature_probes": 2, "curvature_radius": 0.1, "cells": ("1,1",),
}  # fmt: skip


@pytest.fixture(scope="module")
def frames(opened):
    return measured("curvature", opened, **OPTIONS)


def test_every_network_on_the_same_images(opened, frames):
    frame = frames["networks"]
    assert frame.height == 2 * 2 * 5  # parent, two children, average and average + 1
    config = opened.planned.points[0].config
    train, _ = opened.resources.splits(config)
    order = torch.from_numpy(Noise(0, statistics=True).draws(0, len(train), 0, 0.0).order_N[:40])
    x = augment(train.images_NHWC, order, None, None, train.table_C256, 0).double()
    for (k, s, parent), pair in by_cell(opened).items():
        rows = frame.filter(k=k, s=s, parent_seed=parent)
        place = pair.place
        if (k, s) != (1, 1):
            assert rows.height == 0
            continue
        ends = [state_of(opened, key) for key in place.ends]
        states = {
            ("parent", None): state_of(opened, place.clone), ("child", 1): ends[0], ("child", 2): ends[1],
            ("average", 0): mean_state(ends), ("average", 1): state_of(opened, place.after[0]),
        }  # fmt: skip
        for row in rows.iter_rows(named=True):
            state = states[row["network"], row["child"] if row["network"] == "child" else row["epochs_after"]]
            network = build_network(config, train.classes).double().eval()
            network.load_state_dict(treated(opened, state, row["batch_norm"], k + s))
            loss = functional.cross_entropy(network(x), train.labels_N[order])
            parameters = list(network.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter += 0.1 * gradient / norm
                rise = functional.cross_entropy(network(x), train.labels_N[order]) - loss
            assert row["images"] == 40
            assert row["loss_nats"] == pytest.approx(float(loss.detach()), rel=2e-4)
            assert row["gradient_norm"] == pytest.approx(float(norm), rel=2e-3)
            assert row["sharpness_nats"] == pytest.approx(float(rise), rel=2e-2, abs=1e-4)
    assert frame["largest_eigenvalue"].n_unique() == frame.height
    assert frames["spectrum"]["number"].max() == 3
    spectrum = frames["spectrum"].filter(number=1)
    assert spectrum["eigenvalue"].to_list() == frame["largest_eigenvalue"].to_list()


def test_the_trace_is_of_as_many_probes_as_are_asked_for(opened, frames):
    config, place = opened.planned.points[0].config, by_cell(opened)[1, 1, 0].place
    evaluator, (train, _) = Bench(opened, AnalysisOptions()).evaluator(config), opened.resident_splits(config)
    how = {"images": 40, "vectors": 1, "probes": 2}
    (alone,) = measure_curvature(evaluator, opened.states([place.average]), train, **how)
    row = frames["networks"].filter(parent_seed=0, network="average", epochs_after=0, batch_norm="own")
    assert row.select("trace", "trace_error").row(0) == pytest.approx((alone.trace, alone.trace_error), rel=1e-3)


@pytest.fixture
def loss_alone(monkeypatch):
    """Only the loss is measured: all else takes long."""

    def measure(evaluator, network, train, **_):
        (loss,) = evaluator.scores(network, train).loss_M
        return [Curvature(len(train), float(loss), *[0.0] * 13, np.zeros(1), np.zeros(1))]

    monkeypatch.setattr("fastwi.analysis.measure_curvature", measure)


@pytest.mark.usefixtures("loss_alone")
def test_a_parent_of_two_cells_has_the_statistics_of_each(opened):
    """They are recomputed at another epoch."""
    frame = measured("curvature", opened, cells=("1,1", "1,2"))["networks"]
    rows = frame.filter(network="parent", parent_seed=0)
    train, _ = opened.resources.splits(opened.planned.points[0].config)
    state = state_of(opened, by_cell(opened)[1, 1, 0].place.clone)
    for row in rows.iter_rows(named=True):
        own = treated(opened, state, row["batch_norm"], row["k"] + row["s"])
        assert row["loss_nats"] == pytest.approx(losses(logits(opened, own, train), train).mean(), rel=2e-4)
    assert rows.height == 4
    assert rows["loss_nats"].n_unique() == 3  # its own statistics are those of both


@pytest.mark.usefixtures("loss_alone")
@pytest.mark.parametrize(
    ("axis", "values", "apart"),
    [
        ("data.train_images", "[50, 60]", ["own", "recomputed"]),
        ("augment.padding", "[0, 4]", ["recomputed"]),
        ("optimizer.batch_size", "[10, 20]", ["recomputed"]),
    ],
)
def test_an_untrained_parent_is_measured_on_the_images_of_each_cell(
    digits_directory, tmp_path_factory, axis, values, apart
):
    """It is one state, whatever would be trained on."""
    flags = (
        "--axes.experiment.k", "[0]", "--axes.experiment.s", "[1]", "--sweep.parents", "[0]",
        "--experiment.after", "0", f"--axes.{axis}", values,
    )  # fmt: skip
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep:
        frame = measured("curvature", sweep)["networks"].filter(network="parent")
    assert frame.height == 4
    for treatment in ("own", "recomputed"):
        assert frame.filter(batch_norm=treatment)["loss_nats"].n_unique() == 1 + (treatment in apart)
    if axis == "data.train_images":
        assert frame["images"].to_list() == frame[axis].to_list()


def test_tables_and_figure(frames, tmp_path):
    tables, drawn = presented("curvature", frames, tmp_path)
    assert len(tables) == len(QUANTITIES) + 1
    assert tables[0].columns[-4:] == ("parent", "children", "average", "average + 1")
    own = frames["networks"].filter(batch_norm="own")
    trace = own.filter(network="average", epochs_after=0)["trace"].mean()
    assert column(tables[1], "average")[0].startswith(f"{trace:+.1f}")
    heights = bars("curvature", frames)
    for quantity, (text, _) in QUANTITIES.items():
        assert heights[text][0] == pytest.approx(own.filter(network="parent")[quantity].mean())
    # Contrasts are within pairs: of the children's mean log norm, and of one that is not above 0, nothing.
    logs = []
    for parent in (0, 1):
        here = own.filter(parent_seed=parent)
        children = here.filter(network="child")["gradient_norm"].to_numpy()
        average = here.filter(network="average", epochs_after=0)["gradient_norm"][0]
        logs.append(np.log(children / average).mean())
    row = ("gradient norm (nats)", "average against children", "own")
    rows = [each for each in tables[-1].rows if each[:3] == row]
    assert [each[3].split()[0] for each in rows] == [f"{np.mean(logs):+.2f}"]
    lower = frames["networks"].with_columns(
        gradient_norm=polars.when(parent_seed=0, network="parent").then(-1.0).otherwise("gradient_norm")
    )
    contrasts = dict(_contrasts(lower, "gradient_norm"))
    assert contrasts["average against parent"].filter(batch_norm="own")["contrast"].is_null().to_list() == [False]
    assert contrasts["average against children"].filter(batch_norm="own").height == 2
    assert rows[0][-1] == "not settled (n = 2)"
    for text in ("average + 1", "dots: each parent", "k = 1, s = 1; n = 2 parents, 2 pairs", "40 training images"):
        assert text in drawn
    apart = tables_at_two_alphas("curvature", frames)[0]
    assert set(column(apart, "alpha")) == {"0.25", "0.75"}


def test_the_average_is_compared_with_its_last_further_epoch(frames):
    frame = frames["networks"]
    later = [frame.filter(epochs_after=1).with_columns(polars.col("epochs_after") + more) for more in (9, 1)]
    table = STUDY.tables({**frames, "networks": polars.concat([frame, *later])})[-1]
    assert {what for what in column(table, "networks") if what.startswith("average +")} == {
        "average + 10 against average"
    }


def test_a_pair_counts_once_whatever_its_further_training_is(frames):
    """But what the average trains on to is another network with each axis value, and so another contrast."""
    frame = frames["networks"].filter(batch_norm="own")
    changed = polars.when(polars.col("epochs_after") > 0).then(2 * polars.col("gradient_norm"))
    both = [
        frame.select(polars.lit("keep").alias("schedule.at_average"), polars.all()),
        frame.with_columns(gradient_norm=changed.otherwise("gradient_norm")).select(
            polars.lit("restart").alias("schedule.at_average"), polars.all()
        ),
    ]
    table = STUDY.tables({**frames, "networks": polars.concat(both)})[-1]
    norms = zip(column(table, "quantity"), column(table, "networks"), column(table, "pairs"), strict=True)
    assert {networks: pairs for quantity, networks, pairs in norms if quantity == "gradient norm (nats)"} == {
        "average against parent": "2",
        "average against children": "2",
        "average + 1 against average": "4",
    }
