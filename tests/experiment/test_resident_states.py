"""Resident states: found by name within a bound of memory, and never lost to what a job brings meanwhile."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from mappings import config_from_mapping

from fastwi.experiment.resident import ResidentStates, StateCache
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import Store, write_states
from fastwi.experiment.tree import Average, Tree
from fastwi.population import Population
from fastwi.population.layout import Layout

LAYOUT = Layout.of(torch.nn.Linear(3, 2))
ROW = 8 * LAYOUT.P + 4 * LAYOUT.Q + 8 * LAYOUT.B
RESOURCES = cast(Resources, cast(Any, SimpleNamespace(layout=lambda _: LAYOUT)))


def population(members: int, value: float = 0.0) -> Population:
    made = Population.zeros(LAYOUT, members)
    made.weights_MP.fill_(value)
    return made


def test_rows_are_found_until_memory_is_short() -> None:
    cache = StateCache(5 * ROW)
    first, second, third = population(2), population(2), population(2)
    cache.put(first, ["a", "b"])
    cache.put(second, [None, "c"])
    assert cache.get("b") == (first, 1)
    assert cache.get("c") == (second, 1)
    assert cache.get("a") is not None  # used later than c
    cache.put(third, ["d", "e"])
    assert cache.get("c") is None
    assert [name in cache for name in "abcde"] == [True, True, False, True, True]


def test_the_memory_of_a_population_goes_with_its_last_row() -> None:
    cache = StateCache(4 * ROW)
    cache.put(population(3), ["a", "b", "c"])
    cache.drop(["a", "b", "unknown"])
    cache.put(population(1), ["d"])
    assert "c" in cache
    cache.drop(["c"])
    cache.put(population(3), ["e", "f", "g"])
    assert all(name in cache for name in "defg")


def test_a_name_is_of_the_population_that_was_put_last() -> None:
    cache = StateCache(3 * ROW)
    old, new = population(2), population(1)
    cache.put(old, ["a", "b"])
    cache.put(new, ["a"])
    assert (cache.get("a"), cache.get("b")) == ((new, 0), (old, 1))
    cache.put(population(9), ["large"])  # stays for as long as nothing follows
    assert [name in cache for name in ("a", "b", "large")] == [False, False, True]
    cache.put(population(1), ["c"])
    assert ["large" in cache, "c" in cache] == [False, True]


def grown(after: int, pairs: list[tuple[int, int]]) -> tuple[Tree, list[int], list[int]]:
    """A tree of five children of one parent and averages of `pairs` of them; the children and the averages."""
    config = config_from_mapping({"experiment": {"after": after}, "engine": {"device": "cpu"}})
    tree = Tree()
    start = tree.add("start", config)
    children = [tree.add(name * 2, config, 1, start, noise, "alike") for noise, name in enumerate("abcde")]
    members = [tuple(children[child] for child in pair) for pair in pairs]
    averages = [
        tree.add(f"{n}", config, 1, average=Average(nodes, (0.5, 0.5), (0.5, 0.5), (0.0, 0.0)))
        for n, nodes in enumerate(members)
    ]
    for node in averages if after else ():
        tree.add(f"{node} on", config, 2, node, 9, "later")
    return tree, children, averages


@pytest.mark.parametrize("after", [0, 1], ids=["averages end here", "averages are trained on"])
def test_children_without_files_are_not_lost_to_what_a_job_brings(after: int, tmp_path: Path) -> None:
    pairs = [(0, 1), (2, 3)]
    tree, children, averages = grown(after, pairs)
    resident = ResidentStates(tree, tmp_path, RESOURCES, 4 * ROW)  # for the children alone
    for n, node in enumerate(children[:4]):
        resident.put(population(1, n), [(node, False)])
    for (a, b), node, made in zip(pairs, averages, resident.portions(averages, {}, 1), strict=True):
        assert torch.equal(made.weights_MP, torch.full_like(made.weights_MP, (a + b) / 2))
        assert ((node, False) in resident) == bool(after)
    assert all((node, False) in resident for node in children[:4]) == (not after)


def test_stored_children_of_one_portion_alone_are_not_kept(tmp_path: Path) -> None:
    """Each portion is made of its own children, though their memory is used again."""
    pairs = [(0, 1), (2, 3), (1, 4)]  # the second child is of two portions
    tree, children, averages = grown(0, pairs)
    Store.open(tmp_path).close()
    states = [(tree.keys[node], population(1, n)) for n, node in enumerate(children)]
    files = {file.key: file for file in write_states(tmp_path, states)}
    resident = ResidentStates(tree, tmp_path, RESOURCES, 100 * ROW)
    for (a, b), made in zip(pairs, resident.portions(averages, files, 1), strict=True):
        assert torch.equal(made.weights_MP, torch.full_like(made.weights_MP, (a + b) / 2))
    assert [(node, False) in resident for node in children] == [False, True, False, False, False]


def test_memory_is_used_again_for_the_same_network_alone(tmp_path: Path) -> None:
    layouts = [LAYOUT, Layout.of(torch.nn.Linear(2, 3))]  # of as many parameters
    tree, children, averages = grown(0, [(0, 1), (2, 3)])
    resident = ResidentStates(tree, tmp_path, RESOURCES, 99 * ROW)
    for n, node in enumerate(children[:4]):
        resident.put(Population.zeros(layouts[n // 2], 1), [(node, False)])
    assert [next(resident.portions([node], {}, 1)).layout for node in averages] == layouts
