"""Resident states: what a job has at hand stays at hand, whatever is brought meanwhile."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fastwi.config.read import config_from_mapping
from fastwi.experiment.resident import ResidentStates
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import Store, write_states
from fastwi.experiment.tree import Tree
from fastwi.population import Population
from fastwi.population.layout import Layout

LAYOUT = Layout.of(torch.nn.Linear(3, 2))
ROW = 8 * LAYOUT.P + 4 * LAYOUT.Q + 8 * LAYOUT.B


def child(value: float) -> Population:
    population = Population.zeros(LAYOUT, 1)
    population.weights_MP.fill_(value)
    return population


@pytest.mark.parametrize("after", [0, 1], ids=["averages end here", "averages are trained on"])
def test_children_without_files_are_not_lost_to_what_a_job_brings(after: int, tmp_path: Path) -> None:
    config = config_from_mapping({"experiment": {"after": after}, "engine": {"device": "cpu"}})
    tree, half = Tree(), (0.5, 0.5)
    start = tree.add("start", config)
    a, b, c, d = (tree.add(name, config, 1, start, noise, "alike") for noise, name in enumerate("abcd"))
    first, second = (tree.add(f"{pair}", config, 1, average=(pair, half)) for pair in ((a, b), (c, d)))
    resources = cast(Resources, cast(Any, SimpleNamespace()))
    resident = ResidentStates(tree, tmp_path, resources, 4 * ROW)  # for the children alone
    children = {(node, False) for node in (a, b, c, d)}
    for value, name in enumerate(sorted(children)):
        resident.put(child(float(value)), [name])
    portions = resident.portions([first, second], {}, 1)
    for node, value, population in zip((first, second), (0.5, 2.5), portions, strict=True):
        assert torch.equal(population.weights_MP, torch.full_like(population.weights_MP, value))
        assert ((node, False) in resident) == bool(after)
    if after:
        assert not all(name in resident for name in children)


def test_stored_children_of_one_portion_alone_are_not_kept(tmp_path: Path) -> None:
    """Each portion is made of its own children, though their memory is used again."""
    config = config_from_mapping({"experiment": {"after": 0}, "engine": {"device": "cpu"}})
    tree, half = Tree(), (0.5, 0.5)
    start = tree.add("aa", config)
    children = [tree.add(name * 2, config, 1, start, noise, "alike") for noise, name in enumerate("bcdef")]
    pairs = [(0, 1), (2, 3), (1, 4)]  # the second child is of two portions
    averages = [
        tree.add(f"{n}", config, 1, average=((children[a], children[b]), half)) for n, (a, b) in enumerate(pairs)
    ]
    Store.open(tmp_path).close()
    files = {
        tree.keys[node]: write_states(tmp_path, [(tree.keys[node], child(float(n)))])[0]
        for n, node in enumerate(children)
    }
    resources = cast(Resources, cast(Any, SimpleNamespace(layout=lambda _: LAYOUT)))
    resident = ResidentStates(tree, tmp_path, resources, 100 * ROW)
    for (a, b), population in zip(pairs, resident.portions(averages, files, 1), strict=True):
        assert torch.equal(population.weights_MP, torch.full_like(population.weights_MP, (a + b) / 2))
    assert [(node, False) in resident for node in children] == [False, True, False, False, False]
