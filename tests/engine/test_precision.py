"""What auto is, fp16 with its loss scale, and deterministic kernels."""

import dataclasses
import os

import pytest
import torch
from pretended_cuda import pretended_cuda
from torch import Tensor, nn
from trained_networks import CHOICES, CONFIG, build, draw_data, make

import fastwi.doctor
from fastwi.config.schema import EngineConfig
from fastwi.data.noise import Noise
from fastwi.engine import mixed
from fastwi.engine.device import resolve, resolve_dtype
from fastwi.engine.mixed import GROWTH_INTERVAL, START, LossScale
from fastwi.engine.precision import auto_precision
from fastwi.kernels.convolution import OwnConv2d
from fastwi.kernels.cpu import library
from fastwi.models.registry import build_model
from fastwi.population import Population

CPU = torch.device("cpu")


@pytest.mark.parametrize("engine", CHOICES)
def test_a_step_that_overflows_is_skipped(seed, engine, monkeypatch):
    """With a scale that no gradient survives, nothing but statistics changes, and the loss is still reported."""
    monkeypatch.setattr(mixed, "START", 1e30)
    start, data = Population.from_modules([build("residual", seed)]), draw_data(seed)
    start.momentum_MP.copy_(start.weights_MP)
    population = start.clone_rows([0])
    (loss,) = make(engine, "residual", "fp16").train_epoch(population, data, [Noise(3)], 1)
    assert 0 < loss < 10
    assert torch.equal(population.weights_MP, start.weights_MP)
    assert torch.equal(population.momentum_MP, start.momentum_MP)
    assert not torch.equal(population.statistics_MQ, start.statistics_MQ)


def test_scale_of_each_member():
    scale = LossScale(3, CPU)

    def steps(number: int) -> list[float]:
        for _ in range(number):
            scale.unscale_(torch.ones(3, 4))
        return scale.scale_M.tolist()

    gradient_MP = torch.full((3, 4), 2 * START)
    gradient_MP[1, 2], gradient_MP[2, 0] = float("inf"), float("nan")
    assert steps(5) == [START] * 3
    assert scale.unscale_(gradient_MP).tolist() == [False, True, True]
    assert gradient_MP[0].tolist() == [2.0] * 4
    assert steps(0) == [START, START / 2, START / 2]
    assert steps(GROWTH_INTERVAL - 6) == [2 * START, START / 2, START / 2]
    assert steps(5) == [2 * START, START / 2, START / 2]  # good steps from before an overflow do not count
    assert steps(1) == [2 * START, START, START]
    assert steps(GROWTH_INTERVAL - 7) == [2 * START, START, START]  # it grows once an interval
    assert steps(1) == [4 * START, START, START]
    scale.restart()
    assert steps(GROWTH_INTERVAL - 1) == [START] * 3  # good steps from before do not count


@pytest.mark.parametrize("engine", CHOICES)
def test_an_epoch_in_fp16_is_a_function_of_its_start(seed, engine, monkeypatch):
    """The scale starts again, so that a resumed run equals an uninterrupted one. Here its first steps overflow."""
    monkeypatch.setattr(mixed, "START", 2.0**20)
    data, start = draw_data(seed), Population.from_modules([build("residual", seed)])
    made = make(engine, "residual", "fp16")
    made.train_epoch(start, data, [Noise(1)], 1)
    first, second, exact = (start.clone_rows([0]) for _ in range(3))
    made.train_epoch(first, data, [Noise(1)], 2)
    make(engine, "residual", "fp16").train_epoch(second, data, [Noise(1)], 2)
    assert torch.equal(first.weights_MP, second.weights_MP)
    make(engine, "residual").train_epoch(exact, data, [Noise(1)], 2)
    ways = [(each.weights_MP - start.weights_MP).norm() for each in (first, exact)]
    assert 0 < ways[0] < 0.95 * ways[1]  # some steps were skipped


@pytest.mark.parametrize("engine", CHOICES)
def test_a_member_whose_steps_overflow_leaves_the_scales_of_others(seed, engine):
    start, data = Population.from_modules([build("residual", seed + m) for m in range(2)]), draw_data(seed)
    start.parameters(0)["linear.weight"].mul_(1000)
    first, together, alone = start.clone_rows([0]), start.clone_rows([0, 1]), start.clone_rows([1])
    made = make(engine, "residual", "fp16")
    made.train_epoch(first, data, [Noise(1)], 1, steps=range(1))
    assert torch.equal(first.weights_MP[0], start.weights_MP[0])  # skipped
    made.train_epoch(together, data, [Noise(1), Noise(2)], 1)
    made.train_epoch(alone, data, [Noise(2)], 1)
    assert torch.equal(together.weights_MP[1], alone.weights_MP[0])
    assert not torch.equal(alone.weights_MP[0], start.weights_MP[1])


@pytest.mark.filterwarnings("ignore:Please use the new API settings")
@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_on_a_gpu(monkeypatch, deterministic):
    """Those of float32 are exact. Members are computed one by one where the bits may not depend on their number."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE has it
    config = EngineConfig(device="cuda", precision="fp32", backend="eager", deterministic=deterministic)
    with pretended_cuda():
        made = CHOICES["stacked"](build("residual", 0), dataclasses.replace(CONFIG, engine=config))
    assert made._exact == torch.are_deterministic_algorithms_enabled() == deterministic
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == (not deterministic, False)
    assert not torch.backends.cuda.matmul.allow_tf32


class Attending(nn.Module):
    """One encoder layer of a transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(24, 4, 32, dropout=0.0, batch_first=True)
        self.linear = nn.Linear(24, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.encoder(x_NCHW.permute(0, 2, 3, 1).flatten(2)).mean(1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_attention_evaluates_in_low_precision(seed, precision):
    """Without torch's fast path for evaluation, which gives NaN for weights and biases of two dtypes."""
    torch.backends.mha.set_fastpath_enabled(True)
    torch.manual_seed(seed)
    network, data = Attending(), draw_data(seed)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # as training leaves them
            nn.init.normal_(parameter, std=0.5)
    population = Population.from_modules([network])
    found = [
        torch.cat([logits_NK for _, logits_NK in make("loop", network, each).logits(population, 0, data)])
        for each in ("fp32", precision)
    ]
    assert not torch.backends.mha.get_fastpath_enabled()
    assert found[1].isfinite().all()
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()


AVX2, AVX512_BF16 = {"avx2", "fma"}, {"avx2", "fma", "avx512f", "avx512_bf16"}


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "precision"),
    [
        ("GenuineIntel", 6, AVX512_BF16 | {"amx_tile", "amx_bf16"}, "bf16"),
        ("GenuineIntel", 6, AVX512_BF16, "fp32"),  # measured: 0.55 x of fp32
        ("GenuineIntel", 6, AVX512_BF16 | {"amx_tile", "amx_fp16"}, "fp32"),
        ("AuthenticAMD", 26, AVX512_BF16, "bf16"),
        ("AuthenticAMD", 25, AVX512_BF16, "bf16"),
        ("AuthenticAMD", 25, AVX2, "fp32"),
        ("AuthenticAMD", 27, AVX512_BF16, "fp32"),  # not measured
        ("SomebodyElse", 26, AVX512_BF16, "fp32"),
        ("AuthenticAMD", 23, AVX2, "fp32"),
        ("AuthenticAMD", 26, AVX2, "fp32"),
    ],
)
def test_auto_is_what_was_measured_on_such_a_processor(monkeypatch, tmp_path, vendor, family, flags, precision):
    text = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {' '.join(sorted(flags))}\n\n"
    (tmp_path / "cpuinfo").write_text(2 * text)
    monkeypatch.setattr("fastwi.engine.precision._CPUINFO", tmp_path / "cpuinfo")
    choice = auto_precision(CPU)
    assert (choice.precision, bool(choice.reason)) == (precision, True)
    assert resolve_dtype(EngineConfig(device="cpu")) == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    found = next(check.found for check in fastwi.doctor.examine() if check.subject == "CPU precision")
    assert choice.reason in found
    for each, own in (("fp32", True), ("bf16", "amx_bf16" not in flags)):
        network = resolve(EngineConfig(device="cpu", precision=each), build_model("resnet20", 10, 1.0)).network
        kinds = {type(module) for module in network.modules()}
        assert library() is None or (OwnConv2d in kinds) == own


@pytest.mark.parametrize(("computes", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_on_a_gpu_that_computes_in_it(monkeypatch, computes, precision):
    """Not on one that emulates it."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or computes
    )
    assert auto_precision(torch.device("cuda")).precision == precision


@pytest.mark.parametrize("text", [None, "", "flags\n", "cpu family: many\nFeatures : fp asimd bf16\n"])
def test_a_processor_that_does_not_say_what_it_is_computes_in_fp32(monkeypatch, tmp_path, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("fastwi.engine.precision._CPUINFO", tmp_path / "cpuinfo")
    assert auto_precision(CPU).precision == "fp32"
