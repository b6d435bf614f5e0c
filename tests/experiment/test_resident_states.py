"""Resident states: what a job has at hand stays at hand, whatever is brought meanwhile."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fastwi.config.read import config_from_mapping
from fastwi.experiment.resident import ResidentStates
from fastwi.experiment.resources import Resources
from fastwi.experiment.tree import Average
from fastwi.population import Population
from fastwi.population.layout import Layout

LAYOUT = Layout.of(torch.nn.Linear(3, 2))
ROW = 8 * LAYOUT.P + 4 * LAYOUT.Q + 8 * LAYOUT.B
CHILDREN = ("a", "b", "c", "d")


def child(value: float) -> Population:
    population = Population.zeros(LAYOUT, 1)
    population.weights_MP.fill_(value)
    return population


@pytest.mark.parametrize("after", [0, 1], ids=["averages end here", "averages are trained on"])
def test_children_without_files_are_not_lost_to_what_a_job_brings(after: int, tmp_path: Path) -> None:
    config = config_from_mapping({"experiment": {"after": after}, "engine": {"device": "cpu"}})
    made = {
        "first": Average("first", ("a", "b"), (0.5, 0.5), 1, config),
        "second": Average("second", ("c", "d"), (0.5, 0.5), 1, config),
    }
    resident = ResidentStates(
        tmp_path, cast(Resources, cast(Any, SimpleNamespace())), 4 * ROW
    )  # for the children alone
    for value, name in enumerate(CHILDREN):
        resident.hold(child(float(value)), [name])
    rows = resident.at_hand(list(made), made)
    assert rows.keys() == set(CHILDREN)
    for name, value in (("first", 0.5), ("second", 2.5)):
        population = resident.gather_to_measure([name], config, made, {}, rows)
        assert torch.equal(population.weights_MP, torch.full_like(population.weights_MP, value))
        assert (name in resident) == bool(after)
    if after:
        assert not all(name in resident for name in CHILDREN)
