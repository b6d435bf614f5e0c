"""The points of a sweep, and its parts."""

import itertools
from typing import Any

import pytest

from fastwi.config.schema import Config, SeedConfig
from fastwi.config.sweep import (
    AVERAGE_SEEDS,
    NAMES,
    SEEDS_A_PARENT,
    SweepOptions,
    SweepSpec,
    child_tuples,
    count_points,
    points,
    run_point,
    shard_of,
)
from fastwi.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        SweepOptions(parents=(0, 3), children=5, tuple_size=2, tuples="all", alphas=(0.0, 0.25)),
        SweepOptions(parents=(1,), children=9, tuple_size=3),
        SweepOptions(children=4, tuple_size=3, tuples="all"),
    ],
)
def test_points_are_counted_as_they_are_expanded(options: SweepOptions) -> None:
    spec = SweepSpec(Config(), {"experiment.k": (1, 2, 4), "schedule.drop_epochs": ((5,), ())}, options)
    expanded = list(points(spec))
    assert count_points(spec) == len(expanded)
    assert len(child_tuples(spec)) * len(options.parents) * 6 * max(1, len(options.alphas)) == len(expanded)
    assert {point.config.experiment.k for point in expanded} == {1, 2, 4}
    assert {point.config.experiment.children for point in expanded} == {options.tuple_size}
    for point in expanded:
        seeds, first = point.config.seeds, point.parent * SEEDS_A_PARENT
        assert (seeds.init, seeds.parent_noise) == (point.parent, point.parent)
        assert seeds.child_noise == tuple(first + number for number in child_tuples(spec)[point.tuple_index])
        assert seeds.average_noise == first + AVERAGE_SEEDS + point.tuple_index
        weights = () if point.alpha is None else (1 - point.alpha, point.alpha)  # alpha is the second child's
        assert point.config.experiment.weights == weights


def test_tuples_of_children() -> None:
    def tuples(**options: Any) -> list[tuple[int, ...]]:
        return child_tuples(SweepSpec(Config(), {}, SweepOptions(**options)))

    assert tuples(children=9, tuple_size=3) == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    assert tuples(children=3, tuples="all") == [(1, 2), (1, 3), (2, 3)]


def test_shards_have_each_point_once_and_none_is_empty() -> None:
    axes = {"experiment.k": (1, 2)}
    every = list(points(SweepSpec(Config(), axes, SweepOptions(parents=(0, 4), children=6, alphas=(0.2, 0.5)))))
    for count in range(1, 7):
        shards = [shard_of(every, number, count) for number in range(1, count + 1)]
        assert sorted(map(every.index, itertools.chain(*shards))) == list(range(len(every)))
        cells = [{(point.values, point.alpha) for point in shard} for shard in shards]
        assert all(len(found) == 4 for found in cells)
    with pytest.raises(ConfigError, match=r"^--shard: part 1 of 7 is empty.*at most 6 parts"):
        shard_of(every, 1, 7)
    assert len(shard_of(every, 7, 7)) == len(every) // 6


def test_a_run_is_a_point_whose_children_have_noise_of_their_own() -> None:
    for given, noise in (((), (1, 2)), ((7, 5), (7, 5))):
        point = run_point(Config(seeds=SeedConfig(init=3, child_noise=given)))
        assert (point.values, point.parent, point.tuple_index, point.alpha) == ((), 3, 0, None)
        assert point.config == Config(seeds=SeedConfig(init=3, child_noise=noise))


def test_noise_seeds_of_the_largest_sweep_do_not_meet() -> None:
    """The bounds of the options are those that the points' seeds need."""
    parents, children = NAMES["sweep.parents"], NAMES["sweep.children"]
    assert children.high is not None
    assert parents.high is not None
    assert children.high < AVERAGE_SEEDS <= SEEDS_A_PARENT / 2
    assert (parents.high + 1) * SEEDS_A_PARENT <= 2**63
