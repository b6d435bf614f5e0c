"""data.last_batch: keep, in every engine: the images that are left are a step, as torch's loaders have it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import update_bn
from trained_networks import (
    AUGMENT,
    BATCH,
    CLEARANCE,
    ENGINES,
    IMAGES,
    OPTIMIZER,
    PADDING,
    STEPS,
    Corners,
    build,
    draw_data,
    make,
    on_gpu,
    starts,
)

from fastwi.config.schema import DataConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.engine.base import Engine
from fastwi.kernels.augment import augment_reference
from fastwi.kernels.cpu import library
from fastwi.population import Population

EPOCH = 1
RATE = 0.05 * 0.2  # of epoch 1: see SCHEDULE
NEAR = 2e-4  # of the way: float32's rounding over six steps
KINDS = [(engine, "eager") for engine in ENGINES] + [("loop", "fused")] * (library() is not None)


def keeping(engine: str, network: str = "residual", **more: Any) -> Engine:
    made = make(engine, network, **more)
    return made.with_config(replace(made.config, data=DataConfig(last_batch="keep")))


def all_batches(data: ResidentDataset, noise: Noise, epoch: int, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """In float64, the last one smaller, as torch's DataLoader has them."""
    draws = noise.draws(epoch, len(data), PADDING, AUGMENT.flip)
    order, offset, flip = (torch.from_numpy(x)[:images] for x in (draws.order_N, draws.offset_N2, draws.flip_N))
    for at in torch.utils.data.DataLoader(range(images), BATCH):  # type: ignore[arg-type]
        table = data.table_C256.double()
        x_NCHW = augment_reference(data.images_NHWC, order[at], offset[at], flip[at], table, PADDING)
        yield x_NCHW, data.labels_N[order[at]]


def trained_plainly(start: Population, m: int, data: ResidentDataset, noise: Noise) -> tuple[Any, float] | None:
    """By torch.optim.SGD in float64: the network and its mean loss over images. None where a ReLU comes near 0."""
    network = build("residual", 0)
    start.write_to(m, network)
    network = network.double().train()
    decay = OPTIMIZER.weight_decay
    optimizer = torch.optim.SGD(network.parameters(), RATE, OPTIMIZER.momentum, weight_decay=decay)
    for name, parameter in network.named_parameters():
        optimizer.state[parameter]["momentum_buffer"] = start.momentum(m)[name].double().clone()
    total = 0.0
    for x_NCHW, labels_N in all_batches(data, noise, EPOCH, IMAGES):
        with Corners() as corners:
            loss = functional.cross_entropy(network(x_NCHW), labels_N)
        if corners.nearest < CLEARANCE:
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += len(labels_N) * loss.item()
    return network, total / IMAGES


def test_an_epoch_equals_float64(seed):
    for attempt in range(seed, seed + 1000):
        start, data, noises = starts("residual", attempt, 2), draw_data(attempt), [Noise(attempt), Noise(attempt + 1)]
        exact = []
        for m, noise in enumerate(noises):
            if found := trained_plainly(start, m, data, noise):
                exact.append(found)
            else:
                break
        else:
            break
    expected = Population.from_modules([network.float() for network, _ in exact])
    for engine, backend in KINDS:
        made, seen = keeping(engine, backend=backend), list[int]()
        assert made.iterations(data) == STEPS + 1
        trained, dropped = start.clone_rows([0, 1]), start.clone_rows([0, 1])
        losses = made.train_epoch(trained, data, noises, EPOCH, seen.append)
        make(engine, "residual", backend=backend).train_epoch(dropped, data, noises, EPOCH)
        assert sum(seen) == 2 * IMAGES
        assert losses == pytest.approx([loss for _, loss in exact], rel=1e-5)
        for name in ("weights_MP", "statistics_MQ"):
            target = getattr(expected, name)
            way = (target - getattr(start, name)).norm()
            assert (getattr(trained, name) - target).norm() <= NEAR * way, (engine, name)
            assert (getattr(dropped, name) - target).norm() > 0.01 * way, (engine, name)
        assert torch.equal(trained.counters_MB, expected.counters_MB)


@pytest.mark.parametrize("images", [0, BATCH + 3, 3])
def test_recomputed_statistics_equal_update_bn(seed, images):
    """Every batch counts the same there, the last one too."""
    start, data, networks = starts("residual", seed, 2), draw_data(seed), [build("residual", 0) for _ in range(2)]
    for m, network in enumerate(networks):
        start.write_to(m, network)
        batches = all_batches(data, Noise(seed, statistics=True), EPOCH, images or IMAGES)
        update_bn(batches, network.double())
    expected = Population.from_modules([network.float() for network in networks])
    for engine, backend in KINDS:
        seen = list[int]()
        found, dropped = (
            made.recompute_statistics(start, data, [Noise(seed)] * 2, EPOCH, images, seen.append)
            for made in (keeping(engine, backend=backend), make(engine, "residual", backend=backend))
        )
        whole = max(BATCH, (images or IMAGES) // BATCH * BATCH)
        assert sum(seen) == 2 * (images or IMAGES) + 2 * whole
        torch.testing.assert_close(found.statistics_MQ, expected.statistics_MQ, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.counters_MB, expected.counters_MB)
        assert (dropped.statistics_MQ - expected.statistics_MQ).abs().max() > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_batches_are_the_same_to_the_bit(seed, engine):
    start, data = starts("residual", seed, 2), draw_data(seed, 2 * BATCH)
    results = []
    for made in (keeping(engine), make(engine, "residual")):
        trained = start.clone_rows([0, 1])
        losses = made.train_epoch(trained, data, [Noise(1), Noise(2)], 0)
        results.append([losses, *(matrix.tolist() for matrix in trained.matrices)])
    assert results[0] == results[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_kept_in_parts_and_beside_an_epoch_that_drops_it(seed, engine):
    """An engine of which both are asked in turn, on one dataset; the last part has the last two steps."""
    start, data, noises = starts("residual", seed, 2), draw_data(seed), [Noise(1), Noise(2)]
    made, whole = make(engine, "residual"), start.clone_rows([0, 1])
    expected = keeping(engine).train_epoch(whole, data, noises, 0)
    dropped, trained = start.clone_rows([0, 1]), start.clone_rows([0, 1])
    made.train_epoch(dropped, data, noises, 0)
    made = made.with_config(replace(made.config, data=DataConfig(last_batch="keep")))
    first = made.train_epoch(trained, data, noises, 0, steps=range(STEPS - 1))
    rest = made.train_epoch(trained, data, noises, 0, steps=range(STEPS - 1, STEPS + 1))
    images = (STEPS - 1) * BATCH
    losses = [(a * images + b * (IMAGES - images)) / IMAGES for a, b in zip(first, rest, strict=True)]
    assert losses == pytest.approx(expected, rel=1e-6)
    assert torch.equal(trained.weights_MP, whole.weights_MP)
    assert torch.equal(trained.statistics_MQ, whole.statistics_MQ)
    assert not torch.equal(dropped.weights_MP, whole.weights_MP)


@pytest.mark.parametrize("engine", ["graph", "stacked"])
def test_a_gpu_replays_a_graph_for_each_size(cuda, engine):
    """Two epochs of two whole steps and one of two images; the host waits at the end of each epoch alone."""
    made, data = keeping(engine, device="cuda", precision="bf16"), on_gpu(draw_data(0, 2 * BATCH + 2))
    members = starts("residual", 0, 2).to("cuda")
    for epoch in range(2):
        made.train_epoch(members, data, [Noise(0), Noise(1)], epoch)
    whole, rest = cuda.graphs
    assert (whole.replays, rest.replays) == (4, 2)
    assert len(cuda.reads) == 2
