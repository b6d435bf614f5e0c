"""The roofline: a kernel's figures and limits from machine code that is written here, and the benchmark's tables."""

import json
from dataclasses import replace

import pytest

from benchmarks import kernels
from benchmarks.kernels_model import GPUS, NODE_S, Code, Launch, Usage, ctas_per_sm, limits, row
from benchmarks.kernels_traced import Recorded, Recorder, Traced

# 3 instructions, a loop of 4 (one of them a product of 64 x 16 x 16 by a warpgroup), 3 more.
CODE = Code(
    Usage(96, 0, 0),
    [
        (0x00, "S2R", " R0, SR_TID.X "),
        (0x10, "LDG.E.128", " R4, [R2.64] "),
        (0x20, "STS.128", " [R0], R4 "),
        (0x30, "LDGSTS.E.BYPASS.128", " [R0], [R2.64] "),
        (0x40, "HGMMA.64x16x16.F32.BF16", " R24, gdesc[UR4], R24 "),
        (0x50, "LDG.E.U16.CONSTANT", " R8, [R2.64] "),
        (0x60, "BRA", " 0x30 "),
        (0x70, "STL", " [R1], R8 "),
        (0x80, "STG.E.64", " [R2.64], R24 "),
        (0x90, "EXIT", " "),
    ],
)
LAUNCH = Launch("some", ctas=133, warps=4, shared=2048, moved=3_000_000, trips=5, macs=64 * 16 * 16)


def test_figures_of_a_kernel():
    told = row(LAUNCH, CODE, 90)
    assert (told["spills"], told["loads"], told["stores"], told["tensor"]) == (1, "2/0/0/1/0", "0/1/0/0/0", 1)
    assert told["CTAs_an_SM"] == 5  # by registers: 65,536 / (96 x 128)
    assert ctas_per_sm(32, 100 * 1024, 4, 90) == 2  # by shared memory
    assert ctas_per_sm(32, 100 * 1024, 4, 80) == 1
    assert ctas_per_sm(24, 0, 8, 90) == 8  # by warps
    assert ctas_per_sm(97, 0, 4, 90) == 4  # registers come in units of 8


def test_limits_of_a_launch():
    """133 CTAs on 132 SMs: one has two."""
    gpu = GPUS["H100"]
    by = limits(LAUNCH, CODE, gpu)
    assert by["issue"] == pytest.approx(2 * 4 * (3 + 4 * 5 + 3) / 4 / gpu.hertz)
    once, in_loop = (16 + 16 + 4 + 8) * 128, 16 * 128 + (64 * 16 + 16 * 16) * 2 + 2 * 128
    assert by["shared"] == pytest.approx(2 * (once + 5 * in_loop) / 128 / gpu.hertz)
    assert by["tensor"] == pytest.approx(2 * 5 * 64 * 16 * 16 / gpu.macs / gpu.hertz)
    assert by["memory"] == pytest.approx(1e-6)


def test_an_unrolled_loop_has_fewer_trips():
    half = Launch("some", 1, 4, 0, 0, trips=5, macs=32 * 16 * 16)  # the loop's one product does two trips
    assert sum(CODE.times(half)) == 6 + 4 * 5 / 2


def test_loops_within_the_main_loop():
    """Instructions 1 to 7, of them 2 to 5, of those 3 and 4; the compiler has unrolled another loop away."""
    jumps = {4: "0x30", 5: "0x20", 7: "0x10"}
    code = [(16 * i, "BRA" if i in jumps else "FADD", f" {jumps.get(i, 'R0, R1, R2')} ") for i in range(9)]
    nested = Code(Usage(32, 0, 0), [*code, (0x90, "EXIT", " ")])
    assert nested.main_loop == range(1, 8)
    launch = Launch("some", 1, 4, 0, 0, trips=10, inner=(99, 2, 3))
    assert nested.times(launch) == [1, 10, 20, 60, 60, 20, 10, 10, 1, 1]
    with pytest.raises(ValueError, match="2 loops within"):
        nested.times(replace(launch, inner=(2,)))


@pytest.fixture
def told(monkeypatch, tmp_path):
    """The benchmark's JSON of a step of two launches and one other operation."""

    def traced(_trace, members, **_):
        step, launch = Recorder(), replace(LAUNCH, moved=1_500_000 * members)
        step.launches = [Recorded(replace(launch, name=name), "k", "", b"") for name in "ab"]
        step.others, step.outputs = [("copy_", 3_000_000 * members)], 250_000 * members
        return Traced("9.9", "", step, Recorder())

    monkeypatch.setattr(kernels, "fresh", traced)
    monkeypatch.setattr(kernels, "read_cubin", lambda *_: CODE)
    assert kernels.main(["--gpus=H100,H200", "--members=2,8", f"--out={tmp_path}"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    return json.loads((tmp_path / "kernels-cpu.json").read_text())["measurements"]


def test_the_benchmark_adds_up_a_step(told):
    bounds = {(each["gpu"], each["members"]): each for each in told if "nodes" in each}
    assert set(bounds) == {(gpu, members) for gpu in ("H100", "H200") for members in (2, 8)}
    small, large = bounds["H100", 2], bounds["H100", 8]
    assert small["nodes"] == 3
    assert small["bytes_an_output"] == large["bytes_an_output"] == 24
    assert small["memory_images_per_s"] == pytest.approx(256 / 4e-6)
    assert small["all_limits_images_per_s"] == pytest.approx(256 / (2 * NODE_S + 2e-6))
    assert large["all_limits_images_per_s"] == pytest.approx(1024 / (2 * 4e-6 + 8e-6))
    assert bounds["H200", 8]["memory_images_per_s"] == pytest.approx(1.4 * large["memory_images_per_s"])


def test_a_directory_without_triton_is_refused(tmp_path, capsys):
    assert kernels.main([f"--triton={tmp_path}"]) == 2
    assert "holds no Triton" in capsys.readouterr().err
