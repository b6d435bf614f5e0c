"""SGD on the rows of [M, P], by torch and by the Triton kernel, against float64 and torch.optim.SGD."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwi.kernels import sgd as sgd_module
from fastwi.kernels.sgd import sgd_, sgd_reference_

# Roundings of one step, in units of the sum of its terms' sizes: wd, mu and the inverse scale (3), products (4), sums
# (4), each at most 2^-24 of it, twice under Nesterov. 2^-20 is 16 of them.
STEP_EPS, EPS = 2.0**-20, 2.0**-23
FORMS = [(0.9, 5e-4, False), (0.8, 0.1, True), (0.8, 0.0, True), (0.0, 0.1, False), (0.7, 0.0, False)]


@pytest.fixture(params=["torch", "triton"])
def device(request, monkeypatch):
    """The device to test on, with dispatch sent down one of the two paths."""
    if request.param == "torch":
        return torch.device("cpu")
    pytest.importorskip("triton")
    monkeypatch.setattr(sgd_module, "has_triton", lambda device: True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    def step(self, momentum: float, weight_decay: float, nesterov: bool, **more: Any) -> None:
        sgd_(
            self.w_MP, self.g_MP, self.v_MP, more.pop("rate", self.rate_M), momentum=momentum,
            weight_decay=weight_decay, nesterov=nesterov, **more,
        )  # fmt: skip


def draw(seed: int, device: torch.device, members: int = 3, columns: int = 700) -> Matrices:
    """Random matrices; rates from 0.01 to 0.5, all different."""
    generator = torch.Generator().manual_seed(seed)
    w_MP, g_MP, v_MP = (torch.randn(members, columns, generator=generator).to(device) for _ in range(3))
    rate_M = 0.01 + 0.49 * (torch.arange(members) + torch.rand(members, generator=generator)) / members
    return Matrices(w_MP, g_MP, v_MP, rate_M.to(device))


def check_step(before: Matrices, after: Matrices, form: tuple[float, float, bool], inverse: float = 1.0) -> None:
    """Hold one step to float64, with bounds from float32's roundings. The gradient is left as it was."""
    momentum, weight_decay, nesterov = form
    w_MP, g_MP, v_MP, rate_M = (x.double() for x in (before.w_MP, before.g_MP, before.v_MP, before.rate_M))
    terms_MP = (inverse * g_MP).abs() + weight_decay * w_MP.abs()
    if momentum:
        terms_MP = (1 + momentum) * (terms_MP + momentum * v_MP.abs())
    inverse_M = torch.full_like(rate_M, inverse)
    sgd_reference_(w_MP, g_MP, v_MP, rate_M, momentum, weight_decay, nesterov, inverse_scale_M=inverse_M)
    v_bound = STEP_EPS * terms_MP if momentum else 0.0
    assert ((after.v_MP - v_MP).abs() <= v_bound).all()
    bound_MP = EPS * w_MP.abs() + rate_M[:, None] * 2 * STEP_EPS * terms_MP
    assert ((after.w_MP - w_MP).abs() <= bound_MP).all()
    assert torch.equal(after.g_MP, before.g_MP)


@pytest.mark.parametrize("columns", [1, 3, 2047, 2048, 2049, 4100])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_one_step_against_float64(seed, device, columns, form):
    after = draw(seed, device, 1 + seed % 4, columns)
    before = after.clone()
    after.step(*form)
    check_step(before, after, form)
    assert not torch.equal(after.w_MP, before.w_MP)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_several_steps_against_torch(seed, device, nesterov, weight_decay):
    """torch.optim.SGD in float64, one optimizer a member. Errors of a step pass into the next: the bound does too."""
    momentum, drawn = 0.8, draw(seed, device, 3, 300)
    drawn.v_MP.zero_()
    rows = [torch.nn.Parameter(row.double()) for row in drawn.w_MP]
    optimizers = [
        torch.optim.SGD([row], lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
        for row, lr in zip(rows, drawn.rate_M.tolist(), strict=True)
    ]
    rate_M1 = drawn.rate_M.double()[:, None]
    w_error, v_error, v_size = (torch.zeros_like(drawn.w_MP, dtype=torch.float64) for _ in range(3))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        drawn.g_MP.copy_(torch.randn(3, 300, generator=generator))
        terms = drawn.g_MP.double().abs() + weight_decay * torch.stack(rows).detach().abs()
        d_error = weight_decay * w_error
        for row, gradient, optimizer in zip(rows, drawn.g_MP, optimizers, strict=True):
            row.grad = gradient.double()
            optimizer.step()
        v_error = momentum * v_error + d_error + STEP_EPS * (terms + momentum * v_size)
        v_size = momentum * v_size + terms
        step_error = (momentum * v_error + d_error if nesterov else v_error) + 2 * STEP_EPS * (terms + v_size)
        expected_MP = torch.stack(rows).detach()
        w_error = w_error + rate_M1 * step_error + EPS * expected_MP.abs()
        drawn.step(momentum, weight_decay, nesterov)
        assert ((drawn.w_MP - expected_MP).abs() <= w_error).all()
        assert w_error.max() < 2e-3  # so that a wrong sign or a forgotten term shows


@pytest.mark.parametrize("form", FORMS[:4], ids=str)
def test_inverse_scale(seed, device, form):
    """Powers of two, as gradient scales are, and others; one a member, or one for all."""
    for inverse in (2.0**-14, 0.3):
        before = draw(seed, device)
        before.g_MP.mul_(1 / inverse)
        alone, each = before.clone(), before.clone()
        alone.step(*form, inverse_scale=torch.tensor([inverse], device=device))
        check_step(before, alone, form, inverse)
        each.step(*form, inverse_scale=torch.full((3,), inverse, device=device))
        assert torch.equal(alone.w_MP, each.w_MP)
        assert torch.equal(alone.v_MP, each.v_MP)
    different = before.clone()
    inverse_M = torch.tensor([0.3, 0.7, 2.0], device=device)
    different.step(*form, inverse_scale=inverse_M)
    for m, inverse in enumerate(inverse_M.tolist()):
        check_step(before.rows(slice(m, m + 1)), different.rows(slice(m, m + 1)), form, inverse)


def test_rate_table_picks_the_step(seed, device):
    before, form = draw(seed, device), FORMS[1]
    rates_SM = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)).to(device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    for s in range(5):
        by_table, by_row = before.clone(), before.clone()
        by_table.step(*form, rate=rates_SM, step=step)
        by_row.step(*form, rate=rates_SM[s])
        assert torch.equal(by_table.w_MP, by_row.w_MP)
        step += 1
    expanded, repeated = before.clone(), before.clone()
    expanded.step(*form, rate=rates_SM[2, :1].expand(3))
    repeated.step(*form, rate=rates_SM[2, :1].repeat(3))
    assert torch.equal(expanded.w_MP, repeated.w_MP)
    table, rate_S1 = before.clone(), rates_SM[:, :1]
    table.step(*form, rate=rate_S1.expand(5, 3), step=torch.tensor([2], device=device))
    assert torch.equal(table.w_MP, repeated.w_MP)


# Triton's interpreter computes inf - inf with NumPy, which warns; the kernel's select then discards it.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("form", FORMS[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_skipped_members_stay(seed, device, form, dtype, scaled):
    drawn = draw(seed, device, 4, 2500)
    more = {"inverse_scale": torch.tensor([0.5], device=device)} if scaled else {}
    plain, skipping = drawn.clone(), drawn.clone()
    plain.step(*form, **more)
    spoilt = torch.tensor([float("inf"), float("nan"), -float("inf")], device=device).repeat(834)[:2500]
    skipping.g_MP[1], skipping.g_MP[2] = spoilt, spoilt.flip(0)
    low_MP = torch.zeros_like(skipping.w_MP, dtype=torch.float16)
    skipping.step(*form, skip_M=torch.tensor([0, 1, 1, 0], device=device).to(dtype), low_MP=low_MP, **more)
    for m, expected in enumerate((plain, drawn, drawn, plain)):
        assert torch.equal(skipping.w_MP[m], expected.w_MP[m])
        assert torch.equal(skipping.v_MP[m], expected.v_MP[m])
    assert torch.equal(low_MP, skipping.w_MP.half())
    none = drawn.clone()
    none.step(*form, skip_M=torch.zeros(4, dtype=dtype, device=device), **more)
    assert torch.equal(none.w_MP, plain.w_MP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [5, 2048, 2060])
def test_low_copy_is_the_new_weights_rounded(seed, device, dtype, columns):
    without = draw(seed, device, columns=columns)
    low_MP = torch.zeros(3, columns, dtype=dtype, device=device)
    with_low = without.clone()
    without.step(*FORMS[0])
    with_low.step(*FORMS[0], low_MP=low_MP)
    assert torch.equal(with_low.w_MP, without.w_MP)
    assert torch.equal(with_low.v_MP, without.v_MP)
    assert torch.equal(low_MP, with_low.w_MP.to(dtype))


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


def test_no_momentum_leaves_it_alone(seed, device):
    drawn = draw(seed, device)
    same = drawn.clone()
    drawn.v_MP.fill_(float("nan"))
    drawn.step(0.0, 0.1, False)
    same.step(0.0, 0.1, False)
    assert torch.equal(drawn.w_MP, same.w_MP)
    assert drawn.v_MP.isnan().all()


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


def test_reference_reads_no_value_on_the_host():
    """Tensors on the meta device have none: .item() and its like raise."""
    w_MP, g_MP, v_MP = torch.empty(3, 2, 5, device="meta")
    more = {
        "skip_M": torch.empty(2, device="meta", dtype=torch.bool),
        "inverse_scale_M": torch.empty(2, device="meta"),
    }
    low_MP = torch.empty(2, 5, device="meta", dtype=torch.bfloat16)
    sgd_reference_(w_MP, g_MP, v_MP, torch.empty(2, device="meta"), 0.9, 0.1, True, low_MP, **more)
    sgd_(
        w_MP, g_MP, v_MP, torch.empty(7, 2, device="meta"), momentum=0.9,
        step=torch.empty(1, dtype=torch.int64, device="meta"),
    )  # fmt: skip


def test_empty_matrices(device):
    draw(0, device, 1, 5).rows(slice(0, 0)).step(*FORMS[0])
    draw(0, device, 3, 0).step(*FORMS[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": torch.ones(2)}, r"rate is torch.float32 \(2,\)"),
        ({"rate": torch.ones(4, 3)}, r"rate is torch.float32 \(4, 3\)"),
        ({"rate": torch.ones(3), "step": torch.zeros(1, dtype=torch.int64)}, r"rate is torch.float32 \(3,\)"),
        ({"rate": torch.ones(3).double()}, "rate is torch.float64"),
        ({"rate": torch.ones(4, 3), "step": torch.zeros(1)}, "step is torch.float32"),
        ({"gradient_MP": torch.ones(3, 8)}, r"gradient_MP is torch.float32 \(3, 8\)"),
        ({"momentum_MP": torch.ones(3, 7).bfloat16()}, "momentum_MP is torch.bfloat16"),
        ({"momentum_MP": torch.ones(7, 3).T}, "momentum_MP has strides"),
        ({"weights_MP": torch.ones(1, 7).expand(3, 7)}, "weights_MP has strides"),
        ({"low_MP": torch.ones(3, 7)}, "low_MP is torch.float32"),
        ({"skip_M": torch.ones(3)}, "skip_M is torch.float32"),
        ({"inverse_scale": torch.ones(2)}, r"inverse_scale is torch.float32 \(2,\)"),
        ({"inverse_scale": torch.ones(3, device="meta")}, "inverse_scale is torch.float32 .3,. on meta"),
    ],
)
def test_refuses(change, message):
    names = ("weights_MP", "gradient_MP", "momentum_MP")
    arguments = {**{name: torch.ones(3, 7) for name in names}, "rate": torch.ones(3), "momentum": 0.9, **change}
    with pytest.raises(ValueError, match=message):
        sgd_(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_graph_replays_with_other_rates(seed):
    device = torch.device("cuda")
    drawn, rates_SM = draw(seed, device, 3, 4100), torch.rand(6, 3, device=device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    eager, captured = drawn.clone(), drawn.clone()
    captured.step(*FORMS[1], rate=rates_SM, step=step)
    for mine, theirs in ((captured.w_MP, drawn.w_MP), (captured.v_MP, drawn.v_MP)):
        mine.copy_(theirs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step(*FORMS[1], rate=rates_SM, step=step)
        step.add_(1)
    for s in range(6):
        graph.replay()
        eager.step(*FORMS[1], rate=rates_SM[s])
        assert torch.equal(captured.w_MP, eager.w_MP)


SCRIPT = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastwi.kernels.sgd_triton import BLOCK, WARPS, sgd_kernel

floats = ("weights_MP", "gradient_MP", "momentum_MP", "rate_SM", "inverse_M")
signature = dict.fromkeys(sgd_kernel.arg_names, "i32") | dict.fromkeys(floats, "*fp32")
signature |= dict(step="*i64", skip_M="*u8", low_MP="*bf16", mu="fp32", wd="fp32")
constants = dict(NESTEROV=True, ALIGN=16, LOW_ALIGN=8, BLOCK=BLOCK)
for absent in ((), ("momentum_MP", "step", "inverse_M", "skip_M", "low_MP")):
    given = constants | dict.fromkeys(absent)
    source = ASTSource(sgd_kernel, signature | dict.fromkeys(given, "constexpr"), given)
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"], "=====")
"""


def test_compiles_for_a_gpu_with_wide_accesses(tmp_path):
    """Which the interpreter can't show. Blocks that are full move 8 values a thread, 4 at a time, in each matrix."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, least, _ = done.stdout.split("=====")
    for ptx, loads, stores, low_stores in ((whole, 3, 2, 1), (least, 2, 1, 0)):
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 2 * loads
        assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 2 * stores
        assert len(re.findall(r"st\.global\.v2\.b32", ptx)) == 2 * low_stores
        assert "shared" not in re.findall(r"(?:ld|st)\.(\w+)", ptx)
