"""Rounds of averaging: the outer optimizer against torch's, and whole runs against a plain loop over rounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from listeners import Silent
from mappings import config_from_mapping

from fastwi.config.averaging import outer_coefficients
from fastwi.config.schema import DataConfig, ExperimentConfig
from fastwi.data.noise import Noise
from fastwi.data.split import open_splits
from fastwi.engine.choose import build_network
from fastwi.engine.loop import LoopEngine
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.scheduler import Executor, Limits, carry_out
from fastwi.experiment.store import Store
from fastwi.experiment.worker import Worker
from fastwi.population import Population

SMALL = {
    "data": {"train_images": 60, "test_images": 20},
    "augment": {"padding": 1, "flip": 0.0},
    "model": {"name": "resnet20", "width": 0.125},
    "optimizer": {"batch_size": 20, "learning_rate": 0.05},
    "schedule": {"drop_epochs": [2]},
    "engine": {"name": "loop", "device": "cpu", "precision": "fp32", "backend": "eager", "threads": 1},
}


def carried_out(
    planned: PlannedSweep, stop: int = -1, seconds: float = 30.0, memory: float = 1.0
) -> tuple[Worker, dict]:
    """The worker that has done all that is planned, and the measurements."""
    options = planned.spec.options
    worker = Worker(planned.tree, replace(options, memory_GiB=memory))
    with Store.open(options.store) as store:
        assert not carry_out(store, Executor(worker), Silent(stop), Limits(4, 8, seconds))
        return worker, store.measurements(planned.tree.measurement_keys())


@pytest.mark.parametrize("step", [0.0, 0.5, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_outer_step_is_that_of_sgd(step: float, momentum: float, nesterov: bool, seed: int) -> None:
    """Means that depend on where a round starts, as trained children do. Without momentum Nesterov's is plain SGD."""
    draws = np.random.default_rng(seed)
    experiment = ExperimentConfig(
        s=1, rounds=6, outer_step=step, outer_momentum=momentum, outer_nesterov=nesterov
    )  # fmt: skip
    first = torch.from_numpy(draws.normal(size=7))
    theta = first.clone().requires_grad_()
    # torch refuses Nesterov's without momentum.
    outer = torch.optim.SGD([theta], lr=step, momentum=momentum, nesterov=nesterov and momentum > 0)
    states = [first]
    for coefficients in outer_coefficients(experiment):
        mean = theta.detach() * 0.8 + torch.from_numpy(draws.normal(size=7))
        theta.grad = theta.detach() - mean
        outer.step()
        states.append(mean)
        assert sum(coefficients) == pytest.approx(1.0, abs=1e-12)
        found = sum(c * state for c, state in zip(coefficients, states, strict=True))
        torch.testing.assert_close(found, theta.detach(), rtol=1e-12, atol=1e-12)


def test_by_default_a_round_s_average_is_its_mean_alone() -> None:
    for number, coefficients in enumerate(outer_coefficients(ExperimentConfig(rounds=4)), 1):
        assert coefficients == (*[0.0] * number, 1.0)


class Plain:
    """What a run of several rounds does, one network after the other, with an explicit outer optimizer in float64."""

    def __init__(self, config, directory: Path) -> None:
        self.config, self.experiment = config, config.experiment
        self.train = open_splits(DataConfig(path=str(directory), train_images=60), torch.device("cpu"))[0]
        self.engine = LoopEngine(build_network(config, 10), config)

    def epochs(self, start: Population, seed: int, first: int, last: int) -> Population:
        network = start.clone_rows([0])
        for epoch in range(first, last):
            self.engine.train_epoch(network, self.train, [Noise(seed)], epoch)
        return network

    def recomputed(self, network: Population, epoch: int) -> Population:
        if self.experiment.batch_norm == "average":
            return network
        noise = [Noise(self.config.seeds.statistics_noise)]
        return self.engine.recompute_statistics(network, self.train, noise, epoch, self.experiment.recompute_images)

    def rounds(self):
        """Each round's children and average, and then the average trained on."""
        e = self.experiment
        weights = e.weights or (1 / e.children,) * e.children
        theta = self.epochs(Population.from_modules([build_network(self.config, 10)]), 0, 0, e.k)
        outer = theta.weights_MP[0].double().requires_grad_()
        sgd = torch.optim.SGD([outer], lr=e.outer_step, momentum=e.outer_momentum, nesterov=e.outer_nesterov)
        starts, end = [theta] * e.children, e.k
        for _ in range(e.rounds):
            first, end = end, end + e.s
            children = [self.epochs(start, c + 1, first, end) for c, start in enumerate(starts)]

            def mean(name: str) -> torch.Tensor:
                rows = [getattr(child, name)[0].double() for child in children]  # noqa: B023
                return sum(w * row for w, row in zip(weights, rows, strict=True))

            outer.grad = outer.detach() - mean("weights_MP")
            sgd.step()
            average = children[0].clone_rows([0])
            average.weights_MP[0], average.statistics_MQ[0] = outer.detach(), mean("statistics_MQ")
            average.momentum_MP[0] = mean("momentum_MP") if e.momentum == "average" else 0
            starts = []
            for child in children:
                start = average.clone_rows([0])
                for name in ("weights_MP", "statistics_MQ"):
                    row, own = getattr(start, name)[0], getattr(child, name)[0].double()
                    row.copy_((1 - e.pull) * own + e.pull * row.double())
                if e.round_momentum == "own":
                    start.momentum_MP[0] = child.momentum_MP[0]
                starts.append(self.recomputed(start, end))
            average = self.recomputed(average, end)
            yield [*children, average]
        yield [self.epochs(average, self.config.seeds.average_noise, end, end + e.after)]


CASES = {
    "mean": {"k": 1, "rounds": 2},
    "three children, weights": {"children": 3, "weights": [0.5, 0.2, 0.3], "momentum": "average"},
    "DiLoCo": {"outer_step": 0.7, "outer_momentum": 0.9, "outer_nesterov": True, "round_momentum": "own"},
    "no step": {"outer_step": 0.0, "momentum": "average", "rounds": 2},
    "PAPA": {"pull": 0.3, "round_momentum": "own"},
    "pulled towards a moving average": {"pull": 0.6, "outer_step": 0.5, "outer_momentum": 0.5, "rounds": 4},
    "recomputed": {"batch_norm": "recompute", "recompute_images": 40, "pull": 0.5, "rounds": 2},
}


@pytest.mark.parametrize("s", ["2it", "1ep"])
def test_children_that_are_not_pulled_go_on_as_if_alone(s: str, digits_directory: Path, tmp_path: Path) -> None:
    """To the bit, with their momentum and statistics, also where rounds end within epochs of 3 iterations."""
    own = {"pull": 0.0, "round_momentum": "own", "k": 1, "after": 0}
    ends = []
    for rounds, each in ((4, s), (1, {"2it": "2ep2it", "1ep": "4ep"}[s])):
        data = {**SMALL["data"], "path": str(digits_directory)}
        experiment = {**own, "s": each, "rounds": rounds}
        config = config_from_mapping({**SMALL, "data": data, "experiment": experiment})
        planned = plan_run(config, tmp_path / str(rounds))
        (place,) = planned.places
        worker, _ = carried_out(planned)
        with Store.open(planned.spec.options.store) as store:
            files = store.state_files(planned.tree.keys[node] for node in place.end_nodes)
            ends.append(worker.resident.gather(place.end_nodes, files, trains=True))
    for one, other in zip(ends[0].matrices, ends[1].matrices, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(ends[0].weights_MP[0], ends[0].weights_MP[1])


@pytest.mark.parametrize("name", CASES)
def test_a_run_of_rounds_is_a_plain_loop(name: str, digits_directory: Path, tmp_path: Path) -> None:
    experiment = {"k": 0, "s": 1, "after": 1, "rounds": 3, **CASES[name]}
    data = {**SMALL["data"], "path": str(digits_directory)}
    config = config_from_mapping({**SMALL, "data": data, "experiment": experiment})
    planned = plan_run(config, tmp_path)
    (place,) = planned.places
    worker, measured = carried_out(planned)
    assert len(measured) == len(planned.tree.measurement_keys())
    with Store.open(tmp_path) as store:
        nodes = [[*each.end_nodes, each.average_node] for each in place.rounds] + [[place.after_node]]
        expected = list(Plain(config, digits_directory).rounds())
        assert len(nodes) == len(expected) == config.experiment.rounds + 1
        files = store.state_files(
            {planned.tree.keys[s] for n in nodes for each in n for s in planned.tree.sources(each)}
        )
        for here, plain in zip(nodes, expected, strict=True):
            for node, network in zip(here, plain, strict=True):
                found = worker.resident.gather([node], files, trains=True)
                for matrix in ("weights_MP", "statistics_MQ", "momentum_MP"):
                    one, other = getattr(found, matrix), getattr(network, matrix)
                    # Rounding differs by processor, and a step near a kink of ReLU enlarges it, most in the momentum.
                    most = (1e-2 if matrix == "momentum_MP" else 1e-4) * float(other.abs().max())
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=most, msg=lambda m: f"{matrix}: {m}")  # noqa: B023
    ends = [worker.resident.gather(list(each.end_nodes), files, trains=True).weights_MP for each in place.rounds]
    assert not torch.allclose(ends[0], ends[1], atol=1e-3)
    assert all(not torch.allclose(rows[0], rows[1], atol=1e-4) for rows in ends)
