"""Weighted sums of rows against float64."""

import pytest
import torch

from fastwi.kernels.combine import combine_rows


@pytest.mark.parametrize("columns", [1, 3, 1025, 271098])
@pytest.mark.parametrize(("sums", "members"), [(1, 1), (3, 2), (5, 7)])
def test_sums_match_float64(sums, members, columns):
    torch.manual_seed(columns + sums)
    weights_LM, x_MP = torch.randn(sums, members), torch.randn(members, columns)
    exact = weights_LM.double() @ x_MP.double()
    scale = weights_LM.double().abs() @ x_MP.double().abs()
    error = (combine_rows(weights_LM, x_MP).double() - exact).abs()
    assert (error <= members * torch.finfo(torch.float32).eps * scale).all()


def test_a_lower_matmul_precision_of_the_process_is_not_used_and_is_restored():
    torch.manual_seed(1)
    weights_LM, x_MP = torch.randn(4, 64), torch.randn(64, 4096)
    exact = weights_LM.double() @ x_MP.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        result_LP = combine_rows(weights_LM, x_MP)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(result_LP.double(), exact, rtol=1e-4, atol=1e-4)


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
    with pytest.raises(ValueError, match="float32"):
        combine_rows(torch.ones(2, 4).double(), torch.ones(4, 5))
    with pytest.raises(ValueError, match="finite"):
        combine_rows(torch.full((1, 4), float("inf")), torch.ones(4, 5))
