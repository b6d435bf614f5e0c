"""Weighted sums of rows against float64, the exact mean of two, and sums that nothing beside them changes."""

import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwi.kernels import combine, gpu
from fastwi.kernels.combine import Terms, combine_rows_, copy_rows_, weighted_sum
from fastwi.kernels.cpu import library


@pytest.fixture(params=["reference", "cpu", "triton"])
def device(request, monkeypatch) -> torch.device:
    """The device to test on, with dispatch sent down one of the three paths."""
    if request.param == "triton":
        pytest.importorskip("triton")
    if request.param == "cpu" and library() is None:
        pytest.skip("no GNU C++ compiler with OpenMP")
    monkeypatch.setattr(gpu, "has_triton", lambda device: request.param == "triton")
    if request.param == "reference":
        monkeypatch.setattr(combine, "library", lambda: None)
    return torch.device("cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu")


def terms(rows_of_L: list[list[tuple[int, int]]], weights_of_L: list[list[float]]) -> Terms:
    """Sum l has the rows (matrix, row) rows_of_L[l]."""
    rows_T2 = np.array([row for rows in rows_of_L for row in rows], dtype=np.int64).reshape(-1, 2)
    return Terms.of(list(map(len, rows_of_L)), rows_T2, weights_of_L)


@pytest.fixture
def combined(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The sums of all rows of x_MP with each row of weights, by one of the three paths."""

    def combine_all(weights_LM: Tensor, x_MP: Tensor) -> Tensor:
        rows_of_L = [[(0, m) for m in range(len(x_MP))]] * len(weights_LM)
        result_LP = torch.full((len(weights_LM), x_MP.shape[1]), 7.0, device=device)
        combine_rows_(result_LP, [x_MP.to(device)], terms(rows_of_L, weights_LM.tolist()))
        return result_LP.cpu()

    return combine_all


def plainly(weights_LM: Tensor, x_MP: Tensor) -> Tensor:
    """The same to the bit, by one product and one sum a term."""
    result_LP = torch.zeros(len(weights_LM), x_MP.shape[1], dtype=torch.float64)
    for weights_M, result_P in zip(weights_LM.double(), result_LP, strict=True):
        for weight, x_P in zip(weights_M, x_MP, strict=True):
            if weight != 0:
                product_P = x_P.double() * weight
                result_P += product_P
    return result_LP.float()


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


@pytest.mark.parametrize("columns", [1, 15, 16, 31, 64, 100, 4096, 5001])
def test_each_product_and_each_sum_is_rounded(seed, combined, columns):
    """Rows that cancel: a product that is not rounded before it is added would leave its rounding error.

    Signed zeros, subnormal and infinite values too.
    """
    torch.manual_seed(seed)
    x_MP = torch.randn(3, columns) * 10.0 ** torch.randint(-44, 38, (3, columns))
    x_MP[1] = x_MP[0]
    x_MP[:, ::5] = -0.0
    x_MP[2, ::7] = float("inf")
    weight = torch.rand(6, dtype=torch.float64)
    weights_LM = torch.stack([weight, -weight, torch.zeros(6)], dim=1)
    assert not combined(weights_LM, x_MP).any()
    weights_LM = torch.cat([weights_LM, torch.randn(6, 3, dtype=torch.float64) * torch.tensor([1.0, 0, 1])])
    assert torch.equal(bits(combined(weights_LM, x_MP)), bits(plainly(weights_LM, x_MP)))


@pytest.mark.parametrize("columns", [1, 7, 64, 5001, 300_001])
def test_a_sum_is_the_same_bit_for_bit_whatever_is_beside_it_and_in_either_order(
    seed, device, combined, columns, monkeypatch
):
    """Where there are more columns than are summed at a time too."""
    if columns > 100_000 and gpu.has_triton(device) and device.type == "cpu":
        pytest.skip("5001 columns are several blocks; the interpreter is slow")
    torch.manual_seed(seed)
    x_MP, alpha_L = torch.randn(2, columns), torch.rand(12, dtype=torch.float64)
    weights_L2 = torch.stack([1 - alpha_L, alpha_L], dim=1)
    together_LP = combined(weights_L2, x_MP)
    monkeypatch.setattr(combine, "COLUMNS", 999)
    for row in (0, 5, 11):
        assert torch.equal(combined(weights_L2[[row]], x_MP)[0], together_LP[row])
        assert torch.equal(combined(weights_L2[[row]].flip(1), x_MP.flip(0))[0], together_LP[row])
        assert torch.equal(weighted_sum(list(x_MP), weights_L2[row].tolist()), together_LP[row])


def test_rows_of_several_matrices_into_every_other_row(seed, device):
    """Of unlike strides; terms in the order given, a row twice, sums of no, one and many terms."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    matrices = [torch.randn(4, 103, device=device), torch.randn(3, 206, device=device)[:, 50:153]]
    matrices.append(torch.randn(12, 103, device=device)[1::3])
    rows = [(matrix, row) for matrix, x_MP in enumerate(matrices) for row in range(len(x_MP))]
    rows_of_L = [draw.choices(rows, k=k) for k in (0, 1, 2, 2, 9, 40)]
    weights_of_L = [[draw.choice([0.0, 0.5, draw.gauss(0, 1)]) for _ in rows_of] for rows_of in rows_of_L]
    backing = torch.full((12, 110), 7.0, device=device)
    combine_rows_(backing[::2, 3:106], matrices, terms(rows_of_L, weights_of_L))
    backing = backing.cpu()
    for found_P, chosen, weights in zip(backing[::2], rows_of_L, weights_of_L, strict=True):
        x_KP = torch.stack([torch.zeros(103), *(matrices[matrix][row].cpu() for matrix, row in chosen)])
        expected_1P = plainly(torch.tensor([[0.0, *weights]], dtype=torch.float64), x_KP)
        assert torch.equal(bits(found_P[3:106]), bits(expected_1P[0]))
    assert (backing[1::2] == 7).all()
    assert (backing[:, :3] == 7).all()
    assert (backing[:, 106:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_rows_of_several_matrices_are_copied_to_the_bit(seed, device, dtype):
    torch.manual_seed(seed)
    made = [torch.randn(4, 300_001), torch.randn(9, 600_002)[1::3, 7:300_008]]
    made[0][2, :2] = torch.tensor([-0.0, float("nan")])
    matrices = [matrix.to(device, dtype) if dtype == torch.int64 else matrix.to(device) for matrix in made]
    matrix_L, row_L = np.array([1, 0, 0, 1, 1]), np.array([2, 2, 3, 0, 2])
    backing = torch.full((10, 300_005), 7, device=device, dtype=dtype)
    copy_rows_(backing[::2, 2:300_003], matrices, matrix_L, row_L)
    for copy, matrix, row in zip(backing[::2], matrix_L, row_L, strict=True):
        assert torch.equal(bits(copy[2:300_003]), bits(matrices[matrix][row]))
    assert (backing[1::2] == 7).all()
    assert (backing[:, [0, 1, 300_003, 300_004]] == 7).all()
    with pytest.raises(ValueError, match="both read and written"):
        copy_rows_(matrices[0][1:3], matrices, matrix_L[:2], row_L[:2])


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


def test_a_diverged_row_of_weight_zero_takes_no_part(combined):
    """And negative weights do, beside it."""
    x_MP = torch.randn(4, 50)
    x_MP[1], x_MP[2] = float("nan"), float("inf")
    weights_LM = torch.tensor([[1.5, 0, 0, -0.5], [-1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]])
    result_LP = combined(weights_LM, x_MP)
    torch.testing.assert_close(result_LP[0], 1.5 * x_MP[0] - 0.5 * x_MP[3])
    assert torch.equal(result_LP[1], -x_MP[0])
    assert torch.isnan(result_LP[2]).all()
    assert torch.equal(result_LP[3], torch.zeros(50))
    one, other = weighted_sum(list(x_MP), [1.5, 0, 0, -0.5]), weighted_sum(list(x_MP), [0, 0, 0, 0])
    assert torch.equal(torch.stack([one, other]), result_LP[[0, 3]])


@pytest.mark.parametrize(
    ("results", "matrix", "row", "weights", "message"),
    [
        (torch.empty(1, 5).double(), torch.ones(4, 5).double(), 3, [1.0], "float32"),
        (torch.empty(1, 5), torch.ones(4, 6), 3, [1.0], "5 wide"),
        (torch.empty(1, 5), torch.ones(4, 5).double(), 3, [1.0], "float64"),
        (torch.empty(1, 5), torch.ones(5, 4).T, 3, [1.0], "strides"),
        (torch.empty(2, 5), torch.ones(4, 5), 3, [1.0], "2 rows for 1"),
        (torch.empty(1, 5), torch.ones(3, 5), 3, [1.0], "row 3 .* rows 0 to 2"),
        (torch.empty(1, 5), torch.ones(3, 5), -1, [1.0], "row -1"),
        ((x_MP := torch.ones(4, 5))[3:], x_MP, 3, [1.0], "both read and written"),
        (torch.empty(1, 5), torch.ones(4, 5), 3, [0.5, 0.5], "one weight"),
        (torch.empty(1, 5), torch.ones(4, 5), 3, [float("inf")], "finite"),
        (torch.empty(1, 5), torch.ones(4, 5), 3, [float("nan")], "finite"),
    ],
)
def test_what_cannot_be_summed_is_refused(results, matrix, row, weights, message):
    with pytest.raises(ValueError, match=message):
        combine_rows_(results, [matrix], terms([[(0, row)]], [weights]))
