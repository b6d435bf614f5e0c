"""What the tests of per-example analyses share: networks, an engine that hands out given logits, float64 outputs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine.base import Settings
from fastwi.engine.loop import LoopEngine
from fastwi.models.resnet import ResNet
from fastwi.population import Population

IMAGES = 103  # a multiple of neither the evaluation batch nor the number of splits


class GivenLogits:
    """An engine whose member m has the logits logits_MNK[m], handed out in batches of 3, the last one first."""

    def __init__(self, logits_MNK: Sequence[Sequence[Sequence[float]]] | NDArray[np.float64]) -> None:
        self.logits_MNK = torch.as_tensor(np.asarray(logits_MNK), dtype=torch.float32)
        self.passes = [0] * len(self.logits_MNK)

    def logits(self, population: Population, m: int, dataset: ResidentDataset) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes[m] += 1
        for positions in reversed(torch.arange(len(dataset)).split(3)):
            yield positions, self.logits_MNK[m, positions]


def members(count: int) -> Population:
    """So many members of which only their number matters."""
    return Population.from_modules([nn.Linear(1, 1) for _ in range(count)])


def labelled(labels: Sequence[int], classes: int) -> ResidentDataset:
    """A dataset of which only labels matter."""
    return ResidentDataset(
        torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), torch.tensor(labels), torch.zeros(3, 256), classes
    )


def trained_resnets(directory: Path, count: int) -> tuple[LoopEngine, Population, ResidentDataset]:
    """ResNet20s of initialisation seeds 0, 1, ... after one epoch on a few digits, each under its own noise."""
    dataset = load_split(directory, "train", torch.device("cpu"), IMAGES)[0]
    networks = []
    for m in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(m)
            networks.append(ResNet(3, 10))
    config = EngineConfig(device="cpu", precision="fp32", backend="eager", evaluation_batch=20)
    optimizer = OptimizerConfig(batch_size=16, learning_rate=0.05)
    settings = Settings(config, optimizer, ScheduleConfig(), AugmentConfig(padding=2, flip=0.0))
    engine, population = LoopEngine(ResNet(3, 10), settings), Population.from_modules(networks)
    engine.train_epoch(population, dataset, [Noise(m) for m in range(count)], 0)
    return engine, population, dataset


def logits_in_float64(network: nn.Module, population: Population, m: int, dataset: ResidentDataset) -> Tensor:
    """Member m's logits [N, K], all in float64 and by the plain module: no engine, no batches."""
    population.write_to(m, network)
    x_NHWC = torch.stack(
        [dataset.table_C256[c].double()[dataset.images_NHWC[..., c].long()] for c in range(3)], dim=-1
    )
    with torch.no_grad():
        return network.double().eval()(x_NHWC.permute(0, 3, 1, 2))
