"""Controls against float64 networks, plain loops, and the sweep's own measurements."""

import numpy as np
import polars
import pytest
from studied_networks import accuracy, logits, mean_state, state_of, with_recomputed_statistics
from studied_sweep import VARIANTS, files_of, studied_sweep

from fastwi.config.analysis import AnalysisOptions
from fastwi.experiment.tree import OWN
from fastwi.studies.controls import ADD, EMA_DECAY
from fastwi.studies.controls import measure as controls


@pytest.fixture(scope="module")
def opened(digits_directory, tmp_path_factory):
    with studied_sweep(digits_directory, tmp_path_factory) as sweep:
        yield sweep


@pytest.fixture(scope="module")
def frames(opened):
    before, told = files_of(opened), []
    found = controls(opened, AnalysisOptions(), lambda done, total: told.append((done, total)))
    assert files_of(opened) == before
    assert told[-1] == (8, 8)
    return found


def test_every_control_of_the_plain_sweep(opened, frames):
    """At s = 1 the child of s = 2 is there: the trajectory at equal cost, and the children trained on."""
    frame, seen = frames["controls"], 0
    planned = opened.planned
    test = opened.resources.splits(planned.points[0].config)[1]
    places = {(p.config.experiment.k, p.config.experiment.s, p.parent): place
              for p, place in zip(planned.points, planned.places, strict=True)}  # fmt: skip
    for (k, s, parent), place in places.items():
        ends = [state_of(opened, key) for key in place.ends]
        expected = {}
        for treatment in ("own", "recomputed"):

            def score(states, treatment=treatment, epoch=k + s):
                fresh = [with_recomputed_statistics(opened, x, epoch) for x in states]
                chosen = states if treatment == "own" else fresh
                return [logits(opened, state, test) for state in chosen]

            both = score(ends)
            accuracies = [accuracy(each, test) for each in both]
            of_average = accuracy(score([mean_state(ends)])[0], test)
            probabilities = [np.exp(each - np.logaddexp.reduce(each, axis=1)[:, None]) for each in both]
            expected["mean_child", None, treatment] = of_average, np.mean(accuracies)
            expected["best_child", None, treatment] = of_average, max(accuracies)
            expected["ensemble", None, treatment] = of_average, accuracy(sum(probabilities), test)
            if s == 1:
                decayed = np.array([EMA_DECAY, 1]) / (1 + EMA_DECAY)
                paths = [[state_of(opened, key) for key in path] for path in places[k, 2, parent].children]
                for name, epochs, weights in (("child_longer", 2, [0, 1]), ("lawa", 2, [0.5, 0.5]),
                                              ("ema", 2, list(decayed))):  # fmt: skip
                    found = score([mean_state(path, weights) for path in paths])
                    expected[name, epochs, treatment] = of_average, np.mean([accuracy(x, test) for x in found])
        if s == 1:
            on = [opened.measured[path[1], OWN].test_accuracy for path in places[k, 2, parent].children]
            expected["children_on", 1, "own"] = opened.measured[place.after[0], OWN].test_accuracy, np.mean(on)
        rows = frame.filter(polars.col("k") == k, polars.col("s") == s, polars.col("parent_seed") == parent)
        assert rows.height == len(expected)
        for row in rows.rows(named=True):
            average, control = expected[row["control"], row["epochs"], row["batch_norm"]]
            assert row["average_%"] == pytest.approx(average, abs=1e-9), row
            assert row["control_%"] == pytest.approx(control, abs=1e-9), row
            assert row["effect_points"] == row["average_%"] - row["control_%"]
            seen += 1
    assert seen == 4 * 6 + 4 * 13


def test_what_is_absent_is_said(frames):
    found = {row["control"]: row for row in frames["absent"].rows(named=True)}
    assert (found["lawa"]["pairs_without"], found["lawa"]["pairs"]) == (4, 8)
    assert set(found) == {"lawa", "children_on", "dropped_rate", "alpha", "experiment.momentum",
                          "experiment.batch_norm"}  # fmt: skip
    assert all(row["add"] == ADD[name] for name, row in found.items())


def test_controls_that_a_sweep_may_have(digits_directory, tmp_path_factory, opened):
    """A dropped rate, other alphas, and another momentum: as the sweep measured them."""
    with studied_sweep(digits_directory, tmp_path_factory, *VARIANTS) as sweep:
        frames = controls(sweep, AnalysisOptions(treatments=("averaged",)), lambda done, total: None)
        planned = sweep.planned
        at = {
            (point.values[planned.spec.axes.index(axis)], point.alpha, point.parent): place
            for axis in planned.spec.axes
            if axis.path == "experiment.momentum"
            for point, place in zip(planned.points, planned.places, strict=True)
        }

        def measured(*keys):
            return float(np.mean([sweep.measured[key, OWN].test_accuracy for key in keys]))

        for momentum in ("reset", "average"):
            for parent in (0, 1):
                place = at[momentum, 0.5, parent]
                rows = frames["controls"].filter(
                    polars.col("experiment.momentum") == momentum, polars.col("parent_seed") == parent,
                    polars.col("batch_norm") == "own",
                )  # fmt: skip
                found = {(r["control"], r["value"], r["epochs"]): (r["average_%"], r["control_%"])
                         for r in rows.rows(named=True)}  # fmt: skip
                average = measured(place.average)
                assert found["dropped_rate", "0.1", 1] == (average, measured(*(path[1] for path in place.children)))
                other = at[momentum, 0.25, parent]
                assert found["alpha", "0.25", None] == (average, measured(other.average))
                key = ("experiment.momentum", "average", 1)
                assert (key in found) == (momentum == "reset")
                if key in found:
                    assert found[key] == (measured(place.after[0]), measured(at["average", 0.5, parent].after[0]))
                assert not {name for name, _, _ in found} & {"children_on", "lawa"}  # their rate has dropped
        rates = [sweep.measured[key, OWN].learning_rate for key in place.children[0]]
        assert rates == pytest.approx([0.05, 0.005])
    assert {"dropped_rate", "alpha", "experiment.momentum"}.isdisjoint(frames["absent"]["control"])
    assert set(frames["controls"]["alpha"]) == {0.5}
