"""The ready queue against a simple model of what is ready, on random trees."""

import itertools
import random

import pytest
from mappings import config_from_mapping

from fastwi.config.schema import Config
from fastwi.experiment.ready import LONGEST_CHAIN, ReadyQueue
from fastwi.experiment.tree import OWN, Average, Treatment, Tree

CONFIG = Config()


def random_tree(draw: random.Random) -> Tree:
    tree = Tree()
    nodes = [tree.add(f"initial {i}", CONFIG) for i in range(2)]
    for i in range(60):
        before = draw.choice(nodes[-8:])
        if draw.random() < 0.15:
            children = tuple(draw.sample(nodes, 2))
            epoch = max(tree.epochs[child] for child in children)
            node = tree.add(f"average {i}", CONFIG, epoch, average=Average(children, *[(0.5, 0.5)] * 3))
            if draw.random() < 0.5:  # as of those that pulled children start from
                tree.add_probe(node, Treatment(OWN, epoch, 0, 0), CONFIG)
        else:
            epoch = tree.epochs[before] + 1
            node = tree.add(f"epoch {i}", CONFIG, epoch, before, i, f"alike {epoch % 3}")
        if draw.random() < 0.2:
            tree.add_probe(node, Treatment("recomputed", tree.epochs[node], 0, 0), CONFIG)
        nodes.append(node)
    return tree


def ready_by_hand(tree: Tree, left: set[int]) -> set[int]:
    return {task for task in left if not any(source in left for source in tree.needs(task))}


@pytest.mark.parametrize("number", range(8))
def test_what_is_ready_and_what_is_needed(seed: int, number: int) -> None:
    draw = random.Random(seed)
    tree = random_tree(draw)
    left, given = set(tree.tasks()), set[int]()
    queue = ReadyQueue(tree, sorted(left))
    while left:
        assert len(queue) == len(left)
        members, probes = draw.randint(1, 4), draw.randint(1, 4)
        taken = queue.take(members, probes, draw.randint(1, 2))
        assert 1 <= len(taken) <= (members if taken[0] < len(tree) else probes)
        assert len({(tree.alike[t] if t < len(tree) else -1) for t in taken}) == 1
        assert ready_by_hand(tree, left) >= set(taken)
        assert given.isdisjoint(taken)
        chains = [queue.chain(task) if task < len(tree) else [task] for task in taken]
        done: list[int] = []
        for chain in chains:
            for before, task in itertools.pairwise(chain):
                assert [t for t in left if before in tree.needs(t)] == [task]
                assert tree.before[task] == before
            assert len(chain) <= LONGEST_CHAIN
            done += chain[: draw.randint(1, len(chain))]
        given |= set(done)
        idle = queue.done(done)
        before = {node for task in left for node in tree.needs(task)}
        left -= set(done)
        after = {node for task in left for node in tree.needs(task)}
        assert sorted(idle) == sorted(before - after)
        assert all(queue.needed(node) == (node in after) for node in tree.epoch_nodes())
    assert queue.take(4, 4) == []


@pytest.mark.parametrize(
    ("change", "apart"),
    [
        ({"optimizer": {"learning_rate": 0.5}}, False),
        ({"optimizer": {"ema_decay": 0.9}}, True),
        ({"model": {"width": 0.5}}, True),
        ({"engine": {"precision": "fp16"}}, True),
        ({"data": {"test_images": 10}}, True),
        ({"optimizer": {"batch_size": 64}}, True),  # of which engine.name: auto looks up what was measured
    ],
)
def test_probes_are_together_where_one_population_can_do_them(change: dict, apart: bool) -> None:
    tree = Tree()
    for name, config in (("one", CONFIG), ("other", config_from_mapping(change))):
        tree.add_probe(tree.add(name, config), Treatment(OWN, 0, 0, 0), config)
    assert len(ReadyQueue(tree, tree.probes()).take(9, 9)) == 2 - apart


def test_what_averages_are_made_of_counts_once() -> None:
    """Beside three rows for each of them; one is taken however wide it is."""
    tree = Tree()
    start = tree.add("start", CONFIG)
    states = [tree.add(f"{n}", CONFIG, 1, start, n, "alike") for n in range(6)]
    for n, nodes in enumerate((states[:4], states[1:5], states[:5], states[2:])):
        weights = (0.25,) * len(nodes)
        node = tree.add(f"average {n}", CONFIG, 1, average=Average(tuple(nodes), weights, weights, weights))
        tree.add_probe(node, Treatment(OWN, 1, 0, 0), CONFIG)
    taken = []
    for rows in (3 * 3 + 5, 0):
        queue = ReadyQueue(tree, tree.probes())
        while tasks := queue.take(9, 9, rows=rows):
            taken.append(len(tasks))
            queue.done(tasks)
    assert taken == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("number", range(8))
def test_what_is_given_up_takes_along_what_is_made_of_it(seed: int, number: int) -> None:
    draw = random.Random(seed)
    tree = random_tree(draw)
    left = set(tree.tasks())
    queue = ReadyQueue(tree, sorted(left))
    chosen = draw.sample(sorted(left), 2)
    expected = set(chosen)
    for task in sorted(left, key=lambda t: (t >= len(tree), t)):
        if any(source in expected for source in tree.needs(task)):
            expected.add(task)
    gone, _ = queue.remove(chosen)
    assert set(gone) == expected
    assert len(queue) == len(left - expected)
    queue.put(sorted(expected))  # as of a job that was under way: they stay given up
    seen: set[int] = set()
    while taken := queue.take(3, 3):
        assert expected.isdisjoint(taken)
        seen |= set(taken)
        queue.done(taken)
    assert seen == left - expected


def test_of_an_average_that_diverged_only_its_training_is_given_up() -> None:
    tree = Tree()
    start = tree.add("start", CONFIG)
    children = tuple(tree.add(f"child {n}", CONFIG, 1, start, n, "alike") for n in (1, 2))
    average = tree.add("average", CONFIG, 1, average=Average(children, *[(0.5, 0.5)] * 3))
    first = tree.add("first", CONFIG, 2, average, 7, "later")
    second = tree.add("second", CONFIG, 3, first, 7, "latest")
    on = tree.add("child on", CONFIG, 2, children[0], 1, "later")
    tree.add_probe(average, Treatment(OWN, 1, 0, 0), CONFIG)
    queue = ReadyQueue(tree, tree.tasks())
    gone, _ = queue.remove((), [average])
    assert sorted(gone) == [first, second]
    assert len(queue) == 4
    assert on not in gone


def test_full_groups_come_first_and_those_added_to_last_before_others() -> None:
    tree = Tree()
    start = tree.add("start", CONFIG)
    early = [tree.add(f"early {n}", CONFIG, 1, start, n, "early") for n in range(3)]
    late = [tree.add(f"late {n}", CONFIG, 2, early[0], n, "late") for n in range(2)]
    queue = ReadyQueue(tree, tree.tasks())
    assert queue.take(2, 2) == early[:2]
    queue.done(early[:2])
    assert queue.take(2, 2) == late  # full, and its start is at hand
    assert queue.take(2, 2) == early[2:]
