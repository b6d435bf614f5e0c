"""Whether this configuration fits this machine, and how fast it runs on it, measured on a few of its own steps."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from fastwi.config.schema import Config
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.data.split import free_host_bytes
from fastwi.engine.base import Engine
from fastwi.errors import UserError
from fastwi.population import Layout, Population

_STEPS = 8
_TEST_IMAGES = 2000


@dataclass(frozen=True)
class Rates:
    """Images trained a second, and the seconds that the first steps take longer: compilation."""

    trained_per_s: float
    start_s: float


def check_memory(config: Config, layout: Layout, device: torch.device) -> None:
    """Raise UserError where a run's networks do not fit into the memory that is free.

    At the interpolation there are the average and its children, and a copy of them with recomputed statistics.
    """
    needed = 2 * (1 + config.experiment.children) * (8 * layout.P + 4 * layout.Q + 8 * layout.B)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    if needed > free:
        raise UserError(
            f"experiment.children: {config.experiment.children:,} networks of {layout.P:,} parameters need "
            f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; give fewer, or a smaller model.width"
        )


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
