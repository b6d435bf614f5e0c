"""Calibration against plain loops over images and bins, grids of temperatures, and closed forms."""

import math

import numpy as np
import pytest
import torch

from fastwi.analysis import Evaluator, calibration_of, calibration_scores, dataset_from_arrays, ensemble_scores
from fastwi.analysis.calibration import BINS
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population

from analytic_networks import PLAIN  # isort: skip


@pytest.fixture
def outputs(seed):
    """Log probabilities of 203 images of 4 classes and their labels: as often right, however sure it is."""
    draw = np.random.default_rng(seed)
    logits_NK = 3 * draw.normal(size=(203, 4))
    labels_N = np.where(draw.random(203) < 0.6, logits_NK.argmax(1), draw.integers(0, 4, 203))
    return logits_NK - np.logaddexp.reduce(logits_NK, axis=1)[:, None], labels_N


def found_for(log_NK, labels_N):
    return calibration_of(torch.from_numpy(np.asarray(log_NK)), torch.from_numpy(np.asarray(labels_N)))


def test_every_measure_against_loops(outputs):
    log_NK, labels_N = outputs
    images = len(labels_N)
    found = found_for(log_NK, labels_N)
    p_NK = np.exp(log_NK)
    sure = [max(p) for p in p_NK]
    right = [int(p.argmax() == label) for p, label in zip(p_NK, labels_N, strict=True)]

    def gap(members):
        if not members:
            return 0.0
        accuracy = sum(right[i] for i in members) / len(members)
        return len(members) / images * abs(accuracy - sum(sure[i] for i in members) / len(members))

    wide = [[i for i in range(images) if b / BINS < sure[i] <= (b + 1) / BINS] for b in range(BINS)]
    assert found.calibration_error == pytest.approx(100 * sum(map(gap, wide)), rel=1e-12)
    ascending = sorted(range(images), key=lambda i: sure[i])
    full = [[ascending[r] for r in range(images) if r * BINS // images == b] for b in range(BINS)]
    assert {len(each) for each in full} == {13, 14}
    assert sum(map(gap, full)) > abs(sum(sure) - sum(right)) / images + 1e-6  # too sure and not sure enough
    assert found.adaptive_calibration_error == pytest.approx(100 * sum(map(gap, full)), rel=1e-12)
    assert found.error == pytest.approx(100 * (1 - sum(right) / images), rel=1e-12)
    assert found.loss == pytest.approx(-sum(log[y] for log, y in zip(log_NK, labels_N, strict=True)) / images)
    brier = sum(((p - np.eye(4)[y]) ** 2).sum() for p, y in zip(p_NK, labels_N, strict=True)) / images
    assert found.brier == pytest.approx(brier, rel=1e-12)
    assert len({*found[2:4]}) == 2  # two ways of binning


def test_temperature_against_a_grid(outputs):
    log_NK, labels_N = outputs
    found = found_for(log_NK, labels_N)

    def loss(temperature, half):
        z_NK, y_N = log_NK[half::2] / temperature, labels_N[half::2]
        return float(np.mean(np.logaddexp.reduce(z_NK, axis=1) - z_NK[np.arange(len(y_N)), y_N]))

    grid = np.exp(np.linspace(-4, 4, 8001))
    best = [grid[np.argmin([loss(t, half) for t in grid])] for half in (0, 1)]
    assert found.temperature == pytest.approx(math.sqrt(best[0] * best[1]), rel=2e-3)
    other = (loss(best[1], 0) * 102 + loss(best[0], 1) * 101) / 203
    assert found.scaled_loss == pytest.approx(other, rel=2e-4)
    assert found.temperature > 1.5  # many are wrong, at random
    # A network that is scaled has the same best loss.
    sharper = 3 * log_NK
    again = found_for(sharper - np.logaddexp.reduce(sharper, axis=1)[:, None], labels_N)
    assert again.scaled_loss == pytest.approx(found.scaled_loss, rel=1e-4)
    assert again.temperature == pytest.approx(3 * found.temperature, rel=1e-3)
    assert again.loss > found.loss


def test_halves_of_different_sizes_count_by_their_images():
    """By hand: 2 of 3 right at even places, 1 of 2 at odd ones, whose best temperature is the largest, e^4."""
    sure = np.log(np.array([[0.8, 0.2]] * 5))
    found = found_for(sure, [0, 0, 0, 1, 1])
    even, odd = 1 / (1 + math.exp(-math.log(4) / math.exp(4))), 2 / 3  # what the other half's fit makes of 0.8
    of_even = -(2 * math.log(even) + math.log(1 - even)) / 3
    of_odd = -(math.log(odd) + math.log(1 - odd)) / 2
    assert found.scaled_loss == pytest.approx((3 * of_even + 2 * of_odd) / 5, rel=1e-4)


def test_certain_networks_and_confidences_at_the_edge_of_a_bin():
    certain = np.log(np.array([[1.0, 1e-300]] * 4))
    assert found_for(certain, [0] * 4)[:5] == pytest.approx((0, 0, 0, 0, 0), abs=1e-12)
    assert found_for(certain, [1] * 4).calibration_error == pytest.approx(100)
    sure = np.log(np.array([[0.8, 0.2]] * 10))  # right in 8 of 10
    assert found_for(sure, [0] * 8 + [1] * 2).calibration_error == pytest.approx(0, abs=1e-9)


def test_members_and_their_ensemble(seed):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    dataset = dataset_from_arrays(images, draw.integers(0, 10, 30), [0.5] * 3, [0.25] * 3, "cpu")
    modules = [build_model("resnet20", 10, width=0.125) for _ in range(3)]
    networks, evaluator = Population.from_modules(modules), Evaluator(modules[0], PLAIN)
    *each, ensemble = calibration_scores(evaluator, networks, dataset, ensemble=True)
    np.testing.assert_allclose(calibration_scores(evaluator, networks, dataset), each, rtol=1e-6)
    scores, together = evaluator.scores(networks, dataset), ensemble_scores(evaluator, networks, dataset)
    for m in range(3):
        assert (each[m].loss, 100 - each[m].error) == pytest.approx(
            (scores.loss_M[m], scores.accuracy_M[m]), rel=1e-5
        )
    assert ensemble.loss == pytest.approx(together.loss_M[0], rel=1e-12)
    assert 100 - ensemble.error == pytest.approx(together.accuracy_M[0], rel=1e-12)
    assert len({scores.loss for scores in (*each, ensemble)}) == 4
    one = dataset_from_arrays(images[:1], [0], [0.5] * 3, [0.25] * 3, "cpu")
    with pytest.raises(UserError, match="1 images"):
        calibration_scores(evaluator, networks, one)
    with pytest.raises(UserError, match="1 images"):
        found_for([[0.0, -5.0]], [0])
