"""Averages of members: interpolation in place and weighted sums, with every treatment of momentum."""

import pytest
import torch
from small_networks import SmallNet, drawn_population, same_rows
from torch import nn

from fastwi.config.averaging import MOMENTUM_TREATMENTS
from fastwi.population import Population


@pytest.fixture
def made(seed) -> Population:
    return drawn_population(seed, 5)


def close(mine: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


def assert_pair(made: Population, row: int, old: Population, pair: tuple[int, int], alpha: float, how: str) -> None:
    """Member `row` is the interpolation of a pair of members of `old`; at the ends to the bit."""
    a, b = ([matrix[m] for matrix in old.matrices] for m in pair)
    exact = [(1 - alpha) * x.double() + alpha * y.double() for x, y in zip(a, b, strict=True)]
    exact[1] = {"reset": 0 * exact[1], "average": exact[1], "keep": (b if alpha == 1 else a)[1].double()}[how]
    exact[3] = {0.0: a[3], 1.0: b[3]}.get(alpha, torch.maximum(a[3], b[3])).double()
    for mine, expected in zip(made.matrices, exact, strict=True):
        if alpha in (0, 1):
            assert torch.equal(mine[row].double(), expected)
        close(mine[row], expected)


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_lerp_rows(made, momentum):
    """In place, at the ends of the line, and in a ring, whose pairs all read the members from before the call."""
    old = made.clone_rows(range(5))
    ring = [(m, (m + 1) % 5) for m in range(5)]
    for pairs, alphas in (
        ([(0, 1), (3, 2)], [0.3, 1.5]),
        ([(4, 0), (2, 1), (0, 3)], [0.0, 1.0, 1.0]),
        (ring, [0.5] * 5),
    ):
        lerped = old.clone_rows(range(5))
        plan = lerped.interpolation(pairs, alphas, momentum=momentum)
        plan()  # what it does the second time is what it does the first time
        for mine, before in zip(lerped.matrices, old.matrices, strict=True):
            mine.copy_(before)
        plan()
        for pair, alpha in zip(pairs, alphas, strict=True):
            assert_pair(lerped, pair[0], old, pair, alpha, momentum)
        others = sorted(set(range(5)) - {a for a, _ in pairs})
        assert same_rows(lerped, others, old, others)


def test_lerp_rows_with_another_population(made, seed):
    other, old = drawn_population(seed + 1000, 3), made.clone_rows(range(5))
    other.counters_MB.add_(100)  # above all of the first population's
    both = Population.gather([*((old, m) for m in range(5)), *((other, m) for m in range(3))])
    planned = made.clone_rows(range(5))
    made.lerp_rows_([(0, 2), (1, 1)], 0.25, other=other, momentum="average")
    planned.interpolation([(0, 2), (1, 1)], 0.25, other=other, momentum="average")()
    assert same_rows(planned, list(range(5)), made, list(range(5)))
    assert_pair(made, 0, both, (0, 7), 0.25, "average")
    assert_pair(made, 1, both, (1, 6), 0.25, "average")
    made.lerp_rows_([])
    with pytest.raises(ValueError, match="different layouts"):
        made.lerp_rows_([(0, 0)], other=Population.from_modules([SmallNet(6)]))
    with pytest.raises(ValueError, match="'none' is not one of reset, average, keep"):
        made.lerp_rows_([(0, 1)], momentum="none")


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_combine_matches_float64(made, seed, momentum):
    """Weights of any sign; the first member of weight not zero is kept, and none where all are zero."""
    weights_LM = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
    weights_LM[1, 0] = weights_LM[2, :3] = weights_LM[4] = 0
    averages = made.combine(weights_LM, momentum=momentum)
    exact_LM = weights_LM.double()
    close(averages.weights_MP, exact_LM @ made.weights_MP.double())
    close(averages.statistics_MQ, exact_LM @ made.statistics_MQ.double())
    mixed_LP = exact_LM @ made.momentum_MP.double()
    kept_LP = made.momentum_MP[[0, 1, 3, 0, 0]].double()
    kept_LP[4] = 0
    close(averages.momentum_MP, {"reset": 0 * mixed_LP, "average": mixed_LP, "keep": kept_LP}[momentum])
    for row in range(4):
        assert averages.counters_MB[row] == made.counters_MB[weights_LM[row] != 0].max()
    assert averages.counters_MB[4] == 0


@pytest.mark.parametrize("momentum", MOMENTUM_TREATMENTS)
def test_rows_of_several_populations_are_averaged_into_given_rows(made, seed, momentum):
    """As `combine` of all of them side by side; what is not written to stays."""
    other = drawn_population(seed + 1000, 3)
    everything = Population.gather([*((made, m) for m in range(5)), *((other, m) for m in range(3))])
    weights_LM = torch.zeros(3, 8, dtype=torch.float64)
    weights_LM[0, [1, 6]] = 0.5
    weights_LM[1, [4, 5, 7]] = torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = everything.combine(weights_LM, momentum)
    target = everything.clone_rows(range(8))
    members_of_L = [[(made, 1), (other, 1)], [(made, 4), (other, 0), (made, 2), (other, 2)], [(made, 0)]]
    weights_of_L = [[0.5, 0.5], [*weights_LM[1, 4:6].tolist(), 0.0, float(weights_LM[1, 7])], [0.0]]
    Population.averages(members_of_L, weights_of_L, momentum, into=target[2:8:2])
    assert same_rows(target, [2, 4, 6], expected, [0, 1, 2])
    assert same_rows(target, [0, 1, 3, 5, 7], everything, [0, 1, 3, 5, 7])
    target.momentum_MP.fill_(5.0)
    Population.averages(members_of_L, weights_of_L, None, into=target[2:8:2])
    assert torch.equal(target.weights_MP[2::2], expected.weights_MP)
    assert (target.momentum_MP == 5).all()
    assert not Population.averages(members_of_L, weights_of_L, None).momentum_MP.any()
    fresh = Population.averages(members_of_L, weights_of_L, momentum)
    assert same_rows(fresh, [0, 1, 2], expected, [0, 1, 2])


def test_statistics_may_have_weights_of_their_own(made):
    """Counters are the most of the members whose weights take part in it."""
    both = [[(made, 1), (made, 3)]]
    found = Population.averages(both, [[0.0, 1.0]], "keep", statistics_of_L=[[1.0, 0.0]])
    for matrix, of_made, row in zip(found.matrices, made.matrices, (3, 3, 1, 3), strict=True):
        assert torch.equal(matrix[0], of_made[row])
        assert not torch.equal(of_made[1], of_made[3])


def test_networks_without_statistics_and_counters_are_averaged():
    made = Population.from_modules([nn.Linear(5, 3) for _ in range(2)])
    found = Population.averages([[(made, 0), (made, 1)]] * 2, [[0.5, 0.5], [0.0, 1.0]])
    close(found.weights_MP[0], made.weights_MP.double().mean(0))
    assert torch.equal(found.weights_MP[1], made.weights_MP[1])
    assert made.finite_M() == [True, True]
    assert torch.equal(Population.gather([(made, 1)]).weights_MP, made.weights_MP[1:])


@pytest.mark.parametrize("weights", [[0.5] * 5, [[0.5, 0.5]], 0.5])
def test_weights_of_another_shape_are_refused(made, weights):
    with pytest.raises(ValueError, match=r"weights_LM .*5"):
        made.combine(weights)


def test_averages_that_cannot_be_made_are_refused(made):
    before = made.clone_rows(range(5))
    pair, halves = [[(made, 0), (made, 1)]], [[0.5, 0.5]]
    for members_of_L, weights_of_L, into, message in [
        ([], [], None, "at least one"),
        ([[]], [[]], None, "at least one"),
        ([[(made, 0)], []], [[1.0], []], None, "at least one"),
        ([[(made, 0), (Population.from_modules([SmallNet(6)]), 0)]], halves, None, "different layouts"),
        (pair, halves, Population.from_modules([SmallNet(6)]), "different layouts"),
        (pair, halves, made[1], "both read and written"),
        (pair, halves, made[2:4], "2 rows for 1 results"),
        ([[(made, 5)]], [[1.0]], None, "row 5 is named"),
        (pair, [[0.5]], None, "one weight for each"),
        (pair, [[0.5, float("inf")]], None, "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            Population.averages(members_of_L, weights_of_L, into=into)
    with pytest.raises(ValueError, match="a row of 5"):
        made.combine(torch.ones(2, 4))
    assert same_rows(made, list(range(5)), before, list(range(5)))
