"""The Triton kernels compile for an H100, which the interpreter can't show, and use what it is good at.

A training step of ResNet20s in bf16, and what it lacks, are compiled once, as the engine launches them.
"""

import re
from pathlib import Path

import pytest

from benchmarks import kernels_traced
from benchmarks.kernels_model import find_cuobjdump, read_cubin, read_usage
from benchmarks.runner import fresh

ROOT = Path(__file__).parents[2]
LOW_PRODUCTS = re.compile(r"conv (forward|input gradient|weight gradient) (?!3-)")  # all but those of 3 channels


def count(pattern: str, code: str) -> int:
    return len(re.findall(pattern, code))


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """What `kernels_traced.trace` says of 90 (an H100)."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return fresh(
            kernels_traced.trace, triton="", arch=90, model="resnet20", width=1.0, members=2, batch=128,
            image=32, precision="bf16",
        )  # fmt: skip


@pytest.fixture(scope="module")
def kernels(traced):
    """By name and hash, what was recorded of each kernel."""
    found: dict[str, dict[str, kernels_traced.Recorded]] = {}
    for each in traced.step.launches + traced.apart.launches:
        found.setdefault(each.launch.name, {})[each.kernel] = each
    return found


@pytest.fixture(scope="module")
def ptx(kernels):
    """(name, PTX) of each kernel."""
    return [(name, each.ptx) for name, found in kernels.items() for each in found.values()]


def named(ptx, beginning):
    found = [code for name, code in ptx if name.startswith(beginning)]
    assert found, beginning
    return found


def test_every_kernel_of_the_package_is_compiled(kernels):
    words = {
        (path.stem.removeprefix("stacked_"), kernel.replace("_", " "))
        for path in (ROOT / "fastwi" / "kernels").glob("*.py")
        for kernel in re.findall(r"def (\w+)_kernel\(", path.read_text())
    }
    assert len(words) > 10
    for module, kernel in words:
        beginning = kernel if module == kernel else f"{module} {kernel}"
        assert any(name.startswith(beginning) for name in kernels), beginning


def test_no_kernel_spills_registers(traced, kernels):
    tool = find_cuobjdump(traced.directory)
    for name, found in kernels.items():
        for each in found.values():
            assert read_usage(each.cubin, tool).stack == 0, name


def test_stacked_products_load_16_bytes_at_a_time_and_use_the_tensor_cores(ptx, kernels):
    """With 16 to 128 channels, strides, and prologues. Of the latter, scale and shift are 4 bytes each."""
    channels = {found[1] for name in kernels if (found := re.match(r"conv forward (\d+)-", name))}
    assert channels == {"3", "16", "32", "64", "128"}
    for product in ("forward", "input gradient", "weight gradient"):
        for layer in ("16-16", "32-32", "64-64", "128-128"):
            assert {f"conv {product} {layer}", f"conv {product} {layer} norm"} <= set(kernels)
        assert {f"conv {product} {layer}" for layer in ("16-32/2", "32-64/2", "64-128/2")} <= set(kernels)
    for name, code in ptx:
        if name.startswith("conv"):
            assert "mma" in code, name
        if LOW_PRODUCTS.match(name):
            assert re.search(r"ld\.global\.v4\.b32|cp\.async\.\w+\.shared\.global \[.*?, 0x10,", code), name
            assert not re.search(r"ld\.global\.(b16|u16|v2\.b16)", code), name
            assert name.endswith("norm") or not re.search(r"cp\.async\.ca\.shared\.global .*, 0x4,", code), name
            assert "wgmma.mma_async" in code, name


def test_passes_over_activations_move_16_bytes_at_a_time(ptx):
    for beginning in ("norm moments", "norm apply", "norm gradient sums", "norm input gradient"):
        for code in named(ptx, beginning):
            assert re.search(r"ld\.global\.v4\.b32", code), beginning
            assert not re.search(r"[ls][dt]\.global\.(b16|v2\.b16)", code), beginning
            assert ("moments" in beginning) or re.search(r"st\.global\.v4\.b32", code), beginning


@pytest.mark.parametrize(("element", "bytes_each"), [("fp32", 4), ("bf16", 2)])
def test_interpolation_moves_16_bytes_at_a_time(ptx, element, bytes_each):
    (code,) = named(ptx, f"interpolate {element}")
    per_thread = 2048 // (8 * 32) * bytes_each // 16
    assert count(r"ld\.global\.v4\.b32", code) >= 2 * per_thread
    assert count(r"st\.global\.v4\.b32", code) >= per_thread


def test_weighted_sums_round_each_product(traced, kernels):
    """In the machine code: the assembler too fuses products with sums where it may."""
    (kernel,) = kernels["combine"].values()
    code = read_cubin(kernel.cubin, find_cuobjdump(traced.directory))
    assert code.count("DFMA") == 0
    assert code.count("DMUL") == code.count("DADD") > 0
    assert code.count(r"LDG\.E\.128") > 0
    assert code.count(r"STG\.E\.128") >= 2  # 8 columns a thread


def test_augmentation_stores_16_bytes_at_a_time(ptx):
    """Eight bf16 values a thread; with all optional arguments, and with none."""
    codes = named(ptx, "augment")
    assert len(codes) == 2
    assert all(count(r"st\.global\.v4\.b32", code) for code in codes)
    assert not any(count(r"st\.global\.(b16|b32|v2)", code) for code in codes)


def test_sgd_moves_4_values_at_a_time(ptx):
    """Blocks that are full move 8 values a thread in each matrix. With all optional arguments, and with none."""
    codes = named(ptx, "sgd")
    found = {
        tuple(count(rf"{what}\.global\.v{n}\.b32", code) for what, n in (("ld", 4), ("st", 4), ("st", 2)))
        for code in codes
    }
    without, with_all = sorted(found)
    assert without[0] >= 4
    assert without[1] >= 2
    assert without[2] == 0  # no low copy
    assert all(have >= need for have, need in zip(with_all, (6, 4, 2), strict=True))
    assert all("shared" not in re.findall(r"(?:ld|st)\.(\w+)", code) for code in codes)
