"""Distances against float64 sums over state dicts and plain loops over images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, Bowl, population_of
from torch import nn

from fastwi.analysis import Evaluator, dataset_from_arrays, function_distances, tangent_departure, weight_distances
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.population import Population


def vector(population: Population, m: int) -> np.ndarray:
    """Parameters of a member, in float64; batch norm's statistics left out."""
    return np.concatenate([view.double().numpy().ravel() for view in population.parameters(m).values()])


@pytest.fixture
def networks(seed) -> Population:
    """A ResNet20 and three children near it, one of them the other's close neighbour."""
    population = Population.from_modules([build_model("resnet20", 10)]).clone_rows([0] * 4)
    generator = torch.Generator().manual_seed(seed)
    for m, size in ((1, 1e-2), (2, 3e-2), (3, 0)):
        for view in population.parameters(m).values():
            view += size * torch.randn(view.shape, generator=generator)
    Population.gather([(population, 2)], into=population[3])
    population.parameters(3)["linear.bias"][4] += 1e-5
    population.statistics_MQ.uniform_(1, 2, generator=generator)
    return population


def test_weights_against_sums_in_float64(networks):
    found = weight_distances(networks[1:], networks[:1])
    o, *children = (vector(networks, m) for m in range(4))
    for i, a in enumerate(children):
        assert found.displacement_C[i] == pytest.approx(np.linalg.norm(a - o), rel=1e-12)
        for j, b in enumerate(children):
            # 1e-6 of the squared lengths may cancel before the pair is summed alone: 6 of float64's 16 digits.
            assert found.l2_CC[i, j] == pytest.approx(np.linalg.norm(a - b), rel=1e-9, abs=1e-30)
            cosine = (a - o) @ (b - o) / (np.linalg.norm(a - o) * np.linalg.norm(b - o))
            assert found.cosine_CC[i, j] == pytest.approx(cosine, abs=1e-12)
    assert 0 < found.l2_CC[1, 2] < 1e-4


def test_children_at_right_angles_and_a_child_that_did_not_move():
    _, population = population_of(Bowl, [1, 1], [4, 1], [1, -3], [1, 1])
    found = weight_distances(population[1:], population[:1])
    assert found.displacement_C.tolist() == [3, 4, 0]
    assert found.l2_CC.tolist() == [[0, 5, 3], [5, 0, 4], [3, 4, 0]]
    assert found.cosine_CC[0, 1] == 0
    assert np.isnan(found.cosine_CC[2]).all()
    with pytest.raises(UserError, match="population of 3; give 1"):
        weight_distances(population, population[1:])
    _, other = population_of(Bowl, [1, 1, 1])  # rows of the same length: 2 and 3 weights are padded to 4
    with pytest.raises(ValueError, match="different architectures"):
        weight_distances(population[1:], other)


class Linear(nn.Module):
    """Logits are pixels of the image, times a weight a class."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return x[:, :, 0, 0] * self.weight


def test_functions_with_a_closed_form():
    images = np.array([[255, 0], [0, 255], [255, 255], [51, 0]], np.uint8)[:, None, None, :]
    dataset = dataset_from_arrays(images, np.zeros(4, np.int64), [0.0, 0.0], [1.0, 1.0], "cpu")
    z_ND = np.array([[1, 0], [0, 1], [1, 1], [0.2, 0]])
    weights = [[2.0, 1.0], [0.5, 0.5], [-1.0, 3.0]]
    population = Population.from_modules([Linear(w) for w in weights])
    evaluator = Evaluator(Linear(weights[0]), replace(PLAIN, evaluation_batch=3))
    found = function_distances(evaluator, population, dataset)
    p_CNK = [np.exp(z_ND * w) / np.exp(z_ND * w).sum(1, keepdims=True) for w in weights]
    for i, p in enumerate(p_CNK):
        for j, q in enumerate(p_CNK):
            assert found.kl_CC[i, j] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-6, abs=1e-12)
    assert found.disagreement_CC[0].tolist() == [0, 0, 75]  # all but the second image, against (-1, 3)
    assert np.diagonal(found.kl_CC).tolist() == [0, 0, 0]
    # The logits of the mean network are the mean of the logits: it is linear in its weights.
    networks = Population.from_modules(
        [Linear([2.0, 1.0]), Linear([-1.0, 3.0]), Linear([0.5, 2.0]), Linear([0.5, 3.0])]
    )
    children = networks[:2]
    assert tangent_departure(evaluator, children, networks[2], dataset) == 0
    # The second logit is 1 off on two images; children are sqrt(3^2 z_0^2 + 2^2 z_1^2) / 2 from their mean.
    spread = np.sqrt(9 * z_ND[:, 0] ** 2 + 4 * z_ND[:, 1] ** 2).sum() / 2
    assert tangent_departure(evaluator, children, networks[3], dataset) == pytest.approx(2 / spread, rel=1e-6)
    with pytest.raises(UserError, match="population of 2; give 1"):
        tangent_departure(evaluator, children, networks[2:], dataset)
