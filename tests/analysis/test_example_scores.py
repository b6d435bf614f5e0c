"""EL2N, forgetting, splits and ensembles: closed forms and plain loops. Trained networks are in tests/studies."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from fastwi.analysis import el2n_scores, ensemble_scores, equal_splits, forgetting_scores, split_scores
from fastwi.data.resident import ResidentDataset
from fastwi.errors import UserError
from fastwi.population import Population

ULP = np.finfo(np.float64).eps


class GivenLogits:
    """An engine whose member m has the logits logits_MNK[m], handed out in batches of 3, the last one first."""

    def __init__(self, logits_MNK) -> None:
        self.logits_MNK = torch.as_tensor(np.asarray(logits_MNK), dtype=torch.float32)
        self.passes = [0] * len(self.logits_MNK)

    def logits(self, population, m, dataset):
        self.passes[m] += 1
        for positions in reversed(torch.arange(len(dataset)).split(3)):
            yield positions, self.logits_MNK[m, positions]


def members(count: int) -> Population:
    """So many members of which only their number matters."""
    return Population.from_modules([nn.Linear(1, 1) for _ in range(count)])


def labelled(labels: list[int], classes: int) -> ResidentDataset:
    """A dataset of which only labels matter."""
    return ResidentDataset(
        torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), torch.tensor(labels), torch.zeros(3, 256), classes
    )


def given_logits(p_MN) -> GivenLogits:
    """Two classes, with label 0 at these probabilities. Its logits are float32."""
    p_MN = np.array(p_MN)
    return GivenLogits(np.log(np.stack([p_MN, 1 - p_MN], axis=-1)))


def test_el2n_has_its_closed_forms():
    # K equal logits: (1 - 1/K)^2 + (K - 1)/K^2 = 1 - 1/K. Two classes: sqrt(2) (1 - p of the label).
    for classes in (2, 3, 10, 100):
        flat = el2n_scores(GivenLogits(np.full((1, 1, classes), 7.0)), members(1), labelled([classes - 1], classes))
        assert flat.tolist() == pytest.approx([math.sqrt(1 - 1 / classes)], rel=4 * ULP)
    sure = el2n_scores(GivenLogits([[[1000.0, 0.0, 0.0]] * 2]), members(1), labelled([0, 1], 3))
    assert sure.tolist() == [0.0, pytest.approx(math.sqrt(2), rel=ULP)]
    p_MN = np.array([[0.5, 0.75, 1.0 - 2**-20], [0.25, 0.5, 0.5]])
    found = el2n_scores(given_logits(p_MN), members(2), labelled([0, 0, 0], 2))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, math.sqrt(2) * (1 - p_MN).mean(axis=0), rtol=1e-6)
    one_at_a_time = el2n_scores(given_logits(p_MN[:1]), (members(1) for _ in range(2)), labelled([0, 0, 0], 2))
    np.testing.assert_allclose(one_at_a_time, math.sqrt(2) * (1 - p_MN[0]), rtol=1e-6)


def events_by_loops(history_T: list[bool]) -> int:
    return sum(1 for before, after in itertools.pairwise(history_T) if before and not after)


def over(history_TMN: np.ndarray, **settings):
    """Forgetting of a given history: label 0 at probability 0.9 where it is right, else 0.1."""
    engines = iter([given_logits(np.where(correct_MN, 0.9, 0.1)) for correct_MN in history_TMN])

    class Playing:
        def logits(self, population, m, dataset):
            self.engine = next(engines) if m == 0 else self.engine
            return self.engine.logits(population, m, dataset)

    _, count, images = history_TMN.shape
    snapshots = [members(count)] * len(history_TMN)
    return forgetting_scores(Playing(), snapshots, labelled([0] * images, 2), **settings).tolist()


def test_hand_made_histories():
    history = {
        "000000": math.inf,  # never learned
        "111111": 0.0,
        "000111": 0.0,  # learned late, never forgotten
        "010101": 2.0,
        "101010": 3.0,
        "100000": 1.0,
    }
    found = over(np.array([[int(c) for c in text] for text in history], dtype=bool).T[:, None, :])
    assert found == list(history.values())
    assert equal_splits(found, 6)[0] == 5  # the example that was never learned is the hardest
    # Two trajectories, two examples; example 1 is never learned by the second.
    two = np.array([[[1, 0], [1, 0]], [[0, 1], [0, 0]], [[1, 0], [0, 0]]], dtype=bool)
    assert over(two) == [2.0, math.inf]
    assert over(two, never_learned=3) == [2.0, 4.0]  # as the authors' code counts


@settings(deadline=None, max_examples=30)
@given(history_TMN=arrays.arrays(np.bool_, st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))))
def test_events_are_those_of_the_definition(history_TMN):
    each = [[events_by_loops(h) if any(h) else 100 for h in of_m] for of_m in history_TMN.transpose(1, 2, 0).tolist()]
    assert over(history_TMN, never_learned=100) == np.sum(each, axis=0).tolist()


@settings(deadline=None)
@given(scores=st.lists(st.sampled_from([-0.0, 0.0, 0.25, 1.0, math.inf]), min_size=1, max_size=60), data=st.data())
def test_splits_are_equal_ascending_and_stable(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    splits_N = equal_splits(scores, count)
    sizes = np.bincount(splits_N, minlength=count).tolist()
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    # Python's sort is stable: images in order of (score, position) must have splits that never fall.
    in_order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    assert [int(splits_N[i]) for i in in_order] == sorted(splits_N.tolist())


def test_scores_on_splits_of_given_probabilities():
    p_MN = [[0.5] * 7, [0.9, 0.8, 0.4, 0.7, 0.2, 0.6, 0.1]]
    engine = given_logits(p_MN)
    splits = [0, 1, 0, 2, 1, 0, 2]
    accuracy_MS, loss_MS = split_scores(engine, members(2), labelled([0] * 7, 2), splits)
    assert engine.passes == [1, 1]  # one pass over the data, whatever the number of splits
    losses = [-math.log(0.9 * 0.4 * 0.6) / 3, -math.log(0.8 * 0.2) / 2, -math.log(0.7 * 0.1) / 2]
    np.testing.assert_allclose(loss_MS, [[math.log(2)] * 3, losses], rtol=1e-6)
    np.testing.assert_allclose(accuracy_MS, [[100, 100, 100], [200 / 3, 50, 50]], rtol=1e-15)
    # An infinite loss stays in its split.
    engine = GivenLogits([[[0.0, 0.0], [-math.inf, 0.0], [0.0, 0.0]]])
    _, loss_MS = split_scores(engine, members(1), labelled([0, 0, 0], 2), [0, 1, 2])
    np.testing.assert_allclose(loss_MS, [[math.log(2), math.inf, math.log(2)]], rtol=1e-15)


def test_an_ensemble_of_given_probabilities_and_of_sure_networks():
    # Label 0. Image 0: 0.9 and 0.2, so 0.55 together and right; image 1: 0.6 and 0.1, so 0.35 and wrong.
    found = ensemble_scores(given_logits([[0.9, 0.6], [0.2, 0.1]]), members(2), labelled([0, 0], 2))
    assert found.accuracy_M == [50.0]
    np.testing.assert_allclose(found.loss_M, [-math.log(0.55 * 0.35) / 2], rtol=1e-6)
    # Mean probability of class 0: (e^-2000 + e^-3000) / 2, 0 in float64.
    sure = GivenLogits([[[0.0, 2000.0]], [[0.0, 3000.0]]])
    found = ensemble_scores(sure, members(2), labelled([0], 2))
    assert found.loss_M[0] == pytest.approx(2000 + math.log(2), rel=1e-14)


def test_an_ensemble_of_networks_with_more_outputs_than_classes():
    logits_MNK = np.log([[[0.2, 0.3, 0.5]], [[0.6, 0.3, 0.1]]])
    found = ensemble_scores(GivenLogits(logits_MNK), members(2), labelled([0], 2))
    assert found.accuracy_M == [100.0]
    np.testing.assert_allclose(found.loss_M, [-math.log(0.4)], rtol=1e-6)


NAN = GivenLogits([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [math.nan, 0.0]]])
ZEROS, THREE = GivenLogits(np.zeros((2, 3, 2))), labelled([0, 1, 0], 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: el2n_scores(ZEROS, [], THREE), "no network was given"),
        (lambda: el2n_scores(NAN, members(2), labelled([0, 0], 2)), "network 1: its score of image 1"),
        (lambda: forgetting_scores(ZEROS, [], THREE), "none was given"),
        (lambda: forgetting_scores(ZEROS, [members(1), members(2)], THREE), "1 members, then 2"),
        (lambda: equal_splits([0.1, math.nan], 1), "image 1 is NaN"),
        (lambda: equal_splits([0.1, 0.2], 3), "choose 1 to 2"),
        (lambda: equal_splits([0.1, 0.2], 0), "choose 1 to 2"),
        (lambda: equal_splits([[0.1, 0.2]], 1), "one number an image"),
        (lambda: split_scores(ZEROS, members(1), THREE, [0, 1]), "splits: "),
        (lambda: split_scores(ZEROS, members(1), THREE, [0.0, 1.0, 0.0]), "splits: "),
        (lambda: split_scores(ZEROS, members(1), THREE, [0, 2, 0]), "splits: "),
        (lambda: split_scores(ZEROS, members(1), THREE, [-1, 0, 1]), "splits: "),
        (lambda: ensemble_scores(ZEROS, members(2)[:0], THREE), "no networks"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
