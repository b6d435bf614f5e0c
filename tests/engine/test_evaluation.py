"""Evaluation and recomputed statistics against plain PyTorch; what layers draw."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from small_networks import same_rows
from torch import Tensor, nn
from torch.nn import functional
from trained_networks import (
    BATCH,
    ENGINES,
    IMAGES,
    OPTIMIZER,
    SCHEDULE,
    STEPS,
    Residual,
    Untraceable,
    batches,
    build,
    draw_data,
    make,
    starts,
)

from fastwi.config.schema import EngineConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.engine import base, stacked
from fastwi.engine.schedule import learning_rate
from fastwi.errors import ConfigError
from fastwi.kernels.augment import augment_reference
from fastwi.kernels.cpu import library
from fastwi.population import Population

needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")
KINDS = [*((engine, "eager") for engine in ENGINES), pytest.param("loop", "fused", marks=needs_kernels)]


def odd(seed: int) -> nn.Module:
    """A network whose batch norms have an eps of their own."""
    network = build("residual", seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3
    return network


@pytest.mark.parametrize(("engine", "backend"), KINDS)
def test_evaluation_equals_a_plain_loop(seed, engine, backend):
    networks, data = [odd(seed), odd(seed + 1)], draw_data(seed)
    made, population = make(engine, odd(0), backend=backend), Population.from_modules(networks)
    before, seen = population.clone_rows([0, 1]), list[int]()
    scores = made.evaluate(population, data, seen.append)
    assert same_rows(population, [0, 1], before, [0, 1])
    assert sum(seen) == 2 * IMAGES
    x_NCHW = augment_reference(data.images_NHWC, torch.arange(IMAGES), None, None, data.table_C256.double(), 0)
    for m, network in enumerate(networks):
        logits = network.double().eval()(x_NCHW)
        assert scores.loss_M[m] == pytest.approx(functional.cross_entropy(logits, data.labels_N).item(), rel=1e-5)
        right = (logits.argmax(1) == data.labels_N).double().mean().item()
        assert scores.accuracy_M[m] == pytest.approx(100 * right, abs=1e-9)
        found = torch.cat([each for _, each in made.logits(population, m, data)])
        torch.testing.assert_close(found.double(), logits.detach(), rtol=1e-4, atol=1e-4)
    assert scores.loss_M[0] != scores.loss_M[1]


@pytest.mark.parametrize(
    ("device", "side", "members", "images"),
    [("cpu", 32, 1, 500), ("cuda", 32, 1, 2500), ("cuda", 64, 4, 2500), ("cuda", 65, 1, 500), ("cuda", 32, 5, 500)],
)
def test_evaluation_batches_are_larger_for_few_small_networks_on_a_gpu(monkeypatch, device, side, members, images):
    made, none = make("loop", "residual"), torch.zeros(0)
    data = ResidentDataset(torch.zeros(1, side, side, 3, dtype=torch.uint8), none, none, 10)
    assert made.evaluation_batch(data, members) == 8  # as it was given
    made = made.with_config(replace(made.config, engine=EngineConfig()))
    monkeypatch.setattr(made, "device", torch.device(device))
    assert made.evaluation_batch(data, members) == images
    made = made.with_config(replace(made.config, engine=EngineConfig(deterministic=True)))
    assert made.evaluation_batch(data, members) == 500  # a member's scores are the same among however many


class Shifting(Residual):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW.sub_(0.5))


def test_members_share_what_is_read_and_not_what_they_change(seed, monkeypatch):
    """Each evaluation batch is read once for members that are evaluated together, here two."""
    monkeypatch.setattr(base, "MEMBERS_A_BATCH", 2)
    read: list[int] = []
    chunks = ResidentDataset.chunks

    def counted(self, order_N: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images_DHWC, at_N in chunks(self, order_N, size):
            read.append(len(at_N))
            yield images_DHWC, at_N

    monkeypatch.setattr(ResidentDataset, "chunks", counted)
    made, population, data = make("loop", Shifting(), "bf16"), starts("residual", seed, 3), draw_data(seed)
    scores = made.evaluate(population, data)
    assert sum(read) == 2 * IMAGES
    alone = [made.evaluate(population.clone_rows([m]), data) for m in range(3)]
    assert scores.loss_M.tolist() == [each.loss_M[0] for each in alone]
    assert scores.accuracy_M.tolist() == [each.accuracy_M[0] for each in alone]
    assert len(set(scores.loss_M)) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_no_member_sees_what_another_did_to_the_images(seed, engine):
    made, population, data = make(engine, Shifting()), starts("residual", seed, 3), draw_data(seed)
    together = made.evaluate(population, data).loss_M.tolist()
    assert together == pytest.approx([made.evaluate(population[m], data).loss_M[0] for m in range(3)], rel=1e-5)


@pytest.mark.parametrize("network", ["residual", "untraceable"])
@pytest.mark.parametrize("engine", ENGINES)
def test_losses_in_bf16_are_float32s_of_its_logits(seed, engine, network):
    """A loss or a sum of losses in bf16 would have two digits."""
    made, population, data = make(engine, network, "bf16"), starts(network, seed, 2), draw_data(seed)
    total_M = torch.zeros(2, dtype=torch.float64)
    for rows, at, logits_RNK in made._all_logits(population, data):
        for m, logits_NK in zip(range(2)[rows], logits_RNK.double(), strict=True):
            total_M[m] += functional.cross_entropy(logits_NK, data.labels_N[at], reduction="sum")
    assert made.evaluate(population, data).loss_M.tolist() == pytest.approx((total_M / IMAGES).tolist(), rel=1e-5)


@pytest.mark.parametrize("images", [0, 3 * BATCH + 1, BATCH - 1])  # all, whole batches of these, and one at least
@pytest.mark.parametrize(("engine", "backend"), KINDS)
def test_recomputed_statistics_are_those_of_update_bn(seed, engine, backend, images, monkeypatch):
    monkeypatch.setitem(stacked.FORWARD_MEMBERS, "cpu", 1 if images else 4)
    networks, data = [build("residual", seed), build("residual", seed + 1)], draw_data(seed)
    made, population = make(engine, "residual", backend=backend), Population.from_modules(networks)
    population.counters_MB.fill_(3)  # they count from 0 again
    noises, before = [Noise(seed), Noise(seed + 1)], population.clone_rows([0, 1])
    seen: list[int] = []
    fresh = made.recompute_statistics(population, data, noises, 7, images, seen.append)
    assert same_rows(population, [0, 1], before, [0, 1])
    steps = max(1, images // BATCH) if images else STEPS
    assert sum(seen) == 2 * steps * BATCH
    for name in ("weights_MP", "momentum_MP"):
        assert torch.equal(getattr(fresh, name), getattr(population, name))
    for m, network in enumerate(networks):
        drawn = batches(data, Noise(noises[m].seed, statistics=True), 7)
        torch.optim.swa_utils.update_bn([x.float() for _, (x, _) in zip(range(steps), drawn, strict=False)], network)
        for name, value in network.named_buffers():
            torch.testing.assert_close(fresh.buffers(m)[name], value, rtol=1e-4, atol=1e-5, msg=name)
    broken = population.clone_rows([0, 1])
    broken.statistics_MQ[broken.statistics_MQ != 0] = float("nan")
    made.evaluate(broken, data)  # leaves the network in evaluation mode
    assert same_rows(made.recompute_statistics(broken, data, noises, 7, images), [0, 1], fresh, [0, 1])
    # The settings are as they were: training goes on as if nothing had been recomputed.
    made.train_epoch(population, data, noises, 1)
    make(engine, "residual", backend=backend).train_epoch(before, data, noises, 1)
    assert same_rows(population, [0, 1], before, [0, 1])


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_are_of_no_more_images_than_there_are(seed, engine):
    """Where more are asked for than all; and of fewer than a batch."""
    made, population, noises = make(engine, "residual"), starts("residual", seed, 2), [Noise(1), Noise(2)]
    for images, passed in ((IMAGES, STEPS * BATCH), (BATCH - 2, BATCH - 2)):
        data, seen = draw_data(seed, images), list[int]()
        found = made.recompute_statistics(population, data, noises, 0, 2 * IMAGES, seen.append)
        assert sum(seen) == 2 * passed
        assert same_rows(found, [0, 1], made.recompute_statistics(population, data, noises, 0), [0, 1])
        assert not torch.equal(found.statistics_MQ[0], found.statistics_MQ[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_without_batch_norm_nothing_is_recomputed(seed, engine):
    """The images still count as done."""
    data, population, seen = draw_data(seed), starts("in place", seed, 2), list[int]()
    fresh = make(engine, "in place").recompute_statistics(
        population, data, [Noise(1), Noise(2)], 0, 0, seen.append
    )  # fmt: skip
    assert same_rows(fresh, [0, 1], population, [0, 1])
    assert fresh.weights_MP.data_ptr() != population.weights_MP.data_ptr()
    assert sum(seen) == 2 * STEPS * BATCH


class Twice(Residual):
    """One batch norm sees two activations of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(self.norm(2 + 3 * self.norm(x_NCHW)))


class Direct(Twice):
    """Its batch norm is called without hooks."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return Residual.forward(self, self.norm.forward(2 + 3 * self.norm.forward(x_NCHW)))


@pytest.mark.parametrize(
    ("engine", "backend", "network"),
    [
        *((engine, "eager", kind) for engine in ENGINES for kind in (Twice, Direct)),
        pytest.param("loop", "fused", Twice, marks=needs_kernels),
    ],
)
def test_a_batch_norm_that_is_called_twice_has_the_mean_over_all_calls(seed, engine, backend, network):
    torch.manual_seed(seed)
    networks, data, noises = [network(), network()], draw_data(seed), [Noise(seed), Noise(seed + 1)]
    made, before = make(engine, network(), backend=backend), Population.from_modules(networks)
    before.counters_MB.fill_(3)
    after = made.recompute_statistics(before, data, noises, 7)
    for m, network in enumerate(networks):
        drawn = batches(data, Noise(noises[m].seed, statistics=True), 7)
        torch.optim.swa_utils.update_bn([x.float() for x, _ in drawn], network)
        for name, value in network.named_buffers():
            torch.testing.assert_close(after.buffers(m)[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert after.buffers(m)["norm.num_batches_tracked"] == 2 * STEPS
    assert not made._model.get_submodule("norm")._forward_pre_hooks
    assert [norm.momentum for norm in made._norms] == [0.1] * len(made._norms)


class Tied(nn.Module):
    """Two convolutions have one weight, which has two gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, bias=False) for _ in range(2))
        self.second.weight, self.norm, self.linear = self.first.weight, nn.BatchNorm2d(3), nn.Linear(3, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.second(functional.silu(self.norm(self.first(x_NCHW)))).mean((2, 3)))


class Named(Tied):
    """A batch norm that gets its input by name, so `stacked` has no rule for the call, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.last = nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.second(functional.silu(self.norm(input=self.first(x_NCHW))))
        return self.linear(functional.silu(self.last(x_NCHW)).mean((2, 3)))


class Cumulative(Named):
    """Its last batch norm divides by its counter."""

    def __init__(self) -> None:
        super().__init__()
        self.last.momentum = None


@pytest.mark.parametrize("network", [Tied, Named, Cumulative])
@pytest.mark.parametrize("engine", ["graph", "stacked", "vmapped"])
def test_layers_that_have_no_rule_of_their_own(seed, engine, network):
    torch.manual_seed(seed)
    expected, data, noises = Population.from_modules([network(), network()]), draw_data(seed), [Noise(1), Noise(2)]
    found = expected.clone_rows([0, 1])
    make("loop", network()).train_epoch(expected, data, noises, 1)
    make(engine, network()).train_epoch(found, data, noises, 1)
    for name in ("weights_MP", "statistics_MQ", "counters_MB"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


class Flat(nn.Module):
    """A batch norm of vectors, for which `stacked` has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x_NCHW).mean((2, 3))))


@pytest.mark.parametrize("engine", ["stacked", "vmapped"])
def test_a_batch_norm_without_a_rule_in_bf16(seed, engine):
    torch.manual_seed(seed)
    start, data, noises = Population.from_modules([Flat(), Flat()]), draw_data(seed), [Noise(1), Noise(2)]
    expected, found = start.clone_rows([0, 1]), start.clone_rows([0, 1])
    losses = [make(name, Flat(), "bf16").train_epoch(rows, data, noises, 1)
              for name, rows in (("loop", expected), (engine, found))]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert torch.equal(found.counters_MB, expected.counters_MB)
    way = expected.statistics_MQ - start.statistics_MQ
    assert (found.statistics_MQ - expected.statistics_MQ).norm() < 0.05 * way.norm()


@pytest.mark.parametrize("network", [Flat, Untraceable])
@pytest.mark.parametrize("engine", ["stacked", "vmapped"])
def test_layers_without_a_rule_are_evaluated_by_their_running_statistics(seed, engine, network):
    """As `loop` evaluates them, right after training; and they do not change."""
    torch.manual_seed(seed)
    start, data, losses = Population.from_modules([network(), network()]), draw_data(seed), []
    for name in ("loop", engine):
        made, members = make(name, network()), start.clone_rows([0, 1])
        made.train_epoch(members, data, [Noise(1), Noise(2)], 1)
        before = members.clone_rows([0, 1])
        losses.append(made.evaluate(members, data).loss_M)
        assert same_rows(members, [0, 1], before, [0, 1])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][0] != losses[0][1]


def test_a_cumulative_average_is_refused_where_its_count_cannot_be_read(cuda):
    """`stacked` maps a network that it cannot trace; `graph` captures it on a GPU."""
    network = Untraceable()
    network.bn.momentum = None
    for engine, device in (("stacked", "cpu"), ("graph", "cuda")):
        with pytest.raises(ConfigError, match=f"engine.name: {engine} .*momentum None"):
            make(engine, network, device=device)
    assert make("graph", network).name == "graph"  # a CPU captures nothing


class HalfFrozen(Residual):
    """One batch norm's statistics are buffers of a module that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Module()
        for name, value in (("running_mean", 0.5), ("running_var", 3.0)):
            self.fixed.register_buffer(name, torch.full((3,), value))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(functional.batch_norm(x_NCHW, self.fixed.running_mean, self.fixed.running_var))


class KeptInEvaluation(HalfFrozen):
    """And a batch norm that its own `train` keeps in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed.norm = nn.BatchNorm2d(3)
        self.fixed.norm.running_mean.fill_(0.5)
        self.fixed.norm.running_var.fill_(3.0)

    def train(self, mode: bool = True) -> "KeptInEvaluation":
        super().train(mode)
        self.fixed.eval()
        return self

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(self.fixed.norm(x_NCHW))


@pytest.mark.parametrize("network", [HalfFrozen, KeptInEvaluation])
@pytest.mark.parametrize("engine", ENGINES)
def test_only_batch_norms_that_are_trained_are_recomputed(seed, engine, network):
    torch.manual_seed(seed)
    network = network()
    before = Population.from_modules([network])
    after = make(engine, network).recompute_statistics(before, draw_data(seed), [Noise(seed)], 0)
    for name, buffer in after.buffers(0).items():
        assert torch.equal(buffer, before.buffers(0)[name]) == name.startswith("fixed."), name


def test_the_model_gives_the_architecture_only(seed):
    network, data = build("residual", seed), draw_data(seed)
    before = copy.deepcopy(network.state_dict())
    made, population = make("loop", network), starts("residual", seed + 1, 1)
    made.train_epoch(population, data, [Noise(1)], 0)
    made.evaluate(population, data)
    made.recompute_statistics(population, data, [Noise(1)], 0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rate_is_of_the_global_epoch(seed, monkeypatch):
    """The rate of an epoch follows from the epoch alone, so that a child continues the parent's schedule."""
    rates: list[float] = []
    monkeypatch.setattr("fastwi.engine.loop.sgd_row_", lambda *arguments: rates.append(arguments[3]))
    for epoch in (0, 1, 4):
        make("loop", "residual").train_epoch(starts("residual", seed, 1), draw_data(seed), [Noise(0)], epoch)
    steps = [epoch * STEPS + i for epoch in (0, 1, 4) for i in range(STEPS)]
    assert rates == [learning_rate(step, STEPS, OPTIMIZER, SCHEDULE) for step in steps]
    assert [rates[0], rates[3], rates[-1]] == pytest.approx([0, 0.05, 0.01])


class Dropping(Residual):
    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(functional.dropout(x_NCHW, 0.3, self.training))


@pytest.mark.parametrize("images", [0, 13])
def test_layers_that_draw_themselves_draw_by_the_noise(seed, images):
    """Alone or among others, after whatever else was drawn: a member's dropout follows from its noise."""
    made, data = make("loop", Dropping(), backend="eager" if images else "auto"), draw_data(seed)
    start = starts("residual", seed, 1)
    both, alone = start.clone_rows([0, 0]), start.clone_rows([0])
    made.train_epoch(both, data, [Noise(seed), Noise(seed + 1)], 0)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    made.train_epoch(alone, data, [Noise(seed + 1)], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert same_rows(alone, [0], both, [1])
    assert not torch.equal(both.weights_MP[0], both.weights_MP[1])
    recomputed = made.recompute_statistics(both, data, [Noise(7), Noise(8)], 1, images)
    again = made.recompute_statistics(alone, data, [Noise(8)], 1, images)
    assert torch.equal(recomputed.statistics_MQ[1], again.statistics_MQ[0])


def test_masks_differ_between_noises_epochs_their_parts_and_statistics(seed):
    begun = []

    class Noting(Dropping):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            begun.append(torch.get_rng_state().numpy().tobytes())
            return super().forward(x_NCHW)

    made, data, members = make("loop", Noting()), draw_data(seed), starts("residual", seed, 1)
    for more, epoch, steps in [
        (0, 0, range(2)), (0, 0, range(2, 3)), (0, 0, range(3, 4)), (0, 1, range(1)), (1, 0, range(1))
    ]:  # fmt: skip
        made.train_epoch(members, data, [Noise(seed + more)], epoch, steps=steps)
    for epoch in range(2):
        made.recompute_statistics(members, data, [Noise(seed)], epoch, BATCH)
    assert len(begun) == len(set(begun)) == 8
