"""Every engine against float64 and `loop`, for networks of different kinds; members alone and among others."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from trained_networks import (
    BATCH,
    BATCHED,
    CHOICES,
    CLASSES,
    ENGINES,
    NETWORKS,
    OPTIMIZER,
    STEPS,
    TooClose,
    build,
    draw_data,
    make,
    on_gpu,
    starts,
    train_exactly,
)

from fastwi.config.schema import AugmentConfig, DataConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.engine.captured import SHARE_OF_MEMORY
from fastwi.engine.program import Program
from fastwi.errors import ConfigError
from fastwi.kernels import gpu
from fastwi.kernels.cpu import library
from fastwi.models.registry import build_model
from fastwi.population import Population

EPS = torch.finfo(torch.float32).eps
EPOCH = 1  # the rate has dropped by then
FP32_ERROR = 300 * EPS  # of a tensor's way over 5 steps: sums of some 400 terms, carried through 5 steps
NEAR = {"fp32": 1e-4, "bf16": 2e-2}  # roundings in another order; no more than that
needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")


def clear_start(network: str, seed: int, members: int, optimizer: OptimizerConfig) -> tuple[Any, ...]:
    """A start state, data and noises with the exact result of an epoch, where no ReLU is near its kink."""
    for attempt in range(seed, seed + 1000):
        population, data = starts(network, attempt, members), draw_data(attempt)
        noises = [Noise(attempt + m) for m in range(members)]
        try:
            exact = [
                train_exactly(build(network, 0), population, m, data, noise, EPOCH, optimizer)
                for m, noise in enumerate(noises)
            ]
        except TooClose:
            continue
        return population, data, noises, exact
    raise AssertionError("no start without a ReLU near its kink")


def assert_near(found: Tensor, exact: Tensor, before: Tensor | float, name: str) -> None:
    """Within FP32_ERROR of the largest change, beside the rounding of the value itself in each step."""
    allowed = FP32_ERROR * (exact - before).abs().max() + STEPS * EPS * exact.abs().max()
    assert (found.double() - exact).abs().max() <= allowed, name


FORMS = [(0.9, False), (0.9, True), (0.0, False)]  # momentum, nesterov


@pytest.mark.parametrize(
    ("engine", "backend", "network", "form"),
    [(engine, "eager", network, form) for engine in ENGINES for network in NETWORKS for form in FORMS[:2]]
    + [(engine, "eager", "residual", FORMS[2]) for engine in ENGINES]
    + [pytest.param("loop", "fused", "residual", form, marks=needs_kernels) for form in FORMS],
)
def test_five_steps_equal_float64(seed, engine, backend, network, form):
    optimizer = OptimizerConfig(BATCH, 0.05, form[0], 1e-3, form[1])
    population, data, noises, exact = clear_start(network, seed, 3, optimizer)
    before = population.clone_rows(range(3))
    seen: list[int] = []
    made = make(engine, network, backend=backend, optimizer=optimizer)
    losses = made.train_epoch(population, data, noises, EPOCH, seen.append)
    assert sum(seen) == 3 * STEPS * BATCH
    for m, (trained, momentum, loss) in enumerate(exact):
        assert losses[m] == pytest.approx(loss, rel=FP32_ERROR)
        state = trained.state_dict()
        for name, value in population.parameters(m).items():
            assert_near(value, state[name], before.parameters(m)[name], name)
            if form[0]:
                assert_near(population.momentum(m)[name], momentum[name], 0.0, name)
        for name, value in population.buffers(m).items():
            assert_near(value, state[name], before.buffers(m)[name], name)
    assert len(set(losses)) == 3


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
def test_compiled_equals_eager(seed):
    population, data, noises, _ = clear_start("residual", seed, 2, OPTIMIZER)
    results = []
    for backend in ("eager", "compile"):
        trained, made = population.clone_rows([0, 1]), make("loop", "residual", backend=backend)
        made.train_epoch(trained, data, noises, EPOCH)
        results.append((trained, made.evaluate(trained, data)))
    (eager, eager_scores), (compiled, compiled_scores) = results
    for name in ("weights_MP", "momentum_MP", "statistics_MQ"):
        moved = getattr(eager, name) - getattr(population, name)
        assert (getattr(compiled, name) - getattr(eager, name)).norm() <= 4e-4 * moved.norm(), name
    assert torch.equal(compiled.counters_MB, eager.counters_MB)
    np.testing.assert_allclose(compiled_scores.loss_M, eager_scores.loss_M, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("engine", "backend", "network"),
    [(engine, "eager", network) for engine in CHOICES for network in (*NETWORKS, "resnet20_gn", "wrn16_4")]
    + [pytest.param("loop", "fused", "residual", marks=needs_kernels)],
)
def test_a_member_is_the_same_bit_for_bit_alone_and_among_others(seed, engine, backend, network, precision):
    """The built-in ones are of one channel in places, where a batched sum takes another path."""
    if network in NETWORKS:
        model: Any = network
        population, data = starts(network, seed, 4), draw_data(seed)
    else:
        torch.manual_seed(seed)
        model = build_model(network, 10, width=0.0625)
        networks = [build_model(network, 10, width=0.0625) for _ in range(4)]
        population, data = Population.from_modules(networks), draw_data(seed, 2 * BATCH)
    made, noises = make(engine, model, precision, backend), [Noise(seed + m) for m in range(4)]

    def results(rows: list[int]) -> list[tuple[Any, ...]]:
        """For each of `rows`, passed together: what it is trained to, and what is measured of it."""
        own, trained = [noises[m] for m in rows], population.clone_rows(rows)
        losses = made.train_epoch(trained, data, own, EPOCH)
        recomputed = made.recompute_statistics(trained, data, own, EPOCH)
        scores = made.evaluate(recomputed, data)
        return [
            (losses[m], scores.loss_M[m], *(matrix[m].tolist() for matrix in recomputed.matrices))
            for m in range(len(rows))
        ]

    alone = [results([m])[0] for m in range(4)]
    for members in (2, 3, 4):
        assert results(list(range(members))) == alone[:members], members


@pytest.mark.parametrize("engine", ENGINES)
def test_only_noise_tells_siblings_apart(seed, engine):
    population = starts("residual", seed, 1).clone_rows([0, 0, 0])
    make(engine, "residual").train_epoch(population, draw_data(seed), [Noise(1), Noise(2), Noise(1)], 0)
    torch.testing.assert_close(population.weights_MP[0], population.weights_MP[2], rtol=0, atol=1e-6)
    for matrix in (population.weights_MP, population.momentum_MP, population.statistics_MQ):
        assert (matrix[0] - matrix[1]).abs().max() > 1e-3 * matrix[0].abs().max()


class Repeated(nn.Module):
    """Layers whose parameters have two gradients each, and counters that count two batches or are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.linear = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, CLASSES)
        self.bn, self.twice, self.read = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = torch.tanh(self.bn(self.first(x_NCHW)))
        x_NCHW = self.twice(self.again(torch.tanh(self.twice(self.again(x_NCHW)))))
        x_NCHW = self.read(x_NCHW) * self.first.weight.mean() + self.read.num_batches_tracked
        return self.linear(torch.mean(x_NCHW, dim=(2, 3)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", BATCHED)
def test_parameters_and_counters_that_are_used_twice(seed, engine, precision):
    torch.manual_seed(seed)
    networks = [Repeated() for _ in range(2)]
    start, data, trained = Population.from_modules(networks), draw_data(seed, 2 * BATCH), []
    for name in ("loop", engine):
        members = start.clone_rows([0, 1])
        made = make(name, Repeated(), precision)
        losses = made.train_epoch(members, data, [Noise(1), Noise(2)], 0)
        trained.append((members.weights_MP, made.recompute_statistics(members, data, [Noise(1)] * 2, 0), losses))
        assert members.buffers(1)["twice.num_batches_tracked"] == 4
        assert members.buffers(1)["bn.num_batches_tracked"] == members.buffers(0)["read.num_batches_tracked"] == 2
    (expected, averaged, expected_losses), (found, recomputed, losses) = trained
    np.testing.assert_allclose(losses, expected_losses, rtol=NEAR[precision])
    way = expected - start.weights_MP
    assert (found - expected).norm() <= {"fp32": 1e-4, "bf16": 0.1}[precision] * way.norm()
    assert torch.equal(recomputed.counters_MB, averaged.counters_MB)


class Centred(nn.Module):
    """A buffer that each pass changes in place, behind a norm whose buffers are in the same row of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)
        self.register_buffer("centre", torch.zeros(4, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.bn(self.conv(x_NCHW)).sigmoid()
        self.centre.mul_(0.8).add_(0.2 * x_NCHW.detach().mean((0, 2, 3))[:, None, None])
        return self.linear((x_NCHW - self.centre).square().mean((2, 3)))


class CentredAtOnce(Centred):
    """The same, without another look at the buffer: torch.fx can trace it."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.bn(self.conv(x_NCHW)).sigmoid()
        moved = 0.2 * x_NCHW.detach().mean((0, 2, 3))[:, None, None]
        return self.linear((x_NCHW - self.centre.mul_(0.8).add_(moved)).square().mean((2, 3)))


class CentredByAView(Centred):
    """The same by way of a view of the buffer."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.bn(self.conv(x_NCHW)).sigmoid()
        centre = self.centre.view(4).mul_(0.8).add_(0.2 * x_NCHW.detach().mean((0, 2, 3)))
        return self.linear((x_NCHW - centre[:, None, None]).square().mean((2, 3)))


@pytest.mark.parametrize("kind", [Centred, CentredAtOnce, CentredByAView])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_buffer_that_is_changed_in_place(seed, engine, kind):
    torch.manual_seed(seed)
    network, data = kind(), draw_data(seed)
    trained = Population.from_modules([network])
    exact, _, loss = train_exactly(network, trained.clone_rows([0]), 0, data, Noise(seed), EPOCH)
    assert make(engine, kind()).train_epoch(trained, data, [Noise(seed)], EPOCH) == pytest.approx([loss], rel=1e-5)
    expected = Population.from_modules([exact.float()])
    torch.testing.assert_close(trained.weights_MP, expected.weights_MP, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.statistics_MQ, expected.statistics_MQ, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_parameter_without_a_gradient_is_refused(engine):
    """Its row would hold the gradient of an earlier step."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return self.linear(torch.mean(self.conv(x_NCHW).detach(), dim=(2, 3)))

    with pytest.raises(ConfigError, match=r"parameter conv\.weight has no gradient"):
        make(engine, Cut()).train_epoch(Population.from_modules([Cut()]), draw_data(0), [Noise(0)], 0)


@fx.wrap
def number_of(y_NC: Tensor) -> float:
    """A function of the user's, which torch.fx does not trace through."""
    return float(y_NC.detach().std())


@fx.wrap
def ramp_of(channels: int) -> Tensor:
    """A tensor that is made of no tensor: no member's."""
    return torch.linspace(1, 2, channels)


class Divided(nn.Module):
    """Activations by `number` of their absolute values, which nothing else reads."""

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.linear, self.number = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES), number

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NC = self.conv(x_NCHW).mean((2, 3))
        return self.linear(y_NC / self.number(y_NC.abs()))


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda y: y.amax().item(), "tolist": lambda y: y.detach().std().tolist(),
    "numpy": lambda y: y.detach().std().numpy()[()], "of the user's": lambda y: number_of(y),
    "a tensor of numbers": lambda y: ramp_of(y.shape[1]),
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_a_network_makes_of_activations_are_each_members_own(seed, number):
    torch.manual_seed(seed)
    start, trained = Population.from_modules([Divided(NUMBERS[number]) for _ in range(4)]), []
    for name in ("loop", "stacked"):
        members, made = start.clone_rows(range(4)), make(name, Divided(NUMBERS[number]))
        made.train_epoch(members, draw_data(seed), [Noise(seed + m) for m in range(4)], 0)
        trained.append((members.weights_MP, made.evaluate(members, draw_data(seed)).loss_M))
    (expected, expected_losses), (found, losses) = trained
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)


def test_a_number_that_only_a_pass_shows_to_be_a_members_own_is_refused(seed):
    """math.sqrt is of a size, or of a tensor."""
    torch.manual_seed(seed)
    sizes, values = (Divided(of) for of in (lambda y: math.sqrt(y.shape[1]), lambda y: math.sqrt(y.detach().var())))
    data, noises = draw_data(seed), [Noise(0), Noise(1)]
    make("stacked", sizes).train_epoch(Population.from_modules([sizes, Divided(torch.amax)]), data, noises, 0)
    with pytest.raises(ConfigError, match=r"engine\.name: stacked .* sqrt"):
        make("stacked", values).train_epoch(Population.from_modules([values, Divided(torch.amax)]), data, noises, 0)


@pytest.mark.parametrize("engine", BATCHED)
def test_portions_and_reused_programs(seed, engine, monkeypatch):
    """More members than a program takes, twice: the second epoch runs on buffers that the first has used."""
    data, noises = draw_data(seed), [Noise(seed + m) for m in range(5)]
    whole, parts = (starts("residual", seed, 5) for _ in range(2))
    one, other = make(engine, "residual"), make(engine, "residual")
    monkeypatch.setattr(type(one), "members_at_once", 5)
    first, seen = [one.train_epoch(whole, data, noises, epoch) for epoch in range(2)], list[int]()
    monkeypatch.setattr(type(one), "members_at_once", 2)
    second = [other.train_epoch(parts, data, noises, epoch, seen.append) for epoch in range(2)]
    assert sum(seen) == 2 * 5 * STEPS * BATCH  # idle rows do not count
    np.testing.assert_allclose(first, second, rtol=1e-3)
    assert torch.equal(whole.counters_MB, parts.counters_MB)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", CHOICES)
def test_an_epoch_in_parts_is_the_epoch(seed, engine, precision):
    """To the bit: the same steps on the same images at the same rates, which differ in the warm-up of epoch 0."""
    data, noises = draw_data(seed), [Noise(seed), Noise(seed + 1)]
    whole, parts, second = (starts("residual", seed, 2) for _ in range(3))
    made, seen = make(engine, "residual", precision), list[int]()
    losses = made.train_epoch(whole, data, noises, 0)
    part_losses = []
    for steps in (range(2), range(2, 3), range(3, STEPS)):
        part_losses.append(np.array(made.train_epoch(parts, data, noises, 0, seen.append, steps)) * len(steps))
    assert torch.equal(whole.weights_MP, parts.weights_MP)
    assert torch.equal(whole.momentum_MP, parts.momentum_MP)
    assert torch.equal(whole.statistics_MQ, parts.statistics_MQ)
    assert torch.equal(whole.counters_MB, parts.counters_MB)
    np.testing.assert_allclose(sum(part_losses) / STEPS, losses, rtol=1e-12)
    assert sum(seen) == 2 * STEPS * BATCH
    # Another part of the same length is another result.
    made.train_epoch(second, data, noises, 0, steps=range(1, 1 + STEPS - 3))
    made.train_epoch(third := starts("residual", seed, 2), data, noises, 0, steps=range(3, STEPS))
    assert not torch.equal(second.weights_MP, third.weights_MP)
    for steps in (range(STEPS + 1), range(-1, 2), range(4, 3), range(0, 4, 2)):
        with pytest.raises(ValueError, match="steps"):
            made.train_epoch(parts, data, noises, 0, steps=steps)


def test_one_program_serves_all_portions_and_programs_make_room_for_each_other(seed):
    """What a GPU's memory holds bounds the members of all programs together."""
    data, stacked, graph = draw_data(seed), make("stacked", "residual"), make("graph", "residual")
    stacked.train_epoch(starts("residual", seed, 5), data, [Noise(m) for m in range(5)], 0)
    assert [program.members for program in stacked._programs.values()] == [3]
    graph._rooms[graph._kind(data)] = 6  # type: ignore[attr-defined]
    for members in (1, 2, 3, 4):
        graph.train_epoch(starts("residual", seed, members), data, [Noise(m) for m in range(members)], 0)
    assert [program.members for program in graph._programs.values()] == [4]


@pytest.mark.parametrize("engine", ["graph", "stacked"])
def test_room_is_measured_on_random_weights(seed, engine, monkeypatch):
    """Zeros would choose other kernels, and torch keeps its choice."""
    stepped, step, taken, free = list[Tensor](), Program.step, 3000, 10**6

    def watched(self: Program) -> None:
        stepped.append(self.state.low_BP.clone())
        step(self)

    monkeypatch.setattr(Program, "step", watched)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1000 + taken)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    made, layout = make(engine, "residual", "bf16"), starts("residual", seed, 1).layout
    room = made._room(layout, draw_data(seed))  # type: ignore[attr-defined]
    assert room == int(SHARE_OF_MEMORY * free / (taken + 16 * layout.P)) > 1
    for weights_1P in stepped:
        assert 0.04 < weights_1P[weights_1P != 0].float().std() < 0.06
    assert len(stepped) == 2


ON_A_GPU = [(engine, "eager", "residual") for engine in BATCHED]
# As it runs by default: compiled. `stacked` compiles what torch.fx cannot trace.
ON_A_GPU += [("loop", "auto", "residual"), ("graph", "auto", "residual"), ("vmapped", "auto", "untraceable")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("engine", "backend", "network"), ON_A_GPU)
def test_steps_on_a_gpu_equal_those_of_loop(seed, engine, backend, network, precision):
    """Two epochs, captured where they are: the second on the graph that the first has captured."""
    population, data, noises, _ = clear_start(network, seed, 3, OPTIMIZER)
    data, trained = on_gpu(data), []
    for name, way in (("loop", "eager"), (engine, backend)):
        members = population.clone_rows(range(3)).to("cuda")
        made = make(name, network, precision, way, device="cuda")
        losses = [made.train_epoch(members, data, noises, epoch) for epoch in range(2)]
        trained.append((members.to("cpu"), losses, made.evaluate(members, data).loss_M))
    assert made.resolved.backend == ("eager" if backend == "eager" else "compile")
    (expected, expected_losses, expected_scores), (found, losses, scores) = trained
    np.testing.assert_allclose(losses, expected_losses, rtol=NEAR[precision])
    np.testing.assert_allclose(scores, expected_scores, rtol=10 * NEAR[precision])
    assert torch.equal(found.counters_MB, expected.counters_MB)
    for matrix in ("weights_MP", "statistics_MQ"):
        moved = getattr(expected, matrix) - getattr(population, matrix)
        assert moved.norm() > 0
        error = getattr(found, matrix) - getattr(expected, matrix)
        assert error.norm() <= {"fp32": 1e-2, "bf16": 0.5}[precision] * moved.norm(), matrix


@pytest.mark.parametrize(
    "others",
    [
        [{"optimizer": OptimizerConfig(BATCH, 0.01, 0.5, 0.0)}],
        [{"augment": AugmentConfig(padding=padding, flip=flip)} for padding, flip in ((1, 0.0), (2, 0.0), (2, 0.5))],
        [{"data": DataConfig(last_batch="keep")}],
    ],
    ids=lambda others: next(iter(others[0])),
)
@pytest.mark.parametrize("engine", ["graph", "stacked"])
def test_configurations_share_the_engine_and_not_its_steps(seed, engine, others):
    """Nor its images, which may be of another dataset."""
    data, population, noises = draw_data(seed), starts("residual", seed, 2), [Noise(1), Noise(2)]
    made = make(engine, "residual")
    made.train_epoch(population.clone_rows([0, 1]), data, noises, 0)
    for other in others:
        config = dataclasses.replace(made.config, **other)
        for images in (data, draw_data(seed + 1)):
            changed, expected = population.clone_rows([0, 1]), population.clone_rows([0, 1])
            made.with_config(config).train_epoch(changed, images, noises, 0)
            make(engine, "residual").with_config(config).train_epoch(expected, images, noises, 0)
            assert torch.equal(changed.weights_MP, expected.weights_MP)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_noise_a_member(engine):
    with pytest.raises(ValueError, match=r"2 members .* got 1"):
        make(engine, "mixed").train_epoch(starts("mixed", 0, 2), draw_data(0), [Noise(0)], 0)


# Steps, and the error as a share of the way. In bf16 a second step would carry roundings through ReLUs.
@pytest.mark.parametrize(("precision", "steps", "share"), [("fp32", 2, 1e-4), ("bf16", 1, 0.03)])
def test_triton_kernels_in_place(seed, precision, steps, share, monkeypatch):
    """The whole step of `stacked` by its Triton kernels, interpreted; see test_steps_on_a_gpu_equal_those_of_loop."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("its tensors are the CPU's, which only the interpreter reads")
    population, _, noises, _ = clear_start("residual", seed, 2, OPTIMIZER)
    data = draw_data(seed, steps * BATCH)
    results = []
    for kernels in (False, True):
        monkeypatch.setattr(gpu, "has_triton", lambda device, answer=kernels: answer)
        trained = population.clone_rows([0, 1])
        losses = make("stacked", "residual", precision).train_epoch(trained, data, noises, EPOCH)
        results.append((trained, losses))
    (expected, expected_losses), (found, losses) = results
    np.testing.assert_allclose(losses, expected_losses, rtol=NEAR[precision])
    for name in ("weights_MP", "momentum_MP", "statistics_MQ"):
        way = getattr(expected, name) - getattr(population, name)
        error = getattr(found, name) - getattr(expected, name)
        assert error.norm() <= share * way.norm(), name
    assert torch.equal(found.counters_MB, expected.counters_MB)


@pytest.mark.parametrize(
    ("engine", "backend", "precision"),
    [(engine, "eager", "fp16") for engine in CHOICES]
    + [("loop", "eager", "bf16")]
    + [pytest.param("loop", "fused", precision, marks=needs_kernels) for precision in ("bf16", "fp16")],
)
def test_low_precision_follows_fp32(seed, engine, backend, precision):
    """Weights stay float32; after a step they moved almost as in float32, and did move.

    Rounding turns over a ReLU of one start in ten, and part of the gradient with it: so it is the median of 15.
    """
    start, data = starts("residual", seed, 15), draw_data(seed, BATCH)
    start.momentum_MP.zero_()
    noises, moved = [Noise(seed + m) for m in range(15)], []
    for each, way in (("fp32", "eager"), (precision, backend)):
        population = start.clone_rows(range(15))
        losses = make(engine, "residual", each, way).train_epoch(population, data, noises, 1)
        assert population.weights_MP.dtype == torch.float32
        moved.append(population.weights_MP - start.weights_MP)
        assert all(0 < loss < 10 for loss in losses)
    assert (moved[0].norm(dim=1) > 0).all()
    far_M = moved[1].norm(dim=1) / moved[0].norm(dim=1)
    assert abs(far_M.median() - 1) < 0.05
    apart_M = 1 - functional.cosine_similarity(*moved, dim=1)
    assert apart_M.median() < (0.01 if precision == "bf16" else 1e-3)
    assert apart_M.max() < 0.5
    assert not torch.equal(*moved)
