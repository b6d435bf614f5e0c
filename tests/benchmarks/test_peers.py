"""The populations that throughput compares with train each member as if alone; coverage's bootstraps are theirs."""

import copy
import functools

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from benchmarks.coverage import intervals
from benchmarks.peers.populations import Grouped, Vmap
from benchmarks.task import Task, stock_batches
from fastwi.config.schema import Config, OptimizerConfig
from fastwi.data.resident import ResidentDataset, normalisation_table
from fastwi.errors import UserError
from fastwi.models.registry import build_model
from fastwi.models.resnet import ResNet

MEMBERS, CLASSES, BATCH, STEPS = 3, 7, 4, 2
PEERS = {
    "vmap": Vmap,
    "grouped": Grouped,
    "grouped, channels-last": functools.partial(Grouped, channels_last=True),
}


def small_task(seed, dtype=torch.float64):
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (BATCH * STEPS, 8, 8, 3), dtype=np.uint8))
    labels = torch.from_numpy(draw.integers(0, CLASSES, BATCH * STEPS))
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    dataset = ResidentDataset(images, labels, normalisation_table(mean, std), CLASSES)
    config = Config(optimizer=OptimizerConfig(batch_size=BATCH, weight_decay=0.01))
    return Task(config, dataset, mean, std, torch.device("cpu"), dtype, workers=0)


def random_networks(seed):
    """Members that have nothing in common but their architecture, statistics included."""
    torch.manual_seed(seed)
    networks = [ResNet(1, CLASSES, 0.25).double() for _ in range(MEMBERS)]
    for network in networks:
        for name, tensor in network.state_dict().items():
            if "bn" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return networks


@pytest.mark.parametrize("peer", PEERS)
def test_two_steps_equal_those_of_separate_networks(peer, seed):
    task, networks = small_task(seed), random_networks(seed)
    alone = copy.deepcopy(networks)
    population = PEERS[peer](task, networks, compiled=False)
    batches = list(stock_batches(task, MEMBERS, compiled=False)())
    assert len(batches) == STEPS
    for x_MNCHW, labels_MN in batches:
        population.step(x_MNCHW, labels_MN)
    before = copy.deepcopy(alone)
    for m, network in enumerate(alone):
        network.train()
        kind = task.config.optimizer
        optimizer = torch.optim.SGD(
            network.parameters(), lr=kind.learning_rate, momentum=kind.momentum, weight_decay=kind.weight_decay
        )
        for x_MNCHW, labels_MN in batches:
            optimizer.zero_grad()
            functional.cross_entropy(network(x_MNCHW[m]), labels_MN[m]).backward()
            optimizer.step()
        found, wanted = population.state_dict(m), network.state_dict()
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            # Two steps in float64: rounding, amplified by batch norms over as few as 4 x 2 x 2 values.
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-8, msg=name)
            if name.endswith("weight"):
                assert not torch.equal(tensor, before[m].state_dict()[name])


def test_members_are_given_every_image_once_in_batches_of_their_own(seed):
    task = small_task(seed)
    batches = list(stock_batches(task, MEMBERS, compiled=False)())
    for x_MNCHW, labels_MN in batches:
        assert x_MNCHW.shape == (MEMBERS, BATCH, 3, 8, 8)
        assert x_MNCHW[0].is_contiguous(memory_format=torch.channels_last)
        assert labels_MN.shape == (MEMBERS, BATCH)
        assert len({tuple(x.flatten().tolist()) for x in x_MNCHW}) == MEMBERS
    for labels_D in torch.cat([labels_MN for _, labels_MN in batches], dim=1):
        assert torch.equal(labels_D.sort().values, task.dataset.labels_N.sort().values)


@pytest.mark.parametrize("name", ["resnet20_gn", "convnet"])
def test_grouped_declines_what_it_was_not_written_for(name, seed):
    networks = [build_model(name, CLASSES) for _ in range(2)]
    with pytest.raises(UserError, match="CIFAR ResNets"):
        Grouped(small_task(seed), networks, compiled=False)


def test_a_step_of_vmap_in_bf16_is_that_of_float32_to_its_rounding(seed):
    """The casts that stand in for autocast reach every layer, and keep batch norm's weights in float32.

    Over four seeds the ways were 0.5 to 2 % apart.
    """
    networks, ways = [network.float() for network in random_networks(seed)], []
    for dtype in (torch.float32, torch.bfloat16):
        task = small_task(seed, dtype)
        population = Vmap(task, copy.deepcopy(networks), compiled=False)
        x_MNCHW, labels_MN = next(iter(stock_batches(task, MEMBERS, compiled=False)()))
        assert x_MNCHW.dtype == dtype
        population.step(x_MNCHW, labels_MN)
        state, before = population.state_dict(1), networks[1].state_dict()
        assert {name: tensor.dtype for name, tensor in state.items()} == {n: t.dtype for n, t in before.items()}
        ways.append(torch.cat([(state[n] - before[n]).flatten() for n, _ in networks[1].named_parameters()]))
    exact_P, low_P = ways
    assert not torch.equal(exact_P, low_P)
    assert (low_P - exact_P).norm() < 0.2 * exact_P.norm()


def test_bootstrap_intervals_of_a_mean(seed):
    rng = np.random.default_rng(seed)
    mean_G = np.exp(0.3 * rng.normal(size=8))
    found = intervals((mean_G[:, None],), rng, 4000)
    drawn_RG = mean_G[rng.integers(0, 8, (4000, 8))]
    # The share in each tail of the expanded percentile interval: Student's t with 7 degrees of freedom.
    tail = stats.norm.cdf(stats.t.ppf(0.025, 7) * np.sqrt(8 / 7))
    for name, share in (("percentile", 0.025), ("widened percentile", tail)):
        assert found[name] == pytest.approx(np.quantile(drawn_RG.mean(axis=1), [share, 1 - share]), rel=0.02)
    assert found["BCa"][0] < mean_G.mean() < found["BCa"][1]
