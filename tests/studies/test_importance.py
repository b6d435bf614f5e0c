"""Example importance against float64 networks and plain loops."""

import numpy as np
import polars
import pytest
from studied_networks import accuracy, logits, losses, mean_state, state_of, with_recomputed_statistics
from studied_sweep import STOPS, files_of, studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.errors import UserError
from fastwi.studies.importance import measure as importance

IMAGES, SPLITS = 60, 4


@pytest.fixture(scope="module")
def opened(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def studied(opened):
    before, told = files_of(opened), []
    frames = importance(opened, AnalysisOptions(splits=SPLITS), lambda done, total: told.append((done, total)))
    assert files_of(opened) == before
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    return frames


def parents(opened, epoch):
    paths = {p.parent: place.parent for p, place in zip(opened.planned.points, opened.planned.places, strict=True)
             if p.config.experiment.k == 2}  # fmt: skip
    return [path[epoch - 1] for path in paths.values()]


def one(frame: polars.DataFrame, **values):
    return frame.filter(*(polars.col(name).eq_missing(polars.lit(value)) for name, value in values.items()))


def test_scores_are_the_mean_over_parents(opened, studied):
    train = opened.resources.splits(opened.planned.points[0].config)[0]
    labels = train.labels_N.numpy()
    total, events = np.zeros(IMAGES), np.zeros(IMAGES)
    learned_by_all = np.ones(IMAGES, dtype=bool)
    for p in range(2):
        correct = []
        for epoch in (1, 2):
            logits_NK = logits(opened, state_of(opened, parents(opened, epoch)[p]), train)
            correct.append(logits_NK.argmax(1) == labels)
        probabilities = np.exp(logits_NK - logits_NK.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        total += np.linalg.norm(probabilities - np.eye(10)[labels], axis=1)
        events += np.where(correct[0] | correct[1], correct[0] & ~correct[1], 2)
        learned_by_all &= correct[0] | correct[1]
    scores = studied["scores"]
    assert scores["example"].to_list() == list(range(IMAGES))
    assert scores["label"].to_list() == labels.tolist()
    np.testing.assert_allclose(scores["el2n"], total / 2, atol=1e-4)
    np.testing.assert_array_equal(scores["forgetting_events"], events / 2)
    assert set(scores["score_epoch"]) == {2}
    assert set(scores["n_parents"]) == {2}
    ordered = scores.sort("el2n")["split"].to_list()
    assert ordered == sorted(ordered)
    assert scores["split"].value_counts().sort("split")["count"].to_list() == [15] * 4


def test_networks_on_splits_gains_and_changes(opened, studied):
    train = opened.resources.splits(opened.planned.points[0].config)[0]
    split_N = studied["scores"]["split"].to_numpy() - 1
    planned = opened.planned
    assert studied["missing"].height == 0
    for point, place in zip(planned.points, planned.places, strict=True):
        e = point.config.experiment
        pair = {"k": e.k, "s": e.s, "parent_seed": point.parent, "pair": point.tuple_index}
        ends = [state_of(opened, end) for end in place.ends]
        average, end = mean_state(ends), e.k + e.s
        wanted = [("parent", None, e.k, state_of(opened, place.clone))]
        wanted += [("child", i + 1, end, state) for i, state in enumerate(ends)]
        wanted += [("average", None, end, average)]
        found = {}
        for treatment in ("own", "recomputed"):
            for network, child, epoch, state in wanted:
                if treatment == "recomputed":
                    state = with_recomputed_statistics(opened, state, end)
                found[network, child, epoch, treatment] = logits(opened, state, train)
        for i, path in enumerate(place.children):
            for epoch, key in enumerate(path, e.k + 1):
                found["child", i + 1, epoch, "own"] = logits(opened, state_of(opened, key), train)
        found["average", None, end + 1, "own"] = logits(opened, state_of(opened, place.after[0]), train)
        rows = one(studied["splits"], **pair)
        assert rows.height == len(found) * SPLITS
        right = {}
        for (network, child, epoch, treatment), logits_NK in found.items():
            mine = one(rows, network=network, child=child, epoch=epoch, batch_norm=treatment).sort("split")
            correct = logits_NK.argmax(1) == train.labels_N.numpy()
            right[network, child, epoch, treatment] = [100 * np.mean(correct[split_N == s]) for s in range(SPLITS)]
            loss = [np.mean(losses(logits_NK, train)[split_N == s]) for s in range(SPLITS)]
            np.testing.assert_allclose(mine["train_accuracy_%"], right[network, child, epoch, treatment], atol=1e-9)
            np.testing.assert_allclose(mine["train_loss_nats"], loss, rtol=1e-3)
        for treatment in ("own", "recomputed"):
            gains = one(studied["split_gains"], **pair, batch_norm=treatment).sort("split")
            children = np.array([right["child", i, end, treatment] for i in (1, 2)])
            mean = np.array(right["average", None, end, treatment])
            np.testing.assert_allclose(gains["gain_mean_points"], mean - children.mean(0), atol=1e-9)
            np.testing.assert_allclose(gains["gain_best_points"], mean - children.max(0), atol=1e-9)
        changes = one(studied["split_changes"], **pair, epochs_after=1).sort("split")
        expected = np.subtract(right["average", None, end + 1, "own"], right["average", None, end, "own"])
        np.testing.assert_allclose(changes["change_points"], expected, atol=1e-9)


def test_recomputed_networks_are_those_that_the_sweep_measured(opened, studied):
    """Test accuracy of the same networks equals the sweep's own probe: the draws are the same."""
    point, place = opened.planned.points[0], opened.planned.places[0]
    test = opened.resources.splits(point.config)[1]
    end = point.config.experiment.k + point.config.experiment.s
    mean = mean_state([state_of(opened, key) for key in place.ends])
    measured = opened.measured[place.average, [*place.treatments][1]].test_accuracy
    found = accuracy(logits(opened, with_recomputed_statistics(opened, mean, end), test), test)
    assert found == pytest.approx(measured, abs=1e-9)


def test_options(opened):
    options = AnalysisOptions(
        splits=2, score_epoch=1, treatments=("averaged",), cells=("2,1", "1,2"), train_images=30
    )
    frames = importance(opened, options, lambda done, total: None)
    assert frames["scores"].height == 30
    assert set(frames["scores"]["score_epoch"]) == {1}
    assert frames["scores"]["forgetting_events"].null_count() == 30  # one measurement shows no forgetting
    assert frames["splits"].select("k", "s").unique(maintain_order=True).rows() == [(2, 1), (1, 2)]
    assert set(frames["splits"]["batch_norm"]) == {"own"}


def test_states_that_are_not_stored_are_left_out_and_counted(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory, *STOPS) as opened:
        frames = importance(opened, AnalysisOptions(), lambda done, total: None)
        with pytest.raises(UserError, match="keep: all"):
            importance(opened, AnalysisOptions(score_epoch=1), lambda done, total: None)
    (row,) = frames["missing"].rows(named=True)
    assert (row["network"], row["epochs"], row["epochs_not_stored"]) == ("child", 4, 2)
    children = one(frames["splits"], network="child", batch_norm="own")
    assert set(children["epoch"]) == {4}
    assert set(frames["scores"]["n_parents"]) == {1}
    assert frames["scores"]["forgetting_events"].null_count() == IMAGES


def test_refusals(opened):
    for options, text in (
        (AnalysisOptions(score_epoch=3), "score_epoch: 3"),
        (AnalysisOptions(cells=("1,7",)), "no pair of these cells"),
        (AnalysisOptions(train_images=61), "train_images: 61"),
    ):
        with pytest.raises(UserError, match=text) as raised:
            importance(opened, options, lambda done, total: None)
        assert len(str(raised.value).splitlines()) == 1
