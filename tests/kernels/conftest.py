"""Both ways that kernels can take: torch, and Triton, interpreted where there is no GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastwi.kernels import gpu


@pytest.fixture(params=["torch", "triton"])
def path(request, monkeypatch):
    """The name of one of the two ways, with dispatch sent down it."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "has_triton", lambda device: request.param == "triton")
    return request.param


@pytest.fixture
def device(path) -> torch.device:
    """The device to test on, with dispatch sent down one of the two ways."""
    return torch.device("cuda" if path == "triton" and torch.cuda.is_available() else "cpu")


HEAD = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def show(kernel, types, constants, code="ptx", aligned=(), **options):
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    divisible = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, divisible)
    options = {"enable_fp_fusion": True, **options}
    print("KERNEL", kernel.__name__)
    print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm[code])
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str], list[str]]:
    """Machine code for an H100 of each kernel that a script shows, its name before it: no GPU is needed."""
    pytest.importorskip("triton")

    def run(script: str) -> list[str]:
        environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", HEAD + script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("KERNEL ")[1:]

    return run
