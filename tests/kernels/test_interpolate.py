"""Interpolation of rows and of lists of tensors, by torch and by the Triton kernel, against float64."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpolation_checks import assert_interpolated
from torch import Tensor

from fastwi.kernels.interpolate import RowInterpolation, lerp_lists_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(3,), (), (5, 4, 3, 3), (1025,), (0, 4), (70, 60)]


def rows(seed: int, members: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random rows that all differ."""
    generator = torch.Generator().manual_seed(seed)
    x_MP = torch.randn(members, columns, generator=generator)
    assert len(torch.unique(x_MP[:, 0])) == members
    return x_MP.to(device, dtype)


def check_rows(x_MP: Tensor, a_L: Sequence[int], b_L: Sequence[int], alpha_L: Sequence[float]) -> None:
    """Interpolate and hold every row to float64; rows that are no destination stay to the bit."""
    before, destinations = x_MP.clone(), list(a_L)
    RowInterpolation(x_MP, a_L, b_L, alpha_L)()
    alpha_L1 = torch.tensor(alpha_L, dtype=torch.float32, device=x_MP.device)[:, None]
    assert_interpolated(x_MP[destinations], before[destinations], before[list(b_L)], alpha_L1)
    others = [row for row in range(len(x_MP)) if row not in destinations]
    assert torch.equal(x_MP[others], before[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 2049, 4096, 4100])
@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_rows_of_odd_sizes(device, dtype, columns, pairs):
    x_MP = rows(columns * pairs, 2 * pairs + 1, columns, dtype, device)
    alphas = np.random.default_rng(columns).uniform(-1.5, 2.5, pairs).astype(np.float32).tolist()
    shuffled = np.random.default_rng(pairs).permutation(2 * pairs + 1)
    check_rows(x_MP, shuffled[:pairs].tolist(), shuffled[pairs : 2 * pairs].tolist(), alphas)


@pytest.mark.parametrize("alpha", [0.5, 0.3, -0.25, 0.9])
def test_a_pair_is_the_same_bit_for_bit_alone_and_among_others(seed, device, alpha):
    """Others make it one of many evenly spaced rows, or one of a list; its last columns lie elsewhere in vectors."""
    x_MP = rows(seed, 64, 1003, torch.float32, device)
    spaced, listed = x_MP.clone(), x_MP.clone()
    RowInterpolation(spaced, range(0, 64, 2), range(1, 64, 2), alpha)()
    RowInterpolation(listed, [0, 20, 62], [1, 21, 63], [alpha, 1.5, alpha])()
    for row in (0, 62):
        alone = x_MP[[row, row + 1]]
        RowInterpolation(alone, [0], [1], alpha)()
        assert torch.equal(alone[0], spaced[row])
        assert torch.equal(alone[0], listed[row])


def test_rows_are_torchs_lerp_where_products_are_exact(seed, device):
    """Beyond -1/2 and 3/2 too, where b - (1 - alpha) (b - a) and a + alpha (b - a) are rounded otherwise."""
    x_MP = rows(seed, 2, 500, torch.float32, device)
    for alpha in (-3.0, -1.0, 0.25, 0.5, 2.0):
        mixed_MP = x_MP.clone()
        RowInterpolation(mixed_MP, [0], [1], alpha)()
        assert torch.equal(mixed_MP[0], x_MP[0].lerp(x_MP[1], alpha))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_evenly_spaced_rows(device, order):
    x_MP = rows(6, 12, 1025, torch.float32, device)
    check_rows(x_MP, [3 * pair for pair in order], [3 * pair + 2 for pair in order], [0.5, -0.25, 1.25, 0.1])


def test_evenly_spaced_rows_towards_one(seed, device):
    x_MP = rows(seed, 8, 1025, torch.float32, device)
    check_rows(x_MP, [0, 2, 4], [7, 7, 7], [0.5, -0.25, 1.25])


# Triton's interpreter computes inf - inf with NumPy, which warns; the kernel's select then discards it.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ends_are_exact_whatever_the_other_end_holds(device, dtype):
    x_MP = rows(7, 4, 1025, dtype, device)
    x_MP[1, ::2], x_MP[2, ::3] = float("nan"), float("inf")
    before = x_MP.clone()
    RowInterpolation(x_MP, [0, 2], [1, 3], [0.0, 1.0])()
    assert torch.equal(x_MP[0], before[0])
    assert torch.equal(x_MP[2], before[3])
    assert not torch.equal(before[2], before[3])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_overlapping_rows_are_as_if_all_reads_came_first(device, data):
    members = data.draw(st.integers(1, 6))
    destinations = data.draw(st.lists(st.integers(0, members - 1), unique=True, min_size=1))
    row = st.lists(st.integers(0, members - 1), min_size=len(destinations), max_size=len(destinations))
    weight = st.floats(-2, 3, width=32)
    b_L = data.draw(row)
    alphas = data.draw(st.lists(weight, min_size=len(destinations), max_size=len(destinations)))
    seed, columns = data.draw(st.integers(0, 2**31)), data.draw(st.sampled_from([1, 7, 33]))
    check_rows(rows(seed, members, columns, torch.float32, device), destinations, b_L, alphas)


def test_views_that_share_memory_overlap_too(device):
    x_MP = rows(10, 6, 1025, torch.float32, device)
    before = x_MP.clone()
    # Row 2 of the first view is row 0 of the other: pair 1 overwrites what pair 0 reads.
    RowInterpolation(x_MP[:4], [0, 2], [0, 3], [0.5, 0.5], other_NP=x_MP[2:])()
    assert_interpolated(x_MP[[0, 2]], before[[0, 2]], before[[2, 5]], torch.tensor(0.5, device=device))


def test_rows_of_another_matrix_and_rows_with_gaps(device):
    a_MP = rows(11, 3, 1025, torch.float32, device)
    b_NP = rows(12, 8, 1025, torch.float32, device)[::2]
    before = a_MP.clone()
    RowInterpolation(a_MP, [2, 0], [3, 1], [0.3, 0.6], other_NP=b_NP)()
    alpha_L1 = torch.tensor([0.3, 0.6], device=device)[:, None]
    assert_interpolated(a_MP[[2, 0]], before[[2, 0]], b_NP[[3, 1]], alpha_L1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("a_L", "b_L"),
    [([0, 2, 4], [1, 3, 5]), ([5, 0, 2], [1, 4, 3]), ([0, 1, 2], [1, 2, 0])],
    ids=["evenly spaced", "scattered", "read elsewhere"],
)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_plan_gives_what_a_fresh_call_gives_on_what_rows_then_hold(seed, device, dtype, a_L, b_L, alpha):
    x_MP, other_MP = (rows(seed + n, 6, 1025, dtype, device) for n in (0, 1))
    plan = RowInterpolation(x_MP, a_L, b_L, alpha)
    for values_MP in (x_MP.clone(), other_MP):
        fresh_MP = values_MP.clone()
        RowInterpolation(fresh_MP, a_L, b_L, alpha)()
        assert not torch.equal(fresh_MP, values_MP)
        x_MP.copy_(values_MP)
        plan()
        assert torch.equal(x_MP, fresh_MP)
        plan()  # from where the first call left them
        RowInterpolation(fresh_MP, a_L, b_L, alpha)()
        assert torch.equal(x_MP, fresh_MP)


@pytest.mark.parametrize(
    "change", [torch.clone, lambda x_MP: x_MP[:2], lambda x_MP: x_MP.as_strided((3, 8), (16, 1))]
)
@pytest.mark.parametrize("which", ["x", "other"])
def test_a_plan_refuses_a_matrix_that_was_given_other_memory(seed, device, which, change):
    """Or another shape or other strides."""
    matrices = {name: rows(seed, 6, 8, torch.float32, device)[:3] for name in ("x", "other")}
    plan = RowInterpolation(matrices["x"], [0], [1], 0.5, other_NP=matrices["other"])
    plan()
    matrices[which].set_(change(matrices[which]))
    before = {name: matrix.clone() for name, matrix in matrices.items()}
    with pytest.raises(ValueError, match="plan them again"):
        plan()
    assert all(torch.equal(matrix, before[name]) for name, matrix in matrices.items())


def test_a_plan_keeps_its_memory(seed, device):
    """Where the matrix is not held, the next tensor of its size lies at its address."""
    x_MP = rows(seed, 3, 1025, torch.float32, device)
    plan, storage = RowInterpolation(x_MP, [0], [1], 0.5), weakref.ref(x_MP)
    del x_MP
    assert storage() is not None
    plan()
    del plan
    assert storage() is None


X_MP = torch.arange(24.0).view(3, 8)


@pytest.mark.parametrize(
    ("x_MP", "arguments", "message"),
    [
        (X_MP, ([1, 1], [1, 0], 0.5), "row 1 is the destination of 2"),
        (X_MP, ([0], [3], 0.5), "b names row 3; there are rows 0 to 2"),
        (X_MP, ([-1], [0], 0.5), "a names row -1"),
        (X_MP, ([0, 1], [2], 0.5), "2 and 1 rows"),
        (X_MP, ([0, 1], [1, 2], [0.5]), "alpha has shape"),
        (X_MP, ([0], [1], float("nan")), "finite"),
        (X_MP, ([0], [1], [-float("inf")]), "finite"),
        (X_MP, ([0.5], [1], 0.5), "row numbers"),
        (X_MP, ([0], [1], 0.5, torch.ones(3, 9)), "8 wide"),
        (X_MP.double(), ([0], [1], 0.5), "float32, bfloat16 or float16"),
        (X_MP.T, ([0], [1], 0.5), "contiguous"),
        (X_MP[0], ([0], [0], 0.5), r"\[rows, columns\]"),
        (X_MP[0, 0], ([0], [0], 0.5), r"\[rows, columns\]"),
        (torch.arange(24.0).as_strided((3, 8), (7, 1)), ([0], [1], 0.5), "stride 7"),
        (torch.zeros(8).expand(3, 8), ([0], [0], 0.5, X_MP), "stride 0"),
    ],
)
def test_bad_rows_are_refused(x_MP, arguments, message):
    before = x_MP.clone()
    with pytest.raises(ValueError, match=message):
        RowInterpolation(x_MP, *arguments)()
    assert torch.equal(x_MP, before)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -0.5, 1.75])
def test_lists_of_tensors(alpha):
    generator = torch.Generator().manual_seed(15)
    a_tensors, b_tensors = (
        [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES for dtype in DTYPES] for _ in range(2)
    )
    a_tensors += [torch.randn(4, 6, dtype=torch.float64)]
    b_tensors += [torch.randn(6, 4, dtype=torch.float64).T]
    before = [a.clone() for a in a_tensors]
    untouched = [b.clone() for b in b_tensors]
    lerp_lists_(a_tensors, b_tensors, alpha)
    for a, old, b, old_b in zip(a_tensors, before, b_tensors, untouched, strict=True):
        assert torch.equal(b, old_b)
        assert a.dtype == old.dtype
        if alpha in (0.0, 1.0):
            assert torch.equal(a, old if alpha == 0 else b)
        elif a.numel():
            assert_interpolated(a, old, b, torch.tensor(alpha, dtype=torch.float32))
            assert not torch.equal(a, old)


def test_lists_of_views_and_one_alpha_each(seed):
    """What lies in the gaps of a view stays."""
    torch.manual_seed(seed)
    a, b = torch.randn(6, 9), torch.randn(6, 9)
    before, alphas = a.clone(), [0.25, 1.75, 0.0]
    parts = (slice(0, 6, 2), slice(None)), (slice(1, 6, 2), slice(0, 5)), (5, slice(5, 9, 2))
    lerp_lists_([a[part] for part in parts], [b[part] for part in parts], alphas)
    expected = before.clone()
    for part, alpha in zip(parts, alphas, strict=True):
        expected[part] += alpha * (b[part] - before[part])
    torch.testing.assert_close(a, expected)
    assert torch.equal(a[1::2, 5:], before[1::2, 5:])


def test_bad_lists_are_refused():
    a, b = torch.randn(4), torch.randn(4)
    with pytest.raises(ValueError, match="finite"):
        lerp_lists_([a], [b], 1e39)  # infinite in float32
    with pytest.raises(ValueError, match="1 tensors a and 2 tensors b"):
        lerp_lists_([a], [a, b], 0.5)
    for a_tensors, b_tensors in (([a, b], [b, a]), ([a, a], [b, torch.randn(4)])):
        with pytest.raises(ValueError, match="second time"):
            lerp_lists_(a_tensors, b_tensors, 0.5)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(2, 3), torch.ones(3)),
        (torch.zeros(2, 3), torch.ones(3, 2)),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.ones(2, 3, device="meta")),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),
    ],
)
def test_pairs_that_differ_are_refused_before_anything_is_written(a, b, alpha):
    first = torch.zeros(4)
    with pytest.raises(ValueError, match="pair 1"):
        lerp_lists_([first, a], [torch.ones(4), b], alpha)
    assert not first.any()
    assert not a.any()


def test_empty_calls_do_nothing(device):
    nothing = torch.zeros(0, 3, device=device)
    lerp_lists_([], [], 0.5)
    lerp_lists_([nothing, nothing], [nothing, nothing], 0.5)
    RowInterpolation(nothing, [], [], 0.5)()
    RowInterpolation(torch.zeros(2, 0, device=device), [0], [1], 0.5)()
