"""Where the CPU's kernels are built, by which compiler, and that torch's default dtype does not reach them."""

import ctypes
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import fastwi.kernels.cpu
from fastwi.kernels.compiler import built, compilers
from fastwi.kernels.convolution import OwnConv2d
from fastwi.kernels.cpu import library
from fastwi.kernels.shortcut import shortcut

needs_kernels = pytest.mark.skipif(library() is None, reason="no GNU C++ compiler with OpenMP")


@pytest.fixture(params=["clang version 19.1.0", "Intel(R) oneAPI DPC++/C++ Compiler 2024.0.0 (2024.0.0.20231017)"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A compiler that says it is another one than GNU's, and can do nothing else."""
    path = tmp_path / "another++"
    path.write_text(f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{request.param}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_kernels
def test_built_where_the_cache_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def build(path: Path) -> None:
        line = [compilers()[0], "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
        subprocess.run(line, input='extern "C" int seven() { return 7; }', text=True, check=True)

    assert built("seven", ".so", [], build, lambda path: ctypes.CDLL(str(path))).seven() == 7
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is left behind


def test_another_compiler_is_passed_over(another: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", another)
    assert fastwi.kernels.cpu.compilers()[0] == another
    assert library() is None or fastwi.kernels.cpu._built() is not None
    monkeypatch.setattr(fastwi.kernels.cpu, "compilers", lambda: [another])
    assert fastwi.kernels.cpu._built() is None


@needs_kernels
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_does_not_matter(default: torch.dtype) -> None:
    layer = OwnConv2d(16, 32, 3, padding=1, bias=False)
    x = torch.randn(3, 16, 8, 8, requires_grad=True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        y, small = layer(x), shortcut(x, 2, 4, 12)
        (dx, dweight) = torch.autograd.grad(y.sum() + small.sum(), (x, layer.weight))
    finally:
        torch.set_default_dtype(before)
    assert {t.dtype for t in (y, small, dx, dweight)} == {torch.float32}
    torch.testing.assert_close(y, functional.conv2d(x, layer.weight, padding=1), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_work_space_is_for_as_many_threads_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = fastwi.kernels.cpu
    monkeypatch.setattr(cpu._local, "space", torch.empty(0))
    for threads in (1, 5):
        torch.set_num_threads(threads)
        for name, sizes in (("direct_floats", (8, 8, 16, 16, 2)), ("winograd_floats", (8, 8, 16, 16))):
            needed = getattr(library(), name)(*sizes, threads)
            assert cpu.scratch(name, *sizes).numel() >= needed > 0


def test_a_processor_is_its_name_and_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual machine may hide some. Its speed is no part."""
    found = []
    same, more = "avx2", "avx2 avx512f"
    for name, flags, speed in (("one", same, 1), ("one", more, 1), ("other", same, 1), ("one", same, 2)):
        text = f"processor\t: 0\nmodel name\t: {name}\ncpu MHz\t\t: {speed}\nflags\t\t: {flags}\n"
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        found.append(fastwi.kernels.cpu._processor())
    assert len(set(found)) == 3
    assert found[0] == found[3]


@pytest.mark.parametrize("part", ["_SOURCES", "_HEADERS", "_FLAGS", "version_of", "_processor"])
def test_a_library_of_other_parts_is_another_one(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each file; the options, the compiler and the processor."""
    cpu = fastwi.kernels.cpu
    command = next(iter(cpu.compilers()), None)
    if command is None:
        pytest.skip("no compiler")
    before, own = cpu._made_of(command), getattr(cpu, part)
    if part in ("_SOURCES", "_HEADERS"):
        copies = {file: tmp_path / file.name for file in own}
        for file, copy in copies.items():
            copy.write_text(file.read_text() + "\n")
        others = [tuple(copy if each == file else each for each in own) for file, copy in copies.items()]
    else:
        others = [["-O2"] if part == "_FLAGS" else lambda *_: "another"]
    for other in others:
        monkeypatch.setattr(cpu, part, other)
        assert cpu._made_of(command) != before
    monkeypatch.setattr(cpu, part, own)
    assert cpu._made_of(command) == before
