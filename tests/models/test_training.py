"""The networks under the loop engine: the shallow member of each family, narrow, on a few real digits."""

import pytest
import torch
from torch import nn

from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine.base import Settings
from fastwi.engine.device import resolve
from fastwi.engine.fuse import fuse_batch_norm
from fastwi.engine.loop import LoopEngine
from fastwi.kernels.batch_norm import FusedBatchNorm2d
from fastwi.kernels.cpu import library
from fastwi.kernels.winograd import WinogradConv2d
from fastwi.models.registry import build_model
from fastwi.population import Layout, Population

IMAGES, BATCH = 48, 16
WITH_BATCH_NORM = ("resnet20", "resnet18", "vgg11", "wrn16_4")
WITHOUT = ("resnet20_gn", "convnet")
WIDTHS = {
    "resnet20": 0.5, "resnet20_gn": 0.5, "resnet18": 0.125, "vgg11": 0.125, "wrn16_4": 0.125, "convnet": 0.5,
}  # fmt: skip
OPTIMIZER = OptimizerConfig(batch_size=BATCH, learning_rate=0.05)
needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")


@pytest.fixture(scope="module")
def data(digits_directory) -> ResidentDataset:
    return load_split(digits_directory, "train", torch.device("cpu"), IMAGES)[0]


def build(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, 10, WIDTHS[name])


def make_engine(
    name: str, backend: str = "eager", precision: str = "fp32", optimizer: OptimizerConfig = OPTIMIZER
) -> LoopEngine:
    config = EngineConfig(device="cpu", precision=precision, backend=backend)
    augmentation = AugmentConfig(padding=0, flip=0.0)
    return LoopEngine(build(name), Settings(config, optimizer, ScheduleConfig(drop_epochs=()), augmentation))


def one_step(name: str, backend: str, seed: int, data: ResidentDataset, precision: str = "fp32") -> Population:
    """One step from the seed's weights; what was trained minus where it began. Momentum is then the gradient."""
    few = ResidentDataset(data.images_NHWC[:BATCH], data.labels_N[:BATCH], data.table_C256, data.classes)
    start = Population.from_modules([build(name, seed)])
    population = start.clone_rows([0])
    make_engine(name, backend, precision).train_epoch(population, few, [Noise(seed)], 0)
    assert torch.equal(population.counters_MB, start.counters_MB + 1)
    return Population(
        start.layout, population.weights_MP - start.weights_MP, population.momentum_MP,
        population.statistics_MQ - start.statistics_MQ, population.counters_MB,
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_fused_equals_eager(seed, data, name):
    """In parts of the way travelled.

    Rounding flips a ReLU's mask in up to every second start, and the gradient with it: one start of forty must be
    without. Statistics are of the forward pass, which is continuous there, and hold at every start.
    """
    errors = []
    for start in range(40):
        eager, fused = (one_step(name, backend, seed + start, data) for backend in ("eager", "fused"))
        matrices = [(getattr(eager, n), getattr(fused, n)) for n in ("statistics_MQ", "weights_MP", "momentum_MP")]
        errors.append([float((found - exact).norm() / exact.norm()) for exact, found in matrices])
        assert errors[-1][0] <= 3e-5, errors
        if max(errors[-1]) <= 1e-4:
            break
    assert min(max(start) for start in errors) <= 1e-4, errors


@needs_kernels
@pytest.mark.parametrize(
    ("name", "norms", "with_relu", "convolutions"),
    [("resnet20", 19, 19, 16), ("resnet18", 20, 17, 13), ("vgg11", 8, 8, 7), ("wrn16_4", 13, 13, 10)],
)
def test_every_batch_norm_and_3_x_3_convolution_has_its_kernel(name, norms, with_relu, convolutions):
    """Norms with the ReLU behind them: ResNet18's three shortcuts end in a sum, which the block's other norm takes.

    Convolutions of stride 1 but the first, of the images' three channels, which the kernel itself leaves to torch.
    """
    resolved = resolve(EngineConfig(device="cpu", precision="fp32"), build(name))
    assert resolved.backend == "fused"
    modules = list(resolved.network.modules())
    fused = [m for m in modules if isinstance(m, FusedBatchNorm2d)]
    assert (len(fused), sum(m.relu for m in fused)) == (norms, with_relu)
    assert not any(type(m) is nn.BatchNorm2d for m in modules)
    assert len([m for m in modules if isinstance(m, WinogradConv2d) and m.in_channels > 3]) == convolutions


@pytest.mark.parametrize("name", WITHOUT)
def test_nothing_but_weights(seed, data, name, tmp_path):
    """A network without statistics has no column of them (Q = 0), and all that is done with populations works."""
    population = Population.from_modules([build(name, seed), build(name, seed + 1)])
    assert (population.layout.Q, population.layout.B) == (0, 0)
    assert fuse_batch_norm(build(name)) is None
    engine, noises = make_engine(name), [Noise(1), Noise(2)]
    engine.train_epoch(population, data, noises, 0)
    average = population.combine(torch.tensor([[0.5, 0.5]]))
    mean_P = population.weights_MP.double().mean(0)
    torch.testing.assert_close(average.weights_MP[0].double(), mean_P, rtol=1e-6, atol=1e-7)
    fresh = engine.recompute_statistics(average, data, [Noise(3)], 1)
    assert torch.equal(fresh.weights_MP, average.weights_MP)  # there is nothing to recompute
    population.save(tmp_path / "two.safetensors")
    loaded = Population.load(tmp_path / "two.safetensors", Layout.of(build(name)))
    for both in (loaded, population):
        engine.train_epoch(both, data, noises, 1)
    assert torch.equal(loaded.weights_MP, population.weights_MP)


@pytest.mark.parametrize("name", WITHOUT)
def test_bf16_follows_fp32(seed, data, name):
    """Without batch norm too, low precision moves the weights almost as float32 does."""
    moves = [one_step(name, "eager", seed, data, precision).weights_MP[0] for precision in ("fp32", "bf16")]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.95
    assert not torch.equal(*moves)
