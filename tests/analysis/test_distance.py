"""Distances against float64 sums over state dicts and plain loops over images."""

import numpy as np
import pytest
import torch
from analytic_networks import PLAIN, Bowl, population_of
from torch import nn

from fastwi.analysis import Evaluator, dataset_from_arrays, function_distances, weight_distances
from fastwi.data.resident import load_split
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
    found = weight_distances(networks, parent=0)
    assert found.members == (1, 2, 3)
    w = [vector(networks, m) for m in range(4)]
    for i, a in enumerate(found.members):
        assert found.displacement_C[i] == pytest.approx(np.linalg.norm(w[a] - w[0]), rel=1e-12)
        for j, b in enumerate(found.members):
            # 1e-6 of the squared lengths may cancel before the pair is summed alone: 6 of float64's 16 digits.
            assert found.l2_CC[i, j] == pytest.approx(np.linalg.norm(w[a] - w[b]), rel=1e-9, abs=1e-30)
            cosine = (w[a] - w[0]) @ (w[b] - w[0]) / (np.linalg.norm(w[a] - w[0]) * np.linalg.norm(w[b] - w[0]))
            assert found.cosine_CC[i, j] == pytest.approx(cosine, abs=1e-12)
    assert 0 < found.l2_CC[1, 2] < 1e-4
    alone = weight_distances(networks, [2, 0, 1])
    assert alone.displacement_C is None
    assert alone.l2_CC[0, 1] == pytest.approx(np.linalg.norm(w[2] - w[0]), rel=1e-12)


def test_children_at_right_angles_and_a_child_that_did_not_move():
    _, population = population_of(Bowl, [1, 1], [4, 1], [1, -3], [1, 1])
    found = weight_distances(population, parent=0)
    assert found.displacement_C.tolist() == [3, 4, 0]
    assert found.l2_CC.tolist() == [[0, 5, 3], [5, 0, 4], [3, 4, 0]]
    assert found.cosine_CC[0, 1] == 0
    assert np.isnan(found.cosine_CC[2]).all()


def test_functions_against_a_plain_loop_on_real_digits(networks, digits_directory):
    dataset, _ = load_split(digits_directory, "test", torch.device("cpu"), 20)
    evaluator = Evaluator(build_model("resnet20", 10), PLAIN)
    networks.statistics_MQ.fill_(1)
    found = function_distances(evaluator, networks, dataset, [0, 2, 1])
    x = dataset.table_C256[torch.arange(3), dataset.images_NHWC.long()].permute(0, 3, 1, 2).double()
    p = []
    for m in (0, 2, 1):
        model = build_model("resnet20", 10)
        networks.write_to(m, model)
        with torch.no_grad():
            p.append(model.double().eval()(x).softmax(1).numpy())
    for i in range(3):
        for j in range(3):
            kl = (p[i] * np.log(p[i] / p[j])).sum(1).mean()
            l2 = np.linalg.norm(p[i] - p[j], axis=1).mean()
            # Float32 logits of 20 layers; differences of probabilities lose what these have in common.
            assert found.kl_CC[i, j] == pytest.approx(kl, rel=1e-3, abs=1e-5)
            assert found.l2_CC[i, j] == pytest.approx(l2, rel=1e-3, abs=1e-5)
            different = 100 * (p[i].argmax(1) != p[j].argmax(1)).mean()
            assert found.disagreement_CC[i, j] == pytest.approx(different, abs=5 + 1e-9)


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
    a, b = [2.0, 1.0], [-1.0, 3.0]
    population = Population.from_modules([Linear(a), Linear(b)])
    found = function_distances(Evaluator(Linear(a), PLAIN), population, dataset)
    z = np.array([[1, 0], [0, 1], [1, 1], [0.2, 0]])

    def first_class(w):
        return 1 / (1 + np.exp(w[1] * z[:, 1] - w[0] * z[:, 0]))

    p, q = first_class(a), first_class(b)
    assert found.disagreement_CC.tolist() == [[0, 75], [75, 0]]  # all but the second image
    kl = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    back = np.mean(q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
    assert [found.kl_CC[0, 1], found.kl_CC[1, 0]] == pytest.approx([kl, back], rel=1e-6)
    assert found.l2_CC[0, 1] == found.l2_CC[1, 0] == pytest.approx(np.mean(np.sqrt(2) * np.abs(p - q)), rel=1e-6)
    assert np.diagonal(found.kl_CC).tolist() == [0, 0]


def test_bad_input_gets_one_line():
    evaluator, population = population_of(Bowl, [1.0], [2.0])
    dataset = dataset_from_arrays(np.zeros((2, 1, 1, 1), np.uint8), [0, 0], [0.0], [1.0], "cpu")
    cases = [
        (lambda: weight_distances(population, [0, 2]), "member 2"),
        (lambda: weight_distances(population, [0], parent=5), "member 5"),
        (lambda: weight_distances(population, []), "no member"),
        (lambda: function_distances(evaluator, population, dataset, [-1]), "member -1"),
        (lambda: function_distances(evaluator, population, dataset, []), "no member"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
