"""Weighted sums of rows against float64, the exact mean of two, and sums that nothing beside them changes."""

from fractions import Fraction

import pytest
import torch

from fastwi.kernels import combine
from fastwi.kernels.combine import combine_rows, weighted_sum


@pytest.mark.parametrize("columns", [1, 3, 1025, 271098])
@pytest.mark.parametrize(("sums", "members"), [(1, 1), (3, 2), (5, 7)])
def test_sums_match_float64(sums, members, columns):
    torch.manual_seed(columns + sums)
    weights_LM, x_MP = torch.randn(sums, members), torch.randn(members, columns)
    exact = weights_LM.double() @ x_MP.double()
    scale = weights_LM.double().abs() @ x_MP.double().abs()
    error = (combine_rows(weights_LM, x_MP).double() - exact).abs()
    assert (error <= torch.finfo(torch.float32).eps / 2 * exact.abs() + 1e-15 * scale).all()  # one rounding


@pytest.mark.parametrize("columns", [1, 7, 64, 100_003])
def test_a_sum_is_the_same_bit_for_bit_whatever_is_beside_it_and_in_either_order(seed, columns, monkeypatch):
    """Where there are more columns than are summed at a time too."""
    torch.manual_seed(seed)
    x_MP, alpha_L = torch.randn(2, columns), torch.rand(300, dtype=torch.float64)
    weights_L2 = torch.stack([1 - alpha_L, alpha_L], dim=1)
    together_LP = combine_rows(weights_L2, x_MP)
    monkeypatch.setattr(combine, "COLUMNS", 999)
    for row in (0, 150, 299):
        assert torch.equal(combine_rows(weights_L2[[row]], x_MP)[0], together_LP[row])
        assert torch.equal(combine_rows(weights_L2[[row]].flip(1), x_MP.flip(0))[0], together_LP[row])
        assert torch.equal(weighted_sum(list(x_MP), weights_L2[row].tolist()), together_LP[row])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_of_two_is_exact_and_rounded_once(seed, dtype):
    torch.manual_seed(seed)
    a, b = (torch.randn(1000).mul(10.0 ** torch.randint(-4, 4, (1000,))).to(dtype) for _ in range(2))
    found = weighted_sum([a, b], [0.5, 0.5])
    expected = [(Fraction(x) + Fraction(y)) / 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert found.dtype == dtype
    assert found.tolist() == [torch.tensor(float(mean), dtype=torch.float64).to(dtype).item() for mean in expected]
    if dtype != torch.float64:
        assert torch.equal(weighted_sum([a, a, a], [1 / 3] * 3), a)


def test_a_diverged_member_of_weight_zero_takes_no_part():
    x_MP = torch.randn(4, 50)
    x_MP[1], x_MP[2] = float("nan"), float("inf")
    weights_LM = torch.tensor([[0.5, 0, 0, 0.5], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    result_LP = combine_rows(weights_LM, x_MP)
    torch.testing.assert_close(result_LP[0], (x_MP[0] + x_MP[3]) / 2)
    assert torch.equal(result_LP[1], x_MP[0])
    assert torch.isnan(result_LP[2]).all()
    assert torch.equal(result_LP[3], torch.zeros(50))


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(4, 5\)"):
        combine_rows(torch.ones(2, 3), torch.ones(4, 5))
    for weights, x in ((torch.ones(2, 4).half(), torch.ones(4, 5)), (torch.ones(2, 4), torch.ones(4, 5).double())):
        with pytest.raises(ValueError, match="float32"):
            combine_rows(weights, x)
    with pytest.raises(ValueError, match="finite"):
        combine_rows(torch.full((1, 4), float("inf")), torch.ones(4, 5))
