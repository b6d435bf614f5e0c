"""The moving average of weights in an engine's step: a plain loop over steps, and it changes no training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mappings import config_from_mapping

from fastwi.config.schema import DataConfig
from fastwi.data.noise import Noise
from fastwi.data.split import open_splits
from fastwi.engine.choose import build_network
from fastwi.engine.graph import GraphEngine
from fastwi.engine.loop import LoopEngine
from fastwi.engine.stacked import StackedEngine
from fastwi.population import Layout, Population

DECAY = 0.7


@pytest.mark.parametrize("kind", [LoopEngine, GraphEngine, StackedEngine])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_follows_the_weights_and_changes_no_training(kind, precision: str, digits_directory: Path) -> None:
    config = config_from_mapping({
        "model": {"name": "resnet20", "width": 0.125}, "augment": {"padding": 1, "flip": 0.0},
        "optimizer": {"batch_size": 10, "learning_rate": 0.05, "ema_decay": DECAY},
        "engine": {"name": "loop", "device": "cpu", "precision": precision, "backend": "eager", "threads": 1},
    })  # fmt: skip
    plain = replace(config, optimizer=replace(config.optimizer, ema_decay=0.0))
    train = open_splits(DataConfig(path=str(digits_directory), train_images=40), torch.device("cpu"))[0]
    networks = [build_network(replace(config, seeds=replace(config.seeds, init=seed)), 10) for seed in (0, 1)]
    noises = [Noise(3), Noise(4)]
    alone, with_average = Population.from_modules(networks), Population.from_modules(networks, moving=True)
    assert torch.equal(with_average.moving_MP, with_average.weights_MP)
    engine = kind(networks[0], config)
    reference = kind(networks[0], plain)
    expected = alone.weights_MP.double()
    for epoch in range(2):
        losses = engine.train_epoch(with_average, train, noises, epoch)
        of_steps = torch.zeros(2)
        for step in range(4):
            of_steps += (
                torch.tensor(reference.train_epoch(alone, train, noises, epoch, steps=range(step, step + 1))) / 4
            )
            expected = DECAY * expected + (1 - DECAY) * alone.weights_MP.double()
        assert losses == pytest.approx(of_steps.tolist(), rel=1e-5)
    for one, other in zip(with_average.plain.matrices, alone.matrices, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(with_average.moving_MP.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(with_average.moving_MP, with_average.weights_MP, atol=1e-4)
    moved = with_average.of_moving()
    assert torch.equal(moved.weights_MP, with_average.moving_MP)
    assert torch.equal(moved.plain.statistics_MQ, alone.statistics_MQ)
    # An evaluation sees no moving average; nor does a module.
    own = pytest.approx(reference.evaluate(alone, train).loss_M, rel=1e-4)
    assert engine.evaluate(with_average, train).loss_M == own
    assert engine.evaluate(moved, train).loss_M != own
    with_average.write_to(1, networks[0])
    assert torch.equal(Population.from_modules(networks[:1]).weights_MP[0], alone.weights_MP[1])


def test_files_and_averages_have_it(tmp_path: Path, seed: int) -> None:
    network = build_network(config_from_mapping({"model": {"name": "resnet20", "width": 0.125}}), 10)
    population = Population.from_modules([network] * 3, moving=True)
    for matrix in population.matrices[:3]:
        matrix.normal_(generator=torch.Generator().manual_seed(seed))
    population.save(tmp_path / "a")
    found = Population.load(tmp_path / "a", population.layout)
    assert all(map(torch.equal, found.matrices, population.matrices))
    assert found.layout != Layout.of(network) == found.layout.plain
    difference = str(found.layout.difference(found.layout.plain))
    assert "moving average" in difference
    assert difference.endswith("in the first only")
    weights = (0.2, 0.3, 0.5)
    average = population.combine([weights])
    expected = torch.tensor(weights, dtype=torch.float64) @ population.moving_MP.double()
    torch.testing.assert_close(average.moving_MP[0], expected.float())
    assert torch.equal(population.clone_rows([2]).moving_MP[0], population.moving_MP[2])
    between = 0.75 * population.moving_MP[0] + 0.25 * population.moving_MP[1]
    population.lerp_rows_([(0, 1)], 0.25)
    torch.testing.assert_close(population.moving_MP[0], between)
