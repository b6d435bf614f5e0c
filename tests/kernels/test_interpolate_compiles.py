"""The Triton kernel compiles for a GPU, which its interpreter can't show, and moves 16 bytes at a time."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastwi.kernels.interpolate_triton import BLOCK, WARPS, interpolate_kernel

signature = {"table_5T": "*i64", "alpha_T": "*fp32", "task_G": "*i32", "tasks": "i32"}
signature |= dict.fromkeys(("ELEMENT", "ALIGNED", "BLOCK"), "constexpr")
constants = {"ELEMENT": tl.ELEMENT_TYPE, "ALIGNED": True, "BLOCK": BLOCK}
options = {"num_warps": WARPS, "enable_fp_fusion": True}
source = ASTSource(interpolate_kernel, signature, constants)
print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""


@pytest.mark.parametrize(("element", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_full_blocks_use_16_byte_accesses(element, bytes_each, tmp_path):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT.replace("ELEMENT_TYPE", element)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wide_loads = re.findall(r"ld\.global\.v4\.b32", done.stdout)
    wide_stores = re.findall(r"st\.global\.v4\.b32", done.stdout)
    per_thread = 4096 // (8 * 32) * bytes_each // 16
    assert len(wide_loads) == 2 * per_thread
    assert len(wide_stores) == per_thread
