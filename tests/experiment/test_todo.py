"""What is left of a tree: enough to finish it, and nothing that comes of a network that diverged."""

import math
import random

import pytest
from drawn_measurements import planned, spec_of

from fastwi.experiment.store import Measurement
from fastwi.experiment.todo import is_lost, lost_with, stopped_states, unfinished, without_lost
from fastwi.experiment.tree import OWN, Tree

K_AND_S = {"experiment.k": [1, 2], "experiment.s": [0, 2]}


def progress(draw: random.Random, tree: Tree) -> tuple[set[int], set[int]]:
    """Tasks that are done, and epochs among them whose states are there."""
    share = draw.random()
    done = {task for task in tree.tasks() if draw.random() < share}
    return done, {node for node in tree.epoch_nodes() if node in done and draw.random() < share}


def test_unfinished_is_enough_and_not_too_much(seed):
    draw = random.Random(seed)
    tree = planned(spec_of(K_AND_S, children=4)).tree
    tasks = tree.tasks()
    for _ in range(100):
        done, have = progress(draw, tree)
        left = unfinished(tree, {tree.measurement_key(task) for task in done}, {tree.keys[node] for node in have})
        wanted = {node for task in left for node in tree.needs(task)}
        for task in left:
            assert task not in done or (task in wanted | tree.stops and task not in have)
        assert sorted(left) == list(left)
        for task in left:  # in this order all that a task starts from is there
            assert set(tree.needs(task)) <= have
            done.add(task)
            have |= {task} if task < len(tree) else set()
        assert done == set(tasks)
        assert tree.stops <= have
    assert tree.stops <= set(unfinished(tree, tree.measurement_keys(), set()))
    tree.stops = set()
    assert len(unfinished(tree, tree.measurement_keys(), set())) == 0


def test_tasks_that_others_claimed_leave_what_mine_need(seed):
    draw = random.Random(seed)
    tree = planned(spec_of(K_AND_S, children=4)).tree
    tasks, names = tree.tasks(), tree.measurement_keys()
    for _ in range(100):
        done, have = progress(draw, tree)
        claimed = {name for name in names if draw.random() < 0.5}
        measured = {tree.measurement_key(task) for task in done}
        left = set(unfinished(tree, measured, {tree.keys[node] for node in have}, claimed=claimed))
        mine = {task for task in left if tree.measurement_key(task) not in claimed}
        assert {node for task in mine for node in tree.needs(task)} <= have | left
        assert {task for task in tasks if tree.measurement_key(task) not in measured} <= left


def test_what_comes_of_a_diverged_network_is_not_left():
    sweep = planned(spec_of({"experiment.k": [1, 2]}, {"after": 1}, children=4, parents=(0, 1)))
    places, tree = sweep.places, sweep.tree
    child, average, after = places[0].end_nodes[0], places[0].average_node, places[0].after_node
    left = unfinished(tree, {(tree.keys[child], OWN)}, {tree.keys[child]}, [child])
    assert lost_with(tree, [child]) == {child, average, after}
    other = places[-1].after_node
    assert lost_with(tree, [child, other]) == {child, average, after, other}
    assert lost_with(tree, []) == set()
    gone = set(tree.tasks()) - set(left)
    lost = {child, average, after}
    assert gone - {child} == {task for task in tree.tasks() if is_lost(tree, lost, task)}
    assert {task for task in gone if task < len(tree)} == {child, after}
    assert {tree.start_of(task) for task in gone if task >= len(tree)} == {child, average}


def measurement(key, **values) -> Measurement:
    return Measurement(*key, **{"epoch": 1, "train_loss": None, "learning_rate": None, "test_loss": 1.0,
                                "test_accuracy": 50.0, "seconds": 0.0, **values})  # fmt: skip


@pytest.mark.parametrize("batch_norm", ["average", "recompute"])
def test_an_average_that_diverged_is_measured_and_not_trained_on(batch_norm):
    sweep = planned(spec_of({}, {"batch_norm": batch_norm, "after": 1, "k": 1, "s": 1}))
    (place,), tree = sweep.places, sweep.tree
    own, recomputed = ((place.average, name) for name in place.treatments)
    stops, other = (own, recomputed) if batch_norm == "average" else (recomputed, own)
    assert stopped_states(tree, [measurement(other, test_loss=math.nan)]) == []
    assert stopped_states(tree, [measurement((place.ends[0], recomputed[1]), test_loss=math.nan)]) == []
    found = {stops: measurement(stops, test_loss=math.inf)}
    stopped = stopped_states(tree, found.values())
    assert stopped == [place.average_node]
    left = unfinished(tree, {stops}, set(), stopped)
    assert set(tree.epoch_nodes()) - set(left) == {place.after_node}
    assert other in set(map(tree.measurement_key, left))
    # What was trained of it before it was measured counts for nothing.
    trained_on = {(place.after[0], OWN): measurement((place.after[0], OWN), train_loss=1.0)}
    child = {(place.ends[0], OWN): measurement((place.ends[0], OWN), train_loss=1.0)}
    assert without_lost(tree, found | trained_on | child) == found | child
    lost = {(place.ends[0], OWN): measurement((place.ends[0], OWN), train_loss=1.0, test_loss=math.nan)}
    assert without_lost(tree, found | lost) == lost


def test_an_initial_network_whose_test_loss_is_infinite_is_trained_all_the_same():
    sweep = planned(spec_of({}, {"k": 0, "s": 0, "after": 1}))
    (place,), tree = sweep.places, sweep.tree
    assert not tree.is_epoch(place.clone_node)
    found = measurement((place.clone, OWN), test_loss=math.inf)
    assert found.key in tree.measurement_keys()
    assert stopped_states(tree, [found]) == []
