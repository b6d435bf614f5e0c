"""Both gradients of a convolution by one kernel, in the emulator, and by torch: against float64.

Shapes: M members, N images, H W height and width, C channels.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from benchmarks.kernels_model import ctas_per_sm, find_cuobjdump, read_cubin
from fastwi.kernels.compiler import compiler
from fastwi.kernels.halo import backward
from fastwi.kernels.halo.backward import NormOf, gradients, kernel_for, takes
from fastwi.kernels.halo.build import cubin

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


def by_kernel(*arguments) -> tuple[Tensor, Tensor | None, Tensor]:
    """`gradients` by the kernel; on a CPU in the emulator."""
    with mock.patch.object(backward, "runs_here", return_value=True):
        return gradients(*arguments)


WAYS = [pytest.param(by_kernel, id="kernel", marks=needs_compiler), pytest.param(gradients, id="torch")]
# Channels, height, width, images: several CTAs, whole and part tiles, one image in several tiles and the reverse.
SIZES = [(16, 32, 32, 2), (16, 24, 8, 3), (32, 16, 16, 5), (64, 8, 8, 3), (64, 16, 32, 1)]
EPS = 1e-5


@pytest.fixture(autouse=True)
def many_members(monkeypatch):
    """CTAs have as many tiles as for many members, where there are few."""
    monkeypatch.setattr(backward, "MULTIPROCESSORS", 0)


@dataclass(frozen=True)
class Case:
    """The arguments of `gradients`, all float64 where the kernel has bf16 or float32."""

    g: Tensor
    x: Tensor
    weight: Tensor
    relu: bool = False
    y: Tensor | None = None
    y_stats: Tensor | None = None
    made: Tensor | None = None
    x_stats: Tensor | None = None
    residual: Tensor | None = None
    u: Tensor | None = None
    u_stats: Tensor | None = None

    def run(self, way, members: slice = slice(None), device: str = "cpu") -> tuple[Tensor, Tensor | None, Tensor]:
        """The results of one of the two ways, for some members. The weights lie in rows with other values."""

        def own(x: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor | None:
            return None if x is None else x[members].to(device, dtype).contiguous()

        def norm(x: Tensor | None, stats: Tensor | None) -> NormOf | None:
            return None if x is None else NormOf(own(x), own(stats, torch.float32))

        M, C = len(self.weight), self.weight.shape[1]
        rows_MP = torch.full((M, 4 + 9 * C * C + 8), torch.nan, dtype=torch.bfloat16)
        rows_MP[:, 4:-8] = self.weight.flatten(1)
        weight = rows_MP.to(device)[members, 4:-8].view(-1, C, 3, 3, C)
        return way(
            own(self.g), norm(self.y, self.y_stats), own(self.made, torch.float32), own(self.x),
            own(self.x_stats, torch.float32), self.relu, weight, own(self.residual),
            norm(self.u, self.u_stats),
        )  # fmt: skip

    def exact(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The same in float64; dy and a are rounded to bf16, as their products need them."""
        dy, a = self.g, self.x
        if self.y is not None:
            y = self.y.requires_grad_()
            images = [v.permute(0, 3, 1, 2) for v in y]
            scale = self.y_stats[:, 2] / self.y_stats[:, 1]
            z = [
                functional.batch_norm(v, None, None, w, None, True, 0.0, EPS)
                for v, w in zip(images, scale, strict=True)
            ]
            (dy,) = torch.autograd.grad(torch.stack(z).permute(0, 1, 3, 4, 2), y, dy)
        if self.x_stats is not None:
            a = a * self.x_stats[:, 2, None, None, None] + self.x_stats[:, 3, None, None, None]
            a = a.relu() if self.relu else a
        dx, dw = [], []
        for w, own_dy, own_a in zip(self.weight, dy.bfloat16().double(), a.bfloat16().double(), strict=True):
            w_OIHW, dy_NOHW, a_NIHW = (v.permute(0, 3, 1, 2) for v in (w, own_dy, own_a))
            dx.append(conv2d_input(a_NIHW.shape, w_OIHW, dy_NOHW, 1, 1))
            dw.append(conv2d_weight(a_NIHW, w_OIHW.shape, dy_NOHW, 1, 1))
        made, dw = (torch.stack(v).movedim(2, -1) for v in (dx, dw))
        if self.residual is not None:
            made = made + self.residual
        if self.relu:
            made = torch.where(a > 0, made, 0)
        if self.u is None:
            return made, None, dw
        xhat = (self.u - self.u_stats[:, 0, None, None, None]) * self.u_stats[:, 1, None, None, None]
        return made, torch.stack([made.sum((1, 2, 3)), (made * xhat).sum((1, 2, 3))], 1), dw


def case(seed: int, kind: str, M: int, N: int, H: int, W: int, C: int) -> Case:
    """A convolution inside a block, at the boundary of two blocks, on its own, and without a norm behind it."""
    draw = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).double()

    def activation() -> Tensor:
        x = values(M, N, H, W, C) * (values(M, 1, 1, 1, C).abs() + 0.2) + values(M, 1, 1, 1, C)
        return x.bfloat16().double()

    def statistics(x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (1, 2, 3), correction=0)
        inverse, weight, bias = (var + EPS).rsqrt(), values(M, C), values(M, C)
        return torch.stack([mean, inverse, weight * inverse, bias - mean * weight * inverse], 1).float().double()

    x, y, u = activation(), activation(), activation()
    made = Case(
        values(M, N, H, W, C).bfloat16().double(), x, (values(M, C, 3, 3, C) / 3 / C**0.5).bfloat16().double()
    )
    x_stats, y_stats, u_stats = statistics(x), statistics(y), statistics(u)
    xhat = (y - y_stats[:, 0, None, None, None]) * y_stats[:, 1, None, None, None]
    sums = torch.stack([made.g.sum((1, 2, 3)), (made.g * xhat).sum((1, 2, 3))], 1)
    behind = {"y": y, "y_stats": y_stats, "made": sums}
    if kind == "inside":
        return replace(made, **behind, x_stats=x_stats, relu=True, u=x, u_stats=x_stats)
    if kind == "boundary":
        more = {"residual": activation(), "u": u, "u_stats": u_stats}
        return replace(made, **behind, x=x.relu(), relu=True, **more)
    if kind == "before":
        return replace(made, x_stats=x_stats, relu=True, residual=activation(), u=u, u_stats=u_stats)
    return made


def assert_near(found: tuple[Tensor | None, ...], exact: tuple[Tensor | None, ...]) -> None:
    """Of each member, and of each row of the image for dx: a wrong border would be few of all values."""
    dx, sums, dw = found
    assert (dx.dtype, dw.dtype) == (torch.bfloat16, torch.float32)
    pairs = [(dx.movedim(2, 1).flatten(0, 1), exact[0].movedim(2, 1).flatten(0, 1), 5e-3)]
    pairs.append((dw.double().sum(1), exact[2], 1e-3))
    pairs += [(dx.movedim(3, 1).flatten(0, 1), exact[0].movedim(3, 1).flatten(0, 1), 5e-3)]
    if exact[1] is not None:
        pairs.append((sums.double().sum(1), exact[1], 5e-3))
    else:
        assert sums is None
    for own, value, near in pairs:
        assert own.shape == value.shape
        for a, b in zip(own.double(), value, strict=True):
            assert (a - b).norm() <= near * b.norm(), f"{(a - b).norm() / b.norm():.1e} of {tuple(value.shape)}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["inside", "boundary", "plain", "before"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients(seed, size, kind, way):
    C, H, W, N = size
    own = case(seed, kind, 2, N, H, W, C)
    assert_near(own.run(way), own.exact())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["inside", "boundary", "plain", "before"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_on_a_gpu(seed, size, kind):
    C, H, W, N = size
    own = case(seed, kind, 2, N, H, W, C)
    assert_near(tuple(x if x is None else x.cpu() for x in own.run(by_kernel, device="cuda")), own.exact())


@needs_compiler
def test_many_images_of_64_channels(seed):
    """Two CTAs, the last with 3 of a tile's 4 images."""
    own = case(seed, "inside", 1, 35, 8, 8, 64)
    assert_near(own.run(by_kernel), own.exact())


@needs_compiler
@pytest.mark.parametrize("size", [SIZES[1], SIZES[3]], ids=str)
def test_a_member_does_not_depend_on_the_others(seed, size):
    C, H, W, N = size
    own = case(seed, "inside", 3, N, H, W, C)
    together = own.run(by_kernel)
    for m in range(3):
        for a, b in zip(own.run(by_kernel, slice(m, m + 1)), together, strict=True):
            assert torch.equal(a[0], b[m])


@needs_compiler
def test_weights_may_be_at_any_address(seed):
    def moved(g, y, made, x, stats, relu, weight, *rest):
        memory = torch.empty(weight.numel() + 1, dtype=weight.dtype)
        return by_kernel(g, y, made, x, stats, relu, memory[1:].view(weight.shape).copy_(weight), *rest)

    one = case(seed, "inside", 1, 1, 24, 8, 16)
    for own, other in zip(one.run(by_kernel), one.run(moved), strict=True):
        assert torch.equal(own, other)


@needs_compiler
def test_values_that_are_not_finite_stay(seed):
    own = case(seed, "before", 1, 3, 24, 8, 16)
    own.g[0, 0, 5, 3, 2], own.g[0, 1, 12, 4, 7] = torch.nan, torch.inf
    own.x[0, 2, 9, 4, 11] = torch.nan
    for found, exact in zip(own.run(by_kernel), own.exact(), strict=True):
        found = found.sum(1) if found.shape != exact.shape else found
        assert torch.equal(found.isfinite(), exact.isfinite())
        assert not found.isfinite().all()
        assert found.isfinite().any() or found.dim() == 3  # sums may all be NaN


@needs_compiler
def test_few_members_have_more_partial_sums(seed, monkeypatch):
    own = case(seed, "inside", 1, 8, 16, 16, 32)
    few = own.run(by_kernel)
    monkeypatch.setattr(backward, "MULTIPROCESSORS", 8)
    more = own.run(by_kernel)
    assert (few[2].shape[1], more[2].shape[1]) == (2, 8)
    assert torch.equal(few[0], more[0])
    assert_near(more, own.exact())
    places = 128 * 1024
    monkeypatch.setattr(backward, "MULTIPROCESSORS", 132)
    assert [backward.tiles_for(members, places, 16) for members in (1, 2, 64)] == [2, 4, 4]
    assert [backward.tiles_for(members, places // 16, 64) for members in (1, 2, 64)] == [1, 1, 8]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert backward.tiles_for(1, places // 16, 64) == 8


def test_what_the_kernel_takes():
    x, weight = torch.zeros(1, 2, 8, 16, 32, dtype=torch.bfloat16), torch.zeros(1, 32, 3, 3, 32)
    assert takes(x, weight, 1, 1)
    assert not takes(x, weight, 2, 1)
    assert not takes(x, weight, 1, 0)
    assert not takes(x.float(), weight, 1, 1)
    assert not takes(x[:, :, :7], weight, 1, 1)
    assert not takes(x[:, :, :, :12], weight, 1, 1)
    assert not takes(x[..., :16], weight, 1, 1)
    assert not takes(x[..., :8], weight[:, :8, ..., :8], 1, 1)
    x = torch.empty(1, 2**17, 32, 32, 16, dtype=torch.bfloat16, device="meta")  # 2^31 values a member
    weight = torch.empty(1, 16, 3, 3, 16, device="meta")
    assert not takes(x, weight, 1, 1)
    assert takes(x[:, 1:], weight, 1, 1)


def test_needs_contiguous_activations(seed):
    own = case(seed, "plain", 1, 1, 8, 8, 16)
    x = own.x.bfloat16().transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous"):
        by_kernel(x.contiguous(), None, None, x, None, False, own.weight.bfloat16())


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_compiles_for_a_gpu_without_spills(channels):
    """ResNet20's convolutions. 16-byte loads of activations, and as many CTAs as the kernel was written for."""
    pytest.importorskip("cuda.bindings.nvrtc")
    tool = find_cuobjdump(str(Path(pytest.importorskip("triton").__file__).parent))
    if shutil.which(tool) is None:
        pytest.skip("no cuobjdump")
    kernel = kernel_for(512 // channels, 512 // channels, channels, backward._TILES[channels])
    code = read_cubin(cubin(kernel, "sm_90"), tool)
    assert code.usage.stack == code.count("LDL|STL") == 0
    assert set(code.widths(r"LDG\.")) == {16, 8, 4}  # 8: at dx's places; 4: weights and constants
    assert set(code.widths("STG")) == {8, 4}  # 4: sums
    assert (
        ctas_per_sm(code.usage.registers, kernel.shared_bytes, kernel.threads // 32, 90) >= backward._CTAS[channels]
    )
    assert kernel.shared_bytes <= 99 << 10  # of sm_86, sm_89 and sm_120
