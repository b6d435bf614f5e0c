"""A replayed pass is the pass itself, to the bit; what a replay would freeze is run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_networks import same_rows
from torch import Tensor, fx, nn
from torch.nn import functional
from trained_networks import CONFIG, OPTIMIZER, Residual, draw_data, draw_momentum

from fastwi.config.schema import EngineConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.engine import recorded
from fastwi.engine.base import Engine
from fastwi.engine.choose import ENGINES
from fastwi.engine.recorded import Recorded
from fastwi.kernels.cpu import library
from fastwi.models.resnet import ResNet
from fastwi.population import Population

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")


class Shared(nn.Module):
    """A convolution and a norm called twice, a residual, views and buffers beside the norms' own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.first, self.norm = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.linear = nn.Linear(32, 10)
        self.register_buffer("gain", torch.rand(16, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = functional.relu(self.first(self.stem(x_NCHW))) * self.gain
        x = functional.relu(self.norm(self.conv(x)) + x)
        x = self.norm(self.conv(x))
        x = torch.cat([x[:, :8].sigmoid(), x[:, 8:], -x[:, ::2].relu(), x[:, 1::2].flip(2)], 1)
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))  # changes strides in place


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: ResNet(3, 10),
    "residual": Residual,
    "shared": Shared,
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Epochs here have few steps."""
    monkeypatch.setattr(recorded, "RECORD_AT", 2)


def make(network: nn.Module, engine: str = "loop", replays: bool = True, **config) -> Engine:
    made = ENGINES[engine](network, replace(CONFIG, engine=EngineConfig(device="cpu", **config)))
    if not replays:
        made._recorded = None
    return made


def starts(name: str, seed: int, members: int = 2) -> Population:
    torch.manual_seed(seed)
    population = Population.from_modules([NETWORKS[name]() for _ in range(members)])
    draw_momentum(population, seed)
    return population


def train(engine: Engine, population: Population, seed: int, epochs: int = 2, images: int = 32) -> list[list[float]]:
    noises = [Noise(seed + m) for m in range(population.members)]
    data = draw_data(seed, images)
    return [engine.train_epoch(population, data, noises, epoch) for epoch in range(epochs)]


def replays(engine: Engine) -> list[bool]:
    """Of each shape that was recorded, whether its passes are replayed."""
    assert engine._recorded is not None
    return [each is not None for each in engine._recorded._replays.values()]


def both(name: str, seed: int, engine: str = "loop", **config) -> tuple[Engine, Engine, Population, Population]:
    """Two engines, of which the second may replay, and the same two members for each."""
    network, begin = NETWORKS[name](), starts(name, seed)
    made = [make(network, engine, replays, **config) for replays in (False, True)]
    return *made, begin, begin.clone_rows([0, 1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_the_same_to_the_bit(seed, name, precision):
    """Two members in turn, whose rows, draws and momentum differ."""
    plain, replayed, one, other = both(name, seed, precision=precision)
    begin = one.clone_rows([0, 1])
    assert train(plain, one, seed) == train(replayed, other, seed)
    assert same_rows(one, [0, 1], other, [0, 1])
    assert replays(replayed) == [True]
    assert not same_rows(one, [0], one, [1])
    assert not same_rows(one, [0, 1], begin, [0, 1])


def test_other_threads_and_batches_are_recorded_by_themselves(seed):
    """Work space grows in between, and first shapes come again."""
    plain, replayed, one, other = both("shared", seed)
    smaller = OptimizerConfig(batch_size=3, learning_rate=0.1)
    for threads, count in (1, 0), (2, 0), (1, 3), (1, 0):
        torch.set_num_threads(threads)
        for engine, population in (plain, one), (replayed, other):
            changed = replace(engine.config, optimizer=smaller if count else OPTIMIZER)
            train(engine.with_config(changed), population, seed, epochs=1)
        assert same_rows(one, [0, 1], other, [0, 1])
    assert replays(replayed) == [True] * 3


def test_engine_graph(seed):
    plain, replayed, one, other = both("shared", seed, "graph")
    assert train(plain, one, seed) == train(replayed, other, seed)
    assert same_rows(one, [0, 1], other, [0, 1])
    assert replays(replayed) == [True]


def test_deterministic(seed):
    """Memory that is not written is then filled with NaN."""
    plain, replayed, one, other = both("shared", seed, deterministic=True)
    train(plain, one, seed)
    train(replayed, other, seed)
    assert same_rows(one, [0, 1], other, [0, 1])
    assert replays(replayed) == [True]


class Changed(nn.Module):
    """A norm, and what `around` makes of its output."""

    def __init__(self, around, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16, momentum=momentum)
        self.linear, self.around = nn.Linear(16, 10), around

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.around(self.norm(self.conv(x_NCHW))).mean((2, 3)))


calls: list[int] = []


@fx.wrap
def by_calls(y: Tensor) -> Tensor:
    calls.append(1)
    return y * len(calls)


class OwnBuffer(Changed):
    """A tensor that is no member's, and changes in each pass."""

    def __init__(self) -> None:
        super().__init__(torch.relu)
        self.register_buffer("shift", torch.ones(3, 1, 1), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW + self.shift.mul_(0.9))


NOT_REPLAYED = {
    "draws": Changed(lambda y: functional.dropout(y, 0.5)),
    "reads a number": Changed(lambda y: y * y.mean().item()),
    "a size that depends on values": Changed(lambda y: y * (y > 0).nonzero().size(0)),
    "mean of all batches": Changed(torch.relu, momentum=None),
}
NOT_RECORDED = {
    "a buffer that is not saved": OwnBuffer(),
    "reads a list": Changed(lambda y: y * y.mean((0, 2, 3)).tolist()[3]),
    "a function of the user's": Changed(lambda y: by_calls(y)),
    "no norm": nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 10)),
}


@pytest.mark.parametrize("name", NOT_REPLAYED | NOT_RECORDED)
def test_what_a_replay_would_freeze_is_run(seed, name):
    network = (NOT_REPLAYED | NOT_RECORDED)[name]
    backend = "eager" if name == "no norm" else "fused"
    plain, replayed = (make(network, replays=each, backend=backend) for each in (False, True))
    one, other = (Population.from_modules([network]) for _ in range(2))
    for engine, population in (plain, one), (replayed, other):
        calls.clear()
        train(engine, population, seed)
    assert same_rows(one, [0], other, [0])
    if name in NOT_RECORDED:
        assert replayed._recorded is None
    else:
        assert replays(replayed) == [False]


def test_what_changes_unseen_shows_on_the_next_batch():
    factor, (x, labels, y) = 0, torch.ones(3, 4)[:3]
    passes = Recorded()

    def run() -> Tensor:
        return y.copy_(x * factor).sum()

    for factor in range(1, 6):
        assert passes(run, [x, labels, y]) == 4 * factor
        assert torch.equal(y, factor * x)
    assert list(passes._replays.values()) == [None]


def test_new_strides_of_a_second_tensor_in_the_same_memory(seed):
    """A replay has one name for both."""
    torch.manual_seed(seed)
    x, y, z = torch.rand(3, 4, 4)
    passes = Recorded()

    def run() -> Tensor:
        own = x * z
        own.detach().as_strided_((4, 4), (1, 4))
        return (own * y).sum()

    for _ in range(5):
        assert passes(run, [x, y, z.uniform_()]) == (x * z * y).sum()
    assert list(passes._replays.values()) == [None]


def test_what_is_allocated_once_lends_its_memory_and_no_result_has_it():
    x, z, _ = torch.ones(3, 4)
    passes = Recorded()

    def run() -> Tensor:
        first = torch.empty(4).copy_(x)
        view = first.view(2, 2)
        second = torch.empty(4).copy_(z)  # while `view` is read
        view.add_(second.view(2, 2))
        third = torch.empty_like(first).copy_(first)  # second's memory
        return torch.empty(()).copy_(third.sum()).view(())

    losses = []
    for step in range(8):
        z.fill_(step)
        losses.append(passes(run, [x, z]))
    assert losses == [4.0 * (1 + step) for step in range(8)]
    (replay,) = passes._replays.values()
    stays = [value for value in replay.__globals__.values() if isinstance(value, Tensor)]
    assert [len(stays), len({each.data_ptr() for each in stays})] == [3, 2]


@pytest.mark.parametrize("factor", [lambda z: z.item(), lambda z: 0 * torch.rand(4) + z])
def test_reads_and_draws_are_refused_though_nothing_has_changed_yet(factor):
    x, z, y = torch.ones(3, 4)
    z, passes = z[0], Recorded()
    for step in range(6):
        z.fill_(max(4, step))  # both checks pass before
        assert passes(lambda: y.copy_(x * factor(z)).sum(), [x, y, z]) == 4 * max(4, step)
    assert list(passes._replays.values()) == [None]


def test_training_goes_on_where_recording_fails(monkeypatch, seed):
    plain, replayed, one, other = both("shared", seed)

    def fails(_: object, run: Callable[[], Tensor]) -> Tensor:
        run()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(recorded._Recorder, "record", fails)
    assert train(plain, one, seed) == train(replayed, other, seed)
    assert same_rows(one, [0, 1], other, [0, 1])
    assert replays(replayed) == [False]


def test_large_batches_are_not_recorded(monkeypatch, seed):
    monkeypatch.setattr(recorded, "MOST_VALUES", 10)
    engine = make(NETWORKS["shared"]())
    train(engine, starts("shared", seed), seed)
    assert replays(engine) == []
