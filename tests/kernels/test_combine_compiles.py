"""The Triton kernel of weighted sums compiles for a GPU, rounds its products, and moves 16 bytes at a time."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastwi.kernels.combine_triton import BLOCK, FUSED, WARPS, combine_kernel

signature = {"table": "*i64"} | dict.fromkeys(("L", "T", "P", "blocks"), "i32")
signature |= dict.fromkeys(("ALIGNED", "BLOCK"), "constexpr")
source = ASTSource(combine_kernel, signature, {"ALIGNED": True, "BLOCK": BLOCK})
options = {"num_warps": WARPS, "enable_fp_fusion": FUSED}
print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["sass"])
"""


def test_products_are_rounded_and_full_blocks_use_16_byte_accesses(tmp_path):
    """In the machine code: the assembler too fuses products with sums where it may."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "DFMA" not in done.stdout
    assert done.stdout.count("DMUL") == done.stdout.count("DADD") > 0
    assert done.stdout.count("LDG.E.128") > 0
    assert done.stdout.count("STG.E.128") == 2  # 8 columns a thread
