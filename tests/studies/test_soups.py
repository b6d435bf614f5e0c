"""soups: against the stored networks, averaged by hand; chosen on images that nothing was trained on."""

import itertools

import numpy as np
import polars
import pytest
from studied import (
    PAIRS,
    accuracy,
    bars,
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

from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import all_pairs
from fastwi.config.sweep import AnalysisOptions
from fastwi.errors import UserError
from fastwi.report.rows import gains


@pytest.fixture(scope="module")
def frames(pairs):
    return measured("soups", pairs, held_out_images=100)


def test_uniform_and_greedy_soups_by_hand(pairs, frames):
    frame = frames["soups"]
    config = pairs.planned.points[0].config
    test = pairs.resources.splits(config)[1]
    held_out = Bench(pairs, AnalysisOptions(held_out_images=100)).held_out(config)
    assert frame.height == 2 * 2 * 3
    settled = []  # whether rounding cannot change what is chosen
    for (parent, treatment), rows in frame.filter(parent_seed=1).group_by("parent_seed", "batch_norm"):
        places = [pair.place for pair in all_pairs(pairs) if pair.point.parent == parent]
        states = [state_of(pairs, end) for place in places for end in place.ends]
        assert len(states) == 4

        def score(chosen, images, treatment=treatment):
            """Accuracy, loss, and by how much rounding may change the accuracy."""
            logits_NK = logits(pairs, treated(pairs, mean_state(chosen), treatment, 2), images)
            return accuracy(logits_NK, images), losses(logits_NK, images).mean(), unclear(logits_NK)

        compared = []  # two scores each, whose order decides what is chosen
        ranked = sorted(states, key=lambda state: -score([state], held_out)[0])
        compared += itertools.pairwise(score([state], held_out) for state in ranked)
        greedy = ranked[:1]
        for state in ranked[1:]:
            compared.append((score([*greedy, state], held_out), score(greedy, held_out)))
            if compared[-1][0][0] >= compared[-1][1][0]:
                greedy.append(state)
        expected = {"uniform": states}
        settled.append(all(abs(one[0] - two[0]) > one[2] + two[2] or one[2] == two[2] == 0 for one, two in compared))
        if settled[-1]:
            expected |= {"best": ranked[:1], "greedy": greedy}
        for row in rows.filter(polars.col("soup").is_in(list(expected))).iter_rows(named=True):
            chosen = expected[row["soup"]]
            assert (row["children"], row["of_children"]) == (len(chosen), 4)
            found, best = score(chosen, test), score(ranked[:1], test)
            assert row["test_loss_nats"] == pytest.approx(found[1], rel=2e-4)
            assert row["test_accuracy_%"] == pytest.approx(found[0], abs=found[2] + 1e-9)
            here = score(chosen, held_out)
            assert row["held_out_accuracy_%"] == pytest.approx(here[0], abs=here[2] + 1e-9)
            if settled[-1]:
                assert row["gain_points"] == pytest.approx(found[0] - best[0], abs=found[2] + best[2] + 1e-9)
    assert any(settled)


def test_a_soup_is_of_one_combination_of_axes(variants):
    frame = measured("soups", variants, held_out_images=20, treatments=("averaged",))["soups"]
    assert set(frame["of_children"]) == {2}
    assert frame.group_by("experiment.momentum", "parent_seed").len().height == 2 * 2


def test_a_soup_is_of_one_cell(opened):
    how = {"held_out_images": 20, "treatments": ("averaged",), "test_images": 20}
    frame = measured("soups", opened, **how)["soups"]
    accuracies = frame["test_accuracy_%"].to_numpy()
    assert accuracies == pytest.approx(5 * np.round(accuracies / 5))  # of 20 images
    assert set(frame["of_children"]) == {2}
    assert frame.group_by("k", "s", "parent_seed").len().height == 2 * 2 * 2


def test_after_rounds_a_soup_is_of_the_children_of_one_average(digits_directory, tmp_path_factory, pairs):
    with studied_sweep(digits_directory, tmp_path_factory, *PAIRS, "--experiment.rounds", "2") as opened:
        frame = measured("soups", opened, held_out_images=20, treatments=("averaged",))["soups"]
        averages = gains(opened.planned, opened.measured)
    assert set(frame["of_children"]) == {2}
    keys = ["parent_seed", "pair"]
    both = frame.filter(soup="uniform").join(averages, on=keys)
    assert sorted(both.select(keys).rows()) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert both["test_accuracy_%"].to_list() == pytest.approx(both["average_own_%"].to_list(), abs=1e-9)


def test_children_of_averages_that_differ_in_alpha_are_no_set(digits_directory, tmp_path_factory, opened):
    flags = (
        "--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--sweep.parents", "[0]",
        "--experiment.after", "0", "--experiment.rounds", "2", "--sweep.alphas", "[0.25, 0.75]",
    )  # fmt: skip
    with (
        studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep,
        pytest.raises(UserError, match=r"sweep\.alphas"),
    ):
        measured("soups", sweep, held_out_images=20, treatments=("averaged",))


def test_held_out_images_are_those_that_the_sweep_left_out(pairs, digits_directory, tmp_path_factory):
    config = pairs.planned.points[0].config
    train, _ = pairs.resources.splits(config)
    whole = Bench(pairs, AnalysisOptions(held_out_images=0)).held_out(config)
    some = Bench(pairs, AnalysisOptions(held_out_images=50)).held_out(config)
    assert (len(some), len(train) + len(whole)) == (50, 1437)
    assert np.bincount(some.labels_N.numpy()).tolist() == [5] * 10
    trained, left, chosen = ({image.tobytes() for image in each.images_NHWC.numpy()} for each in (train, whole, some))
    assert chosen < left
    assert not trained & left
    flags = ("--axes.experiment.k", "[1]", "--axes.experiment.s", "[1]", "--data.train_images", "0")
    with studied_sweep(digits_directory, tmp_path_factory, *flags, trains=False) as other:
        config = other.planned.points[0].config
        with pytest.raises(UserError, match=r"data\.train_images"):
            Bench(other, AnalysisOptions()).held_out(config)


def test_tables_and_figure(frames, tmp_path):
    (table,), drawn = presented("soups", frames, tmp_path)
    assert column(table, "soup") == ["uniform", "greedy"] * 2
    uniform = frames["soups"].filter(soup="uniform", batch_norm="averaged")["gain_points"].mean()
    gain = table.columns.index("children") + 1
    assert table.rows[0][gain].startswith(f"{uniform:+.2f}")
    assert bars("soups", frames)["test accuracy gain (points)"][0] == pytest.approx(uniform)
    assert column(table, "children")[0] == "4.0 of 4.0"
    assert set(column(table, "above 0")) == {"not settled (n = 2)"}
    assert "k = 1, s = 1; n = 2 parents" in drawn
    assert frames["soups"].schema["children"] == polars.Int64
