"""The Triton kernels compile for a GPU, which the interpreter can't show, and use what it is good at."""

import re

import pytest


def count(pattern: str, code: str) -> int:
    return len(re.findall(pattern, code))


@pytest.mark.parametrize(("element", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_interpolation_moves_16_bytes_at_a_time(compiled, element, bytes_each):
    (code,) = compiled(f"""
from fastwi.kernels.interpolate import BLOCK, WARPS, interpolate_kernel, tl

types = dict(table_3L="*i64", alpha_L="*fp32", L="i32", P="i32", blocks="i32")
show(interpolate_kernel, types, dict(ELEMENT=tl.{element}, ALIGNED=True, BLOCK=BLOCK), num_warps=WARPS)
""")
    per_thread = 4096 // (8 * 32) * bytes_each // 16
    assert count(r"ld\.global\.v4\.b32", code) == 2 * per_thread
    assert count(r"st\.global\.v4\.b32", code) == per_thread


def test_weighted_sums_round_each_product(compiled):
    """In the machine code: the assembler too fuses products with sums where it may."""
    (code,) = compiled("""
from fastwi.kernels.combine import BLOCK, FUSED, WARPS, combine_kernel

types = dict(table="*i64", L="i32", T="i32", P="i32", blocks="i32")
constants = dict(ALIGNED=True, BLOCK=BLOCK)
show(combine_kernel, types, constants, "sass", num_warps=WARPS, enable_fp_fusion=FUSED)
""")
    assert "DFMA" not in code
    assert code.count("DMUL") == code.count("DADD") > 0
    assert code.count("LDG.E.128") > 0
    assert code.count("STG.E.128") == 2  # 8 columns a thread


def test_augmentation_stores_16_bytes_at_a_time(compiled):
    """Eight bf16 values a thread; with all optional arguments, and with none."""
    codes = compiled("""
from fastwi.kernels.augment import MOST_VALUES, WARPS, augment_kernel

types = dict.fromkeys(("order_MS", "offset_MS2", "first"), "*i64") | dict(S="i32", N="i32")
types |= dict(images_DHWC="*u8", flip_MS="*u8", table_C256="*bf16", out_MNHWC="*bf16")
for absent in ((), ("offset_MS2", "flip_MS", "first")):
    constants = dict(H=32, W=32, C=3, PADDING=4, BLOCK=MOST_VALUES) | dict.fromkeys(absent)
    aligned = [name for name, kind in types.items() if kind[0] == "*" and name not in absent]
    show(augment_kernel, types, constants, aligned=aligned, num_warps=WARPS)
""")
    assert [count(r"st\.global\.v4\.b32", code) for code in codes] == [1, 1]
    assert not any(count(r"st\.global\.(b16|b32|v2)", code) for code in codes)


def test_sgd_moves_4_values_at_a_time(compiled):
    """Blocks that are full move 8 values a thread in each matrix. With all optional arguments, and with none."""
    codes = compiled("""
from fastwi.kernels.sgd import BLOCK, WARPS, sgd_kernel

types = dict.fromkeys(sgd_kernel.arg_names, "i32") | dict(skip_M="*u8", low_MP="*bf16", mu="fp32", wd="fp32")
types |= dict.fromkeys(("weights_MP", "gradient_MP", "momentum_MP", "rate_M"), "*fp32")
for absent in ((), ("momentum_MP", "skip_M", "low_MP")):
    constants = dict(NESTEROV=True, ALIGN=16, LOW_ALIGN=8, BLOCK=BLOCK) | dict.fromkeys(absent)
    show(sgd_kernel, types, constants, num_warps=WARPS)
""")
    for code, (loads, stores, low_stores) in zip(codes, ((3, 2, 1), (2, 1, 0)), strict=True):
        assert count(r"ld\.global\.v4\.b32", code) == 2 * loads
        assert count(r"st\.global\.v4\.b32", code) == 2 * stores
        assert count(r"st\.global\.v2\.b32", code) == 2 * low_stores
        assert "shared" not in re.findall(r"(?:ld|st)\.(\w+)", code)


STACKED = """
from fastwi.kernels import stacked_conv as conv, stacked_norm as norm
from fastwi.kernels.stacked_geometry import norm_tile, product_tile, weight_tile

sizes = dict(H=32, W=32, CI=16, CO=16, OH=32, OW=32, KH=3, KW=3, STRIDE=1, PADDING=1, RELU=True, PRECISION="tf32")
product, gradient = product_tile(16, 16, 9, 2), weight_tile(16, 16, 9, 2)
blocks = dict(BLOCK_R=product.rows, BLOCK_K=product.depth)
rows, columns = norm_tile(16)
passes, tiles = dict(C=16, BLOCK_R=rows, BLOCK_C=columns), dict(C=16, BLOCK_T=64, BLOCK_C=columns)
LOW = {"x_MNHWI", "y_MRO", "w_MOK", "dy_MNPQO", "dx_MNHWI", "dy_MRO", "x_MRC", "residual_MRC", "z_MRC", "dz_MRC",
       "dz2_MRC", "g_MRC", "dx_MRC"}
for kernel, tile, constants in [
    (conv.forward_kernel, product, dict(sizes, ALIGNED=8, BLOCK_O=16, **blocks)),
    (conv.input_gradient_kernel, product, dict(sizes, ALIGNED=8, BLOCK_I=16, **blocks)),
    (conv.weight_gradient_kernel, gradient,
     dict(sizes, CHUNK=512, BLOCK_R=gradient.rows, BLOCK_O=16, BLOCK_K=gradient.depth)),
    (norm.moments_kernel, None, passes),
    (norm.settle_kernel, None, dict(tiles, EPS=1e-5, FACTOR_EACH=False)),
    (norm.apply_kernel, None, dict(passes, RELU=True)),
    (norm.gradient_sums_kernel, None, dict(passes, RELU=True)),
    (norm.sum_tiles_kernel, None, dict(PART=64, ELEMENT=norm.tl.float32, ALIGNED=16, BLOCK_T=64, BLOCK_E=64)),
    (norm.input_gradient_kernel, None, dict(passes, RELU=True)),
]:
    types = {name: "*bf16" if name in LOW else "*fp32" for name in kernel.arg_names}
    numbers = {name: "i32" for name in types if name.endswith("stride") or len(name) == 1}
    types |= numbers | {name: "fp32" for name in types if name in ("factor", "inverse_rows")}
    aligned = [name for name, kind in types.items() if kind[0] == "*" and name not in constants]
    warps, stages = (tile.warps, tile.stages) if tile else (4, 2)
    show(kernel, types, constants, aligned=aligned, num_warps=warps, num_stages=stages)
"""


def test_stacked_layers_move_16_bytes_at_a_time_and_products_use_the_tensor_cores(compiled):
    products = {"forward_kernel", "weight_gradient_kernel", "input_gradient_kernel"}
    codes = compiled(STACKED)
    assert len(codes) == 9
    for place, code in enumerate(codes):
        name = code.split()[0]
        assert ("wgmma.mma_async" in code) == (name in products and place < 3), name
        if "bf16" in code:
            assert re.search(r"ld\.global\.v4\.b32", code), name
            assert not re.search(r"ld\.global\.b16", code), name
            writes_activations = name not in ("weight_gradient_kernel", "moments_kernel")
            assert bool(re.search(r"st\.global\.v4\.b32", code)) >= writes_activations, name
