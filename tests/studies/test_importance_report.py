"""Importance as tables and figure: n, intervals and verdicts against plain numbers."""

import numpy as np
import polars
import pytest
from presented import check_figure, column
from studied_sweep import STOPS, studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.studies.importance import draw, hard_less_easy, tables
from fastwi.studies.importance import measure as importance


@pytest.fixture(scope="module")
def frames(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as opened:
        return importance(opened, AnalysisOptions(), lambda done, total: None)


def gains(hard: float, easy: float, parents: int, seed: int) -> dict[str, polars.DataFrame]:
    """Gains of `parents` parents on 4 splits around the given means; drops of the same size after an epoch."""
    draw_from = np.random.default_rng(seed)
    rows = [
        {"k": 1, "s": 1, "alpha": None, "parent_seed": parent, "pair": 0, "batch_norm": "own", "split": split,
         "gain_mean_points": float((hard if split > 2 else easy) + draw_from.normal() * 0.01), "epochs_after": 1}
        for parent in range(parents)
        for split in (1, 2, 3, 4)
    ]  # fmt: skip
    frame = polars.DataFrame(rows).with_columns(gain_best_points=polars.col("gain_mean_points") - 1)
    changes = frame.with_columns(change_points=-polars.col("gain_mean_points"), change_loss_nats=polars.lit(0.5))
    scores = polars.DataFrame({
        "example": [0, 1], "label": [0, 1], "el2n": [0.1, 0.9], "split": [1, 2], "forgetting_events": [None, None],
        "score_epoch": [1, 1], "n_parents": [2, 2],
    })  # fmt: skip
    return {"split_gains": frame, "split_changes": changes.drop("batch_norm"), "scores": scores,
            "missing": polars.DataFrame({"k": [1], "s": [1]}).clear()}  # fmt: skip


@pytest.mark.parametrize(
    ("hard", "easy", "more", "almost_all"),
    [
        (4.0, 0.1, "confirmed", "confirmed"),
        (4.0, 1.0, "confirmed", "refuted"),  # more on the hard half, but 80 %
        (1.0, 4.0, "refuted", "refuted"),
        (-0.1, -4.0, "refuted", "refuted"),  # there is no gain that could lie anywhere
    ],
)
def test_verdicts(hard, easy, more, almost_all, seed):
    claims = tables(gains(hard, easy, 8, seed))[0]
    assert column(claims, "verdict") == [more, almost_all] * 2  # of the gain, and of the drop of its size
    assert set(column(claims, "parents")) == {"8"}
    found = hard_less_easy(gains(hard, easy, 8, seed)["split_gains"], "gain_mean_points")
    assert found.value == pytest.approx(hard - easy, abs=0.05)
    times = hard_less_easy(gains(hard, easy, 8, seed)["split_gains"], "gain_mean_points", 9)
    # Of 16 draws each, 0.01 apart: a deviation of sqrt(1 + 9^2) * 0.01 / 4 = 0.023
    assert times.value == pytest.approx(hard - 9 * easy, abs=0.2)


def test_noise_settles_nothing(seed):
    claims = tables(gains(0.0, 0.0, 8, seed))[0]
    assert set(column(claims, "verdict")) == {"not settled"}


@pytest.mark.parametrize("parents", [1, 2, 4])
def test_few_parents_settle_nothing(parents, seed):
    found = tables(gains(4.0, 0.1, parents, seed))
    assert set(column(found[0], "verdict")) == {f"not settled (n = {parents})"}
    for table in found[:-1]:
        assert not any("[" in text for row in (table.columns, *table.rows) for text in row)


def test_one_parent_is_said(seed):
    claims = tables(gains(0.0, 0.0, 1, seed))[0]
    assert "n = 1: nothing can be concluded" in claims.title


def test_tables_of_a_real_sweep(frames):
    found = tables(frames)
    claims, over_mean, *_ = found
    assert "n = 2: too few parents" in claims.title
    assert set(column(claims, "pairs")) == {"8"}
    assert len(over_mean.rows) == 4 * 2
    expected = frames["split_gains"].filter(k=2, s=2, batch_norm="own", split=4)["gain_mean_points"].mean()
    (row,) = (row for row in over_mean.rows if row[:3] == ("2", "2", "own"))
    assert row[over_mean.columns.index("split 4")].startswith(f"{expected:+.2f}")
    assert any("EL2N" in table.title and table.rows[0][:3] == ("2", "2", "60") for table in found)


def test_figure(frames, tmp_path):
    draw(frames, tmp_path / "figure.png", "tiny: importance")
    check_figure(tmp_path / "figure.png")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(f"<!-- {text}" in drawn for text in ("Split 1 (easiest): 15 images", "Split 4 (hardest): 15 images"))
    assert "k = 2, s = 2; n = 2 parents, 2 pairs" in drawn


def test_one_parent_and_states_that_are_not_stored(digits_directory, tmp_path_factory, tmp_path):
    with studied_sweep(digits_directory, tmp_path_factory, *STOPS) as opened:
        frames = importance(opened, AnalysisOptions(), lambda done, total: None)
    found = tables(frames)
    assert "n = 1: nothing can be concluded" in found[0].title
    assert set(column(found[0], "verdict")) == {"not settled (n = 1)"}
    assert found[-1].rows == (("2", "2", "child", "2 of 4"),)
    draw(frames, tmp_path / "figure.png", "tiny: importance")
    check_figure(tmp_path / "figure.png")
