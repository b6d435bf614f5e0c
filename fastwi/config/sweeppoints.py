"""The points of a sweep: one for each combination of axis values, parent, tuple of children and alpha.

A point is a whole configuration: `python -m fastwi.train` with it gives the point's results alone, to the bit.

Seeds: parent p is drawn from initialisation seed p and trains under noise p. Its children have noise seeds of its
own, p * 1,000,000 + 1, + 2, ...; the average of its tuple t trains on under p * 1,000,000 + 500,000 + t. So no two
networks of one parent share noise over the same epochs, and the same child means the same in every sweep. Parent
p > 0 has the noise of parent 0's child p: in epochs that both train, networks of unlike weights see the same batches.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastwi.config.check import check_config
from fastwi.config.schema import Config
from fastwi.config.sweep import Scalar, SweepSpec
from fastwi.config.sweepcheck import cell_config, cell_name
from fastwi.errors import ConfigError

SEEDS_A_PARENT = 1_000_000
AVERAGE_SEEDS = 500_000


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the sweep for one parent, tuple and alpha.

    `values`: one a sweep axis, in the axes' order. `parent`: its initialisation seed. `tuple_index` counts the
    parent's tuples from 0. `alpha` is None for the plain mean. `config` is that of the same point run alone.
    """

    values: tuple[Scalar | tuple[Scalar, ...], ...]
    parent: int
    tuple_index: int
    alpha: float | None
    config: Config


def child_tuples(spec: SweepSpec) -> list[tuple[int, ...]]:
    """The tuples of children that are averaged, as child numbers from 1."""
    options = spec.options
    numbers = range(1, options.children + 1)
    if options.tuples == "all":
        return list(itertools.combinations(numbers, options.tuple_size))
    size = options.tuple_size
    return [tuple(numbers[first : first + size]) for first in range(0, options.children, size)]


def points(spec: SweepSpec) -> Iterator[Point]:
    """Every point: axes outermost, in their order, then parents, tuples, alphas.

    Raises ConfigError, naming the axis values, where a combination is one that no run could follow.
    """
    options = spec.options
    tuples = child_tuples(spec)
    alphas: tuple[float | None, ...] = options.alphas or (None,)
    for values in itertools.product(*(axis.values for axis in spec.axes)):
        config = cell_config(spec.base, spec.axes, values)
        try:
            check_config(config)
        except ConfigError as error:  # cells of a large grid are not checked before (`sweepcheck.MOST_CELLS`)
            where = cell_name(spec.axes, values)
            raise ConfigError("\n".join(f"axes at {where}: {line}" for line in str(error).splitlines())) from None
        weights = [() if alpha is None else (1.0 - alpha, alpha) for alpha in alphas]
        size = options.tuple_size
        experiments = [replace(config.experiment, weights=each, children=size) for each in weights]
        for parent in options.parents:
            first = parent * SEEDS_A_PARENT
            for index, numbers in enumerate(tuples):
                seeds = replace(
                    config.seeds,
                    init=parent,
                    parent_noise=parent,
                    child_noise=tuple(first + number for number in numbers),
                    average_noise=first + AVERAGE_SEEDS + index,
                )
                for alpha, experiment in zip(alphas, experiments, strict=True):
                    whole = replace(config, seeds=seeds, experiment=experiment)
                    yield Point(values, parent, index, alpha, whole)


def run_point(config: Config) -> Point:
    """A run as a point by itself. Its children have noise 1, 2, ... where none is given."""
    noise = config.seeds.child_noise or tuple(range(1, config.experiment.children + 1))
    seeds = replace(config.seeds, child_noise=noise)
    return Point((), config.seeds.init, 0, None, replace(config, seeds=seeds))


def in_precision(every: Iterable[Point], precision: str) -> list[Point]:
    """The points with `precision` for engine.precision: auto."""
    resolved = functools.cache(  # one object for all
        lambda engine: replace(engine, precision=precision) if engine.precision == "auto" else engine
    )
    return [replace(point, config=replace(point.config, engine=resolved(point.config.engine))) for point in every]


def shard_of(every: Sequence[Point], number: int, count: int) -> list[Point]:
    """The points of shard `number` (from 1) of `count`, of all points `every`; each is in one shard.

    Tuples of one parent stay together where they can: they share its path. Raises ConfigError where none is left.
    """
    units = sorted({(point.parent, point.tuple_index) for point in every})
    first, last = (len(units) * edge // count for edge in (number - 1, number))
    if first == last:
        raise ConfigError(
            f"--shard: part {number} of {count} is empty: the sweep has {len(units)} tuples of children in all; "
            f"give at most {len(units)} parts"
        )
    mine = set(units[first:last])
    return [point for point in every if (point.parent, point.tuple_index) in mine]
