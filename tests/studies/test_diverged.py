"""Every study of a sweep of which some networks, or all, diverged."""

import dataclasses
import math

import pytest
from studied import ON_ANY_SWEEP, by_cell, studied_sweep

from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import chosen_pairs
from fastwi.config.sweep import AnalysisOptions
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.studies import all_studies

OPTIONS = AnalysisOptions(
    alphas=2,
    train_images=40,
    test_images=20,
    treatments=("averaged",),
    cells=("1,1",),
    splits=2,
    curvature_vectors=2,
    curvature_probes=1,
)


@pytest.fixture
def opened(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as found:
        yield found


def run(name: str, opened: OpenedSweep):
    return all_studies()[name].measure(opened, OPTIONS, lambda done, total: None)


def diverge(opened: OpenedSweep, state: str, treatment: str = OWN, **losses: float) -> None:
    opened.measured[state, treatment] = dataclasses.replace(opened.measured[state, treatment], **losses)


def of_one_parent(opened: OpenedSweep, frames, parent: int) -> None:
    seeds = {seed for frame in frames.values() if "parent_seed" in frame.columns for seed in frame["parent_seed"]}
    assert seeds == {parent}
    assert opened.left_out == ("1 of 2 at k = 1, s = 1",)


@pytest.mark.parametrize("study", ON_ANY_SWEEP)
def test_the_others_go_on_and_where_all_diverged_it_is_said(opened, study):
    first, second = (by_cell(opened)[1, 1, parent].place.ends for parent in (0, 1))
    diverge(opened, first[1], test_loss=math.inf)
    of_one_parent(opened, run(study, opened), 1)
    diverge(opened, second[0], train_loss=math.nan)
    with pytest.raises(UserError, match=r"all 2 pairs of these cells diverged \(k = 1, s = 1\)"):
        run(study, opened)


@pytest.mark.parametrize("statistics", ["own", "recomputed"])
def test_an_average_that_diverged_gives_no_gain(opened, statistics):
    place = by_cell(opened)[1, 1, 1].place
    treatment = dict(zip(("own", "recomputed"), place.treatments, strict=True))[statistics]
    diverge(opened, place.average, treatment, test_loss=math.inf)
    of_one_parent(opened, run("controls", opened), 0)


def test_what_is_made_of_a_child_that_diverged_earlier_is_left_out_and_noted(opened):
    diverge(opened, by_cell(opened)[1, 2, 0].place.children[1][0], test_loss=math.inf)
    assert {pair.point.parent for pair in chosen_pairs(opened, AnalysisOptions(cells=("1,2",)))} == {1}
    assert opened.left_out == ("1 of 2 at k = 1, s = 2",)


@pytest.mark.parametrize("network", ["average", "child"])
def test_a_pair_that_is_not_measured_in_full_is_left_out(opened, network):
    place = by_cell(opened)[1, 1, 0].place
    del opened.measured[place.average if network == "average" else place.ends[1], OWN]
    assert {pair.point.parent for pair in chosen_pairs(opened, AnalysisOptions(cells=("1,1",)))} == {1}
    assert opened.left_out == ()


def test_a_child_that_diverges_after_it_was_averaged_is_no_control_at_equal_cost(opened):
    diverge(opened, by_cell(opened)[1, 2, 0].place.children[1][1], test_loss=math.inf)
    frame = run("controls", opened)["controls"]
    for name in ("child_longer", "lawa", "ema", "children_on"):
        assert set(frame.filter(control=name)["parent_seed"]) == {1}
    assert set(frame.filter(control="ensemble")["parent_seed"]) == {0, 1}


def test_an_average_that_diverges_as_it_is_trained_on(opened):
    for pair in by_cell(opened).values():
        diverge(opened, pair.place.after[-1], test_loss=math.nan)
    importance, controls = run("importance", opened), run("controls", opened)["controls"]
    assert opened.left_out == ()
    assert set(importance["split_gains"]["parent_seed"]) == set(controls["parent_seed"]) == {0, 1}
    assert importance["split_changes"].height == 0
    assert "after" not in set(importance["splits"].filter(network="average")["stage"])
    assert "children_on" not in set(controls["control"])


def test_an_average_that_diverged_has_no_curvature(opened):
    diverge(opened, by_cell(opened)[1, 1, 0].place.after[-1], test_loss=math.nan)
    averages = run("curvature", opened)["networks"].filter(network="average")
    assert set(averages["parent_seed", "epochs_after"].rows()) == {(0, 0), (1, 0), (1, 1)}


def test_a_parent_that_diverges_later_has_no_part_in_scores(opened):
    diverge(opened, by_cell(opened)[2, 1, 0].place.parent[1], test_loss=math.inf)
    frames = run("importance", opened)  # at k = 1
    assert set(frames["scores"]["n_parents"]) == {1}
    assert set(frames["split_gains"]["parent_seed"]) == {0, 1}
