"""Every study of a sweep of which some networks, or all, diverged."""

import dataclasses
import math

import pytest
from studied import studied_sweep

from fastwi.analysis.opened import OpenedSweep
from fastwi.config.sweep import AnalysisOptions
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.studies import all_studies

OPTIONS = AnalysisOptions(
    alphas=2, train_images=40, test_images=20, treatments=("averaged",), cells=("1,1",), splits=2
)


@pytest.fixture
def opened(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as found:
        yield found


def run(name: str, opened: OpenedSweep):
    return all_studies()[name].measure(opened, OPTIONS, lambda done, total: None)


def diverge(opened: OpenedSweep, state: str, **losses: float) -> None:
    opened.measured[state, OWN] = dataclasses.replace(opened.measured[state, OWN], **losses)


def ends(opened: OpenedSweep, parent: int) -> tuple[str, ...]:
    planned = opened.planned
    return next(
        place.ends
        for point, place in zip(planned.points, planned.places, strict=True)
        if point.parent == parent and (point.config.experiment.k, point.config.experiment.s) == (1, 1)
    )


@pytest.mark.parametrize("study", all_studies())
def test_the_others_go_on(opened, study):
    diverge(opened, ends(opened, 0)[1], test_loss=math.inf)
    frames = run(study, opened)
    seeds = {seed for frame in frames.values() if "parent_seed" in frame.columns for seed in frame["parent_seed"]}
    assert seeds == {1}
    assert opened.left_out == ("1 of 2 at k = 1, s = 1",)


@pytest.mark.parametrize("study", all_studies())
def test_where_all_diverged_it_is_said(opened, study):
    diverge(opened, ends(opened, 0)[0], train_loss=math.nan)
    diverge(opened, ends(opened, 1)[1], test_loss=math.nan)
    with pytest.raises(UserError, match=r"all 2 pairs of these cells diverged \(k = 1, s = 1\)"):
        run(study, opened)


@pytest.mark.parametrize("study", ["importance", "controls"])
def test_an_average_that_diverges_as_it_is_trained_on(opened, study):
    for place in opened.planned.places:
        diverge(opened, place.after[-1], test_loss=math.nan)
    frames = run(study, opened)
    assert opened.left_out == ()
    names = {"importance": "split_gains", "controls": "controls"}
    assert set(frames[names[study]]["parent_seed"]) == {0, 1}
    if study == "importance":
        assert frames["split_changes"].height == 0
        assert "after" not in set(frames["splits"].filter(network="average")["stage"])
    else:
        assert "children_on" not in set(frames["controls"]["control"])


@pytest.mark.parametrize("study", ["governance", "importance", "controls"])
def test_an_average_that_diverged_gives_no_gain(opened, study):
    chosen = [
        place
        for point, place in zip(opened.planned.points, opened.planned.places, strict=True)
        if point.parent == 1 and (point.config.experiment.k, point.config.experiment.s) == (1, 1)
    ]
    diverge(opened, chosen[0].average, test_loss=math.inf)
    frames = run(study, opened)
    assert all(set(f["parent_seed"]) <= {0} for f in frames.values() if "parent_seed" in f.columns)
    assert opened.left_out == ("1 of 2 at k = 1, s = 1",)


def test_a_parent_that_diverges_later_has_no_part_in_scores(opened):
    place = next(
        place
        for point, place in zip(opened.planned.points, opened.planned.places, strict=True)
        if point.parent == 0 and point.config.experiment.k == 2
    )
    diverge(opened, place.parent[1], test_loss=math.inf)
    frames = run("importance", opened)  # at k = 1
    assert set(frames["scores"]["n_parents"]) == {1}
    assert set(frames["split_gains"]["parent_seed"]) == {0, 1}
