"""What studies find, computed otherwise: state dicts, one network at a time, float64, plain loops."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastwi.analysis.opened import OpenedSweep
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset
from fastwi.engine.choose import build_network
from fastwi.population import Population

State = dict[str, Tensor]


def state_of(opened: OpenedSweep, key: str) -> State:
    """A stored state as float64."""
    return {name: tensor.double() for name, tensor in opened.states([key]).state_dict(0).items()}


def mean_state(states: list[State], weights: list[float] | None = None) -> State:
    weights = weights or [1 / len(states)] * len(states)
    return {name: sum(w * state[name] for w, state in zip(weights, states, strict=True)) for name in states[0]}


def logits(opened: OpenedSweep, state: Mapping[str, Tensor], dataset: ResidentDataset) -> NDArray[np.float64]:
    """Logits [N, K] in float64 by the plain module, one image at a time through the table."""
    config = opened.planned.points[0].config
    network = build_network(config, dataset.classes).double().eval()
    network.load_state_dict(dict(state))
    channels = [dataset.table_C256[c].double()[dataset.images_NHWC[..., c].long()] for c in range(3)]
    with torch.no_grad():
        return network(torch.stack(channels, dim=1)).numpy()


def accuracy(logits_NK: NDArray[np.float64], dataset: ResidentDataset) -> float:
    return 100.0 * float(np.mean(logits_NK.argmax(1) == dataset.labels_N.numpy()))


def losses(logits_NK: NDArray[np.float64], dataset: ResidentDataset) -> NDArray[np.float64]:
    shifted = logits_NK - logits_NK.max(1, keepdims=True)
    log_NK = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_NK[np.arange(len(log_NK)), dataset.labels_N.numpy()]


def with_recomputed_statistics(opened: OpenedSweep, state: State, epoch: int) -> State:
    """As the sweep recomputes them at `epoch`: by the engine itself, which has tests of its own."""
    config = opened.planned.points[0].config
    network = build_network(config, 10)
    network.load_state_dict({name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in
                             state.items()})  # fmt: skip
    train, noises = opened.resources.splits(config)[0], [Noise(config.seeds.statistics_noise)]
    fresh = opened.resources.engine(config).recompute_statistics(
        Population.from_modules([network]), train, noises, epoch, config.experiment.recompute_images
    )
    return {name: tensor.double() for name, tensor in fresh.state_dict(0).items()}
