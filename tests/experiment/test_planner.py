"""The tree of a sweep: what is shared, what names a state, what is left to do, in which order."""

import dataclasses
import math
import random

import pytest
from fastwi.experiment.agenda import Agenda

from fastwi.config.keys import KEYS
from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
from fastwi.config.write import to_mapping
from fastwi.errors import UserError
from fastwi.experiment import planner
from fastwi.experiment.planner import (
    Dataset,
    lost_with,
    naive_epochs,
    plan_tree,
    stopped_states,
    unfinished,
    without_lost,
)
from fastwi.experiment.points import Point, points
from fastwi.experiment.store import Measurement
from fastwi.experiment.tree import OWN, Average, Epoch, Initial, Probe, measurement_key

DATASET = Dataset("digest", 1000, 100)


def dataset_of(config: Config) -> Dataset:
    data = config.data
    return dataclasses.replace(
        DATASET, train_images=data.train_images or 1000, test_images=data.test_images or 100
    )  # fmt: skip


def sweep(axes: dict, options: dict | None = None, **sections) -> SweepSpec:
    base = config_from_mapping({"experiment": {"k": 2, "s": 1, "after": 1}, **sections})
    return SweepSpec(
        base, tuple(Axis(path, tuple(values)) for path, values in axes.items()), SweepOptions(**(options or {}))
    )


def grown(spec: SweepSpec, precision: str = "bf16"):
    return plan_tree(points(spec), dataset_of, precision, spec.options.measure, spec.options.keep)


def epoch_keys(spec: SweepSpec, **more) -> set[str]:
    return {epoch.key for epoch in grown(spec, **more)[0].epochs()}


GRID = {"experiment.k": [2, 4, 6], "experiment.s": [1, 2, 4], "experiment.after": [2]}


def paths(point: Point) -> set[tuple]:
    """Every epoch that the point trains, each as all that was done to its network: by the protocol's words alone."""
    e, seeds = point.config.experiment, point.config.seeds
    parent = (("init", seeds.init), *((seeds.parent_noise, epoch) for epoch in range(e.k)))
    done = {parent[: 2 + epoch] for epoch in range(e.k)}
    children = []
    for noise in seeds.child_noise:
        child = (*parent, *((noise, epoch) for epoch in range(e.k, e.k + e.s)))
        done |= {child[: e.k + 2 + i] for i in range(e.s)}
        children.append(child)
    average = (("average", tuple(children), e.weights),)
    for epoch in range(e.k + e.s, e.k + e.s + e.after):
        average = (*average, (seeds.average_noise, epoch))
        done.add(average)
    return done


def test_epochs_of_a_grid_are_those_of_its_points_each_once():
    spec = sweep(GRID, {"children": 8})
    every = list(points(spec))
    tree, places = grown(spec)
    expected = set().union(*map(paths, every))
    assert len(list(tree.epochs())) == len(expected) == 6 + 3 * 8 * 4 + 9 * 4 * 2
    assert len(every) == len(places) == 36
    assert naive_epochs(every) == sum(len(paths(point)) for point in every) == 384


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ({"experiment.k": [0, 1], "experiment.s": [0, 2]}, {"children": 4}),
        ({"experiment.k": [1, 3]}, {"children": 4, "tuples": "all", "parents": (0, 7)}),
        ({"experiment.s": [1, 2]}, {"children": 2, "alphas": (0.0, 0.25, 0.5)}),
        ({"experiment.after": [0, 3]}, {"children": 6, "tuple_size": 3}),
    ],
)
def test_other_sweeps_by_the_same_count(axes, options):
    spec = sweep(axes, options)
    expected = set().union(*map(paths, points(spec)))
    assert len(epoch_keys(spec)) == len(expected)


def test_children_trained_on_are_their_own_longer_paths():
    spec = sweep({"experiment.s": [1, 2]}, experiment={"k": 1, "after": 2, "continue_children": True})
    tree, places = grown(spec)
    assert len(list(tree.epochs())) == 1 + 2 * 4 + 2 * 2
    assert [len(place.children[0]) for place in places] == [3, 4]
    assert places[0].children[0] == places[1].children[0][:3]


def test_children_trained_on_at_another_rate_part_from_those_at_the_same():
    def end_keys(factor: float) -> list[tuple[str, ...]]:
        more = {"continue_children": True, "children_rate_factor": factor}
        tree, places = grown(sweep({}, experiment={"k": 1, "s": 1, "after": 2, **more}))
        assert len(list(tree.epochs())) == 1 + 2 * 3 + 2
        return [child for place in places for child in place.children]

    for same, dropped in zip(end_keys(1.0), end_keys(0.1), strict=True):
        assert [a == b for a, b in zip(same, dropped, strict=True)] == [True, False, False]


def test_places_and_states():
    """A point's states hang together as the protocol says, and each stands after what it is made of."""
    spec = sweep({"experiment.k": [0, 2], "experiment.s": [0, 1]}, {"children": 4, "alphas": (0.25,)})
    tree, places = grown(spec)
    order = {key: i for i, key in enumerate(tree.states)}
    for point, place in zip(points(spec), places, strict=True):
        e, seeds = point.config.experiment, point.config.seeds
        assert (len(place.parent), len(place.children), len(place.after)) == (e.k, 2, e.after)
        average = tree.states[place.average]
        assert isinstance(average, Average)
        assert average.children == place.ends
        assert average.weights == (0.75, 0.25)
        for noise, child, end in zip(seeds.child_noise, place.children, place.ends, strict=True):
            assert [tree.states[key].noise for key in child] == [noise] * e.s
            assert end == (child[-1] if child else place.parent[-1] if place.parent else end)
        assert tree.states[place.after[0]].before == place.average
        assert tree.states[place.after[0]].epoch == e.k + e.s + 1
        for state in (place.average, *place.ends):
            assert (state, place.recomputed) in tree.probes
        assert (place.average, OWN) in tree.probes
    for state in tree.states.values():
        made_of = (
            state.children if isinstance(state, Average) else [] if isinstance(state, Initial) else [state.before]
        )
        assert all(order[key] < order[state.key] for key in made_of)


# What decides nothing of an epoch: where things are written, how they are computed, and what the protocol does with
# networks afterwards or to whom; that is in the tree's shape. Data, in the size that networks see, and weights are
# named by their content (DATASET).
NOT_IN_KEYS = {
    "run.tensorboard", "model.weights", "data.streaming", "data.decoder", "data.image_size", "engine.deterministic",
    "run.name", "run.directory", "data.path", "engine.name", "engine.device", "engine.backend", "engine.threads",
    "engine.evaluation_batch",
}  # fmt: skip
SHAPE = {
    "experiment.k", "experiment.s", "experiment.after", "experiment.children", "experiment.weights",
    "experiment.batch_norm", "experiment.momentum", "experiment.continue_children", "experiment.recompute_images",
    "experiment.children_rate_factor",
    "seeds.init", "seeds.parent_noise", "seeds.child_noise", "seeds.average_noise", "seeds.statistics_noise",
}  # fmt: skip
OTHER = {
    "run.tensorboard": True, "model.weights": "w.pt", "data.streaming": "streamed", "data.decoder": "reference",
    "data.image_size": 8, "engine.deterministic": True,
    "run.name": "x", "run.directory": "y", "data.path": "z", "data.train_images": 500, "data.test_images": 50,
    "augment.padding": 3, "augment.flip": 0.25, "optimizer.batch_size": 64, "optimizer.learning_rate": 0.2,
    "optimizer.momentum": 0.8, "optimizer.weight_decay": 0.0, "optimizer.nesterov": True,
    "schedule.drop_epochs": [1], "schedule.drop_factor": 0.5, "schedule.warmup_iterations": 5,
    "engine.name": "loop", "engine.device": "cpu", "engine.precision": "fp32", "engine.backend": "eager",
    "engine.threads": 3, "engine.evaluation_batch": 7, "model.name": "resnet32", "model.width": 2,
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in KEYS if path not in SHAPE])
def test_every_key_of_the_schema_changes_states_or_is_known_not_to(path):
    section, _, name = path.partition(".")
    base = sweep({}, schedule={"drop_epochs": [2], "drop_factor": 0.1})
    mapping = to_mapping(base.base)
    mapping[section][name] = OTHER[path]
    changed = dataclasses.replace(base, base=config_from_mapping(mapping))
    before, after = epoch_keys(base), epoch_keys(changed)
    assert (before == after) == (path in NOT_IN_KEYS)


def test_precision_is_what_auto_means():
    spec, fp32 = sweep({}), sweep({}, engine={"precision": "fp32"})
    assert epoch_keys(spec, precision="fp32") == epoch_keys(fp32)
    assert not epoch_keys(spec, precision="bf16") & epoch_keys(fp32)


def test_a_schedule_changes_only_the_epochs_that_it_touches():
    base = sweep({"experiment.k": [6]}, schedule={"drop_epochs": [80]})
    tree, _ = grown(base)
    later = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [90], "drop_factor": 0.5}))
    assert later == {epoch.key for epoch in tree.epochs()}
    earlier = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [4]}))
    assert {epoch.epoch for epoch in tree.epochs() if epoch.key in earlier} == {1, 2, 3, 4}
    # 1000 images in batches of 128 are 7 iterations an epoch: 10 of warm-up end in the second.
    warm = epoch_keys(sweep({"experiment.k": [6]}, schedule={"drop_epochs": [80], "warmup_iterations": 10}))
    assert not warm & {epoch.key for epoch in tree.epochs()}  # all that follows starts elsewhere


def test_a_learning_rate_is_what_it_comes_to():
    """Half the rate from the start is the same as a drop by half before the first epoch that matters."""
    first = sweep({}, optimizer={"learning_rate": 0.1}, schedule={"drop_epochs": [1], "drop_factor": 0.5})
    tree, _ = grown(first)
    epochs = list(tree.epochs())
    assert len({epoch.alike for epoch in epochs}) == 4
    second = sweep({}, optimizer={"learning_rate": 0.1}, schedule={"drop_epochs": [1, 50], "drop_factor": 0.5})
    assert epoch_keys(second) == {epoch.key for epoch in epochs}


def test_more_parents_and_children_leave_keys_alone():
    few = epoch_keys(sweep(GRID, {"children": 2}))
    assert few < epoch_keys(sweep(GRID, {"children": 4}))
    more = epoch_keys(sweep(GRID, {"children": 2, "parents": (0, 1)}))
    assert few < more
    assert len(more) == 2 * len(few)


def test_stops():
    tree, places = grown(sweep(GRID, {"children": 2}))
    kept = {(tree.states[key].epoch) for key in tree.stops}
    assert kept == {2, 4, 6} | {k + s for k in (2, 4, 6) for s in (1, 2, 4)} | {
        k + s + 2 for k in (2, 4, 6) for s in (1, 2, 4)
    }
    assert all(place.parent[-1] in tree.stops for place in places)
    everything, _ = grown(sweep(GRID, {"children": 2, "keep": "all"}))
    assert {epoch.key for epoch in everything.epochs()} <= everything.stops


def test_own_statistics_only():
    tree, places = grown(sweep(GRID, {"measure": ("own",)}))
    assert {probe.treatment for probe in tree.probes.values()} == {OWN}
    assert {place.recomputed for place in places} == {""}


def test_unfinished_is_enough_and_not_too_much(seed):
    draw = random.Random(seed)
    tree, _ = grown(sweep({"experiment.k": [1, 2], "experiment.s": [0, 2]}, {"children": 4}))
    epochs = list(tree.epochs())
    names = [(epoch.key, OWN) for epoch in epochs] + list(tree.probes)
    for _ in range(100):
        share = draw.random()
        measured = {name for name in names if draw.random() < share}
        stored = {epoch.key for epoch in epochs if (epoch.key, OWN) in measured and draw.random() < share}
        todo = unfinished(tree, measured, stored)
        have, done = set(stored), set(measured)
        for epoch in todo.epochs:  # in this order all that an epoch starts from is there
            assert set(tree.needs(epoch)) <= have
            have.add(epoch.key)
            done.add((epoch.key, OWN))
        for probe in todo.probes:
            assert probe.key not in measured
            assert set(tree.needs(probe)) <= have
            done.add(probe.key)
        assert done == set(names)
        wanted = {key for task in (*todo.epochs, *todo.probes) for key in tree.needs(task)}
        for epoch in todo.epochs:
            assert (epoch.key, OWN) not in measured or (epoch.key in wanted and epoch.key not in stored)
    assert unfinished(tree, set(names), set()) == type(todo)((), ())


def test_agenda_gives_each_task_once_when_it_can_be_done(seed):
    draw = random.Random(seed)
    tree, _ = grown(sweep({"experiment.k": [1, 2], "experiment.s": [0, 2]}, {"children": 4, "parents": (0, 1)}))
    for _ in range(20):
        todo = unfinished(tree, set(), set())
        agenda, have, done, running, dropped = Agenda(tree, todo, set()), set(), [], [], []
        while len(agenda):
            tasks = agenda.take(draw.randint(1, 5), draw.randint(1, 3))
            assert len({(type(t), t.epoch, t.alike if isinstance(t, Epoch) else t.treatment) for t in tasks}) <= 1
            for task in tasks:
                assert set(tree.needs(task)) <= have - set(dropped)
            if draw.random() < 0.2:
                agenda.put_back(tasks)
            elif tasks:
                running.append(tasks)
            if running and draw.random() < 0.7:
                for task in running.pop(draw.randrange(len(running))):
                    if isinstance(task, Epoch):
                        have.add(task.key)
                    dropped += agenda.done(task)
                    done.append(measurement_key(task))
        assert not running
        assert sorted(done) == sorted({measurement_key(t) for t in (*todo.epochs, *todo.probes)})
        assert len(dropped) == len(set(dropped))
        used = {key for task in (*todo.epochs, *todo.probes) for key in tree.needs(task)}
        assert set(dropped) == used


def test_what_comes_of_a_diverged_network_is_not_left():
    tree, places = grown(sweep({"experiment.k": [1, 2]}, {"children": 4, "parents": (0, 1)}))
    epochs = list(tree.epochs())
    child = places[0].children[0][0]
    measured = {(child, OWN)}
    todo = unfinished(tree, measured, {child}, [child])
    lost = {places[0].average, child, *places[0].after}
    assert {epoch.key for epoch in epochs} - {epoch.key for epoch in todo.epochs} == {child, *places[0].after}
    assert {p.state for p in tree.probes.values()} - {p.state for p in todo.probes} == {child, places[0].average}
    assert lost_with(tree, [child]) == lost


def measurement(key, **values) -> Measurement:
    return Measurement(*key, **{"epoch": 1, "train_loss": None, "learning_rate": None, "test_loss": 1.0,
                                "test_accuracy": 50.0, "seconds": 0.0, **values})  # fmt: skip


@pytest.mark.parametrize("batch_norm", ["average", "recompute"])
def test_an_average_that_diverged_is_measured_and_not_trained_on(batch_norm):
    tree, places = grown(
        sweep({}, {"children": 2}, experiment={"batch_norm": batch_norm, "after": 1, "k": 1, "s": 1})
    )
    place = places[0]
    own, recomputed = (place.average, OWN), (place.average, place.recomputed)
    stops, other = (own, recomputed) if batch_norm == "average" else (recomputed, own)
    assert stopped_states(tree, [measurement(other, test_loss=math.nan)]) == []
    assert stopped_states(tree, [measurement((place.ends[0], place.recomputed), test_loss=math.nan)]) == []
    found = {stops: measurement(stops, test_loss=math.inf)}
    stopped = stopped_states(tree, found.values())
    assert stopped == [place.average]
    todo = unfinished(tree, {stops}, set(), stopped)
    assert {epoch.key for epoch in tree.epochs()} - {epoch.key for epoch in todo.epochs} == set(place.after)
    assert other in {probe.key for probe in todo.probes}
    # What was trained of it before it was measured counts for nothing.
    trained_on = {(place.after[0], OWN): measurement((place.after[0], OWN), train_loss=1.0)}
    child = {(place.ends[0], OWN): measurement((place.ends[0], OWN), train_loss=1.0)}
    assert without_lost(tree, found | trained_on | child) == found | child
    lost = {(place.ends[0], OWN): measurement((place.ends[0], OWN), train_loss=1.0, test_loss=math.nan)}
    assert without_lost(tree, found | lost) == lost


@pytest.mark.parametrize(
    ("axes", "options"),
    [({"experiment.k": [3, 60]}, {}), ({}, {"parents": tuple(range(20))}), ({}, {"children": 30, "tuples": "all"})],
)
def test_a_tree_too_large_is_refused_before_it_grows(monkeypatch, axes, options):
    monkeypatch.setattr(planner, "MOST_STATES", 50)
    with pytest.raises(UserError, match=r"sweep: its tree has \d+ epochs .*experiment\.k = \d+.*50 is the most"):
        grown(sweep(axes, options))
    assert len(grown(sweep({}, {"parents": (0, 1, 2)}))[0].states) <= 50


def test_agenda_without_what_hangs_on_a_failure():
    tree, places = grown(sweep({"experiment.k": [2]}, {"parents": (0, 1)}))
    todo = unfinished(tree, set(), set())
    agenda = Agenda(tree, todo, set())
    failing = next(epoch for epoch in todo.epochs if epoch.key == places[0].parent[0])
    hang = lost_with(tree, [failing.key])
    lost = agenda.remove(lambda t: t is failing or (t.before if isinstance(t, Epoch) else t.state) in hang)
    of_parent = len(todo.epochs) // 2 + len(todo.probes) // 2
    assert len(lost) == len(set(lost)) == of_parent
    assert len(agenda) == of_parent
    while len(agenda):
        tasks = agenda.take(9)
        assert not set(tasks) & set(lost)
        for task in tasks:
            agenda.done(task)


def test_probes_of_one_child_are_shared_by_its_pairs():
    tree, places = grown(sweep({}, {"children": 4, "tuples": "all"}))
    recomputed = [probe for probe in tree.probes.values() if isinstance(probe, Probe) and probe.treatment != OWN]
    assert len(places) == 6
    assert len(recomputed) == 6 + 4
