"""Convolutions by halo tiles: their own source on the emulator, against its arithmetic in torch, and float64."""

import ctypes
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels_model import ctas_per_sm, find_cuobjdump, read_cubin
from fastwi.kernels import stacked_conv
from fastwi.kernels.compiler import compiler
from fastwi.kernels.halo import build, conv
from fastwi.kernels.stacked_geometry import Geometry

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
M = 2
# C, H, W, images; batch norm in the prologue (None: none) with ReLU or without; statistics
CASES = [
    (16, 8, 8, 4, None, True),
    (16, 9, 20, 1, True, True),  # tiles beyond the image
    (16, 8, 32, 2, True, False),  # as in ResNet20's first stage
    (32, 16, 16, 1, True, True),
    (32, 6, 7, 3, False, True),  # an image that is not there
    (64, 8, 8, 4, True, True),
    (64, 5, 12, 1, None, False),
]


def drawn(seed: int, C: int, H: int, W: int, N: int) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    """x, the weights as columns of rows that are 8-byte aligned and no more, stats_M4C and the geometry."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(M, N, H, W, C, generator=draw).bfloat16()
    rows = (torch.randn(M, 12 + 9 * C * C + 4, generator=draw) * (9 * C) ** -0.5).bfloat16()
    weight = rows[:, 4 : 4 + 9 * C * C].view(M, C, 3, 3, C)
    mean, inverse, scale, shift = torch.randn(4, M, C, generator=draw)
    return x, weight, torch.stack([mean, inverse.exp(), scale, shift], 1), Geometry(x.shape, weight.shape, 1, 1)


def by_kernel(*arguments) -> tuple[Tensor, Tensor | None]:
    """`conv.forward` by the kernel; on a CPU in the emulator."""
    with mock.patch.object(conv, "runs_here", return_value=True):
        return conv.forward(*arguments)


def operand(x: Tensor, stats_M4C: Tensor | None, relu: bool) -> Tensor:
    """What is multiplied: x, or act(x scale + shift) with one rounding to float32 and one to bf16."""
    if stats_M4C is None:
        return x
    scale, shift = stats_M4C.double()[:, None, None, None, 2:].unbind(-2)
    a = (x.double() * scale + shift).float().bfloat16()
    return torch.where(a < 0, 0, a) if relu else a


def in_the_kernels_order(a: Tensor, weight: Tensor) -> Tensor:
    """float32 sums over kw, sixteens of channels and kh, of products that are exact up to their own sum."""
    H, W = a.shape[2:4]
    padded = functional.pad(a.double(), (0, 0, 1, 1, 1, 1))
    sums = torch.zeros(*a.shape[:4], weight.shape[1])
    for kw in range(3):
        for i in range(0, a.shape[-1], 16):
            for kh in range(3):
                window = padded[:, :, kh : kh + H, kw : kw + W, i : i + 16]
                product = torch.einsum("mnhwi,moi->mnhwo", window, weight[:, :, kh, kw, i : i + 16].double())
                sums = (sums.double() + product).float()
    return sums.bfloat16()


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_forward(seed, case):
    *sizes, prologue, statistics = case
    x, weight, stats, geometry = drawn(seed, *sizes)
    assert not weight[0].data_ptr() % 8
    given, relu = (None, False) if prologue is None else (stats, prologue)
    y, moments = by_kernel(x, weight, geometry, given, relu, statistics)
    a = operand(x, given, relu)
    assert torch.equal(y, in_the_kernels_order(a, weight))

    exact, _ = stacked_conv.forward(a.double(), weight.double(), geometry, None, False, False)
    sizes_of_sums, _ = stacked_conv.forward(a.double().abs(), weight.double().abs(), geometry, None, False, False)
    assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 2**-20 * sizes_of_sums).all()
    assert exact.abs().max() > 1

    assert (moments is not None) == statistics
    if moments is not None:
        count, total, squares = moments.double().unbind(2)
        places = y.double().flatten(1, 3)
        assert torch.equal(count.sum(1), torch.full_like(count[:, 0], places.shape[1]))
        torch.testing.assert_close(total.sum(1), places.sum(1), rtol=1e-5, atol=1e-4)
        about_zero = (squares + total.square() / count).sum(1)
        torch.testing.assert_close(about_zero, places.square().sum(1), rtol=1e-5, atol=0)


@needs_compiler
def test_moments_are_of_each_tile_about_its_own_mean(seed):
    """Far from 0, where squares about 0 would cancel."""
    x, weight, stats, geometry = drawn(seed, 16, 16, 16, 1)
    stats[:, 3] += 100
    weight[:, :, 0], weight[:, :, 2], weight[:, :, 1, 0], weight[:, :, 1, 2] = 0, 0, 0, 0  # so that borders are alike
    y, moments = by_kernel(x, weight, geometry, stats, True, True)
    assert moments is not None
    tiles = y.double().unflatten(2, (moments.shape[1], -1))  # M N T rows W C
    assert moments.shape[1] == 2
    count, total, squares = moments.double().unbind(2)
    assert (count == tiles[0, :, 0, :, :, 0].numel()).all()
    mean = tiles.mean((1, 3, 4))
    torch.testing.assert_close(total / count, mean, rtol=1e-6, atol=0)
    apart = (tiles - mean[:, None, :, None, None]).square().sum((1, 3, 4))
    torch.testing.assert_close(squares, apart, rtol=1e-5, atol=0)
    assert (squares < 0.1 * total.square() / count).double().mean() > 0.9


@needs_compiler
def test_results_depend_on_no_other_member_and_not_on_the_number_of_ctas(seed, monkeypatch):
    x, weight, stats, geometry = drawn(seed, 16, 8, 8, 6)
    together = by_kernel(x, weight, geometry, stats, True, True)
    for waves in (0, 1e9):  # one CTA a member; one a tile
        monkeypatch.setattr(conv, "_WAVES", waves)
        monkeypatch.setattr(conv, "MULTIPROCESSORS", 1)
        again = by_kernel(x, weight, geometry, stats, True, True)
        for found, expected in zip(again, together, strict=True):
            assert torch.equal(found, expected)
    one = Geometry(x[1:].shape, weight[1:].shape, 1, 1)
    alone = by_kernel(x[1:], weight[1:], one, stats[1:], True, True)
    for found, expected in zip(alone, together, strict=True):
        assert torch.equal(found[0], expected[1])
    assert not torch.equal(together[0][0], together[0][1])


@needs_compiler
@pytest.mark.parametrize("way", ["kernel", "torch"])
@pytest.mark.parametrize("sizes", [(32, 32, 16, 1), (16, 9, 20, 1)])
@pytest.mark.parametrize("added", [True, False])
def test_what_is_convolved_is_stored_once(seed, sizes, added, way):
    """The end of a block, whole: rows that two tiles read, and no more than the images."""
    x, weight, stats, geometry = drawn(seed, *sizes)
    draw = torch.Generator().manual_seed(seed + 1)
    residual = torch.randn(x.shape, generator=draw).bfloat16() if added else None
    scale, shift = stats.double()[:, None, None, None, 2:].unbind(-2)
    a = (x.double() * scale + shift).float()
    a = (a if residual is None else a + residual.float()).bfloat16()
    expected = torch.where(a < 0, 0, a)
    z = torch.full_like(x, torch.nan)
    function = by_kernel if way == "kernel" else conv.forward
    y, _ = function(x, weight, geometry, stats, True, True, residual, z)
    if way == "kernel":
        assert torch.equal(z, expected)
    else:
        torch.testing.assert_close(z, expected, rtol=2**-7, atol=1e-5)
        assert not z.isnan().any()
    plain, _ = function(z, weight, geometry, None, False, True)
    assert torch.equal(y, plain)


@needs_compiler
@pytest.mark.parametrize("prologue", [False, True])
def test_nan_passes_the_relu_and_reaches_its_neighbours_alone(seed, prologue):
    x, weight, stats, geometry = drawn(seed, 16, 8, 8, 4)
    x[1, 2, 3, 0, 5] = float("nan")
    y, moments = by_kernel(x, weight, geometry, stats if prologue else None, prologue, True)
    expected = torch.zeros(M, 4, 8, 8, dtype=torch.bool)
    expected[1, 2, 2:5, 0:2] = True
    assert torch.equal(y.isnan(), expected[..., None].expand_as(y))
    assert moments is not None
    assert torch.equal(moments[:, :, 1].isnan().any(-1), torch.tensor([[False, False], [False, True]]))


def test_what_does_not_fit_into_shared_memory_is_the_stacked_kernels(seed, monkeypatch):
    """64 channels on GPUs other than those of data centres."""
    x, weight, stats, geometry = drawn(seed, 64, 8, 8, 2)
    wide = conv.forward_kernel(geometry, True, True, True)
    narrow = conv.forward_kernel(Geometry((1, 2, 32, 32, 16), (1, 16, 3, 3, 16), 1, 1), True, True, True)
    for KiB, fits in ((99, False), (163, True), (None, False)):
        properties = SimpleNamespace() if KiB is None else SimpleNamespace(shared_memory_per_block_optin=KiB << 10)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        assert build.fits(wide, torch.device("cuda")) == fits
        assert build.fits(narrow, torch.device("cuda"))
    monkeypatch.setattr(conv, "runs_here", lambda device: True)
    monkeypatch.setattr(conv, "fits", lambda kernel, device: False)
    monkeypatch.setattr(conv, "launch", None)
    found = conv.forward(x, weight, geometry, stats, True, True)
    for own, expected in zip(found, stacked_conv.forward(x, weight, geometry, stats, True, True), strict=True):
        assert torch.equal(own, expected)


def test_a_kernel_of_other_sources_is_another_one(tmp_path, monkeypatch):
    """Its own and each header; and of other options."""
    sources = [path for path in build._HERE.iterdir() if path.suffix in (".cu", ".h")]
    own = shutil.copytree(build._HERE, tmp_path / "halo")
    kernel = build.Kernel("forward.cu", "forward", 96, 4096, ())
    before = build._parts(kernel, ["-O1"])
    monkeypatch.setattr(build, "_HERE", own)
    assert build._parts(kernel, ["-O1"]) == before != build._parts(kernel, ["-O2"])
    for source in sources:
        text = (own / source.name).read_text()
        (own / source.name).write_text(text + "\n")
        assert (build._parts(kernel, ["-O1"]) == before) == (source.name == "backward.cu")
        (own / source.name).write_text(text)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_compiles_for_gpus_without_spills(architecture):
    """ResNet20's convolutions. 16-byte loads and stores of activations, and no local memory."""
    pytest.importorskip("cuda.bindings.nvrtc")
    tool = find_cuobjdump(str(Path(pytest.importorskip("triton").__file__).parent))
    if shutil.which(tool) is None:
        pytest.skip("no cuobjdump")
    for C, size, more in ((16, 32, ()), (16, 32, (True, True)), (32, 16, (True, True)), (64, 8, (True, True))):
        geometry = Geometry((1, 128, size, size, C), (1, C, 3, 3, C), 1, 1)
        kernel = conv.forward_kernel(geometry, True, True, True, *more)
        code = read_cubin(build.cubin(kernel, architecture), tool)
        assert code.usage.stack == code.count("LDL|STL") == 0, kernel
        assert set(code.widths(r"LDG\.")) <= {16, 4}, kernel  # 4: scale and shift
        assert code.widths("STG")[16] >= min(C, 32) // 4, kernel
        warps, arch = kernel.threads // 32, int(architecture.removeprefix("sm_"))
        assert ctas_per_sm(code.usage.registers, kernel.shared_bytes, warps, arch) >= conv._CTAS[C] - (arch == 80), (
            kernel
        )


@needs_compiler
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_as_in_the_emulator(seed, case, stored):
    """But for the order of float32 sums. With `stored` z is what the prologue made, to the bit."""
    *sizes, prologue, statistics = case
    x, weight, stats, geometry = drawn(seed, *sizes)
    given, relu = (None, False) if prologue is None else (stats, prologue)
    found = []
    for device in ("cpu", "cuda"):
        more = [torch.full_like(x, 2, device=device) for _ in range(2)] if stored and prologue is not None else []
        own_x, own_weight = x.to(device), weight.to(device)
        own_stats = None if given is None else given.to(device)
        y, moments = by_kernel(own_x, own_weight, geometry, own_stats, relu, statistics, *more)
        found.append([y.cpu().float(), moments if moments is None else moments.cpu(), *(each.cpu() for each in more)])
    torch.testing.assert_close(*(each[0] for each in found), rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(*(each[1] for each in found), rtol=1e-2, atol=0.5)
    assert all(map(torch.equal, found[0][2:], found[1][2:]))


def test_a_launch_on_a_gpu(monkeypatch):
    """What the driver is handed: the grid, the threads, the stream, and the address of the struct of arguments."""
    driver = pytest.importorskip("cuda.bindings.driver")
    x, stats = torch.zeros(4), torch.zeros(2)
    kernel = build.Kernel("forward.cu", "forward", 96, 4096, ())
    seen = []

    def launched(function, *numbers):
        place = ctypes.cast(numbers[-2], ctypes.POINTER(ctypes.c_void_p))[0]
        words = ctypes.cast(place, ctypes.POINTER(ctypes.c_int64))[0:5]
        seen.append((function, numbers[:-2], words))
        return (driver.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(driver, "cuLaunchKernel", launched)
    monkeypatch.setattr(driver, "cuCtxGetCurrent", lambda: (driver.CUresult.CUDA_SUCCESS, 1))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(build, "_loaded", lambda kernel, device: (kernel.name, device))
    build._on_gpu(kernel, (5, 6, 7), build.pack(x, None, stats, -3, 2**40))
    assert seen == [(("forward", 3), (5, 6, 7, 96, 1, 1, 4096, 77), [x.data_ptr(), 0, stats.data_ptr(), -3, 2**40])]
    monkeypatch.setattr(driver, "cuLaunchKernel", lambda *_: (driver.CUresult.CUDA_ERROR_INVALID_VALUE,))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        build._on_gpu(dataclasses.replace(kernel, threads=1), (1, 1, 1), build.pack())
