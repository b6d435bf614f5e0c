"""Averages along a trajectory against loops over state dicts."""

import numpy as np
import pytest
import torch
from torch import nn

from fastwi.analysis import ema_weights, lawa_weights
from fastwi.errors import UserError
from fastwi.population import Population


def networks(seed: int, count: int) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(count)]
        for network in made:
            network[1].running_mean.normal_()
            network[1].running_var.uniform_(0.5, 2)
    return made


def test_averages_are_those_of_recursion_and_loop(seed):
    count, decay = 5, float(np.random.default_rng(seed).uniform(0.1, 0.95))
    made = networks(seed, count)
    states = [{name: t.double() for name, t in network.state_dict().items()} for network in made]
    weights_LT = np.stack([lawa_weights(count, 3), ema_weights(count, decay)])
    found = Population.from_modules(made).combine(torch.from_numpy(weights_LT))
    assert found.members == 2
    for name in states[0]:
        if name.endswith("num_batches_tracked"):
            continue
        lawa = (states[2][name] + states[3][name] + states[4][name]) / 3
        moving = torch.zeros_like(lawa)
        for state in states:
            moving = decay * moving + (1 - decay) * state[name]
        expected = (lawa, moving / (1 - decay**count))
        for m in range(2):
            torch.testing.assert_close(found.state_dict(m)[name].double(), expected[m], rtol=1e-5, atol=1e-6)


def test_weights_at_their_limits():
    assert lawa_weights(4, 1).tolist() == [0, 0, 0, 1]
    assert lawa_weights(2, 2).tolist() == [0.5, 0.5]
    assert ema_weights(3, 0.0).tolist() == [0, 0, 1]
    assert ema_weights(1, 0.9).tolist() == [1.0]
    assert ema_weights(7, 0.8).sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lawa_weights(4, 0),
        lambda: lawa_weights(4, 5),
        lambda: ema_weights(0, 0.5),
        lambda: ema_weights(3, 1.0),
        lambda: ema_weights(3, -0.1),
        lambda: ema_weights(3, float("nan")),
    ],
)
def test_refused_lengths_and_decays(call):
    with pytest.raises(UserError, match=r"give 1 to 4|0 <= decay < 1"):
        call()
