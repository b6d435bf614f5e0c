"""importance against float64 networks and plain loops; its verdicts against plain numbers."""

import numpy as np
import polars
import pytest
from scipy import stats
from studied import (
    STOPS,
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
    treated,
    unclear,
)

from fastwi.errors import UserError
from fastwi.report.estimates import hard_less_easy

IMAGES, SPLITS = 60, 4


@pytest.fixture(scope="module")
def frames(opened):
    return measured("importance", opened)


def one(frame: polars.DataFrame, **values):
    return frame.filter(*(polars.col(name).eq_missing(polars.lit(value)) for name, value in values.items()))


def test_scores_are_the_mean_over_parents(opened, frames):
    train = opened.resources.splits(opened.planned.points[0].config)[0]
    labels = train.labels_N.numpy()
    total = np.zeros(IMAGES)
    events = np.zeros(IMAGES)
    for parent in (0, 1):
        path = by_cell(opened)[2, 1, parent].place.parent
        first_NK, last_NK = (logits(opened, state_of(opened, key), train) for key in path)
        probabilities = np.exp(last_NK - np.logaddexp.reduce(last_NK, axis=1)[:, None])
        total += np.linalg.norm(probabilities - np.eye(10)[labels], axis=1)
        first, last = first_NK.argmax(1) == labels, last_NK.argmax(1) == labels
        events += np.where(first | last, first & ~last, 2)
    scores = frames["scores"]
    assert scores["example"].to_list() == list(range(IMAGES))
    assert scores["label"].to_list() == labels.tolist()
    np.testing.assert_allclose(scores["el2n"], total / 2, atol=1e-4)
    np.testing.assert_array_equal(scores["forgetting_events"], events / 2)
    assert scores.select("score_epoch", "n_parents").unique().rows() == [(2, 2)]
    assert scores.sort("el2n")["split"].to_list() == [split for split in (1, 2, 3, 4) for _ in range(15)]


def test_networks_on_splits_gains_and_changes(opened, frames):
    train = opened.resources.splits(opened.planned.points[0].config)[0]
    split_N = frames["scores"]["split"].to_numpy() - 1
    assert frames["missing"].height == 0
    for (k, s, parent), pair in by_cell(opened).items():
        place = pair.place
        end = k + s
        states = {
            (f"child {i + 1}", k + j + 1): key for i, path in enumerate(place.children) for j, key in enumerate(path)
        }
        states |= {("parent", k): place.clone, ("average", end + 1): place.after[0]}
        found = {(*name, "own"): state_of(opened, key) for name, key in states.items()}
        ends = [found[f"child {i}", end, "own"] for i in (1, 2)]
        found["average", end, "own"] = mean_state(ends)
        for name, epoch in (("parent", k), ("average", end), ("child 1", end), ("child 2", end)):
            found[name, epoch, "recomputed"] = treated(opened, found[name, epoch, "own"], "recomputed", end)
        here = {"k": k, "s": s, "parent_seed": parent, "pair": 0}
        rows = one(frames["splits"], **here)
        assert rows.height == len(found) * SPLITS
        right, loss, off = {}, {}, 0.0
        for (name, epoch, how), state in found.items():
            network, _, child = name.partition(" ")
            at = {"network": network, "child": int(child) if child else None, "epoch": epoch, "batch_norm": how}
            mine = one(rows, **at).sort("split")
            logits_NK = logits(opened, state, train)
            correct = logits_NK.argmax(1) == train.labels_N.numpy()
            loss_N = losses(logits_NK, train)
            key = name, epoch, how
            right[key] = np.array([100 * np.mean(correct[split_N == s]) for s in range(SPLITS)])
            loss[key] = np.array([np.mean(loss_N[split_N == s]) for s in range(SPLITS)])
            own = SPLITS * unclear(logits_NK)
            np.testing.assert_allclose(mine["train_accuracy_%"], right[key], atol=own + 1e-9)
            off = max(off, own)
            np.testing.assert_allclose(mine["train_loss_nats"], loss[key], rtol=5e-5)
        for how in ("own", "recomputed"):
            gains = one(frames["split_gains"], **here, batch_norm=how).sort("split")
            children = np.array([right[f"child {i}", end, how] for i in (1, 2)])
            of_children = np.mean([loss[f"child {i}", end, how] for i in (1, 2)], axis=0)
            average = right["average", end, how]
            less = loss["average", end, how] - of_children
            np.testing.assert_allclose(gains["gain_mean_points"], average - children.mean(0), atol=2 * off + 1e-9)
            np.testing.assert_allclose(gains["gain_best_points"], average - children.max(0), atol=2 * off + 1e-9)
            np.testing.assert_allclose(gains["gain_mean_loss_nats"], less, atol=5e-5 * of_children.max())
        changes = one(frames["split_changes"], **here, epochs_after=1).sort("split")
        change, of_loss = (table["average", end + 1, "own"] - table["average", end, "own"] for table in (right, loss))
        np.testing.assert_allclose(changes["change_points"], change, atol=2 * off + 1e-9)
        np.testing.assert_allclose(
            changes["change_loss_nats"], of_loss, atol=5e-5 * loss["average", end, "own"].max()
        )


def test_options(opened):
    frames = measured(
        "importance", opened, splits=2, score_epoch=1, treatments=("averaged",), cells=("2,1", "1,2"), train_images=30
    )
    scores = frames["scores"]
    labels_N = opened.resources.splits(opened.planned.points[0].config)[0].labels_N
    assert scores.height == scores["example"].n_unique() == 30
    assert labels_N[scores["example"].to_list()].tolist() == scores["label"].to_list()
    assert set(frames["scores"]["score_epoch"]) == {1}
    assert frames["scores"]["forgetting_events"].null_count() == 30  # one measurement shows no forgetting
    assert frames["splits"].select("k", "s").unique(maintain_order=True).rows() == [(2, 1), (1, 2)]
    assert set(frames["splits"]["batch_norm"]) == {"own"}
    for options, text in (
        ({"score_epoch": 3}, "score_epoch: 3"),
        ({"cells": ("1,7",)}, "no pair of these cells"),
        ({"train_images": 61}, "train_images: 61"),
    ):
        with pytest.raises(UserError, match=text):
            measured("importance", opened, **options)


def test_scores_are_of_the_longest_parents_whatever_the_order(opened, digits_directory, tmp_path_factory):
    flags = ("--axes.experiment.k", "[2, 1]", "--axes.experiment.s", "[1]")
    with studied_sweep(digits_directory, tmp_path_factory, *flags, trains=False) as turned:
        frames = measured("importance", turned, splits=2, treatments=("averaged",))
    assert set(frames["scores"]["score_epoch"]) == {2}


def test_one_parent_and_states_that_are_not_stored(digits_directory, tmp_path_factory, tmp_path):
    with studied_sweep(digits_directory, tmp_path_factory, *STOPS) as stops:
        frames = measured("importance", stops)
        with pytest.raises(UserError, match="keep: all"):
            measured("importance", stops, score_epoch=1)
    children = one(frames["splits"], network="child", batch_norm="own")
    assert set(children["epoch"]) == {4}
    assert set(frames["scores"]["n_parents"]) == {1}
    assert frames["scores"]["forgetting_events"].null_count() == IMAGES
    tables, _ = presented("importance", frames, tmp_path)
    assert "n = 1: nothing can be concluded" in tables[0].title
    assert tables[-1].rows == (("2", "2", "child", "2 of 4"),)


def test_an_average_that_is_not_trained_to_its_end_is_refused(opened, digits_directory, tmp_path_factory):
    unfinished = studied_sweep(digits_directory, tmp_path_factory, "--experiment.after", "2", trains=False)
    with unfinished as found, pytest.raises(UserError, match="run the sweep"):
        measured("importance", found)


def test_tables_and_figure(frames, tmp_path):
    (claims, over_mean, over_best, *changes, scores), drawn = presented("importance", frames, tmp_path)
    assert "n = 2: too few parents" in claims.title
    assert set(column(claims, "pairs")) == {"8"}
    more = "gain, harder half minus easier half, own statistics"
    verdicts = dict(zip(column(claims, claims.columns[0]), column(claims, "verdict"), strict=True))
    assert verdicts[more] == "not settled (n = 2)"
    gains = frames["split_gains"].filter(batch_norm="own").rename({"batch_norm": "at"})
    changed = frames["split_changes"].filter(epochs_after=1).rename({"epochs_after": "at"})
    for table, title, frame, name, digits in (
        (over_mean, "Gain of the average over the children's mean", gains, "gain_mean_points", 2),
        (over_best, "Gain of the average over the best child", gains, "gain_best_points", 2),
        (changes[0], "The average trained on: accuracy", changed, "change_points", 2),
        (changes[1], "The average trained on: loss", changed, "change_loss_nats", 4),
    ):
        assert table.title.startswith(title)
        (row,) = (row for row in table.rows if row[:2] == ("2", "2") and row[2] in ("own", "1"))
        for split in range(1, 5):
            expected = frame.filter(k=2, s=2, split=split)[name].mean()
            assert row[table.columns.index(f"split {split}")].startswith(f"{expected:+.{digits}f}")
    assert scores.rows[0][:3] == ("2", "2", "60")
    correlation = stats.spearmanr(frames["scores"]["el2n"], frames["scores"]["forgetting_events"]).statistic
    assert scores.rows[0][3] == f"{correlation:+.2f}"
    of_cell = frames["split_gains"].filter(k=2, s=2, batch_norm="own")
    heights = [of_cell.filter(split=split)["gain_mean_points"].mean() for split in range(1, 5)]
    assert bars("importance", frames)["gain (points)"][:4] == pytest.approx(heights)
    for text in ("Split 1 (easiest): 15 images", "Split 4 (hardest): 15 images",
                 "k = 2, s = 2; n = 2 parents, 2 pairs"):  # fmt: skip
        assert text in drawn


@pytest.mark.parametrize("by_split", [[1.0, 2.0, 4.0, 8.0], [1.0, 5.0, 9.0], [1.0, 2.0, 90.0, 4.0, 8.0]])
def test_the_hard_half_less_the_easy_half(by_split, seed):
    """Of 8 parents, of which one lacks a split and has no part; around the given means, a split each."""
    draw_from = np.random.default_rng(seed)
    rows = [
        {"k": 1, "s": 1, "alpha": None, "parent_seed": parent, "pair": 0, "batch_norm": "own", "split": split,
         "gain": float(mean + draw_from.normal() * 0.01)}
        for parent in range(8)
        for split, mean in enumerate(by_split, 1)
        if (parent, split) != (3, 1)
    ]  # fmt: skip
    half = len(by_split) // 2
    hard, easy = np.mean(by_split[-half:]), np.mean(by_split[:half])
    for times in (1, 9):
        found = hard_less_easy(polars.DataFrame(rows), "gain", times)
        if times > 1:  # the middle one is not hard: what is above 0 is over 90 % of the whole
            easy = np.sum(by_split[:-half]) / half
            assert (found.value > 0) == (np.sum(by_split[-half:]) > 0.9 * np.sum(by_split))
        # Of 7 draws each, 0.01 apart: a deviation of sqrt(1 + 9^2) * 0.01 / sqrt(7) = 0.034
        assert found.value == pytest.approx(hard - times * easy, abs=0.2)
        assert (found.n_parents, found.n_pairs) == (7, 7)
