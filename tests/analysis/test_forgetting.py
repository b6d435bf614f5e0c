"""Forgetting events: against hand-made histories, a count by loops, and networks along a real trajectory."""

import itertools
import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reference_outputs import GivenLogits, labelled, members, trained_resnets

from fastwi.analysis.forgetting import Forgetting, forgetting_events
from fastwi.analysis.splits import equal_splits, example_metrics
from fastwi.data.noise import Noise
from fastwi.errors import UserError

FIELDS = ("measurements", "events_MN", "learned_MN", "first_MN", "last_MN")
histories = arrays.arrays(np.bool_, st.tuples(st.integers(2, 9), st.integers(1, 3), st.integers(1, 5)))


def over(history_TMN: np.ndarray) -> Forgetting:
    return reduce(Forgetting.update, history_TMN[1:], Forgetting.of(history_TMN[0]))


def same(mine: Forgetting, theirs: Forgetting) -> bool:
    return all(np.array_equal(getattr(mine, name), getattr(theirs, name)) for name in FIELDS)


def events_by_loops(history_T: list[bool]) -> int:
    return sum(1 for before, after in itertools.pairwise(history_T) if before and not after)


def test_hand_made_histories():
    history = {
        "000000": (0, math.inf, False),  # never learned
        "111111": (0, 0.0, True),
        "000111": (0, 0.0, True),  # learned late, never forgotten
        "010101": (2, 2.0, False),
        "101010": (3, 3.0, False),
        "000001": (0, 0.0, True),
        "100000": (1, 1.0, False),
    }
    found = over(np.array([[int(c) for c in text] for text in history], dtype=bool).T[:, None, :])
    assert found.measurements == 6
    assert found.events_MN[0].tolist() == [events for events, _, _ in history.values()]
    assert found.scores().tolist() == [score for _, score, _ in history.values()]
    assert found.unforgettable_MN[0].tolist() == [never for _, _, never in history.values()]
    # Sorted into splits, the example that was never learned is the hardest.
    assert equal_splits(found.scores(), 7)[0] == 6


def test_scores_add_over_trajectories():
    # Two trajectories, two examples; example 1 is never learned by the second.
    history_TMN = np.array([[[1, 0], [1, 0]], [[0, 1], [0, 0]], [[1, 0], [0, 0]]], dtype=bool)
    found = over(history_TMN)
    assert found.events_MN.tolist() == [[1, 1], [1, 0]]
    assert found.scores().tolist() == [2.0, math.inf]
    assert found.scores(never_learned=found.measurements).tolist() == [2.0, 4.0]  # as the authors' code counts


@settings(deadline=None)
@given(history_TMN=histories)
def test_events_are_those_of_the_definition(history_TMN):
    found = over(history_TMN)
    _, members_, images = history_TMN.shape
    for m in range(members_):
        for i in range(images):
            history_T = history_TMN[:, m, i].tolist()
            assert found.events_MN[m, i] == events_by_loops(history_T)
            learned_for_good = any(all(history_T[t:]) for t in range(len(history_T))) and not events_by_loops(
                history_T
            )
            assert found.unforgettable_MN[m, i] == learned_for_good


@settings(deadline=None)
@given(history_TMN=histories, data=st.data())
def test_joined_spans_are_the_whole_and_joining_is_associative(history_TMN, data):
    times = len(history_TMN)
    cut = data.draw(st.integers(1, times - 1))
    assert same(over(history_TMN[:cut]).merge(over(history_TMN[cut:])), over(history_TMN))
    if cut > 1:
        first = data.draw(st.integers(1, cut - 1))
        a, b, c = over(history_TMN[:first]), over(history_TMN[first:cut]), over(history_TMN[cut:])
        assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_values_are_immutable():
    correct = np.array([[True, False]])
    first = Forgetting.of(correct)
    second = first.update(np.array([[False, False]]))
    correct[:] = False
    assert first.first_MN.tolist() == [[True, False]]
    assert first.events_MN.tolist() == [[0, 0]]
    assert second.events_MN.tolist() == [[1, 0]]


def test_a_trajectory_of_resnets(digits_directory):
    engine, population, dataset = trained_resnets(digits_directory, 2)
    snapshots = [population.clone_rows([0, 1])]
    for epoch in range(1, 5):
        engine.train_epoch(population, dataset, [Noise(10), Noise(11)], epoch)
        snapshots.append(population.clone_rows([0, 1]))
    found = forgetting_events(engine, iter(snapshots), dataset)
    correct_TMN = np.stack([example_metrics(engine, snapshot, dataset).correct_MN for snapshot in snapshots])
    assert found.measurements == 5
    assert same(found, over(correct_TMN))
    loops = [[events_by_loops(correct_TMN[:, m, i].tolist()) for i in range(len(dataset))] for m in range(2)]
    assert found.events_MN.tolist() == loops
    assert found.events_MN.sum() > 0  # at this rate a few digits are forgotten within 5 epochs
    last = engine.evaluate(population, dataset)
    assert 100 * found.last_MN.mean(axis=1) == pytest.approx(last.accuracy_M, rel=1e-13)


@pytest.mark.parametrize("wrong", [np.zeros((1, 2)), np.zeros(3, dtype=bool)])
def test_other_than_correctness_is_refused(wrong):
    with pytest.raises(UserError, match="give bool"):
        Forgetting.of(wrong)


def test_trajectories_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"\(1, 3\) members and images, then \(1, 2\)"):
        Forgetting.of(np.zeros((1, 3), dtype=bool)).update(np.zeros((1, 2), dtype=bool))
    engine, dataset = GivenLogits(np.zeros((2, 3, 2))), labelled([0, 1, 0], 2)
    with pytest.raises(UserError, match="none was given"):
        forgetting_events(engine, [], dataset)
    with pytest.raises(UserError, match="measure the same networks"):
        forgetting_events(engine, [members(1), members(2)], dataset)
