"""The few things that halo kernels use of a GPU, as the emulator computes them, and the faults that it finds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastwi.kernels.compiler import compiler
from fastwi.kernels.halo.build import Kernel, cubin, launch

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
THREADS, SHARED = 64, 2048


def kernel(name: str) -> Kernel:
    return Kernel(str(Path(__file__).with_name("halo_device.cu")), name, THREADS, SHARED, ())


def run(name: str, what: int, b: Tensor | None = None, a: Tensor | None = None, size: int = THREADS) -> Tensor:
    out = torch.zeros(size)
    a = torch.zeros(16, 16, dtype=torch.bfloat16) if a is None else a
    launch(kernel(name), (1, 1, 1), a, a if b is None else b, out, what)
    return out


@needs_compiler
@pytest.mark.parametrize("transposed", [False, True])
def test_products(seed, transposed):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=draw).bfloat16() for shape in ((16, 16), (16, 8)))
    stored = b.T.contiguous() if transposed else b
    out = run("products", transposed, stored, a, 256).view(2, 16, 8)
    expected = (1 + a.double() @ b.double()).float()  # exact products, one rounding
    torch.testing.assert_close(out[0], expected, rtol=1e-6, atol=0)
    assert torch.equal(out[1], out[0])


@needs_compiler
def test_shuffles():
    expected = torch.tensor([2.0 * (i ^ 5) + 1 for i in range(THREADS)])
    assert torch.equal(run("shuffles", 0), expected)


@needs_compiler
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (0, "thread 0 of the warp is in sync_warp and not in shuffle_xor"),
        (1, "waits for ever in sync_cta"),
        (2, "shared address 2048 is out of bounds, in thread 0"),
        (3, "shared address 8 is not aligned to 16"),
        (4, "a global address is outside the tensors"),
        (5, "copies that were not waited for"),
        (9, "shared address 128 is another warp's until sync_cta, in thread 32"),
        (10, "shared address 128 is another warp's until sync_cta, in thread 32"),
    ],
)
def test_faults_are_found(what, message):
    with pytest.raises(RuntimeError, match=message):
        run("faults", what)


@needs_compiler
def test_a_missing_argument_is_found():
    with pytest.raises(RuntimeError, match="24 bytes of arguments and not 32"):
        launch(kernel("shuffles"), (1, 1, 1), *(torch.zeros(THREADS) for _ in range(3)))


@needs_compiler
@pytest.mark.parametrize(("what", "value"), [(6, float("nan")), (7, float("nan")), (8, 0.0)])
def test_shared_memory_is_nan_until_written_and_copies_come_late(what, value):
    torch.testing.assert_close(run("faults", what), torch.full((THREADS,), value), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["products", "shuffles", "faults"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_compiles_for_a_gpu(name, architecture):
    pytest.importorskip("cuda.bindings.nvrtc")
    assert cubin(kernel(name), architecture).startswith(b"\x7fELF")


@needs_compiler
def test_a_source_that_does_not_compile_is_an_error(tmp_path):
    (tmp_path / "wrong.cu").write_text("int main( {")
    with pytest.raises(RuntimeError, match=r"(?s)cannot compile .*wrong\.cu:1"):
        launch(Kernel(str(tmp_path / "wrong.cu"), "wrong", 32, 16, ()), (1, 1, 1), torch.zeros(1))
