"""How fast a configuration runs on this machine, measured on a few of its own steps."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine
from fastwi.population import Population

_STEPS = 8
_TEST_IMAGES = 2000


@dataclass(frozen=True)
class Rates:
    """Images trained a second, and the seconds that the first steps take longer: compilation."""

    trained_per_s: float
    start_s: float


def measure_rates(engine: Engine, network: nn.Module, train: Dataset, test: Dataset) -> Rates:
    """Time a few training steps and evaluations of a scratch network, after as many to warm up."""
    population = Population.from_modules([network], device=engine.device)
    few_train = _spread(train, _STEPS * (len(train) // engine.iterations(train)))
    few_test = _spread(test, _TEST_IMAGES)
    rates, seconds = [], []
    for _ in range(2):  # the first round compiles and fills caches
        begun = time.perf_counter()
        engine.train_epoch(population, few_train, [Noise(0)], 0)
        middle = time.perf_counter()
        engine.evaluate(population, few_test)
        rates.append(len(few_train) / (middle - begun))
        seconds.append(time.perf_counter() - begun)
    return Rates(rates[-1], start_s=max(0.0, seconds[0] - seconds[1]))


def _spread(dataset: Dataset, images: int) -> Dataset:
    """`images` images from all over the dataset: it may be sorted by class, and one class is learnt at once."""
    chosen = torch.linspace(0, len(dataset) - 1, min(images, len(dataset)), device=dataset.labels_N.device).long()
    return dataset.part(chosen)
