"""Networks that draw from torch, NumPy or random: by each member's noise, and under no engine that cannot."""

import random

import numpy as np
import pytest
import torch

from fastwi.config.schema import AugmentConfig, Config, DataConfig, EngineConfig, OptimizerConfig
from fastwi.data.noise import Noise
from fastwi.data.split import open_splits
from fastwi.engine.choose import ENGINES
from fastwi.engine.fuse import fuse_batch_norm, trace
from fastwi.errors import ConfigError
from fastwi.models.registry import build_model
from fastwi.population import Population

NETS = """
import random
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, classes)
    def forward(self, x):
        x = self.norm(self.conv(x * self.noise() if self.training or self.tests else x))
        return self.linear(x.relu().mean((2, 3)))

def net(noise, tests=False):
    return type("Drawing", (Net,), {"noise": lambda self: noise(), "tests": tests})

numpy, random_, torch_ = (lambda: 1 + np.random.random()), (lambda: 1 + random.random()), (lambda: 1 + torch.rand(()))
Numpy, Random, Torch = net(numpy), net(random_), net(torch_)
Tested = net(numpy, tests=True)

def dropping(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.1), nn.Flatten(), nn.Linear(784, classes))
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    (tmp_path / "h1_drawing.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return lambda attribute: build_model(f"h1_drawing.py:{attribute}", 10, image_size=(16, 16))


@pytest.fixture(scope="module")
def data(digits_directory):
    return open_splits(DataConfig(path=str(digits_directory), train_images=60), torch.device("cpu"))[0]


def engine(model, name="loop", backend="auto"):
    config = EngineConfig(name=name, device="cpu", precision="fp32", backend=backend, evaluation_batch=25)
    optimizer = OptimizerConfig(batch_size=20, learning_rate=0.05)
    augment = AugmentConfig(padding=1, flip=0.5)
    return ENGINES[name](model, Config(engine=config, optimizer=optimizer, augment=augment))


def stir() -> None:
    """Draw from every global generator."""
    np.random.random(3), random.random(), torch.rand(3)


@pytest.mark.parametrize("attribute", ["Numpy", "Random", "Torch", "Tested"])
def test_draws_in_training_follow_each_members_noise(built, data, attribute):
    """Alone or among others, after whatever was drawn, and when a run goes on from the first epoch."""
    model = built(attribute)
    loop = engine(model, backend="eager")
    start = Population.from_modules([model])
    noises = [Noise(7), Noise(8)]
    among = start.clone_rows([0, 0])
    for epoch in (0, 1):
        loop.train_epoch(among, data, noises, epoch)
    for m, noise in enumerate(noises):
        alone = start.clone_rows([0])
        for epoch in (0, 1):
            stir()
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            loop.train_epoch(alone, data, [noise], epoch)
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            assert torch.equal(before[0], after[0])
            assert before[1:] == after[1:]
        assert torch.equal(alone.weights_MP[0], among.weights_MP[m])
        assert torch.equal(alone.statistics_MQ[0], among.statistics_MQ[m])
    again = loop.recompute_statistics(among, data, noises, 0, 40)
    stir()
    assert torch.equal(again.statistics_MQ, loop.recompute_statistics(among, data, noises, 0, 40).statistics_MQ)


def test_draws_in_evaluation_are_the_same_each_time(built, data, monkeypatch):
    """For every member too; three batches have three."""
    model, drawn = built("Tested"), []
    loop = engine(model)
    monkeypatch.setattr(type(model), "noise", lambda _: [drawn.append(np.random.random()), 1 + drawn[-1]][1])
    population = Population.from_modules([model, model])
    first = loop.evaluate(population, data)
    stir()
    second = loop.evaluate(population, data)
    assert first.loss_M.tolist() == second.loss_M.tolist()
    assert first.loss_M[0] == first.loss_M[1]
    assert (len(drawn), len(set(drawn))) == (4 * 3, 3)


@pytest.mark.parametrize("attribute", ["Numpy", "Random", "Tested"])
def test_compiled_code_would_freeze_python_draws(built, attribute):
    model = built(attribute)
    assert trace(model) is None
    assert fuse_batch_norm(model) is None
    assert engine(model).resolved.backend == "eager"
    for backend in ("compile", "fused"):
        with pytest.raises(ConfigError, match=f"engine.backend: {backend}.*eager"):
            engine(model, backend=backend)


@pytest.mark.parametrize("name", ["graph", "stacked"])
@pytest.mark.parametrize("attribute", ["Numpy", "Random", "Torch", "dropping"])
def test_engines_of_one_generator_refuse_draws(built, attribute, name):
    with pytest.raises(ConfigError, match=f"engine.name: {name}.*loop"):
        engine(built(attribute), name)
    engine(built(attribute))
