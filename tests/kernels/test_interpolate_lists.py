"""Interpolation of lists of tensors, by torch and by the Triton kernel, against float64."""

import pytest
import torch
from interpolation_checks import assert_interpolated

from fastwi.kernels.interpolate_lists import lerp_lists_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(3,), (), (5, 4, 3, 3), (1025,), (0, 4), (70, 60)]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -0.5, 1.75])
def test_lists_of_tensors(device, alpha):
    generator = torch.Generator().manual_seed(15)
    a_tensors, b_tensors = (
        [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES for dtype in DTYPES]
        for _ in range(2)
    )
    a_tensors += [torch.randn(4, 6, device=device, dtype=torch.float64)]
    b_tensors += [torch.randn(6, 4, device=device, dtype=torch.float64).T]
    before = [a.clone() for a in a_tensors]
    untouched = [b.clone() for b in b_tensors]
    lerp_lists_(a_tensors, b_tensors, alpha)
    for a, old, b, old_b in zip(a_tensors, before, b_tensors, untouched, strict=True):
        assert torch.equal(b, old_b)
        if alpha in (0.0, 1.0):
            assert torch.equal(a, old if alpha == 0 else b)
        elif a.numel():
            assert_interpolated(a, old, b, torch.tensor(alpha, dtype=torch.float32, device=device))
            assert not torch.equal(a, old)


def test_lists_of_channels_last_tensors_and_one_alpha_each(device):
    a, b = (torch.randn(6, 5, 3, 3, device=device).to(memory_format=torch.channels_last) for _ in range(2))
    plain = torch.randn(6, 5, 3, 3, device=device)
    before, plain_before = a.clone(), plain.clone()
    lerp_lists_([a, plain], [b, before], [0.25, 0.5])
    assert_interpolated(a, before, b, torch.tensor(0.25, device=device))
    assert_interpolated(plain, plain_before, before, torch.tensor(0.5, device=device))
    assert a.is_contiguous(memory_format=torch.channels_last)


def test_lists_agree_with_foreach_lerp():
    a_tensors, b_tensors = ([torch.randn(shape) for shape in SHAPES] for _ in range(2))
    expected = [a.clone() for a in a_tensors]
    torch._foreach_lerp_(expected, b_tensors, 0.3)
    lerp_lists_(a_tensors, b_tensors, 0.3)
    for mine, theirs in zip(a_tensors, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_bad_lists_are_refused():
    a, b = torch.randn(4), torch.randn(4)
    with pytest.raises(ValueError, match="1 tensors a and 2 tensors b"):
        lerp_lists_([a], [a, b], 0.5)
    with pytest.raises(ValueError, match=r"pair 1: .*\(4,\).*\(5,\)"):
        lerp_lists_([a, b], [b, torch.randn(5)], 0.5)
    with pytest.raises(ValueError, match="floating"):
        lerp_lists_([torch.ones(3, dtype=torch.int64)], [torch.ones(3, dtype=torch.int64)], 0.5)
    with pytest.raises(ValueError, match="second time"):
        lerp_lists_([a, b], [b, a], 0.5)
    with pytest.raises(ValueError, match="second time"):
        lerp_lists_([a, a], [b, torch.randn(4)], 0.5)


def test_empty_lists_do_nothing(device):
    lerp_lists_([], [], 0.5)
    nothing = torch.zeros(0, 3, device=device)
    lerp_lists_([nothing, nothing], [nothing, nothing], 0.5)
