"""A sweep: a base configuration, axes over its keys, parents, children, and the points that these make.

A point is a whole configuration: `python -m fastwi.train` with it gives the point's results alone, to the bit.

Seeds: parent p is drawn from initialisation seed p and trains under noise p. Its children have noise seeds of its
own, p * 1,000,000 + 1, + 2, ...; the average of its tuple t trains on under p * 1,000,000 + 500,000 + t. So no two
networks of one parent share noise over the same epochs, and the same child means the same in every sweep. Parent
p > 0 has the noise of parent 0's child p: in epochs that both train, networks of unlike weights see the same batches.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastwi.config.schema import KEYS, SECTIONS, Config, config_problems, directory_name
from fastwi.config.time import AnyTime, Time, read_time
from fastwi.config.values import Key, Value, keys_of, option, show
from fastwi.errors import ConfigError

RECOMPUTED = "recomputed"
"""Of batch-norm statistics at evaluation: on training images, for every network alike. Else they are its own."""

KEEP = ("none", "ends", "stops", "all")
"""Choices of sweep.keep; each keeps what the ones before it do."""

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "brightness", "contrast", "pixelate", "jpeg",
    "speckle_noise", "gaussian_blur", "saturate",
)  # fmt: skip
"""Choices of analysis.corruptions: `fastwi.data.corruptions`."""

MOST_POINTS = 1_000_000
"""Each takes about 0.8 KB."""

SEEDS_A_PARENT = 1_000_000
AVERAGE_SEEDS = 500_000
"""Of a parent's seeds, the first that is an average's. So it has fewer children and fewer tuples than this."""

_MOST_CELL_PROBLEMS = 10


@dataclass(frozen=True)
class SweepOptions:
    """The `sweep` section of a sweep file."""

    name: str = directory_name("sweep's", "the sweep file's")
    directory: str = option("sweeps", "directory that holds the sweeps' results", filled=True)
    store: str = option("store", "directory of trained states and measurements, shared by sweeps", filled=True)
    parents: tuple[int, ...] = option(
        (0,), "initialisation seeds, one a parent; intervals and verdicts need 5", low=0, high=2**31 - 1, filled=True
    )
    children: int = option(2, "children of each parent at each k", low=2, high=100_000)
    tuple_size: int = option(2, "children that are averaged together", low=2, high=4096)
    tuples: str = option(
        "disjoint",
        "which children are averaged: 1 with 2, 3 with 4 ..., or every combination of tuple_size of them",
        choices=("disjoint", "all"),
    )
    alphas: tuple[float, ...] = option(
        (), "places on the line A -> B, for pairs: the weight of the second child; empty: the plain mean"
    )
    measure: tuple[str, ...] = option(
        ("own", RECOMPUTED),
        "batch-norm statistics that are measured at interpolation, beside those of experiment.measure",
        choices=("own", RECOMPUTED),
    )
    keep: str = option(
        "stops",
        "states that stay in the store. none: no state; ends: the last of each child and average; stops: those at "
        "each k and k + s, of every round, too; all: those after every epoch",
        choices=KEEP,
    )
    executor: str = option("local", "who trains: this process, or Ray's actors", choices=("local", "ray"))
    workers: int = option(0, "Ray actors; 0: one a GPU, or one where there is none", low=0, high=100_000)
    gpus_per_worker: float = option(1.0, "GPUs of a Ray actor, where there are any; fractions share one", low=0.0)
    population: int = option(0, "most networks trained together; 0: as many as the engine is good for", low=0)
    memory_GiB: float = option(
        4.0,
        "most memory for networks, those held for later too; but at least one average and all that it is made of",
        unit="GiB",
        low=0.0,
    )
    checkpoint_seconds: float = option(
        30.0,
        "most seconds of training between two writes of a state, which a kill loses; but at least one epoch of the "
        "networks that are trained together",
        unit="s",
        low=0.0,
    )


@dataclass(frozen=True)
class AnalysisOptions:
    """The `analysis` section of a sweep file."""

    alphas: int = option(30, "places on the line A -> B, and on each side of the plane", low=2, high=10_000)
    low: float = option(0.0, "first place on the line: 0 is A; below 0 it goes on beyond A")
    high: float = option(1.0, "last place on the line: 1 is B; above 1 it goes on beyond B")
    train_images: int = option(
        0, "training images to measure on, drawn evenly over classes; 0: those the sweep trained on", low=0
    )
    test_images: int = option(0, "test images, likewise; 0: all of the sweep's", low=0)
    splits: int = option(4, "equal parts of the training images, by importance score", low=2, high=1000)
    score_epoch: int = option(0, "epoch of the importance scores; 0: the last that all parents reached", low=0)
    treatments: tuple[str, ...] = option(
        ("averaged", "recomputed"),
        "batch-norm statistics of interpolated networks: the ends' averaged, or recomputed on training images",
        choices=("averaged", "recomputed"),
        filled=True,
    )
    corruptions: tuple[str, ...] = option(
        (), "corruptions of test images to measure under too, as those of CIFAR-10-C", choices=CORRUPTIONS
    )
    severities: tuple[int, ...] = option((1, 2, 3, 4, 5), "severities of each corruption", low=1, high=5, filled=True)
    cells: tuple[str, ...] = option(
        (),
        "cells of the sweep, each as 'k,s', such as \"8,4\"; on the command line 8,4;16,4; empty: all",
        pattern=" *[0-9][0-9epitk-]{0,50} *, *[0-9][0-9epitk-]{0,50} *",
        form="a list of cells, each as 'k,s'",
        separator=";",
    )
    pairs: int = option(0, "pairs of each parent in each cell, the first ones; 0: all", low=0)
    curvature_images: int = option(
        500, "training images, at most, that the study curvature measures on; 0: all of the sweep's", low=0
    )
    curvature_vectors: int = option(20, "Lanczos vectors for the Hessian's eigenvalues", low=1, high=1000)
    curvature_probes: int = option(10, "random vectors for the Hessian's trace", low=1, high=10_000)
    curvature_radius: float = option(0.05, "L2 length of the step of the sharpness", low=1e-6)
    matching_images: int = option(
        1000, "at most this many training images to compare activations on, for matching and REPAIR; 0: all", low=0
    )
    held_out_images: int = option(
        1000, "at most this many training images that the sweep left out, to choose soups on; 0: all", low=0
    )
    directory: str = option("", "directory to write analyses/NAME in; empty: that of the sweep's results")


INSTEAD = {
    "run.name": "sweep.name", "run.directory": "sweep.directory", "run.tensorboard": "results.parquet",
    "experiment.children": "sweep.tuple_size", "experiment.weights": "sweep.alphas", "seeds.init": "sweep.parents",
    "seeds.parent_noise": "sweep.parents", "seeds.child_noise": "sweep.children",
    "seeds.average_noise": "sweep.parents",
}  # fmt: skip
"""Keys of a run that a sweep does not use, and what it uses in their place."""


def axis_refusal(key: Key) -> str:
    """Why a key cannot be an axis, and what to do instead; empty: it can."""
    if key.path in INSTEAD:
        return f"a sweep does not use it; use {INSTEAD[key.path]}"
    if key.section == "seeds":
        return "use sweep.parents and sweep.children for other seeds"
    unchanging = key.path in ("data.streaming", "experiment.measure")
    if unchanging or (key.section == "engine" and key.name != "precision"):
        return f"it changes no result; give it one value, in the section {key.section}"
    return ""


_AXES = {
    f"axes.{path}": replace(key, section="axes", name=path, depth=key.depth + 1, default=None, repeats=False)
    for path, key in KEYS.items()
    if not axis_refusal(key)
}
NAMES = KEYS | _AXES | keys_of("sweep", SweepOptions) | keys_of("analysis", AnalysisOptions)
"""All that a sweep file may say, but for `base`, by dotted name: `sweep.children`, `axes.experiment.k`."""

ALL_SECTIONS = SECTIONS | {"sweep": SweepOptions, "analysis": AnalysisOptions}
"""The dataclass of each section of a sweep file."""


@dataclass(frozen=True)
class SweepSpec:
    """A checked sweep. `axes`: keys of the configuration, as `section.key`, each with the values it takes in turn."""

    base: Config
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    options: SweepOptions = field(default_factory=SweepOptions)

    def values(self, path: str) -> tuple[Any, ...]:
        """The values that a key takes, an axis or not."""
        section, _, name = path.partition(".")
        return self.axes[path] if path in self.axes else (getattr(getattr(self.base, section), name),)


@dataclass(frozen=True, slots=True)
class Point:
    """One cell of the sweep for one parent, tuple and alpha.

    `values`: one a sweep axis, in the axes' order. `parent`: its initialisation seed. `tuple_index` counts the
    parent's tuples from 0. `alpha` is None for the plain mean. `config` is that of the same point run alone.
    """

    values: tuple[Value, ...]
    parent: int
    tuple_index: int
    alpha: float | None
    config: Config


def unused_keys(spec: SweepSpec) -> list[str]:
    """A line for each key of the base that would decide a run, and that the sweep does not use.

    A run's file may be a sweep's base, so these are no mistake by themselves.
    """
    values = [(path, *spec.values(path)) for path in INSTEAD if not path.startswith("run.")]
    return [
        f"{path}: {show(value)} is not used, as this is a sweep; it uses {INSTEAD[path]}"
        for path, value in values
        if value != KEYS[path].default
    ]


def other_axes(spec: SweepSpec) -> list[str]:
    """The axes beside k and s."""
    return [path for path in spec.axes if path not in ("experiment.k", "experiment.s")]


def variant_of(spec: SweepSpec, point: Point) -> dict[str, Any]:
    """A point's values of the axes beside k and s, as tables have them."""
    values = dict(zip(spec.axes, point.values, strict=True))
    return {path: axis_value(spec, path, values[path]) for path in other_axes(spec)}


def column_type(spec: SweepSpec, path: str) -> type:
    """The type of an axis's values in tables: its key's; of times int where all are bare numbers, else str."""
    scalar = KEYS[path].scalar
    if scalar is not Time:
        return scalar
    return str if any(isinstance(time, Time) for each in spec.axes[path] for time in _listed(each)) else int


def axis_value(spec: SweepSpec, path: str, value: Any) -> Any:
    """An axis value as tables have it: 0 is 0.0 where the key is a float, and 2 is 2ep among times such as 500it."""
    key, kind = KEYS[path], column_type(spec, path)
    if key.scalar is Time and kind is str:
        unit = "it" if key.unit == "iterations" else "ep"
        values = tuple(str(each) if isinstance(each, Time) else f"{each}{unit}" for each in _listed(value))
    else:
        values = tuple(map(kind, _listed(value)))
    return values if key.many else values[0]


def in_parts(spec: SweepSpec) -> bool:
    """Whether networks may be cloned, averaged or end within an epoch. Tables then have parts of epochs."""
    times = (time for name in ("k", "s", "after") for time in spec.values(f"experiment.{name}"))
    return any(isinstance(time, Time) and time.iterations for time in times)


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def child_tuples(spec: SweepSpec) -> list[tuple[int, ...]]:
    """The tuples of children that are averaged, as child numbers from 1."""
    size, children = spec.options.tuple_size, spec.options.children
    numbers = range(1, children + 1)
    if spec.options.tuples == "all":
        return list(itertools.combinations(numbers, size))
    return [tuple(numbers[first : first + size]) for first in range(0, children, size)]


def _count_tuples(options: SweepOptions) -> int:
    if options.tuples == "all":
        return math.comb(options.children, options.tuple_size)
    return options.children // options.tuple_size


def count_points(spec: SweepSpec) -> int:
    """Points of the sweep, counted and not expanded."""
    options = spec.options
    counts = map(len, spec.axes.values())
    return math.prod([*counts, len(options.parents), _count_tuples(options), max(1, len(options.alphas))])


def cells(spec: SweepSpec) -> Iterator[tuple[tuple[Value, ...], Config]]:
    """Every combination of axis values, the last axis fastest, and the base with these values."""
    for values in itertools.product(*spec.axes.values()):
        sections: dict[str, dict[str, Any]] = {}
        for path, value in zip(spec.axes, values, strict=True):
            section, _, name = path.partition(".")
            sections.setdefault(section, {})[name] = value
        changed = {section: replace(getattr(spec.base, section), **keys) for section, keys in sections.items()}
        yield values, replace(spec.base, **changed)


def sweep_problems(spec: SweepSpec) -> Iterator[str]:
    """What is wrong between the values of a sweep, or of the run that is its base.

    Of the cells, the first ten problems. A line names the first cell that has it, by the axes that decide: others
    have it at each of their values.
    """
    problems = list(_option_problems(spec.options))
    yield from problems
    if problems:
        return
    if count_points(spec) > MOST_POINTS:
        yield f"sweep: {count_points(spec):,} points; make it at most {MOST_POINTS:,}"
        return
    found: dict[str, list[tuple[Value, ...]]] = {}
    for values, config in cells(spec):
        for line in config_problems(config):
            found.setdefault(line, []).append(values)
    for line, bad in itertools.islice(found.items(), _MOST_CELL_PROBLEMS):
        axes = zip(spec.axes.items(), bad[0], zip(*bad, strict=True), strict=True)
        deciding = [f"{path} = {show(value)}" for (path, every), value, some in axes if len(set(some)) < len(every)]
        yield f"{line} (at {', '.join(deciding)})" if deciding else line


def _option_problems(options: SweepOptions) -> Iterator[str]:
    size, children = options.tuple_size, options.children
    if "own" not in options.measure:
        yield "sweep.measure: lacks own; give [own], or [own, recomputed]"
    if options.alphas and size != 2:
        yield f"sweep.alphas: are for 2 children, and sweep.tuple_size is {size}; leave them out"
    if size > children:
        yield f"sweep.tuple_size: {size} is more than sweep.children, {children}; lower it"
    elif options.tuples == "disjoint" and children % size:
        lower = children - children % size
        yield (
            f"sweep.children: {children} do not divide into disjoint tuples of {size}; give {lower} or {lower + size}"
        )
    elif _count_tuples(options) >= AVERAGE_SEEDS:
        yield f"sweep.tuples: a parent has {AVERAGE_SEEDS:,} or more, and fewer noise seeds; lower sweep.children"
    if options.memory_GiB <= 0:
        yield "sweep.memory_GiB: 0 holds no network; give more"


def chosen_cells(options: AnalysisOptions) -> tuple[tuple[AnyTime, AnyTime], ...]:
    """The cells asked for as (k, s), in the order given; none: all. Raises ValueError for what is no time."""
    cells = ((time.strip() for time in text.split(",")) for text in options.cells)
    times = ((int(time) if time.isdecimal() else read_time(time, "epochs") for time in cell) for cell in cells)
    return tuple((k, s) for k, s in times)


def analysis_problems(options: AnalysisOptions, spec: SweepSpec) -> Iterator[str]:
    """What is wrong among the options of a study, and between them and the sweep."""
    if options.low >= options.high:
        yield f"analysis.low: {options.low:g} is not below analysis.high, {options.high:g}; lower it"
    k, s = spec.values("experiment.k"), spec.values("experiment.s")
    try:
        chosen = chosen_cells(options)
    except ValueError as error:
        yield f"analysis.cells: {error}"
        return
    for cell in chosen:
        if cell[0] not in k or cell[1] not in s:
            yield f"analysis.cells: {show(cell)} is not a cell of this sweep; k is of {show(k)}, s of {show(s)}"


def points(spec: SweepSpec) -> Iterator[Point]:
    """Every point of a checked sweep: axes outermost, in their order, then parents, tuples, alphas."""
    options = spec.options
    tuples = child_tuples(spec)
    alphas: tuple[float | None, ...] = options.alphas or (None,)
    for values, config in cells(spec):
        weights = [() if alpha is None else (1.0 - alpha, alpha) for alpha in alphas]
        experiments = [replace(config.experiment, weights=each, children=options.tuple_size) for each in weights]
        for parent, (index, numbers) in itertools.product(options.parents, enumerate(tuples)):
            first = parent * SEEDS_A_PARENT
            seeds = replace(
                config.seeds,
                init=parent,
                parent_noise=parent,
                child_noise=tuple(first + number for number in numbers),
                average_noise=first + AVERAGE_SEEDS + index,
            )
            for alpha, experiment in zip(alphas, experiments, strict=True):
                yield Point(values, parent, index, alpha, replace(config, seeds=seeds, experiment=experiment))


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
            f"--shard: part {number} of {count} is empty; give at most {len(units)} parts, one a tuple of children"
        )
    mine = set(units[first:last])
    return [point for point in every if (point.parent, point.tuple_index) in mine]
