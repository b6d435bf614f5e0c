"""Governance as tables and figure."""

import numpy as np
import polars
import pytest
from presented import check_figure, column
from studied_sweep import studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.studies.governance import GAINS, QUANTITIES, correlations, draw, tables
from fastwi.studies.governance import measure as governance


@pytest.fixture(scope="module")
def frames(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as opened:
        options = AnalysisOptions(alphas=2, treatments=("averaged",), test_images=30)
        return governance(opened, options, lambda done, total: None)


def test_tables(frames):
    found = tables(frames)
    assert len(found) == len(GAINS)
    for table in found:
        assert "n = 2: too few" in table.title
        assert set(column(table, "parents")) == {"2"}
        assert set(column(table, "pairs")) == {"8"}
        verdicts = [i for i, name in enumerate(table.columns) if name == "correlates"]
        assert {row[i] for row in table.rows for i in verdicts} == {"not settled (n = 2)"}
        strengths = [0.0 if cell == "undefined" else abs(float(cell.split()[0])) for cell in
                     column(table, "all pairs")]  # fmt: skip
        assert strengths == sorted(strengths, reverse=True)
    words = column(found[0], "quantity")
    assert QUANTITIES["error_barrier_recomputed_points"] not in words  # it was not asked for
    assert QUANTITIES["distance_l2"] in words


def test_verdicts_where_there_are_parents_enough(frames, seed):
    """The real pairs as ten parents', with gains that fall with the distance and have nothing to do with the rest."""
    draw_from = np.random.default_rng(seed)
    copies = [frames["pairs"].with_columns(polars.col("parent_seed") + 2 * copy) for copy in range(5)]
    pairs = polars.concat(copies)
    noise = polars.Series(draw_from.normal(size=pairs.height))
    pairs = pairs.with_columns(
        gain_best_own_points=-polars.col("distance_l2"), kl_nats=noise,
        **{gain: polars.lit(None, polars.Float64) for gain in list(GAINS)[1:]},
    )  # fmt: skip
    (table,) = tables({"correlations": correlations(pairs)})
    first = table.rows[0]
    assert first[0] == QUANTITIES["distance_l2"]
    assert first[1] == "-1.00 [-1.00, -0.38]"  # all 10 agree; 1 - 0.025^(1 / 10) = 31 % could differ unseen
    assert first[2] == "confirmed, falling"
    assert first[-2:] == ("10", "40")


def test_figure(frames, tmp_path):
    draw(frames, tmp_path / "figure.png", "tiny: governance")
    check_figure(tmp_path / "figure.png")
    drawn = (tmp_path / "figure.svg").read_text()
    for text in ("k = 2", "s = 1", "n = 2 parents, 8 pairs", "error barrier (points)"):
        assert text in drawn
