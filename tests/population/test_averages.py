"""Averages of members: interpolation in place and weighted sums, with every treatment of momentum."""

import pytest
import torch
from small_networks import SmallNet, trained
from torch import nn

from fastwi.population import Population
from fastwi.population.population import MOMENTUM_TREATMENTS


@pytest.fixture
def made() -> Population:
    """Five members that differ in weights, momentum, statistics and counters."""
    population = Population.from_modules([trained(SmallNet(), 70 + m) for m in range(5)])
    for m in range(5):
        for view in population.momentum(m).values():
            view.normal_()
    population.counters_MB[:, 0] = torch.tensor([50, 40, 30, 20, 10])
    return population


def close(mine: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_lerp_rows_interpolates_weights_and_statistics(made, momentum):
    old = made.clone_rows(range(5))
    made.lerp_rows_([(0, 1), (3, 2)], [0.3, 1.5], momentum=momentum)
    for row, (a, b, alpha) in {0: (0, 1, 0.3), 3: (3, 2, 1.5)}.items():
        for new, before in ((made.weights_MP, old.weights_MP), (made.statistics_MQ, old.statistics_MQ)):
            close(new[row], (1 - alpha) * before[a].double() + alpha * before[b].double())
        mixed = (1 - alpha) * old.momentum_MP[a].double() + alpha * old.momentum_MP[b].double()
        expected = {"reset": 0 * mixed, "average": mixed, "keep": old.momentum_MP[a].double()}
        close(made.momentum_MP[row], expected[momentum])
        assert torch.equal(made.counters_MB[row], torch.maximum(old.counters_MB[a], old.counters_MB[b]))
    for mine, before in zip(made._matrices(), old._matrices(), strict=True):
        assert torch.equal(mine[[1, 2, 4]], before[[1, 2, 4]])


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_the_ends_of_the_line_are_the_members_themselves(made, momentum):
    old = made.clone_rows(range(5))
    made.lerp_rows_([(1, 0), (2, 3)], [0.0, 1.0], momentum=momentum)
    for row, source in ((1, 1), (2, 3)):
        assert torch.equal(made.weights_MP[row], old.weights_MP[source])
        assert torch.equal(made.statistics_MQ[row], old.statistics_MQ[source])
        assert torch.equal(made.counters_MB[row], old.counters_MB[source])
        expected = torch.zeros_like(old.momentum_MP[0]) if momentum == "reset" else old.momentum_MP[source]
        assert torch.equal(made.momentum_MP[row], expected)
    assert not torch.equal(made.weights_MP[2], old.weights_MP[2])


def test_a_ring_of_overlapping_pairs_reads_the_old_members(made):
    old = made.clone_rows(range(5))
    made.lerp_rows_([(m, (m + 1) % 5) for m in range(5)], 0.5, momentum="average")
    for m in range(5):
        for new, before in zip(made._matrices()[:3], old._matrices()[:3], strict=True):
            close(new[m], (before[m].double() + before[(m + 1) % 5].double()) / 2)
        assert made.counters_MB[m] == max(old.counters_MB[m], old.counters_MB[(m + 1) % 5])


def test_lerp_rows_into_other_rows_and_from_another_population(made):
    other = Population.from_modules([trained(SmallNet(), 90 + m) for m in range(3)])
    old = made.clone_rows(range(5))
    made.lerp_rows_([(0, 2), (1, 1)], 0.25, into=[4, 0], other=other)
    for row, a, b in ((4, 0, 2), (0, 1, 1)):
        close(made.weights_MP[row], 0.75 * old.weights_MP[a].double() + 0.25 * other.weights_MP[b].double())
        assert made.counters_MB[row] == max(old.counters_MB[a], other.counters_MB[b])
    made.lerp_rows_([])
    with pytest.raises(ValueError, match="different layouts"):
        made.lerp_rows_([(0, 0)], other=Population.from_modules([SmallNet(6)]))
    with pytest.raises(ValueError, match="momentum treatment 'none' is not one of reset, average, keep"):
        made.lerp_rows_([(0, 1)], momentum="none")


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_combine_matches_float64(made, momentum):
    torch.manual_seed(0)
    weights_LM = torch.randn(4, 5)
    weights_LM[1, 0] = weights_LM[2, :3] = 0
    averages = made.combine(weights_LM, momentum=momentum)
    assert averages.members == 4
    exact_LM = weights_LM.double()
    close(averages.weights_MP, exact_LM @ made.weights_MP.double())
    close(averages.statistics_MQ, exact_LM @ made.statistics_MQ.double())
    mixed_LP = exact_LM @ made.momentum_MP.double()
    kept_LP = made.momentum_MP[[0, 1, 3, 0]].double()
    close(averages.momentum_MP, {"reset": 0 * mixed_LP, "average": mixed_LP, "keep": kept_LP}[momentum])
    for row in range(4):
        assert averages.counters_MB[row] == made.counters_MB[weights_LM[row] != 0].max()


def test_a_line_of_alphas_has_its_members_at_the_ends(made):
    alphas = torch.linspace(0, 1, 25)
    weights_LM = torch.zeros(25, 5)
    weights_LM[:, 1], weights_LM[:, 3] = 1 - alphas, alphas
    line = made.combine(weights_LM, momentum="keep")
    assert torch.equal(line.weights_MP[0], made.weights_MP[1])
    assert torch.equal(line.weights_MP[24], made.weights_MP[3])
    assert torch.equal(line.momentum_MP[24], made.momentum_MP[3])
    assert line.counters_MB[0] == made.counters_MB[1]
    middle = made.clone_rows([1, 3])
    middle.lerp_rows_([(0, 1)], 0.5)
    torch.testing.assert_close(line.weights_MP[12], middle.weights_MP[0])


def test_weights_that_are_all_zero_give_zeros(made):
    nothing = made.combine(torch.zeros(1, 5), momentum="keep")
    assert not any(matrix.any() for matrix in nothing._matrices())


def test_a_diverged_member_of_weight_zero_takes_no_part(made):
    for matrix in made._matrices()[:3]:
        matrix[2] = float("nan")
    averages = made.combine(torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0]]), momentum="average")
    assert torch.isfinite(averages.weights_MP[0]).all()
    assert torch.isfinite(averages.momentum_MP[0]).all()
    assert torch.isnan(averages.weights_MP[1]).all()


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_rows_of_several_populations_are_averaged_into_given_rows(made, momentum):
    """As `combine` of all of them side by side; what is not written to stays."""
    other = Population.from_modules([trained(SmallNet(), 90 + m) for m in range(3)])
    other.momentum_MP.normal_()
    everything = Population.gather([*((made, m) for m in range(5)), *((other, m) for m in range(3))])
    weights_LM = torch.zeros(3, 8, dtype=torch.float64)
    weights_LM[0, [1, 6]], weights_LM[1, [4, 5, 7]] = 0.5, torch.rand(3, dtype=torch.float64)
    expected = everything.combine(weights_LM, momentum)
    target = everything.clone_rows(range(8))
    members_of_L = [[(made, 1), (other, 1)], [(made, 4), (other, 0), (made, 2), (other, 2)], [(made, 0)]]
    weights_of_L = [[0.5, 0.5], [*weights_LM[1, 4:6].tolist(), 0.0, float(weights_LM[1, 7])], [0.0]]
    found = Population.averages(members_of_L, weights_of_L, momentum, into=target[2:8:2])
    for mine, theirs, before, after in zip(
        found._matrices(), expected._matrices(), everything._matrices(), target._matrices(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert torch.equal(after[2::2], theirs)
        assert torch.equal(after[[0, 1, 3, 5, 7]], before[[0, 1, 3, 5, 7]])
    target.momentum_MP.fill_(5.0)
    Population.averages(members_of_L, weights_of_L, None, into=target[2:8:2])
    assert torch.equal(target.weights_MP[2::2], expected.weights_MP)
    assert (target.momentum_MP == 5).all()
    fresh = Population.averages(members_of_L, weights_of_L, momentum)
    assert all(map(torch.equal, fresh._matrices(), expected._matrices()))


def test_networks_without_statistics_and_counters_are_averaged():
    made = Population.from_modules([nn.Linear(5, 3) for _ in range(2)])
    found = Population.averages([[(made, 0), (made, 1)]] * 2, [[0.5, 0.5], [0.0, 1.0]])
    close(found.weights_MP[0], made.weights_MP.double().mean(0))
    assert torch.equal(found.weights_MP[1], made.weights_MP[1])
    assert made.finite_M() == [True, True]
    assert torch.equal(Population.gather([(made, 1)]).weights_MP, made.weights_MP[1:])


def test_averages_that_cannot_be_made_are_refused(made):
    before = made.clone_rows(range(5))
    for nothing in ([], [[]], [[(made, 0)], []]):
        with pytest.raises(ValueError, match="at least one"):
            Population.averages(nothing, [[1.0] * len(members) for members in nothing])
    with pytest.raises(ValueError, match="different layouts"):
        Population.averages([[(made, 0), (Population.from_modules([SmallNet(6)]), 0)]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="both read and written"):
        Population.averages([[(made, 0), (made, 1)]], [[0.5, 0.5]], into=made[1])
    with pytest.raises(ValueError, match="2 rows for 1 results"):
        Population.averages([[(made, 0), (made, 1)]], [[0.5, 0.5]], into=made[2:4])
    with pytest.raises(ValueError, match="row 5 is named"):
        Population.averages([[(made, 5)]], [[1.0]])
    for weights in (torch.ones(2, 4), torch.ones(5), torch.ones(2, 5).half()):
        with pytest.raises(ValueError, match="a column for each of 5 members"):
            made.combine(weights)
    assert all(map(torch.equal, made._matrices(), before._matrices()))
