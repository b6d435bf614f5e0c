"""Where the CPU's kernels are built, by which compiler, and that torch's default dtype does not reach them."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import fastwi.kernels.cpu
from fastwi.kernels.convolution import OwnConv2d
from fastwi.kernels.cpu import library
from fastwi.kernels.shortcut import shortcut

needs_kernels = pytest.mark.skipif(library() is None, reason="no GNU C++ compiler with OpenMP")
ASK = "from fastwi.kernels.cpu import library; print(library() is not None)"


@pytest.fixture
def clang(tmp_path: Path) -> str:
    """A compiler that says it is Clang, and can do nothing else."""
    path = tmp_path / "clang++"
    path.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'clang version 19.1.0'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_kernels
def test_built_where_the_cache_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    asked = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout == "True\n", asked.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing is left behind


def test_clang_is_passed_over(clang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", clang)
    assert fastwi.kernels.cpu.compilers()[0] == clang
    assert library() is None or fastwi.kernels.cpu._built() is not None
    monkeypatch.setattr(fastwi.kernels.cpu, "compilers", lambda: [clang])
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


@pytest.mark.parametrize("kind", ["_SOURCES", "_HEADERS"])
def test_a_library_of_other_sources_is_another_one(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = fastwi.kernels.cpu
    command = next(iter(cpu.compilers()), None)
    if command is None:
        pytest.skip("no compiler")
    before = cpu._made_of(command)
    files = getattr(cpu, kind)
    for changed in files:
        copy = tmp_path / changed.name
        copy.write_text(changed.read_text() + "\n")
        monkeypatch.setattr(cpu, kind, tuple(copy if file == changed else file for file in files))
        assert cpu._made_of(command) != before
    monkeypatch.setattr(cpu, kind, files)
    assert cpu._made_of(command) == before


@pytest.mark.parametrize(
    ("name", "other"), [("_FLAGS", ["-O2"]), ("version_of", lambda _: "another"), ("_processor", lambda: "another")]
)
def test_a_library_built_otherwise_or_for_another_processor_is_another_one(name, other, monkeypatch) -> None:
    cpu = fastwi.kernels.cpu
    command = next(iter(cpu.compilers()), None)
    if command is None:
        pytest.skip("no compiler")
    before = cpu._made_of(command)
    monkeypatch.setattr(cpu, name, other)
    assert cpu._made_of(command) != before
