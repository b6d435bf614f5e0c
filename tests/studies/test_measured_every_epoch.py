"""experiment.measure: every network after every epoch, with the statistics that its own epoch's images give."""

import pytest
from studied import logits, losses, state_of, studied_sweep, treated

from fastwi.experiment.tree import OWN
from fastwi.report.rows import result_frame

BOTH = ("--axes.experiment.k", "[1]", "--axes.experiment.s", "[2]", "--experiment.measure", "[own, recomputed]")


def test_recomputed_statistics_of_every_network_and_epoch(opened, digits_directory, tmp_path_factory):
    """A sweep that kept all states trains nothing more for them."""
    with studied_sweep(digits_directory, tmp_path_factory, *BOTH) as both:
        assert set(both.measured) - set(opened.measured)
        assert {key for key in both.measured if key[1] == OWN} <= set(opened.measured)
        frame = result_frame(both.planned, both.measured).filter(metric="test_loss")
        rows = frame.filter(batch_norm="recomputed").rows(named=True)
        # Of two parents: 1 epoch, 2 children of 2 epochs, an average and its further epoch.
        assert len(rows) == frame.filter(batch_norm="own").height == 2 * (1 + 2 * 2 + 1 + 1)
        _, test = both.resources.splits(both.planned.points[0].config)
        for row in rows:
            if row["stage"] == "interpolation":
                continue  # which is nothing new
            recomputed = treated(both, state_of(both, row["state"]), "recomputed", row["epoch"])
            assert row["value"] == pytest.approx(losses(logits(both, recomputed, test), test).mean(), rel=2e-4), row
            assert row["value"] != both.measured[row["state"], OWN].test_loss
