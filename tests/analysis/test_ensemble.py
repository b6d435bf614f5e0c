"""The ensemble control: hand-computed probabilities, float64 references on digits, any number of children."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_outputs import (
    GivenLogits,
    digits,
    labelled,
    linear,
    logits_in_float64,
    loop_engine,
    members,
    trained_resnets,
)

from fastwi import average
from fastwi.analysis.ensemble import Ensemble, ensemble_control
from fastwi.errors import UserError
from fastwi.models.resnet import resnet20
from fastwi.population import Population


def test_the_mean_of_given_probabilities():
    # Label 0. Image 0: 0.9 and 0.2, so 0.55 together and right; image 1: 0.6 and 0.1, so 0.35 and wrong.
    p_MN = np.array([[0.9, 0.6], [0.2, 0.1]])
    engine = GivenLogits(np.log(np.stack([p_MN, 1 - p_MN], axis=-1)))
    found = ensemble_control(engine, members(2), members(1), labelled([0, 0], 2))
    assert found.groups == ((0, 1),)
    assert found.ensemble.accuracy_M.tolist() == [50.0]
    np.testing.assert_allclose(found.ensemble.loss_M, [-math.log(0.55 * 0.35) / 2], rtol=1e-6)  # float32 logits
    assert found.children.accuracy_M.tolist() == [100.0, 0.0]
    np.testing.assert_allclose(found.children.loss_M, [-math.log(0.54) / 2, -math.log(0.02) / 2], rtol=1e-6)
    (row,) = found.rows()
    assert row["children"] == 2
    assert row["ensemble_test_accuracy_%"] == 50.0
    assert row["mean_child_test_accuracy_%"] == 50.0
    assert row["best_child_test_accuracy_%"] == 100.0
    assert row["best_child_test_loss"] == pytest.approx(-math.log(0.54) / 2, rel=1e-6)
    assert row["average_test_loss"] == pytest.approx(-math.log(0.54) / 2, rel=1e-6)  # the engine's member 0
    assert found.rows("train")[0]["average_train_accuracy_%"] == 100.0


def test_sure_networks_do_not_underflow():
    logits = torch.tensor([[0.0, 2000.0]])
    both = Ensemble.of(logits).update(torch.tensor([[0.0, 3000.0]]))
    # mean probability of class 0: (e^-2000 + e^-3000) / 2, 0 in float64
    assert float(both.log_probabilities_NK[0, 0]) == pytest.approx(-2000 - math.log(2), rel=1e-14)
    assert both.totals(torch.tensor([0])).tolist() == [pytest.approx(2000 + math.log(2), rel=1e-14), 0.0]


@settings(deadline=None)
@given(
    logits=st.lists(
        st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=2, max_size=2),
        min_size=3,
        max_size=6,
    )
)
def test_streamed_merged_and_by_the_definition(logits):
    logits_MNK = np.asarray(logits, dtype=np.float64)
    parts = [Ensemble.of(torch.from_numpy(logits_NK)) for logits_NK in logits_MNK]
    streamed = parts[0]
    for logits_NK in logits_MNK[1:]:
        streamed = streamed.update(torch.from_numpy(logits_NK))
    e = np.exp(logits_MNK)
    probabilities = (e / e.sum(-1, keepdims=True)).mean(0)
    assert streamed.networks == len(logits_MNK)
    np.testing.assert_allclose(streamed.log_probabilities_NK.exp().numpy(), probabilities, rtol=1e-12)
    left = parts[0].merge(parts[1]).merge(parts[2])
    right = parts[0].merge(parts[1].merge(parts[2]))
    torch.testing.assert_close(left.log_total_NK, right.log_total_NK, rtol=1e-14, atol=1e-14)
    # Jensen: the ensemble's loss is never above the mean of its members'.
    labels = torch.tensor([0, 2])
    mean_loss = sum(float(part.totals(labels)[0]) for part in parts) / len(parts)
    assert float(streamed.totals(labels)[0]) <= mean_loss + 1e-12 * max(1.0, mean_loss)


def test_resnets_against_float64(digits_directory):
    engine, children, dataset = trained_resnets(digits_directory, 3)
    groups = [[2, 0], [0, 1, 2], [1]]
    averages = Population.gather([(average(children, rows=group), 0) for group in groups])
    found = ensemble_control(engine, children, averages, dataset, groups)
    labels = dataset.labels_N
    p_MNK = torch.stack([logits_in_float64(resnet20(10), children, m, dataset).softmax(1) for m in range(3)])
    for place, group in enumerate(groups):
        mean_NK = p_MNK[group].mean(0)
        loss = -mean_NK[torch.arange(len(labels)), labels].log().mean()
        assert found.ensemble.loss_M[place] == pytest.approx(float(loss), abs=1e-4)
        unclear = (mean_NK.topk(2).values.diff().abs() < 1e-4).sum()  # these may turn in float32
        accuracy = 100 * (mean_NK.argmax(1) == labels).double().mean()
        assert abs(found.ensemble.accuracy_M[place] - float(accuracy)) <= 100 * float(unclear) / len(labels) + 1e-9
    for scores, population in ((found.children, children), (found.average, averages)):
        evaluated = engine.evaluate(population, dataset)
        np.testing.assert_allclose(scores.loss_M, evaluated.loss_M, rtol=1e-5)  # that one sums in float32
        np.testing.assert_allclose(scores.accuracy_M, evaluated.accuracy_M, rtol=1e-13)
    # An ensemble of one is that network, and so is its average.
    assert found.ensemble.loss_M[2] == found.children.loss_M[1] == found.average.loss_M[2]
    assert found.ensemble.loss_M[1] < found.children.loss_M.mean()
    assert [row["children"] for row in found.rows()] == [2, 3, 1]


def test_copies_of_one_linear_model_are_that_model(digits_directory, seed):
    network = linear(seed % 2**31)
    engine, dataset = loop_engine(network), digits(digits_directory)
    one = Population.from_modules([network])
    found = ensemble_control(engine, one.clone_rows([0] * 7), one, dataset)
    np.testing.assert_allclose(found.ensemble.loss_M, found.average.loss_M, rtol=1e-13)
    assert found.ensemble.accuracy_M.tolist() == found.average.accuracy_M.tolist()


@pytest.mark.parametrize(
    ("groups", "averages", "words"),
    [
        ([[0, 1]], 2, "2 members for 1 groups"),
        ([[0, 2]], 1, "no child 2; there are children 0 to 1"),
        ([[0, -1]], 1, "no child -1"),
        ([[]], 1, "one or more different children"),
        ([[0], [1, 1]], 2, "group 1 is"),
        ([], 1, "none was given"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, averages, words):
    engine = GivenLogits(np.zeros((2, 1, 2)))
    with pytest.raises(UserError, match=words):
        ensemble_control(engine, members(2), members(averages), labelled([0], 2), groups)
    assert engine.passes == [0, 0]


def test_other_images_are_refused():
    with pytest.raises(UserError, match="same images"):
        Ensemble.of(torch.zeros(2, 3)).update(torch.zeros(1, 3))
