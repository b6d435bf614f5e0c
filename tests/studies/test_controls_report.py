"""Controls as tables and figure."""

import numpy as np
import pytest
from presented import check_figure, column
from studied_sweep import VARIANTS, studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.studies.controls import draw, effects, tables
from fastwi.studies.controls import measure as controls


@pytest.fixture(scope="module")
def frames(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as opened:
        return controls(opened, AnalysisOptions(treatments=("averaged",)), lambda done, total: None)


def test_effects_are_means_over_parents(frames):
    found = {(effect.label, effect.batch_norm): effect.estimate for effect in effects(frames["controls"])}
    frame = frames["controls"].filter(control="ensemble", batch_norm="own")
    by_parent = [frame.filter(parent_seed=parent)["effect_points"].mean() for parent in (0, 1)]
    estimate = found["the children's ensemble", "own"]
    assert estimate.value == pytest.approx(np.mean(by_parent), abs=1e-12)
    assert (estimate.n_parents, estimate.n_pairs) == (2, 8)
    lawa = [value for (label, _), value in found.items() if label.startswith("LAWA")]
    assert len(lawa) == 4  # at s = 1 there is one average of the trajectory, however it is called
    assert len({value.value for value in lawa}) == 1
    assert all(value.n_pairs == 4 for value in lawa)


def test_tables(frames):
    whole, by_cell, absent = tables(frames)
    assert "n = 2: too few parents" in whole.title
    assert set(column(whole, "parents")) == {"2"}
    assert set(column(whole, "average is better")) == {"not settled (n = 2)"}
    assert not any("[" in text for table in (whole, by_cell) for row in (table.columns, *table.rows) for text in row)
    assert len(by_cell.rows) == 4 + 4  # each cell, own and recomputed
    assert column(by_cell, "one child trained as long as all together").count("not in this sweep") == 6
    assert (
        dict(zip(column(absent, "control"), column(absent, ""), strict=True))["children with a dropped learning rate"]
        == "not in this sweep"
    )
    assert "experiment.children_rate_factor: 0.1" in "".join(column(absent, "what adds it"))


def test_one_parent_settles_nothing(frames, tmp_path):
    alone = {**frames, "controls": frames["controls"].filter(parent_seed=0)}
    whole = tables(alone)[0]
    assert "n = 1: nothing can be concluded" in whole.title
    assert set(column(whole, "average is better")) == {"not settled (n = 1)"}
    draw(alone, tmp_path / "figure.png", "tiny: controls")
    check_figure(tmp_path / "figure.png")


def test_all_controls_are_named(digits_directory, tmp_path_factory, frames, tmp_path):
    with studied_sweep(digits_directory, tmp_path_factory, *VARIANTS) as opened:
        found = controls(opened, AnalysisOptions(treatments=("averaged",)), lambda done, total: None)
    labels = column(tables(found)[0], "average against")
    for text in ("dropped learning rate (0.1 times, for 1 epoch more)", "another alpha (alpha 0.25)",
                 "experiment.momentum: average, after 1 further epoch"):  # fmt: skip
        assert any(text in label for label in labels), text
    draw(found, tmp_path / "figure.png", "tiny: controls")
    check_figure(tmp_path / "figure.png")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(label in drawn for label in labels)
