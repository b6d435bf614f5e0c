"""The stacked kernels compile for a GPU, which Triton's interpreter can't show, and use what it is good at."""

import os
import re
import subprocess
import sys

import pytest

SCRIPT = """
import triton
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastwi.kernels import stacked_conv_triton as conv, stacked_conv_weight_triton as weight
from fastwi.kernels import stacked_norm_triton as norm
from fastwi.kernels.stacked_geometry import Geometry, norm_tile, product_tile, weight_tile

g = Geometry.of((1, 128, 32, 32, 16), (1, 16, 3, 3, 16), 1, 1)
sizes = dict(H=32, W=32, CI=16, CO=16, OH=32, OW=32, KH=3, KW=3, STRIDE=1, PADDING=1, RELU=True, PRECISION="tf32")
product, gradient = product_tile(16, 16, 9, 2), weight_tile(16, 16, 9, 2)
rows, columns = norm_tile(16)
passes = dict(C=16, RELU=True, BLOCK_R=rows, BLOCK_C=columns)
tiles = dict(C=16, BLOCK_T=64, BLOCK_C=columns)
KERNELS = [
    (conv.forward_kernel, product, dict(sizes, ALIGNED=8, BLOCK_R=product.rows, BLOCK_O=16, BLOCK_K=product.depth)),
    (conv.input_gradient_kernel, product,
     dict(sizes, ALIGNED=8, BLOCK_R=product.rows, BLOCK_I=16, BLOCK_K=product.depth)),
    (weight.weight_gradient_kernel, gradient,
     dict(sizes, CHUNK=512, BLOCK_R=gradient.rows, BLOCK_O=16, BLOCK_K=gradient.depth)),
    (weight.sum_chunks_kernel, None, dict(BLOCK=512)),
    (norm.moments_kernel, None, dict(C=16, BLOCK_R=rows, BLOCK_C=columns)),
    (norm.settle_kernel, None, dict(tiles, EPS=1e-5, FACTOR_EACH=False)),
    (norm.apply_kernel, None, passes),
    (norm.gradient_sums_kernel, None, passes),
    (norm.parameter_gradients_kernel, None, tiles),
    (norm.input_gradient_kernel, None, passes),
]
LOW = {"x_MNHWI", "y_MRO", "w_MOK", "dy_MNPQO", "dx_MNHWI", "dy_MRO", "x_MRC", "residual_MRC", "z_MRC", "dz_MRC",
       "dz2_MRC", "g_MRC", "dx_MRC"}
for kernel, tile, constants in KERNELS:
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("factor", "inverse_rows"):
            signature[name] = "fp32"
        elif name.endswith("stride") or len(name) == 1:
            signature[name] = "i32"
        else:
            signature[name] = "*bf16" if name in LOW else "*fp32"
            attributes[(place,)] = [["tt.divisibility", 16]]
    warps, stages = (tile.warps, tile.stages) if tile else (4, 2)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, attributes)
    print("KERNEL", "product" if tile else "pass", kernel.__name__)
    print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""


def test_activations_move_16_bytes_at_a_time_and_products_use_the_tensor_cores(tmp_path):
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    texts = done.stdout.split("KERNEL ")[1:]
    assert len(texts) == 10
    for text in texts:
        kind, name = text.split()[:2]
        assert ("wgmma.mma_async" in text) == (kind == "product"), name
        if "bf16" in text:
            assert re.search(r"ld\.global\.v4\.b32", text), name
            assert not re.search(r"ld\.global\.b16", text), name
            writes_activations = name not in ("weight_gradient_kernel", "moments_kernel")
            assert bool(re.search(r"st\.global\.v4\.b32", text)) >= writes_activations, name
