"""Resident states: found under their names, the least recently used first to go, memory bounded."""

import torch

from fastwi.experiment.resident import StateCache
from fastwi.population import Population
from fastwi.population.layout import Layout

LAYOUT = Layout.of(torch.nn.Linear(3, 2))
ROW = 8 * LAYOUT.P + 4 * LAYOUT.Q + 8 * LAYOUT.B


def population(members: int) -> Population:
    return Population.zeros(LAYOUT, members)


def test_rows_are_found_until_memory_is_short() -> None:
    cache = StateCache(5 * ROW)
    first, second, third = population(2), population(2), population(2)
    cache.put(first, ["a", "b"])
    cache.put(second, [None, "c"])
    assert cache.get("b") == (first, 1)
    assert cache.get("c") == (second, 1)
    assert cache.get("a") is not None  # used later than c
    cache.put(third, ["d", "e"])
    assert "c" not in cache
    assert cache.get("c") is None
    assert all(name in cache for name in "abde")


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
    assert cache.get("a") == (new, 0)
    assert cache.get("b") == (old, 1)


def test_what_is_too_large_stays_for_as_long_as_nothing_follows() -> None:
    cache = StateCache(ROW)
    cache.put(population(3), ["a", None, "b"])
    assert "a" in cache
    cache.put(population(1), ["c"])
    assert "a" not in cache
    assert "c" in cache
