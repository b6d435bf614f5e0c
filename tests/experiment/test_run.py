"""A run: what is trained on what, what comes of networks that diverge, and that a stopped run goes on to the bit."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from listeners import Silent, Stopped
from mappings import config_from_mapping

from fastwi.config.schema import Config, DataConfig
from fastwi.data.split import open_splits
from fastwi.engine.choose import build_network
from fastwi.engine.loop import LoopEngine
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.scheduler import Executor, Limits, carry_out
from fastwi.experiment.store import Store
from fastwi.experiment.todo import without_lost
from fastwi.experiment.worker import Worker, score
from fastwi.population import Population
from fastwi.report.rows import point_rows
from fastwi.report.run_directory import RunDirectory

CPU = torch.device("cpu")
SMALL = {
    "data": {"train_images": 100, "test_images": 50},
    "augment": {"padding": 2, "flip": 0.0},
    "model": {"width": 0.125},
    "optimizer": {"batch_size": 50, "learning_rate": 0.05},
    "schedule": {"drop_epochs": []},
    "experiment": {"k": 2, "s": 1, "after": 1},
    # Named: what `auto` chose is tried first, and a trial would count as a call of the engines below.
    "engine": {"name": "loop", "device": "cpu", "precision": "fp32"},
}


@pytest.fixture(scope="module")
def splits(digits_directory):
    return open_splits(DataConfig(path=str(digits_directory), train_images=100, test_images=50), CPU)[:2]


def config_of(data: Path, **experiment) -> Config:
    mapping = {**SMALL, "data": {**SMALL["data"], "path": str(data)}}
    return config_from_mapping({**mapping, "experiment": {**SMALL["experiment"], **experiment}})


def run(
    config: Config, directory: Path, stop_after: int = -1, engine=None, seconds: float = 30.0, members: int = 4,
    memory: float = 2**30,
) -> list[dict]:  # fmt: skip
    """Carry a run out, or go on with it; returns its rows. `engine` wraps every engine."""
    paths = RunDirectory(directory)
    planned = plan_run(config, paths.store)
    worker = Worker(planned.tree, replace(planned.spec.options, memory_GiB=2 * memory / 2**30))
    if engine is not None:
        build = worker.resources.engine
        worker.resources.engine = lambda given: engine(build(given))
    with Store.open(paths.store) as store:
        carry_out(store, Executor(worker), Silent(stop_after), Limits(members, 8, seconds))
        rows = rows_of(planned, store)
        paths.write_checkpoints(planned, store, worker.resident)
    return rows


def rows_of(planned: PlannedSweep, store: Store) -> list[dict]:
    measured = without_lost(planned.tree, store.measurements(planned.tree.measurement_keys()))
    return point_rows(planned.points[0], planned.places[0], measured)


def tensors(directory: Path, name: str) -> Population:
    return Population.load(RunDirectory(directory).checkpoint(name))


def diverged(rows: list[dict]) -> list[dict]:
    return [row for row in rows if not math.isfinite(row.get("train_loss", 0.0) + row["test_loss"])]


@pytest.fixture(scope="module")
def whole(digits_directory, tmp_path_factory):
    """An uninterrupted run: its directory and rows."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(config_of(digits_directory), directory)


def named(rows: list[dict]) -> list[tuple]:
    return [(row["stage"], row["epoch"], row["network"], row["batch_norm"]) for row in rows]


@pytest.mark.parametrize("batch_norm", ["average", "recompute"])
@pytest.mark.parametrize("members", [1, 4])
def test_nothing_need_be_resident(digits_directory, tmp_path, batch_norm, members):
    """Without memory for them states are read again, once they are written."""
    config = config_of(digits_directory, children=3, after=2, batch_norm=batch_norm, continue_children=True)
    whole = run(config, tmp_path / "whole")
    assert run(config, tmp_path / "files", seconds=0.0, members=members, memory=0.0) == whole
    for name in ("children", "average", "final"):
        paths = [RunDirectory(tmp_path / each).checkpoint(name) for each in ("whole", "files")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


@pytest.mark.parametrize("seconds", [0.0, 30.0], ids=["every epoch", "every chain"])
@pytest.mark.parametrize("members", [1, 4])
def test_stopped_again_and_again(whole, digits_directory, tmp_path, seconds, members):
    """Whatever is written when, and however many are trained together, it ends with the same numbers and bytes."""
    expected, rows = whole
    config = config_of(digits_directory)
    stops = 0
    while stops < 20:
        try:
            assert run(config, tmp_path, 3, seconds=seconds, members=members) == rows
            break
        except Stopped:
            stops += 1
    assert 1 < stops < 20
    assert run(config, tmp_path, 1) == rows  # which measures nothing
    for name in ("parent", "children", "average", "final"):
        found = RunDirectory(tmp_path).checkpoint(name).read_bytes()
        assert found == RunDirectory(expected).checkpoint(name).read_bytes(), name


def test_without_epochs_of_children_the_average_is_the_parent(digits_directory, tmp_path):
    rows = run(config_of(digits_directory, k=1, s=0, after=0), tmp_path)
    parent = tensors(tmp_path, "parent").weights_MP
    torch.testing.assert_close(tensors(tmp_path, "average").weights_MP, parent, rtol=1e-6, atol=0)
    assert tensors(tmp_path, "children").members == 2
    own = [row["test_loss"] for row in rows if row["stage"] == "interpolation" and row["batch_norm"] == "own"]
    assert own == pytest.approx([own[0]] * 3, rel=1e-5)


def test_options_of_the_average(digits_directory, tmp_path):
    options = {"weights": [0.25, 0.75], "batch_norm": "recompute", "momentum": "keep", "continue_children": True}
    config = config_of(digits_directory, k=0, s=1, after=1, **options)
    rows = run(config, tmp_path)
    children, average = tensors(tmp_path, "children"), tensors(tmp_path, "average")
    expected = 0.25 * children.weights_MP[0] + 0.75 * children.weights_MP[1]
    torch.testing.assert_close(average.weights_MP[0], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(average.momentum_MP[0], children.momentum_MP[0])
    mean = 0.25 * children.statistics_MQ[0] + 0.75 * children.statistics_MQ[1]
    assert not torch.allclose(average.statistics_MQ[0], mean, rtol=1e-3)
    assert [row["network"] for row in rows if row["stage"] == "after"] == ["average", "child 1", "child 2"]
    assert tensors(tmp_path, "final").members == 3
    assert not RunDirectory(tmp_path).checkpoint("parent").exists()


def test_initialisation_is_a_function_of_its_seed(digits_directory):
    config = config_of(digits_directory)
    torch.manual_seed(1)
    first = build_network(config, 10).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # the global generator is left alone
    again = build_network(config, 10).state_dict()
    other = build_network(config_from_mapping({**SMALL, "seeds": {"init": 1}}), 10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    model = {**SMALL["model"], "initialisation": "open_lth"}
    uniform = build_network(config_from_mapping({**SMALL, "model": model}), 10).state_dict()
    assert (first["bn.weight"] == 1).all()
    assert (uniform["bn.weight"] < 1).all()


class Changed:
    """An engine of which `train` changes the losses and networks of an epoch, and `test` the scores of a test."""

    def __init__(self, engine, train=lambda *_: None, test=lambda _: None) -> None:
        self._engine, self._train, self._test = engine, train, test

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def with_config(self, config):
        return Changed(self._engine.with_config(config), self._train, self._test)

    def train_epoch(self, population, train, noises, epoch, report, steps):
        losses = self._engine.train_epoch(population, train, noises, epoch, report, steps)
        self._train(population, noises, epoch, losses)
        return losses

    def evaluate(self, population, test, report):
        scores = self._engine.evaluate(population, test, report)
        self._test(scores)
        return scores


def spoiled(seed: int, at: int):
    """Engines under which the network of one noise is NaN after one epoch."""

    def train(population, noises, epoch, losses) -> None:
        for m, noise in enumerate(noises):
            if (noise.seed, epoch) == (seed, at):
                losses[m] = float("nan")
                population.weights_MP[m] = float("nan")

    return lambda engine: Changed(engine, train=train)


def blind(evaluation: int, m: int, loss: float):
    """Engines under which one test, counted from 0, finds `loss` for the network `m`."""
    left = [evaluation]

    def test(scores) -> None:
        if left[0] == 0:
            scores.loss_M[m] = loss
        left[0] -= 1

    return lambda engine: Changed(engine, test=test)


@pytest.mark.parametrize("seconds", [0.0, 30.0], ids=["every epoch", "every chain"])
def test_a_child_that_diverges_stops_and_the_others_go_on(digits_directory, tmp_path, seconds):
    config = config_of(digits_directory, k=1, s=3, children=3)
    whole = run(config, tmp_path / "whole")
    rows = run(config, tmp_path / "spoiled", engine=spoiled(2, 2), seconds=seconds)
    assert [(row["network"], row["epoch"]) for row in diverged(rows)] == [("child 2", 3)]
    expected = [row for row in whole if row["stage"] in ("parent", "children")]
    expected = [row for row in expected if row["network"] != "child 2" or row["epoch"] < 3]
    assert [row for row in rows if row not in diverged(rows)] == expected
    # Stopped in the middle, it goes on as if it had not been.
    with pytest.raises(Stopped):
        run(config, tmp_path / "again", 3, spoiled(2, 2), 0.0)
    again = run(config, tmp_path / "again", engine=spoiled(2, 2))
    assert named(again) == named(rows)
    assert [row for row in again if row not in diverged(again)] == expected


def test_children_go_on_without_an_average_that_diverges(digits_directory, tmp_path):
    config = config_of(digits_directory, k=1, s=1, after=3, continue_children=True)
    whole = run(config, tmp_path / "whole")
    rows = run(config, tmp_path / "spoiled", engine=spoiled(config.seeds.average_noise, 3))
    assert [(row["network"], row["epoch"]) for row in diverged(rows)] == [("average", 4)]
    expected = [row for row in whole if row["network"] != "average" or row["epoch"] < 4]
    assert [row for row in rows if row not in diverged(rows)] == expected


def test_nothing_comes_of_a_parent_that_diverges(digits_directory, tmp_path):
    rows = run(config_of(digits_directory, k=2), tmp_path, engine=spoiled(0, 0))
    assert named(rows) == [("parent", 1, "parent", "own")]
    assert diverged(rows) == rows


def test_a_child_whose_test_loss_is_not_finite_has_diverged(digits_directory, tmp_path):
    config = config_of(digits_directory, k=1)
    rows = run(config, tmp_path, engine=blind(1, 1, math.nan))
    assert [row["stage"] for row in rows] == ["parent", "children", "children"]  # nothing is averaged
    assert [row["network"] for row in diverged(rows)] == ["child 2"]
    assert math.isnan(diverged(rows)[0]["test_loss"])
    again = run(config, tmp_path, stop_after=1)  # which trains nothing
    assert again[:-1] == rows[:-1]
    assert math.isnan(again[-1]["test_loss"])


@pytest.mark.parametrize("where", ["weights_MP", "statistics_MQ"])
def test_a_network_that_is_not_finite_has_no_test_loss(digits_directory, splits, where):
    config = config_of(digits_directory)
    population = Population.from_modules([build_network(config, 10)] * 3)
    getattr(population, where)[1, -1] = math.inf
    engine = blind(0, 1, 1.0)(LoopEngine(build_network(config, 10), config))
    scores = score(engine, population, splits[1], Silent())
    assert [math.isnan(loss) for loss, _ in scores] == [False, True, False]
    assert population.finite_M() == [True, False, True]


@pytest.mark.parametrize("trained_on", ["average", "recompute"])
@pytest.mark.parametrize("treatment", [0, 1])
@pytest.mark.parametrize("continued", [False, True])
def test_an_average_that_diverges_is_not_trained_on(digits_directory, tmp_path, trained_on, treatment, continued):
    """With the statistics that it would be trained on with; under the other treatment it is reported, and goes on."""
    config = config_of(digits_directory, k=1, after=2, batch_norm=trained_on, continue_children=continued)
    whole = run(config, tmp_path / "whole")
    spoil = blind(3 - treatment, 0, math.inf)  # recomputed statistics are measured first
    rows = run(config, tmp_path / "blind", engine=spoil)
    (row,) = diverged(rows)
    assert (row["network"], row["batch_norm"]) == ("average", ("own", "recomputed")[treatment])
    stops = (trained_on == "recompute") == (treatment == 1)
    expected = [r for r in whole if r["stage"] != "after" or r["network"] != "average" or not stops]
    assert named(rows) == named(expected)
    assert [r for r in rows if r["stage"] == "after"] == [r for r in expected if r["stage"] == "after"]
