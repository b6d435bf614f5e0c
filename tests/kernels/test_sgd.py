"""SGD on the rows of [M, P], by torch and by the Triton kernel, against float64 and torch.optim.SGD."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwi.config.schema import OptimizerConfig
from fastwi.kernels.sgd import sgd_, sgd_reference_

# Roundings of one step, in units of the sum of its terms' sizes: wd and mu (2), products (3), sums (3), each at most
# 2^-24 of it, twice under Nesterov. 2^-20 is 16 of them.
STEP_EPS, EPS = 2.0**-20, 2.0**-23
DTYPES = [torch.bfloat16, torch.float16]
FORMS = [(0.9, 5e-4, False), (0.8, 0.1, True), (0.8, 0.0, True), (0.0, 0.1, False), (0.7, 0.0, False)]


@dataclass(frozen=True)
class Matrices:
    """weights, gradient and momentum of M members, and their rates."""

    w_MP: Tensor
    g_MP: Tensor
    v_MP: Tensor
    rate_M: Tensor

    def clone(self) -> "Matrices":
        return Matrices(self.w_MP.clone(), self.g_MP.clone(), self.v_MP.clone(), self.rate_M.clone())

    def rows(self, rows: slice) -> "Matrices":
        return Matrices(self.w_MP[rows], self.g_MP[rows], self.v_MP[rows], self.rate_M[rows])

    def step(self, momentum: float, weight_decay: float, nesterov: bool, rate=None, **more: Any) -> None:
        rate_M = self.rate_M if rate is None else rate
        sgd_(self.w_MP, self.g_MP, self.v_MP, rate_M, optimizer(momentum, weight_decay, nesterov), **more)


def optimizer(momentum: float, weight_decay: float, nesterov: bool) -> OptimizerConfig:
    return OptimizerConfig(momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def draw(seed: int, device: torch.device, members: int = 3, columns: int = 700) -> Matrices:
    """Random matrices; rates from 0.01 to 0.5, all different."""
    generator = torch.Generator().manual_seed(seed)
    w_MP, g_MP, v_MP = (torch.randn(members, columns, generator=generator).to(device) for _ in range(3))
    rate_M = 0.01 + 0.49 * (torch.arange(members) + torch.rand(members, generator=generator)) / members
    return Matrices(w_MP, g_MP, v_MP, rate_M.to(device))


def check_step(before: Matrices, after: Matrices, form: tuple[float, float, bool]) -> None:
    """Hold one step to float64, with bounds from float32's roundings. The gradient is left as it was."""
    momentum, weight_decay, _ = form
    w_MP, g_MP, v_MP, rate_M = (x.double() for x in (before.w_MP, before.g_MP, before.v_MP, before.rate_M))
    terms_MP = g_MP.abs() + weight_decay * w_MP.abs()
    if momentum:
        terms_MP = (1 + momentum) * (terms_MP + momentum * v_MP.abs())
    sgd_reference_(w_MP, g_MP, v_MP, rate_M, optimizer(*form))
    v_bound = STEP_EPS * terms_MP if momentum else 0.0
    assert ((after.v_MP - v_MP).abs() <= v_bound).all()
    bound_MP = EPS * w_MP.abs() + rate_M[:, None] * 2 * STEP_EPS * terms_MP
    assert ((after.w_MP - w_MP).abs() <= bound_MP).all()
    assert torch.equal(after.g_MP, before.g_MP)


@pytest.mark.parametrize(
    ("columns", "low"),
    [*itertools.product((1, 3, 2048, 4100), DTYPES), (2047, DTYPES[0]), (2049, DTYPES[1])],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_step_against_float64(seed, device, columns, form, low):
    """Without momentum it is left alone. The low copy is the new weights, rounded."""
    after = draw(seed, device, 1 + seed % 4, columns)
    before = after.clone()
    low_MP = torch.zeros_like(after.w_MP, dtype=low)
    after.step(*form, low_MP=low_MP)
    check_step(before, after, form)
    assert not torch.equal(after.w_MP, before.w_MP)
    assert torch.equal(low_MP, after.w_MP.to(low_MP.dtype))
    without = before.clone()
    if not form[0]:
        without.v_MP.fill_(float("nan"))
    without.step(*form, rate=before.rate_M.repeat_interleave(2)[::2])
    assert torch.equal(without.w_MP, after.w_MP)


@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_the_reference_is_torchs(seed, form):
    """torch.optim.SGD in float64, one optimizer a member, over several steps."""
    momentum, weight_decay, nesterov = form
    drawn = draw(seed, torch.device("cpu"), 3, 300)
    w_MP, g_MP, v_MP, rate_M = (x.double() for x in (drawn.w_MP, drawn.g_MP, drawn.v_MP, drawn.rate_M))
    v_MP.zero_()
    rows = [torch.nn.Parameter(row.clone()) for row in w_MP]
    optimizers = [
        torch.optim.SGD([row], lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
        for row, lr in zip(rows, rate_M.tolist(), strict=True)
    ]
    for _ in range(5):
        g_MP = g_MP.roll(7, 1) + 0.1
        for row, gradient, torchs in zip(rows, g_MP, optimizers, strict=True):
            row.grad = gradient
            torchs.step()
        sgd_reference_(w_MP, g_MP, v_MP, rate_M, optimizer(*form))
    torch.testing.assert_close(w_MP, torch.stack(rows).detach(), rtol=1e-12, atol=1e-12)


# Triton's interpreter computes inf - inf with NumPy, which warns; the kernel's select then discards it.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("form", FORMS[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8], ids=str)
def test_skipped_members_stay(seed, device, form, dtype):
    drawn = draw(seed, device, 4, 2500)
    plain, skipping = drawn.clone(), drawn.clone()
    plain.step(*form)
    spoilt = torch.tensor([float("inf"), float("nan"), -float("inf")], device=device).repeat(834)[:2500]
    skipping.g_MP[1], skipping.g_MP[2] = spoilt, spoilt.flip(0)
    low_MP = torch.zeros_like(skipping.w_MP, dtype=torch.float16)
    skipping.step(*form, skip_M=torch.tensor([0, 1, 1, 0], device=device).to(dtype), low_MP=low_MP)
    for m, expected in enumerate((plain, drawn, drawn, plain)):
        assert torch.equal(skipping.w_MP[m], expected.w_MP[m])
        assert torch.equal(skipping.v_MP[m], expected.v_MP[m])
    assert torch.equal(low_MP, skipping.w_MP.half())
    none = drawn.clone()
    none.step(*form, skip_M=torch.zeros(4, dtype=dtype, device=device))
    assert torch.equal(none.w_MP, plain.w_MP)


@pytest.mark.parametrize("columns", [33, 4100])
def test_a_member_does_not_depend_on_its_neighbours(seed, device, columns):
    drawn = draw(seed, device, 4, columns)
    together = drawn.clone()
    together.step(*FORMS[0])
    for m in range(4):
        alone = drawn.rows(slice(m, m + 1)).clone()
        alone.step(*FORMS[0])
        assert torch.equal(alone.w_MP[0], together.w_MP[m])
        assert torch.equal(alone.v_MP[0], together.v_MP[m])


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("gap", [0, 1, 4])
def test_rows_with_gaps(seed, device, start, gap):
    """Rows at any address, and nothing written between them."""
    drawn, form = draw(seed, device, 3, 2100), FORMS[1]
    wide, low = draw(seed + 1, device, 3, 2100 + start + gap), torch.ones(3, 2103, dtype=torch.float16, device=device)
    before, inner = wide.clone(), slice(start, start + 2100)
    apart = Matrices(wide.w_MP[:, inner], wide.g_MP[:, inner], wide.v_MP[:, inner], drawn.rate_M)
    for mine, theirs in zip((apart.w_MP, apart.g_MP, apart.v_MP), (drawn.w_MP, drawn.g_MP, drawn.v_MP), strict=True):
        mine.copy_(theirs)
    apart.step(*form, low_MP=low[:, 3:])
    check_step(drawn, apart, form)
    assert torch.equal(low[:, 3:], apart.w_MP.half())
    assert (low[:, :3] == 1).all()
    for mine, theirs in ((wide.w_MP, before.w_MP), (wide.v_MP, before.v_MP)):
        assert torch.equal(mine[:, :start], theirs[:, :start])
        assert torch.equal(mine[:, start + 2100 :], theirs[:, start + 2100 :])


def test_reads_no_value_on_the_host_where_it_is_not_the_cpu():
    """Tensors on the meta device have none: .item() and its like raise."""
    w_MP, g_MP, v_MP = torch.empty(3, 2, 5, device="meta")
    low_MP, skip_M = torch.empty(2, 5, device="meta", dtype=torch.bfloat16), torch.empty(2, device="meta")
    rate_M = torch.empty(2, device="meta")
    sgd_(w_MP, g_MP, v_MP, rate_M, optimizer(0.9, 0.1, True), low_MP, skip_M)


def test_empty_matrices(device):
    draw(0, device, 1, 5).rows(slice(0, 0)).step(*FORMS[0])
    draw(0, device, 3, 0).step(*FORMS[0])
