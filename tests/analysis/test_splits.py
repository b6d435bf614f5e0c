"""Splits by score: against hand-computed cases, plain Python, linear models and ResNet20 in float64."""

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

from fastwi.analysis.splits import equal_splits, example_metrics, split_scores
from fastwi.errors import UserError
from fastwi.models.resnet import resnet20
from fastwi.population import Population


@pytest.fixture(scope="module")
def resnets(digits_directory):
    return trained_resnets(digits_directory, 3)


def test_splits_of_a_hand_made_case():
    # ascending: positions 4 (0.1), 1, 3 (tied at 0.2), 0 (0.5), 2 (0.9), 5 (inf); 6 images in 4 splits: 2 2 1 1
    scores = [0.5, 0.2, 0.9, 0.2, 0.1, math.inf]
    assert equal_splits(scores, 4).tolist() == [1, 0, 2, 1, 0, 3]
    assert equal_splits(scores, 1).tolist() == [0] * 6
    assert equal_splits(scores, 6).tolist() == [3, 1, 4, 2, 0, 5]
    assert np.bincount(equal_splits(np.arange(50_000.0))).tolist() == [12_500] * 4  # the paper's Figure 5


@settings(deadline=None)
@given(
    scores=st.lists(
        st.sampled_from([-1.5, -0.0, 0.0, 0.25, 1.0, math.inf]) | st.floats(0, 2), min_size=1, max_size=60
    ),
    data=st.data(),
)
def test_splits_are_equal_ascending_and_stable(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    splits_N = equal_splits(scores, count)
    sizes = [splits_N.tolist().count(split) for split in range(count)]
    assert sum(sizes) == len(scores)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    # Python's sort is stable: images in order of (score, position) must have splits that never fall.
    in_order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    assert [int(splits_N[i]) for i in in_order] == sorted(splits_N.tolist())


@pytest.mark.parametrize(
    ("scores", "count", "words"),
    [
        ([0.1, math.nan], 1, "image 1 is NaN"),
        ([0.1, 0.2], 3, "choose 1 to 2"),
        ([0.1, 0.2], 0, "choose 1 to 2"),
        ([[0.1, 0.2]], 1, "one number an image"),
    ],
)
def test_scores_that_cannot_be_split_are_refused(scores, count, words):
    with pytest.raises(UserError, match=words):
        equal_splits(scores, count)


def test_scores_of_given_probabilities():
    # Probabilities of the label: member 0 has 1/2 everywhere, member 1 as listed; classes 0 and 1, label 0.
    p_MN = np.array([[0.5] * 7, [0.9, 0.8, 0.4, 0.7, 0.2, 0.6, 0.1]])
    engine = GivenLogits(np.log(np.stack([p_MN, 1 - p_MN], axis=-1)))
    dataset, splits = labelled([0] * 7, 2), [0, 1, 0, 2, 1, 0, 2]
    found = split_scores(engine, members(2), dataset, splits)
    assert engine.passes == [1, 1]  # one pass over the data, whatever the number of splits
    assert found.images_S.tolist() == [3, 2, 2]
    np.testing.assert_allclose(found.loss_MS[0], [math.log(2)] * 3, rtol=1e-6)  # logits are float32
    expected = [-math.log(0.9 * 0.4 * 0.6) / 3, -math.log(0.8 * 0.2) / 2, -math.log(0.7 * 0.1) / 2]
    np.testing.assert_allclose(found.loss_MS[1], expected, rtol=1e-6)
    np.testing.assert_allclose(found.accuracy_MS, [[100, 100, 100], [200 / 3, 50, 50]], rtol=1e-15)


def test_an_infinite_loss_stays_in_its_split():
    engine = GivenLogits([[[0.0, 0.0], [-math.inf, 0.0], [0.0, 0.0]]])
    found = split_scores(engine, members(1), labelled([0, 0, 0], 2), [0, 1, 2])
    np.testing.assert_allclose(found.loss_MS, [[math.log(2), math.inf, math.log(2)]], rtol=1e-15)


def test_linear_models_against_their_formula(digits_directory, seed):
    dataset = digits(digits_directory)
    networks = [linear(seed % 2**31 + m) for m in range(2)]
    found = example_metrics(loop_engine(networks[0]), Population.from_modules(networks), dataset)
    images = dataset.images_NHWC.numpy()
    table = dataset.table_C256.numpy().astype(np.float64)
    x_NF = np.stack([table[c][images[..., c]] for c in range(3)], axis=1).reshape(len(dataset), -1)
    labels = dataset.labels_N.numpy()
    for m, network in enumerate(networks):
        weight, bias = (p.detach().numpy().astype(np.float64) for p in network[1].parameters())
        logits_NK = x_NF @ weight.T + bias
        loss_N = np.log(np.exp(logits_NK).sum(1)) - logits_NK[np.arange(len(labels)), labels]
        # float32 sums of 3,072 products of size about 0.02
        np.testing.assert_allclose(found.loss_MN[m], loss_N, atol=1e-4)
        margin_N = np.diff(np.sort(logits_NK, axis=1)[:, -2:])[:, 0]
        clear = margin_N > 1e-3
        assert clear.sum() > 50
        assert (found.correct_MN[m] == (logits_NK.argmax(1) == labels))[clear].all()


def test_resnets_against_float64_and_against_the_engine_s_evaluation(resnets):
    engine, population, dataset = resnets
    splits = equal_splits(np.random.default_rng(5).random(len(dataset)), 4)
    metrics = example_metrics(engine, population, dataset)
    found = split_scores(engine, population, dataset, splits)
    whole = engine.evaluate(population, dataset)
    for m in range(population.members):
        logits_NK = logits_in_float64(resnet20(10), population, m, dataset)
        loss_N = -torch.log_softmax(logits_NK, 1)[torch.arange(len(dataset)), dataset.labels_N].numpy()
        np.testing.assert_allclose(metrics.loss_MN[m], loss_N, atol=2e-4)
        for s in range(4):
            inside = splits == s
            assert found.loss_MS[m, s] == pytest.approx(metrics.loss_MN[m, inside].mean(), rel=1e-13)
            assert found.accuracy_MS[m, s] == pytest.approx(100 * metrics.correct_MN[m, inside].mean(), rel=1e-13)
    share_S = found.images_S / len(dataset)
    assert found.images_S.tolist() == [26, 26, 26, 25]
    np.testing.assert_allclose(found.accuracy_MS @ share_S, whole.accuracy_M, rtol=1e-13)
    np.testing.assert_allclose(found.loss_MS @ share_S, whole.loss_M, rtol=1e-5)  # that one sums in float32
    assert len(np.unique(found.loss_MS)) == found.loss_MS.size  # networks and splits do differ


def test_members_in_portions_are_members_at_once(resnets):
    engine, population, dataset = resnets
    whole = example_metrics(engine, population, dataset)
    for chosen in ([0], [2, 1]):
        part = example_metrics(engine, population, dataset, chosen)
        assert np.array_equal(part.loss_MN, whole.loss_MN[chosen])
        assert np.array_equal(part.correct_MN, whole.correct_MN[chosen])
    with pytest.raises(UserError, match="no member 3; there are members 0 to 2"):
        example_metrics(engine, population, dataset, [3])


def test_rows_carry_network_epoch_and_split_from_one():
    engine = GivenLogits(np.log([[[0.25, 0.75], [0.5, 0.5]], [[0.75, 0.25], [0.75, 0.25]]]))
    scores = split_scores(engine, members(2), labelled([1, 0], 2), [1, 0])
    rows = scores.rows(["child 1", "average"], epoch=20)
    assert [(r["network"], r["epoch"], r["split"]) for r in rows] == [
        ("child 1", 20, 1), ("child 1", 20, 2), ("average", 20, 1), ("average", 20, 2)
    ]  # fmt: skip
    assert [r["train_accuracy_%"] for r in rows] == [100.0, 100.0, 100.0, 0.0]
    losses = [-math.log(p) for p in (0.5, 0.75, 0.75, 0.25)]
    assert [r["train_loss"] for r in rows] == pytest.approx(losses, rel=1e-6)
    with pytest.raises(UserError, match="1 names for 2 members"):
        scores.rows(["average"], epoch=20)


@pytest.mark.parametrize("splits", [[0, 1], [0.0, 1.0, 0.0], [0, 2, 0], [-1, 0, 1], [1, 1, 1]])
def test_splits_that_do_not_fit_are_refused(splits):
    engine = GivenLogits(np.zeros((1, 3, 2)))
    with pytest.raises(UserError, match=r"^splits: ") as refusal:
        split_scores(engine, members(1), labelled([0, 1, 0], 2), splits)
    assert "\n" not in str(refusal.value)
    assert engine.passes == [0]
