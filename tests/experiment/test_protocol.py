"""The Figure 1 protocol in one process: what is trained on what, and that a stopped run goes on to the bit."""

import contextlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.data.noise import Noise
from fastwi.data.resident import load_split
from fastwi.engine.loop import LoopEngine
from fastwi.errors import CheckpointError
from fastwi.experiment import protocol
from fastwi.experiment.paths import RunPaths
from fastwi.experiment.plan import plan
from fastwi.experiment.protocol import Figure1Run, build_network, diverged, divergence
from fastwi.population import Population

CPU = torch.device("cpu")
SMALL = {
    "data": {"train_images": 100, "test_images": 50},
    "augment": {"padding": 2, "flip": 0.0},
    "optimizer": {"batch_size": 50, "learning_rate": 0.05},
    "schedule": {"drop_epochs": []},
    "experiment": {"k": 2, "s": 1, "after": 1},
    "engine": {"device": "cpu", "precision": "fp32"},
}


def config_of(**experiment) -> Config:
    return config_from_mapping({**SMALL, "experiment": {**SMALL["experiment"], **experiment}})


class Stopped(Exception):
    """Raised by the listener in place of a power cut."""


class Listener:
    def __init__(self, stop_after: int = -1) -> None:
        self.stop_after, self.new, self.caught_up = stop_after, 0, 0

    def images(self, trained, evaluated):
        pass

    def step_done(self, step, rows):
        if not rows:
            self.caught_up += 1
            return
        self.new += 1
        if self.new == self.stop_after:
            raise Stopped


@pytest.fixture(scope="module")
def splits(digits_directory):
    return [load_split(digits_directory, split, CPU, n)[0] for split, n in (("train", 100), ("test", 50))]


def start(config: Config, splits, directory: Path, listener: Listener | None = None, identity: str = "id"):
    engine = LoopEngine(
        build_network(config, 10), config.engine, config.optimizer, config.schedule, config.augment
    )  # fmt: skip
    directory.mkdir(exist_ok=True)
    return Figure1Run(config, *splits, engine, RunPaths(directory), identity, listener or Listener())


def tensors(paths: RunPaths, name: str) -> Population:
    return Population.load(paths.checkpoint(name))


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    """An uninterrupted run: its directory and rows."""
    directory = tmp_path_factory.mktemp("whole")
    return RunPaths(directory), start(config_of(), splits, directory).run()


def test_rows(whole):
    paths, rows = whole
    assert [json.loads(line) for line in paths.metrics.read_text().splitlines()] == rows
    names = ["average", "child 1", "child 2"]
    assert [(r["stage"], r["epoch"], r["network"], r["batch_norm"]) for r in rows] == [
        ("parent", 1, "parent", "own"), ("parent", 2, "parent", "own"),
        ("children", 3, "child 1", "own"), ("children", 3, "child 2", "own"),
        *(("interpolation", 3, name, treatment) for treatment in ("own", "recomputed") for name in names),
        ("after", 4, "average", "own"),
    ]  # fmt: skip
    for row in rows:
        assert 0 <= row["test_accuracy_%"] <= 100
        assert row["test_loss"] > 0
        assert ("train_loss" in row) == ("learning_rate" in row) == (row["stage"] != "interpolation")
    losses = {
        r["network"]: r["test_loss"] for r in rows if r["stage"] == "interpolation" and r["batch_norm"] == "own"
    }
    assert len(set(losses.values())) == 3
    children = {r["network"]: r["test_loss"] for r in rows if r["stage"] == "children"}
    assert all(losses[name] == loss for name, loss in children.items())


def test_networks(whole):
    """The average is the children's mean, and both grew out of the parent under noise of their own."""
    paths, _ = whole
    parent, children, average = (tensors(paths, name) for name in ("parent", "children", "average"))
    assert (parent.members, children.members, average.members) == (1, 2, 1)
    assert not torch.equal(children.weights_MP[0], children.weights_MP[1])
    torch.testing.assert_close(average.weights_MP[0], children.weights_MP.double().mean(0).float())
    torch.testing.assert_close(average.statistics_MQ[0], children.statistics_MQ.double().mean(0).float())
    assert not average.momentum_MP.any()
    assert children.momentum_MP.any(dim=1).all()
    assert not list(paths.directory.glob("state-0000[0-4]*"))
    final = tensors(paths, "final")
    assert not torch.equal(final.weights_MP, average.weights_MP)


def test_children_are_the_parent_trained_on(whole, splits):
    paths, _ = whole
    config = config_of()
    engine = LoopEngine(
        build_network(config, 10), config.engine, config.optimizer, config.schedule, config.augment
    )  # fmt: skip
    population = Population.from_modules([build_network(config, 10)])
    for epoch in range(2):
        engine.train_epoch(population, splits[0], [Noise(0)], epoch)
    assert torch.equal(population.weights_MP, tensors(paths, "parent").weights_MP)
    engine.train_epoch(population, splits[0], [Noise(2)], 2)
    children = tensors(paths, "children")
    assert torch.equal(population.weights_MP[0], children.weights_MP[1])
    assert torch.equal(population.momentum_MP[0], children.momentum_MP[1])


def test_stopped_after_every_step(whole, splits, tmp_path):
    paths, rows = whole
    resumed, count = RunPaths(tmp_path), len(plan(config_of().experiment))
    for done in range(count):
        listener = Listener(stop_after=1)
        with pytest.raises(Stopped):
            start(config_of(), splits, tmp_path, listener).run()
        assert listener.caught_up == done
        assert json.loads(resumed.progress.read_text())["steps_done"] == done + 1
    listener = Listener()
    assert start(config_of(), splits, tmp_path, listener).run() == rows
    assert (listener.new, listener.caught_up) == (0, count)
    assert resumed.metrics.read_bytes() == paths.metrics.read_bytes()
    for name in ("parent", "children", "average", "final"):
        found, expected = load_file(resumed.checkpoint(name)), load_file(paths.checkpoint(name))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_without_epochs_of_children_the_average_is_the_parent(splits, tmp_path):
    rows = start(config_of(k=1, s=0, after=0), splits, tmp_path).run()
    paths = RunPaths(tmp_path)
    parent = tensors(paths, "parent").weights_MP
    torch.testing.assert_close(tensors(paths, "average").weights_MP, parent, rtol=1e-6, atol=0)
    own = [r["test_loss"] for r in rows if r["stage"] == "interpolation" and r["batch_norm"] == "own"]
    assert own == pytest.approx([own[0]] * 3, rel=1e-5)


def test_options_of_the_average(splits, tmp_path):
    config = config_of(
        k=0, s=1, after=1, weights=[0.25, 0.75], batch_norm="recompute", momentum="keep", continue_children=True
    )  # fmt: skip
    rows = start(config, splits, tmp_path).run()
    paths = RunPaths(tmp_path)
    children, average = tensors(paths, "children"), tensors(paths, "average")
    expected = 0.25 * children.weights_MP[0] + 0.75 * children.weights_MP[1]
    torch.testing.assert_close(average.weights_MP[0], expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(average.momentum_MP[0], children.momentum_MP[0])
    mean = 0.25 * children.statistics_MQ[0] + 0.75 * children.statistics_MQ[1]
    assert not torch.allclose(average.statistics_MQ[0], mean, rtol=1e-3)
    assert [r["network"] for r in rows if r["stage"] == "after"] == ["average", "child 1", "child 2"]
    assert tensors(paths, "final").members == 3


def stopped_run(splits, directory: Path) -> RunPaths:
    with pytest.raises(Stopped):
        start(config_of(), splits, directory, Listener(stop_after=1)).run()
    return RunPaths(directory)


def test_another_identity_is_refused(splits, tmp_path):
    stopped_run(splits, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration or dataset"):
        start(config_of(), splits, tmp_path, identity="other").run()


@pytest.mark.parametrize("name", ["state", "progress", "metrics"])
def test_damaged_files_are_refused(splits, tmp_path, name):
    paths = stopped_run(splits, tmp_path)
    path = {"state": paths.state(1), "progress": paths.progress, "metrics": paths.metrics}[name]
    for damaged in (path.read_bytes()[: path.stat().st_size // 2], b"", b"\xff\xfe{}"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            start(config_of(), splits, tmp_path).run()
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    path.unlink()
    if name != "progress":  # without it the run begins anew
        with pytest.raises(CheckpointError):
            start(config_of(), splits, tmp_path).run()


def test_a_file_that_was_changed_is_refused(splits, tmp_path, seed):
    """One bit, an edited number, lines that are missing or in another order: nothing of it becomes a result."""
    draw = random.Random(seed)
    with pytest.raises(Stopped):
        start(config_of(), splits, tmp_path, Listener(stop_after=4)).run()
    paths = RunPaths(tmp_path)
    lines = paths.metrics.read_bytes().splitlines(keepends=True)
    row = {**json.loads(lines[0]), "test_accuracy_%": 99.5}
    changed = [
        (paths.metrics, (json.dumps(row) + "\n").encode() + b"".join(lines[1:])),
        (paths.metrics, b"".join([*lines[1:], lines[0]])),
        (paths.metrics, b"".join(lines[1:])),
        (paths.metrics, b"".join([lines[0], *lines])),
        (paths.progress, json.dumps({**json.loads(paths.progress.read_bytes()), "steps_done": 1}).encode()),
    ]
    for path in (paths.metrics, paths.progress, paths.state(4)):
        for _ in range(20):
            content = bytearray(path.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            changed.append((path, bytes(content)))
    for path, content in changed:
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            run = start(config_of(), splits, tmp_path, Listener(stop_after=1))
            with contextlib.suppress(ValueError):
                if path == paths.progress and json.loads(content) == json.loads(whole):
                    continue  # a blank has become another
            with pytest.raises(CheckpointError) as caught:
                run.run()
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
        finally:
            path.write_bytes(whole)


def test_rows_that_a_killed_process_left_are_written_again(whole, splits, tmp_path):
    paths = stopped_run(splits, tmp_path)
    with paths.metrics.open("a") as stream:
        stream.write('{"stage": "parent", "epoch": 2, "network": "parent"}\n')
    start(config_of(), splits, tmp_path).run()
    assert paths.metrics.read_bytes() == whole[0].metrics.read_bytes()


def test_initialisation_is_a_function_of_its_seed():
    config = config_of()
    torch.manual_seed(1)
    first = build_network(config, 10).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # the global generator is left alone
    again = build_network(config, 10).state_dict()
    other = build_network(config_from_mapping({**SMALL, "seeds": {"init": 1}}), 10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


class Spoiled:
    """An engine under which one network's loss is not a number in one epoch."""

    def __init__(self, engine, noise: int, epoch: int) -> None:
        self._engine, self._at = engine, (noise, epoch)

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def with_settings(self, *settings):
        return Spoiled(self._engine.with_settings(*settings), *self._at)

    def train_epoch(self, population, train, noises, epoch, report):
        losses = self._engine.train_epoch(population, train, noises, epoch, report)
        for m, noise in enumerate(noises):
            if (noise.seed, epoch) == self._at:
                losses[m] = float("nan")
                population.weights_MP[m] = float("nan")
        return losses


def spoiled_run(config: Config, splits, directory: Path, noise: int, epoch: int, listener: Listener | None = None):
    run = start(config, splits, directory, listener)
    run._engine = Spoiled(run._engine, noise, epoch)
    return run


def told(rows) -> list[tuple]:
    return [(row["stage"], row["epoch"], row["network"], row["batch_norm"]) for row in rows]


def test_a_child_that_diverges_stops_and_the_others_go_on(splits, tmp_path):
    config = config_of(k=1, s=3, children=3)
    whole = start(config, splits, tmp_path / "whole").run()
    rows = spoiled_run(config, splits, tmp_path / "spoiled", 2, 2).run()
    assert [row["network"] for row in diverged(rows)] == ["child 2"]
    assert diverged(rows)[0]["epoch"] == 3
    expected = [row for row in whole if row["stage"] in ("parent", "children")]
    expected = [row for row in expected if row["network"] != "child 2" or row["epoch"] < 3]
    assert [row for row in rows if row not in diverged(rows)] == expected
    # Stopped in the middle, it goes on as if it had not been.
    with pytest.raises(Stopped):
        spoiled_run(config, splits, tmp_path / "again", 2, 2, Listener(stop_after=3)).run()
    again = start(config, splits, tmp_path / "again").run()
    assert told(again) == told(rows)
    assert [r for r in again if r not in diverged(again)] == expected


def test_children_go_on_without_an_average_that_diverges(splits, tmp_path):
    config = config_of(k=1, s=1, after=3, continue_children=True)
    whole = start(config, splits, tmp_path / "whole").run()
    rows = spoiled_run(config, splits, tmp_path / "spoiled", config.seeds.average_noise, 3).run()
    assert [(row["network"], row["epoch"]) for row in diverged(rows)] == [("average", 4)]
    expected = [row for row in whole if row["network"] != "average" or row["epoch"] < 4]
    assert [row for row in rows if row not in diverged(rows)] == expected


def test_nothing_comes_of_a_parent_that_diverges(splits, tmp_path):
    rows = spoiled_run(config_of(k=2), splits, tmp_path / "spoiled", 0, 0).run()
    assert told(rows) == [("parent", 1, "parent", "own")]
    assert diverged(rows) == rows


class Blind:
    """An engine that evaluates as it is told: `losses` by (evaluation, member); every other loss is its own."""

    def __init__(self, engine, losses: dict[tuple[int, int], float], evaluations: list[int] | None = None) -> None:
        self._engine, self._losses = engine, losses
        self._evaluations = [] if evaluations is None else evaluations

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def with_settings(self, *settings):
        return Blind(self._engine.with_settings(*settings), self._losses, self._evaluations)

    def evaluate(self, population, test, report):
        scores = self._engine.evaluate(population, test, report)
        for (evaluation, m), loss in self._losses.items():
            if evaluation == len(self._evaluations):
                scores.loss_M[m] = loss
        self._evaluations.append(population.members)
        return scores


def blind_run(config: Config, splits, directory: Path, losses: dict, listener: Listener | None = None):
    run = start(config, splits, directory, listener)
    run._engine = Blind(run._engine, losses)
    return run


def strictly(line: str) -> dict:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_a_child_whose_test_loss_is_not_finite_has_diverged(splits, tmp_path):
    rows = blind_run(config_of(k=1), splits, tmp_path, {(1, 1): math.nan}).run()
    assert [row["stage"] for row in rows] == ["parent", "children", "children"]  # nothing is averaged
    assert [row["network"] for row in diverged(rows)] == ["child 2"]
    assert divergence(diverged(rows)[0]) == "its test loss is nan"
    lines = RunPaths(tmp_path).metrics.read_text().splitlines()
    assert [strictly(line)["test_loss"] for line in lines[:-1]] == [row["test_loss"] for row in rows[:-1]]
    assert strictly(lines[-1])["test_loss"] == "NaN"
    again = start(config_of(k=1), splits, tmp_path).run()  # which trains nothing
    assert again[:-1] == rows[:-1]
    assert math.isnan(again[-1]["test_loss"])


@pytest.mark.parametrize("where", ["weights_MP", "statistics_MQ"])
def test_a_network_that_is_not_finite_has_no_test_loss(splits, where):
    population = Population.from_modules([build_network(config_of(), 10)] * 3)
    getattr(population, where)[1, -1] = math.inf
    config = config_of()
    engine = LoopEngine(
        build_network(config, 10), config.engine, config.optimizer, config.schedule, config.augment
    )  # fmt: skip
    scores = protocol.test_scores(Blind(engine, {(0, 1): 1.0}), population, splits[1], lambda n: None)
    assert np.isnan(scores.loss_M).tolist() == [False, True, False]
    assert population.finite_M() == [True, False, True]


@pytest.mark.parametrize("trained_on", ["average", "recompute"])
@pytest.mark.parametrize("treatment", [0, 1])
@pytest.mark.parametrize("continued", [False, True])
def test_an_average_that_diverges_is_not_trained_on(splits, tmp_path, trained_on, treatment, continued):
    """With the statistics that it would be trained on with; under the other treatment it is reported, and goes on."""
    config = config_of(k=1, after=2, batch_norm=trained_on, continue_children=continued)
    whole = start(config, splits, tmp_path / "whole").run()
    losses = {(2 + treatment, 0): math.inf}
    rows = blind_run(config, splits, tmp_path / "blind", losses).run()
    (row,) = diverged(rows)
    assert (row["network"], row["batch_norm"]) == ("average", ("own", "recomputed")[treatment])
    stops = (trained_on == "recompute") == (treatment == 1)
    expected = [r for r in whole if r["stage"] != "after" or r["network"] != "average" or not stops]
    assert told(rows) == told(expected)
    assert [r for r in rows if r["stage"] == "after"] == [r for r in expected if r["stage"] == "after"]
    with pytest.raises(Stopped):
        blind_run(config, splits, tmp_path / "again", losses, Listener(stop_after=3)).run()
    assert start(config, splits, tmp_path / "again").run() == rows


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(splits, tmp_path):
    """`auto` is the machine's choice, and a shared disk may have another machine go on."""
    stopped_run(splits, tmp_path)

    def elsewhere() -> Figure1Run:
        run = start(config_of(), splits, tmp_path)
        run._engine.dtype = torch.bfloat16
        return run

    with pytest.raises(CheckpointError, match=r"was begun in float32, and engine\.precision: auto is bfloat16"):
        elsewhere().run()
    rows = start(config_of(), splits, tmp_path).run()
    assert elsewhere().run() == rows  # what is finished is shown anywhere
