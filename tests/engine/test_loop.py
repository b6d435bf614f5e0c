"""The loop engine against plain PyTorch, against itself for other M, and its backends against each other.

Where rounding turns a ReLU over, a gradient jumps, and two right answers part. So networks that are trained twice in
different roundings start where float64 stays clear of every ReLU's corner: `clear_starts`.
"""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine import base
from fastwi.engine.base import Settings
from fastwi.engine.choose import ENGINES
from fastwi.engine.loop import LoopEngine
from fastwi.engine.schedule import learning_rate
from fastwi.engine.stacked import StackedEngine
from fastwi.errors import ConfigError
from fastwi.kernels.augment import augment_reference
from fastwi.kernels.cpu import library
from fastwi.population import Population

BATCH, IMAGES, PADDING = 10, 52, 2  # 5 steps an epoch; 2 images are left out
OPTIMIZER = OptimizerConfig(batch_size=BATCH, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
NESTEROV = OptimizerConfig(batch_size=BATCH, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
SCHEDULE = ScheduleConfig(drop_epochs=(1,), drop_factor=0.2, warmup_iterations=3)
AUGMENT = AugmentConfig(padding=PADDING, flip=0.5)
CLEAR = 3e-5  # of a ReLU's corner; over two epochs the largest error of any of its 100,000 inputs is about 3e-6
UNIT = torch.finfo(torch.float32).eps / 2
needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")


class SmallResidual(nn.Module):
    """Two convolutions, a residual sum and batch norm of 16 channels: everything that can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 4, 1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.norm1 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.linear, self.relu = nn.Linear(16, 10), nn.ReLU()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.relu(self.norm(self.conv(x_NCHW)))
        x_NCHW = self.relu(self.norm1(self.conv1(x_NCHW)) + x_NCHW)
        return self.linear(x_NCHW.mean((2, 3)))


@pytest.fixture(scope="module")
def data(digits_directory) -> ResidentDataset:
    return load_split(digits_directory, "train", torch.device("cpu"), IMAGES)[0]


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallResidual()


def make_engine(
    backend: str = "eager", precision: str = "fp32", optimizer: OptimizerConfig = OPTIMIZER
) -> LoopEngine:
    config = EngineConfig(device="cpu", precision=precision, backend=backend, evaluation_batch=32)
    return LoopEngine(build(0), Settings(config, optimizer, SCHEDULE, AUGMENT))


def assert_equal(first: Population, second: Population) -> None:
    for name in ("weights_MP", "momentum_MP", "statistics_MQ", "counters_MB"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def batches(data: ResidentDataset, noise: Noise, epoch: int, steps: int, dtype=torch.float32):
    draws = noise.draws(epoch, len(data), PADDING, 0.5)
    order, offset, flip = (torch.from_numpy(x) for x in (draws.order_N, draws.offset_N2, draws.flip_N))
    for step in range(steps):
        at = slice(step * BATCH, (step + 1) * BATCH)
        table = data.table_C256.to(dtype)
        yield augment_reference(data.images_NHWC, order[at], offset[at], flip[at], table, PADDING), order[at]


@dataclass(frozen=True)
class Trained:
    """What an ordinary training script ends with, in float64."""

    network: nn.Module
    momentum: dict[str, Tensor]
    losses: list[float]  # the mean of each epoch
    clearance: float  # how near any input of a ReLU came to 0


def plain_training(
    network: nn.Module, data: ResidentDataset, noise: Noise, epochs: int = 2, nesterov: bool = False
) -> Trained:
    """An ordinary training script in float64, on a copy of the network."""
    network = copy.deepcopy(network).double().train()
    nearest: list[float] = []
    network.relu.register_forward_pre_hook(lambda _, inputs: nearest.append(inputs[0].detach().abs().min().item()))
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=nesterov)
    means, iteration = [], 0
    for epoch in range(epochs):
        losses = []
        for x_NCHW, order in batches(data, noise, epoch, 5, torch.float64):
            for group in sgd.param_groups:
                group["lr"] = 0.05 * iteration / 3 if iteration < 3 else 0.05 * (0.2 if epoch >= 1 else 1)
            sgd.zero_grad()
            loss = functional.cross_entropy(network(x_NCHW), data.labels_N[order])
            loss.backward()
            sgd.step()
            losses.append(loss.item())
            iteration += 1
        means.append(sum(losses) / 5)
    momentum = {name: sgd.state[parameter]["momentum_buffer"] for name, parameter in network.named_parameters()}
    return Trained(network, momentum, means, min(nearest))


def clear_starts(
    seed: int, data: ResidentDataset, epochs: int = 2, nesterov: bool = False
) -> Iterator[tuple[int, Trained]]:
    """Seeds of a network and its noise, from `seed` on, under which no ReLU can be turned over; and what they give.

    Nearly every second one is. That float64 alone chooses: an engine's errors have no say.
    """
    for start in range(seed, seed + 200):
        trained = plain_training(build(start), data, Noise(start), epochs, nesterov)
        if trained.clearance > CLEAR:
            yield start, trained


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("backend", ["eager", pytest.param("fused", marks=needs_kernels)])
def test_equals_an_ordinary_training_script(seed, data, backend, nesterov):
    """Two epochs: each tensor as near to float64's as 2e-4 of the way it travelled, and 10 times rounded on it."""
    engine = make_engine(backend, optimizer=NESTEROV if nesterov else OPTIMIZER)
    assert engine.iterations(data) == 5
    starts = list(itertools.islice(clear_starts(seed, data, nesterov=nesterov), 3))
    assert len(starts) == 3
    for start, expected in starts:
        before, population = build(start).state_dict(), Population.from_modules([build(start)])
        seen: list[int] = []
        losses = [engine.train_epoch(population, data, [Noise(start)], e, seen.append)[0] for e in range(2)]
        assert sum(seen) == 2 * 5 * BATCH
        assert losses == pytest.approx(expected.losses, rel=1e-5)
        state = expected.network.state_dict()
        for name, value in {**population.parameters(0), **population.buffers(0)}.items():
            allowed = 2e-4 * (state[name] - before[name]).double().norm()
            allowed += 10 * UNIT * state[name].double().norm()  # a weight is rounded at each step, however short
            assert (value - state[name]).double().norm() <= allowed, name
        for name, value in expected.momentum.items():
            assert (population.momentum(0)[name] - value).norm() <= 2e-4 * value.norm(), name


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("eager", "fp32"), ("eager", "bf16")]
    + [pytest.param("fused", p, marks=needs_kernels) for p in ("fp32", "bf16")],
)
def test_a_member_does_not_depend_on_its_neighbours(seed, data, backend, precision):
    networks = [build(seed), build(seed + 1), build(seed)]
    noises = [Noise(5), Noise(5), Noise(6)]
    together, engine = Population.from_modules(networks), make_engine(backend, precision)
    losses = [engine.train_epoch(together, data, noises, epoch) for epoch in range(2)]
    for m in range(3):
        alone, other = Population.from_modules([networks[m]]), make_engine(backend, precision)
        for epoch in range(2):
            assert other.train_epoch(alone, data, [noises[m]], epoch) == [losses[epoch][m]]
        assert_equal(alone, together[m])


def test_only_noise_tells_siblings_apart(seed, data):
    engine = make_engine()
    population = Population.from_modules([build(seed)]).clone_rows([0, 0, 0])
    engine.train_epoch(population, data, [Noise(1), Noise(2), Noise(1)], 0)
    assert_equal(population[0], population[2])
    for matrix in (population.weights_MP, population.momentum_MP, population.statistics_MQ):
        assert (matrix[0] != matrix[1]).float().mean() > 0.5
    again = Population.from_modules([build(seed)])
    engine.train_epoch(again, data, [Noise(1)], 1)
    assert not torch.equal(again.weights_MP[0], population.weights_MP[0])


def test_one_noise_a_member(data):
    with pytest.raises(ValueError, match="2 members need as many noises, got 1"):
        make_engine().train_epoch(Population.from_modules([build(0), build(1)]), data, [Noise(0)], 0)


def test_the_model_gives_the_architecture_only(seed, data):
    network = build(seed)
    before = copy.deepcopy(network.state_dict())
    config = EngineConfig(device="cpu", precision="fp32", backend="eager")
    engine = LoopEngine(network, Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
    population = Population.from_modules([build(seed + 1)])
    engine.train_epoch(population, data, [Noise(1)], 0)
    engine.evaluate(population, data)
    engine.recompute_statistics(population, data, [Noise(1)], 0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@needs_kernels
def test_bf16_follows_fp32(seed, data):
    """Weights stay float32; after an epoch they moved almost as in float32, and did move.

    Roundings that turn over a ReLU take a start in a hundred further away: so it is the median of five.
    """
    start = Population.from_modules([build(seed + m) for m in range(5)])
    moved = []
    for backend, precision in (("eager", "fp32"), ("eager", "bf16"), ("fused", "bf16")):
        population = start.clone_rows(range(5))
        make_engine(backend, precision).train_epoch(population, data, [Noise(seed + m) for m in range(5)], 0)
        moved.append(population.weights_MP - start.weights_MP)
    assert (moved[0].norm(dim=1) > 0).all()
    for other in moved[1:]:
        apart_M = 1 - functional.cosine_similarity(other, moved[0], dim=1)
        assert apart_M.median() < 0.01
        assert apart_M.max() < 0.5


def test_compiled_equals_eager(seed, data):
    if library() is None:
        pytest.skip("no C++ compiler")
    chosen = [start for start, _ in itertools.islice(clear_starts(seed, data, epochs=1), 2)]
    start, noises = Population.from_modules([build(m) for m in chosen]), [Noise(m) for m in chosen]
    results = []
    for backend in ("eager", "compile"):
        population, engine = start.clone_rows([0, 1]), make_engine(backend)
        engine.train_epoch(population, data, noises, 0)
        results.append((population, engine.evaluate(population, data)))
    (eager, eager_scores), (compiled, compiled_scores) = results
    for name in ("weights_MP", "momentum_MP", "statistics_MQ"):
        moved = getattr(eager, name) - getattr(start, name)
        error = getattr(compiled, name) - getattr(eager, name)
        assert error.norm() <= 4e-4 * moved.norm(), name
    assert torch.equal(compiled.counters_MB, eager.counters_MB)
    np.testing.assert_allclose(compiled_scores.loss_M, eager_scores.loss_M, rtol=1e-3)


@pytest.mark.parametrize("backend", ["eager", pytest.param("fused", marks=needs_kernels)])
def test_evaluation_equals_a_plain_loop(seed, data, backend):
    networks = [build(seed), build(seed + 1)]
    engine, population = make_engine(backend), Population.from_modules(networks)
    engine.train_epoch(population, data, [Noise(1), Noise(2)], 0)
    before = population.clone_rows([0, 1])
    seen: list[int] = []
    scores = engine.evaluate(population, data, seen.append)
    assert_equal(population, before)
    assert sum(seen) == 2 * IMAGES
    everything = torch.arange(IMAGES)
    x_NCHW = augment_reference(data.images_NHWC, everything, None, None, data.table_C256.double(), 0)
    for m, network in enumerate(networks):
        population.write_to(m, network)
        logits = network.double().eval()(x_NCHW)
        assert scores.loss_M[m] == pytest.approx(functional.cross_entropy(logits, data.labels_N).item(), rel=1e-4)
        right = (logits.argmax(1) == data.labels_N).double().mean().item()
        assert scores.accuracy_M[m] == pytest.approx(100 * right, abs=100 / IMAGES + 1e-9)
    assert scores.loss_M[0] != scores.loss_M[1]


class Shifting(SmallResidual):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW.sub_(0.5))


def test_members_share_what_is_read_and_not_what_they_change(seed, data, monkeypatch):
    """Each evaluation batch is read once for members that are evaluated together, here two."""
    monkeypatch.setattr(base, "MEMBERS_A_BATCH", 2)
    read: list[int] = []
    chunks = ResidentDataset.chunks

    def counted(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images_DHWC, at_N in chunks(self, order_N, size):
            read.append(len(at_N))
            yield images_DHWC, at_N

    monkeypatch.setattr(ResidentDataset, "chunks", counted)
    config = EngineConfig(device="cpu", precision="bf16", backend="eager", evaluation_batch=32)
    engine = LoopEngine(Shifting(), Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
    population = Population.from_modules([build(seed + m) for m in range(3)])
    scores = engine.evaluate(population, data)
    assert sum(read) == 2 * IMAGES
    alone = [engine.evaluate(population.clone_rows([m]), data) for m in range(3)]
    assert scores.loss_M.tolist() == [each.loss_M[0] for each in alone]
    assert scores.accuracy_M.tolist() == [each.accuracy_M[0] for each in alone]
    assert len(set(scores.loss_M)) == 3


@pytest.mark.parametrize("images", [0, 30])
@pytest.mark.parametrize("backend", ["eager", pytest.param("fused", marks=needs_kernels)])
def test_recomputed_statistics_are_those_of_update_bn(seed, data, backend, images):
    networks = [build(seed), build(seed + 1)]
    engine, population = make_engine(backend), Population.from_modules(networks)
    noises = [Noise(seed), Noise(seed + 1)]
    engine.train_epoch(population, data, noises, 0)
    before = population.clone_rows([0, 1])
    fresh = engine.recompute_statistics(population, data, noises, 7, images)
    assert_equal(population, before)
    assert torch.equal(fresh.weights_MP, population.weights_MP)
    assert torch.equal(fresh.momentum_MP, population.momentum_MP)
    steps = 3 if images else 5
    for m, network in enumerate(networks):
        population.write_to(m, network)
        statistics = Noise(noises[m].seed, statistics=True)
        loader = [x for x, _ in batches(data, statistics, 7, steps)]
        torch.optim.swa_utils.update_bn(loader, network)
        for name, value in network.named_buffers():
            torch.testing.assert_close(fresh.buffers(m)[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # The settings are as they were: training goes on as if nothing had been recomputed.
    again, other = before.clone_rows([0, 1]), make_engine(backend)
    engine.train_epoch(population, data, noises, 1)
    other.train_epoch(again, data, noises, 1)
    assert_equal(population, again)


@pytest.mark.parametrize("engine_class", [LoopEngine, StackedEngine])
def test_without_batch_norm_nothing_is_recomputed(seed, data, engine_class):
    """And progress comes to as many images as with it."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    config = EngineConfig(device="cpu", precision="fp32", backend="eager")
    told = []
    for model in (network, build(seed)):
        engine = engine_class(model, Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
        population = Population.from_modules([model, model])
        reports: list[int] = []
        fresh = engine.recompute_statistics(population, data, [Noise(1), Noise(2)], 0, 0, reports.append)
        told.append(sum(reports))
        if model is network:
            assert_equal(fresh, population)
            assert fresh.weights_MP.data_ptr() != population.weights_MP.data_ptr()
    assert told[0] == told[1] > 0


def test_rate_is_of_the_global_epoch(seed, data, monkeypatch):
    """The rate of an epoch follows from the epoch alone, so that a child goes on in the parent's schedule."""
    rates: list[float] = []
    engine = make_engine()
    monkeypatch.setattr("fastwi.engine.loop.sgd_row_", lambda *arguments: rates.append(arguments[3]))
    for epoch in (0, 1, 4):
        engine.train_epoch(Population.from_modules([build(seed)]), data, [Noise(0)], epoch)
    expected = [learning_rate(e * 5 + i, 5, OPTIMIZER, SCHEDULE) for e in (0, 1, 4) for i in range(5)]
    assert rates == expected
    assert rates[0] == 0
    assert rates[3] == 0.05
    assert rates[-1] == pytest.approx(0.01)


class Dropping(SmallResidual):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(functional.dropout(x_NCHW, 0.3, self.training))


@pytest.mark.parametrize("images", [0, 64])
def test_layers_that_draw_themselves_draw_by_the_noise(seed, data, images):
    """Alone or among others, after whatever else was drawn: a member's dropout is its noise's business."""
    config = EngineConfig(device="cpu", precision="fp32", backend="auto", evaluation_batch=32)
    engine = LoopEngine(Dropping(), Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
    start = Population.from_modules([build(seed)])
    both, alone = start.clone_rows([0, 0]), start.clone_rows([0])
    engine.train_epoch(both, data, [Noise(seed), Noise(seed + 1)], 0)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    engine.train_epoch(alone, data, [Noise(seed + 1)], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(alone, both.clone_rows([1]))
    assert not torch.equal(both.weights_MP[0], both.weights_MP[1])
    recomputed = engine.recompute_statistics(both, data, [Noise(7), Noise(8)], 1, images)
    again = engine.recompute_statistics(alone, data, [Noise(8)], 1, images)
    assert torch.equal(recomputed.statistics_MQ[1], again.statistics_MQ[0])
    with engine._layers_draw(Noise(seed), 0):
        first = torch.rand(5)
    with engine._layers_draw(Noise(seed), 1):
        assert not torch.equal(torch.rand(5), first)  # another epoch has other masks


@pytest.mark.parametrize("name", ["graph", "stacked"])
def test_engines_of_one_generator_refuse_dropout(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.1), nn.Flatten(), nn.Linear(3600, 10))
    with pytest.raises(ConfigError, match=f"engine.name: {name} has one generator for all members"):
        ENGINES[name](model, Settings(EngineConfig(device="cpu"), OPTIMIZER, SCHEDULE, AUGMENT))


class HalfFrozen(SmallResidual):
    """One batch norm's statistics are buffers of a module that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Module()
        for name, value in (("running_mean", 0.5), ("running_var", 3.0)):
            self.fixed.register_buffer(name, torch.full((16,), value))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.conv(x_NCHW)
        y = functional.batch_norm(y, self.fixed.running_mean, self.fixed.running_var)
        return self.linear(self.relu(self.norm(y)).mean((2, 3)))


@pytest.mark.parametrize("name", ["loop", "stacked"])
def test_only_batch_norms_are_recomputed(seed, data, name):
    torch.manual_seed(seed)
    network = HalfFrozen()
    config = EngineConfig(device="cpu", precision="fp32", backend="eager", evaluation_batch=32)
    engine = ENGINES[name](network, Settings(config, OPTIMIZER, SCHEDULE, AUGMENT))
    before = Population.from_modules([network])
    after = engine.recompute_statistics(before, data, [Noise(seed)], 0)
    for buffer in ("running_mean", "running_var"):
        assert torch.equal(after.buffers(0)[f"fixed.{buffer}"], before.buffers(0)[f"fixed.{buffer}"])
        assert not torch.equal(after.buffers(0)[f"norm.{buffer}"], before.buffers(0)[f"norm.{buffer}"])
