"""Governance against float64 networks and plain loops."""

import math

import numpy as np
import polars
import pytest
from scipy import stats
from studied_networks import accuracy, logits, losses, mean_state, state_of
from studied_sweep import files_of, studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.studies.governance import GAINS, QUANTITIES, correlations
from fastwi.studies.governance import measure as governance

ALPHAS = 3


@pytest.fixture(scope="module")
def opened(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def frames(opened):
    before, told = files_of(opened), []
    found = governance(opened, AnalysisOptions(alphas=ALPHAS), lambda done, total: told.append((done, total)))
    assert files_of(opened) == before
    assert told[-1] == (8, 8)
    return found


def vector(opened, state):
    names = dict(opened.resources.layout(opened.planned.points[0].config).keys).values()
    learned = {span.name for span in opened.resources.layout(opened.planned.points[0].config).parameters}
    return np.concatenate([state[name].numpy().ravel() for name in names if name in learned])


def test_every_pair(opened, frames):
    pairs = frames["pairs"]
    assert pairs.height == len(opened.planned.points)
    test = opened.resources.splits(opened.planned.points[0].config)[1]
    for point, place in zip(opened.planned.points, opened.planned.places, strict=True):
        e = point.config.experiment
        (row,) = pairs.filter(
            polars.col("k") == e.k, polars.col("s") == e.s, polars.col("parent_seed") == point.parent
        ).rows(named=True)
        a, b = (state_of(opened, key) for key in place.ends)
        parent = state_of(opened, place.clone)
        a_P, b_P, o_P = (vector(opened, state) for state in (a, b, parent))
        distance = math.sqrt(sum((x - y) ** 2 for x, y in zip(a_P, b_P, strict=True)))
        ways = [a_P - o_P, b_P - o_P]
        norms = [np.linalg.norm(way) for way in ways]
        expected = {
            "learning_rate": 0.05,
            "distance_l2": distance,
            "relative_distance": distance / np.linalg.norm(o_P),
            "displacement_l2": np.mean(norms),
            "displacement_cosine": ways[0] @ ways[1] / (norms[0] * norms[1]),
        }
        a_NK, b_NK, mean_NK = (logits(opened, state, test) for state in (a, b, mean_state([a, b])))
        expected["disagreement_%"] = 100 * np.mean(a_NK.argmax(1) != b_NK.argmax(1))
        of_a, of_b = (100 - accuracy(each, test) for each in (a_NK, b_NK))
        errors = [of_a, 100 - accuracy(mean_NK, test), of_b]
        loss = [losses(each, test).mean() for each in (a_NK, mean_NK, b_NK)]
        expected["error_barrier_points"] = max(errors) - (errors[0] + errors[2]) / 2
        expected["loss_barrier_nats"] = max(loss) - (loss[0] + loss[2]) / 2
        middle_NK = (a_NK + b_NK) / 2
        off = np.linalg.norm(mean_NK - middle_NK, axis=1).mean()
        expected["tangent_departure"] = off / (np.linalg.norm(a_NK - b_NK, axis=1) / 2).mean()
        expected["gain_mean_own_points"] = (of_a + of_b) / 2 - errors[1]
        expected["gain_best_own_points"] = min(of_a, of_b) - errors[1]
        expected["children_accuracy_%"] = 100 - (of_a + of_b) / 2
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
        _, recomputed = place.treatments
        measured = [opened.measured[key, recomputed].test_accuracy for key in (place.average, *place.ends)]
        assert row["gain_best_recomputed_points"] == measured[0] - max(measured[1:])
        assert row["loss_barrier_recomputed_nats"] is not None


def test_correlations_are_those_of_scipy(frames):
    pairs, found = frames["pairs"], frames["correlations"]
    checked = 0
    for row in found.rows(named=True):
        x, y = pairs[row["gain"]].to_numpy(), pairs[row["quantity"]].to_numpy().astype(float)
        if row["scope"] == "within cells":
            for cell in pairs.select("k", "s").unique().rows():
                here = (pairs.select("k", "s").to_numpy() == cell).all(1)
                x, y = np.where(here, x - x[here].mean(), x), np.where(here, y - y[here].mean(), y)
            x, y = x.round(10), y.round(10)
        if np.ptp(x) and np.ptp(y):
            assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
            checked += 1
        else:
            assert row["spearman"] is None
        assert (row["n_parents"], row["n_pairs"], row["low"]) == (2, 8, None)  # 2 parents settle nothing
        assert row["note"]
    assert checked > 40
    assert set(found["gain"]) == set(GAINS)
    assert set(found["quantity"]) == set(QUANTITIES)


def test_intervals_over_parents_and_pairs_that_lack_a_number(frames, seed):
    """Ten parents of which the real pairs are copies with noise: there are intervals, and n counts what is there."""
    draw = np.random.default_rng(seed)
    copies = []
    for parent in range(5):
        copy = frames["pairs"].with_columns(polars.col("parent_seed") + 2 * parent)
        noise = polars.Series(draw.normal(size=copy.height))
        copies.append(copy.with_columns(gain_best_own_points=polars.col("distance_l2") * 10 + noise * 1e-6))
    pairs = polars.concat(copies)
    lacking = pairs.with_columns(
        polars.when(polars.col("parent_seed") == 3)
        .then(None)
        .otherwise(polars.col("distance_l2"))
        .alias("distance_l2")
    )
    chosen = (polars.col("gain") == "gain_best_own_points") & (polars.col("quantity") == "distance_l2")
    for frame, parents in ((pairs, 10), (lacking, 9)):
        row = correlations(frame).filter(chosen, polars.col("scope") == "all pairs").rows(named=True)[0]
        assert (row["n_parents"], row["n_pairs"]) == (parents, 4 * parents)
        assert row["low"] > 0.9
        assert row["spearman"] > 0.9
