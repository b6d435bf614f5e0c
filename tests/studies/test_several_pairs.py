"""Several pairs of one parent: children are called by their numbers within it, and no pair takes another's."""

import numpy as np
import pytest
from studied import SCHEDULES, measured, studied_sweep

from fastwi.analysis.pairs import all_pairs
from fastwi.experiment.tree import OWN

QUICK = {
    "calibration": {"test_images": 20},
    "importance": {"splits": 2},
    "curvature": {"curvature_images": 20, "curvature_vectors": 1, "curvature_probes": 1},
}


@pytest.mark.parametrize("study", QUICK)
def test_children_are_called_by_their_numbers(pairs, study):
    frames = measured(study, pairs, treatments=("averaged",), **QUICK[study])
    frame = frames[{"importance": "splits", "curvature": "networks"}.get(study, study)]
    found = frame.filter(network="child").select("parent_seed", "pair", "child").unique()
    assert sorted(found.rows()) == [
        (parent, pair, 2 * pair + i) for parent in (0, 1) for pair in (0, 1) for i in (1, 2)
    ]


def test_a_dropped_rate_is_of_the_pair_s_own_children(digits_directory, tmp_path_factory, opened):
    flags = (*SCHEDULES, "--sweep.children", "4", "--sweep.parents", "[0]", "--experiment.after", "0")
    with studied_sweep(digits_directory, tmp_path_factory, *flags) as sweep:
        rows = measured("controls", sweep, treatments=("averaged",))["controls"].filter(control="dropped_rate")
        dropped = {
            pair.point.tuple_index: np.mean([sweep.measured[end, OWN].test_accuracy for end in pair.place.ends])
            for pair in all_pairs(sweep)
            if dict(pair.variant)["schedule.drop_epochs"]
        }
    assert rows.select("pair", "control_%").rows() == [(pair, pytest.approx(dropped[pair])) for pair in (0, 1)]
