"""Averages over time: their weights against recursions and torch's, whole runs against the stored states."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from listeners import Silent, Stopped
from mappings import config_from_mapping
from test_planner import planned, sweep
from test_rounds import SMALL, carried_out
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastwi.config.schema import TrajectoryConfig
from fastwi.experiment.over_time import weights_over_time
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.store import Store
from fastwi.experiment.worker import score
from fastwi.report.rows import point_rows

EXPERIMENT = {"k": 2, "s": 2, "after": 2, "rounds": 2, "continue_children": True}
AVERAGES = {"averages": ["lawa", "swa", "ema"], "window": 2, "begin": 1, "decay": 0.6}


def test_weights_are_those_of_recursions(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=9)
    config = TrajectoryConfig(averages=("lawa", "swa", "ema"), window=3, begin=2, decay=0.7)
    network, moving = nn.Linear(1, 1, bias=False), 0.0
    swa = AveragedModel(network)
    for epoch, value in enumerate(values, 1):
        moving = 0.7 * moving + 0.3 * value
        nn.init.constant_(network.weight, value)
        if epoch > 2:
            swa.update_parameters(network)
        found = {
            name: float(np.dot(weights, values[epoch - len(weights) : epoch]))
            for name, weights in weights_over_time(config, epoch, epoch)
        }
        expected = {"lawa": values[max(0, epoch - 3) : epoch].mean(), "ema": moving / (1 - 0.7**epoch)}
        expected |= {"swa": swa.module.weight.item()} if epoch > 3 else {}
        assert found == pytest.approx(expected if epoch > 1 else {}, rel=1e-6, abs=1e-6)


def test_what_float32_would_lose_is_left_out() -> None:
    ((_, weights),) = weights_over_time(TrajectoryConfig(averages=("ema",), decay=0.5), 100, 100)
    assert len(weights) == 25
    assert sum(weights) == pytest.approx(1.0)


def planned_run(data: Path, directory: Path, short: bool = False, **trajectory: object) -> PlannedSweep:
    experiment = {"k": 2, "s": 1, "after": 0} if short else EXPERIMENT
    dataset = {"path": str(data), "train_images": 40, "test_images": 20}
    optimizer = {**SMALL["optimizer"], "ema_decay": 0.6 if short else 0.0}
    mapping = {**SMALL, "data": dataset, "trajectory": trajectory, "experiment": experiment, "optimizer": optimizer}
    planned = plan_run(config_from_mapping(mapping), directory)
    planned.tree.stops = planned.kept("all")
    return planned


def test_they_are_of_ends_of_epochs_alone() -> None:
    """Also where networks are cloned and averaged within epochs, of 7 iterations here."""
    cut = {"k": "1ep1it", "s": "3ep", "after": 4}
    found = planned(sweep({}, trajectory={**AVERAGES, "begin": 0}, experiment=cut))
    averages = [found.tree.averages[of_time.node] for place in found.places for of_time in place.over_time]
    assert len(averages) > 10
    assert not any(found.tree.iterations[node] % 7 for average in averages for node in average.nodes)


def test_they_are_sums_of_the_states_and_change_no_training(digits_directory: Path, tmp_path: Path) -> None:
    without = planned_run(digits_directory, tmp_path / "without")
    planned = planned_run(digits_directory, tmp_path / "with", **AVERAGES)
    _, alone = carried_out(without)
    worker, measured = carried_out(planned)
    assert {key: replace(m, seconds=0.0) for key, m in alone.items()} == {
        key: replace(measured[key], seconds=0.0) for key in alone
    }
    tree, (place,) = planned.tree, planned.places
    assert {m.key for m in measured.values()} == set(tree.measurement_keys())
    # Of the parent 2 epochs; of two children 2 x 2 + 2 trained on; of the average 2.
    lines = {("parent", -1, 0): place.parent, ("average", -1, 1): place.after}
    for c, states in enumerate(place.children):
        lines |= {("child", c, 0): (*place.parent, *states[:2]), ("child", c, 1): states[2:]}
    with Store.open(planned.spec.options.store) as store:
        files = store.state_files(tree.keys[node] for node in tree.epoch_nodes())
        seen = set()
        for each in place.over_time:
            path = lines[each.network, each.child, each.round]
            at = [tree.epochs[tree.nodes[key]] for key in path].index(tree.epochs[each.node]) + 1
            states = worker.resident.gather([tree.nodes[key] for key in path[:at]], files, trains=False)
            rows = states.weights_MP.double(), states.statistics_MQ.double()
            if each.name == "ema":
                age = torch.arange(at - 1, -1, -1, dtype=torch.float64)
                weights = 0.6**age / (0.6**age).sum()
            else:
                count = 2 if each.name == "lawa" else tree.epochs[each.node] - 1
                weights = torch.zeros(at, dtype=torch.float64)
                weights[-count:] = 1 / min(count, at)
            found = worker.resident.gather([each.node], files, trains=False)
            for matrix, expected in zip((found.weights_MP, found.statistics_MQ), rows, strict=True):
                torch.testing.assert_close(matrix[0].double(), weights @ expected, rtol=1e-6, atol=1e-7)
            assert not torch.equal(found.weights_MP[0], states.weights_MP[-1])
            seen.add((each.name, each.network, each.child, tree.epochs[each.node]))
    # SWA begins after epoch 1: of the parent there is one state then.
    assert {key for key in seen if key[1] == "parent"} == {("lawa", "parent", -1, 2), ("ema", "parent", -1, 2)}
    assert {key[3] for key in seen if key[:3] == ("swa", "child", 1)} == {3, 4, 6, 7, 8}
    assert {key[0] for key in seen if key[1] == "average"} == {"lawa", "swa", "ema"}
    assert {key[3] for key in seen if key[1] == "average"} == {8}
    # The second round begins at epoch 4, with no state of its own.
    assert {key[3] for key in seen if key[1] == "child"} == {3, 4, 6, 7, 8}
    rows = [row for row in point_rows(planned.points[0], place, measured) if "over_time" in row]
    assert len(rows) == 2 * len(place.over_time)
    assert {row["stage"] for row in rows} == {"parent", "children", "after"}


def test_a_stopped_run_goes_on(digits_directory: Path, tmp_path: Path) -> None:
    """With a moving average by iteration too, which is a part of the states."""
    whole = planned_run(digits_directory, tmp_path / "whole", short=True, **AVERAGES)
    worker, expected = carried_out(whole)
    planned = planned_run(digits_directory, tmp_path / "stopped", short=True, **AVERAGES)
    planned.tree.stops = set()
    stops, found = 0, {}
    while not found and stops < 30:
        try:
            _, found = carried_out(planned, 4, seconds=0.0, memory=0.0)
        except Stopped:
            stops += 1
    assert 1 < stops < 30
    assert {key: (m.test_loss, m.test_accuracy) for key, m in found.items()} == {
        key: (m.test_loss, m.test_accuracy) for key, m in expected.items()
    }
    rows = point_rows(whole.points[0], whole.places[0], expected)
    moving = {
        (row["network"], row["epoch"], row["batch_norm"]) for row in rows if row.get("over_time") == "ema_iteration"
    }
    own = {(row["network"], row["epoch"], row["batch_norm"]) for row in rows if "over_time" not in row}
    assert len(moving) == 2 * (2 + 2)  # the parent after 2 epochs, each child after one; both treatments
    assert {key for key in own if key[2] == "own" and key[0] != "average"} == {
        key for key in moving if key[2] == "own"
    }
    tree, (place,) = whole.tree, whole.places
    config, at = whole.points[0].config, [each for each in place.over_time if each.name == "ema_iteration"]
    with Store.open(whole.spec.options.store) as store:
        files = store.state_files(tree.keys[each.node] for each in at)
        networks = worker.resident.gather([each.node for each in at], files, trains=False)
    engine, (_, test) = worker.resources.engine(config), worker.resources.splits(config)
    scores = [score(engine, each, test, Silent()) for each in (networks.of_moving(), networks)]
    for each, *found in zip(at, *scores, strict=True):
        names = (next(iter(each.treatments)), "own")
        measured = [expected[tree.keys[each.node], name] for name in names]
        assert [(m.test_loss, m.test_accuracy) for m in measured] == found
        assert measured[0].test_loss != measured[1].test_loss
