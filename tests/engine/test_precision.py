"""What auto is, fp16 with its loss scale, and deterministic kernels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trained_networks import AUGMENT, BATCH, OPTIMIZER, SCHEDULE, build, draw_data, engine_config

import fastwi.doctor
from fastwi.config.schema import EngineConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import load_split
from fastwi.engine.base import Settings
from fastwi.engine.choose import ENGINES
from fastwi.engine.device import resolve_dtype
from fastwi.engine.mixed import GROWTH_INTERVAL, START, LossScale
from fastwi.engine.precision import auto_precision
from fastwi.population import Population

CPU = torch.device("cpu")


def make(engine: str, precision: str):
    return ENGINES[engine](build("residual", 0), Settings(engine_config(precision), OPTIMIZER, SCHEDULE, AUGMENT))


@pytest.mark.parametrize("engine", ENGINES)
def test_fp16_follows_fp32(seed, engine):
    """Weights stay float32; after a step they moved almost as in float32, and did move.

    Rounding turns over a ReLU of one start in ten, and part of the gradient with it: so it is the median of 15.
    """
    members = 15
    start = Population.from_modules([build("residual", seed + m) for m in range(members)])
    data, noises = draw_data(seed, BATCH), [Noise(seed + m) for m in range(members)]
    moved = []
    for precision in ("fp32", "fp16"):
        population = start.clone_rows(range(members))
        losses = make(engine, precision).train_epoch(population, data, noises, 1)  # of epoch 0 the first rate is 0
        assert population.weights_MP.dtype == torch.float32
        moved.append(population.weights_MP - start.weights_MP)
        assert all(0 < loss < 10 for loss in losses)
    assert (moved[0].norm(dim=1) > 0).all()
    apart_M = 1 - functional.cosine_similarity(*moved, dim=1)
    assert apart_M.median() < 1e-3
    assert apart_M.max() < 0.5
    assert not torch.equal(*moved)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_overflows_is_skipped(seed, engine, monkeypatch):
    """With a scale that no gradient survives, nothing but statistics changes, and the loss is still told."""
    import fastwi.engine.mixed as scaling

    monkeypatch.setattr(scaling, "START", 1e30)
    start, data = Population.from_modules([build("residual", seed)]), draw_data(seed)
    start.momentum_MP.copy_(start.weights_MP)
    population = start.clone_rows([0])
    (loss,) = make(engine, "fp16").train_epoch(population, data, [Noise(3)], 1)
    assert 0 < loss < 10
    assert torch.equal(population.weights_MP, start.weights_MP)
    assert torch.equal(population.momentum_MP, start.momentum_MP)
    assert not torch.equal(population.statistics_MQ, start.statistics_MQ)


def test_scale_of_each_member():
    scale = LossScale(3, CPU)
    gradient_MP = torch.full((3, 4), 2 * START)
    gradient_MP[1, 2], gradient_MP[2, 0] = float("inf"), float("nan")
    assert scale.unscale_(gradient_MP).tolist() == [False, True, True]
    assert gradient_MP[0].tolist() == [2.0] * 4
    assert scale.scale_M.tolist() == [START, START / 2, START / 2]
    for _ in range(GROWTH_INTERVAL - 1):
        scale.unscale_(torch.ones(3, 4))
    assert scale.scale_M.tolist() == [2 * START, START / 2, START / 2]
    scale.unscale_(torch.ones(3, 4))
    assert scale.scale_M.tolist() == [2 * START, START, START]
    scale.restart()
    assert scale.scale_M.tolist() == [START] * 3


def test_an_epoch_in_fp16_is_a_function_of_its_start(seed):
    """The scale starts anew, so that a resumed run equals an uninterrupted one."""
    data, start = draw_data(seed), Population.from_modules([build("residual", seed)])
    engine = make("loop", "fp16")
    engine.train_epoch(start, data, [Noise(1)], 0)
    first, second = start.clone_rows([0]), start.clone_rows([0])
    engine.train_epoch(first, data, [Noise(1)], 1)
    make("loop", "fp16").train_epoch(second, data, [Noise(1)], 1)
    assert torch.equal(first.weights_MP, second.weights_MP)


def test_deterministic_kernels(seed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    data, start = draw_data(seed), Population.from_modules([build("residual", seed)])
    config = EngineConfig(device="cpu", precision="fp32", backend="eager", deterministic=True)
    try:
        results = []
        for _ in range(2):
            engine = ENGINES["loop"](build("residual", 0), Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
            assert torch.are_deterministic_algorithms_enabled()
            population = start.clone_rows([0])
            engine.train_epoch(population, data, [Noise(1)], 0)
            results.append(population.weights_MP)
        assert torch.equal(*results)
    finally:
        torch.use_deterministic_algorithms(False)


class Attending(nn.Module):
    """One encoder layer of a transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(48, 4, 32, dropout=0.0, batch_first=True)
        self.linear = nn.Linear(48, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.encoder(x_NCHW.permute(0, 2, 3, 1).flatten(2)).mean(1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_attention_evaluates_in_low_precision(seed, digits_directory, precision):
    """torch's shortcut for evaluating it gave no numbers for weights and biases of two dtypes."""
    torch.manual_seed(seed)
    network = Attending()
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):  # as training leaves them
            nn.init.normal_(parameter, std=0.5)
    data = load_split(digits_directory, "test", torch.device("cpu"), 50)[0]
    population = Population.from_modules([network])
    found = []
    for each in ("fp32", precision):
        config = EngineConfig(device="cpu", precision=each, backend="eager", evaluation_batch=50)
        engine = ENGINES["loop"](network, Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
        found += [logits_NK for _, logits_NK in engine.logits(population, 0, data)]
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
        ("AuthenticAMD", 25, AVX512_BF16, "fp32"),  # not measured
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
    assert choice.reason in fastwi.doctor._precision().found


@pytest.mark.parametrize("text", [None, "", "flags\n", "cpu family: many\nFeatures : fp asimd bf16\n"])
def test_a_processor_that_does_not_say_what_it_is_computes_in_fp32(monkeypatch, tmp_path, text):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr("fastwi.engine.precision._CPUINFO", tmp_path / "cpuinfo")
    assert auto_precision(CPU).precision == "fp32"
