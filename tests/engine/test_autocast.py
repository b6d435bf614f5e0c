"""Networks that mix dtypes train in low precision almost as they do in float32; plain ones do not use autocast."""

import dataclasses
import functools

import pytest
import torch
from networks_of_mixed_dtypes import MIXING, Convolutions, MadeInForward
from torch import nn
from trained_networks import BATCH, CLASSES, CONFIG, SIZE, draw_data

from fastwi.config.schema import EngineConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.engine.choose import ENGINES
from fastwi.engine.fuse import fuse_batch_norm
from fastwi.engine.mixed import needs_autocast
from fastwi.kernels.cpu import library
from fastwi.models.names import MODEL_NAMES
from fastwi.models.registry import build_model
from fastwi.population import Population


def build(network: type[nn.Module], seed: int) -> nn.Module:
    size = {"image_size": (SIZE, SIZE)} if "image_size" in network.__init__.__annotations__ else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return network(CLASSES, **size)


def trained(network: nn.Module, seed: int, precision: str, backend: str, engine: str = "loop"):
    """How far a few steps move the weights, their mean loss, and the loss on the same images afterwards."""
    config = EngineConfig(device="cpu", precision=precision, backend=backend, evaluation_batch=2 * BATCH)
    schedule = ScheduleConfig(drop_epochs=())
    made = ENGINES[engine](network, dataclasses.replace(CONFIG, engine=config, schedule=schedule))
    population, data = Population.from_modules([network]), draw_data(seed)
    before = population.weights_MP.clone()
    (loss,) = made.train_epoch(population, data, [Noise(seed)], 0)
    return population.weights_MP[0] - before[0], loss, made.evaluate(population, data).loss_M[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("network", MIXING)
def test_low_precision_moves_weights_almost_as_float32_does(seed, network, precision):
    made = build(network, seed)
    expected_way, *expected = trained(made, seed, "fp32", "eager")
    way, *losses = trained(made, seed, precision, "eager")
    assert losses == pytest.approx(expected, rel=0.02)
    assert torch.cosine_similarity(way, expected_way, dim=0) > 0.98
    assert not torch.equal(way, expected_way)


@pytest.mark.parametrize(
    ("network", "backend", "engine"),
    [(Convolutions, "auto", "loop"), (MadeInForward, "compile", "loop"), (MadeInForward, "eager", "graph")],
)
def test_other_backends_and_engines_too(seed, monkeypatch, network, backend, engine):
    """auto: this project's kernels, where they build. Inductor would take a minute: the trace alone is under test."""
    traced = functools.partial(torch.compile, backend="aot_eager", dynamic=False)
    monkeypatch.setattr("fastwi.engine.base.compiled", lambda function, _: traced(function))
    made = build(network, seed)
    expected_way, *expected = trained(made, seed, "bf16", "eager")
    if backend == "auto" and library() is not None:
        assert fuse_batch_norm(made) is not None
    way, *losses = trained(made, seed, "bf16", backend, engine)
    assert losses == pytest.approx(expected, rel=0.02)
    assert torch.cosine_similarity(way, expected_way, dim=0) > 0.98


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_built_in_networks_run_without_it(name):
    with torch.device("meta"):
        assert not needs_autocast(build_model(name, 10))


def test_sequences_of_plain_layers_run_without_it():
    plain = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)]
    assert not needs_autocast(nn.Sequential(*plain))
    assert needs_autocast(nn.Sequential(*plain, nn.LayerNorm(2)))
