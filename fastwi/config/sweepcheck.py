"""What a sweep cannot be though each of its values is allowed, and how many points it has."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from fastwi.config.check import check_config
from fastwi.config.keys import Value
from fastwi.config.schema import Config, RunConfig
from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
from fastwi.config.sweepaxes import show_value
from fastwi.config.wording import show
from fastwi.errors import ConfigError

MOST_POINTS = 1_000_000
"""Each takes about 0.8 KB."""

MOST_TUPLES = 500_000
"""Tuples of a parent must be fewer: a parent has 1,000,000 noise seeds, half of them for its tuples' averages.

Its children have the other half, which the bound of sweep.children keeps to; that of sweep.parents keeps the
seeds below 2^63 (`fastwi.config.sweeppoints`).
"""

MOST_CELLS = 10_000
"""Cells that are checked before a sweep starts; of a larger grid its axes are, one at a time."""

_MOST_CELL_PROBLEMS = 10


def count_cells(axes: Sequence[Axis]) -> int:
    """Combinations of axis values."""
    return math.prod(len(axis.values) for axis in axes)


def count_tuples(options: SweepOptions) -> int:
    """Tuples of one parent's children at one cell."""
    if options.tuples == "all":
        return math.comb(options.children, options.tuple_size)
    return options.children // options.tuple_size


def count_points(spec: SweepSpec) -> int:
    """Points of the sweep, counted and not expanded."""
    options = spec.options
    return count_cells(spec.axes) * len(options.parents) * count_tuples(options) * max(1, len(options.alphas))


def check_sweep(spec: SweepSpec) -> None:
    """Refuse a sweep whose values cannot go together; single values are taken as right.

    Of a grid of more than MOST_CELLS only the axes are checked, one at a time; `points` finds the rest.

    Raises:
        ConfigError: the message has one line for each problem.
    """
    problems = [*option_problems(spec.options), *point_problems(spec), *cell_problems(spec.base, spec.axes, {})]
    if problems:
        raise ConfigError("\n".join(problems))


def option_problems(options: SweepOptions) -> list[str]:
    """What is wrong among the options, each line with the option's dotted name first."""
    problems = _directory_problems(options)
    parents, alphas, measure = options.parents, options.alphas, options.measure
    if not parents:
        problems.append("sweep.parents: is empty; give at least one seed, such as [0]")
    if "own" not in measure:
        problems.append("sweep.measure: lacks own; give [own], or [own, recomputed]")
    for name, values in (("parents", parents), ("alphas", alphas), ("measure", measure)):
        twice = next((value for value, count in Counter[Value](values).items() if count > 1), None)
        if twice is not None:
            problems.append(f"sweep.{name}: {show(twice)} is given twice; remove one")
    size, children = options.tuple_size, options.children
    if alphas and size != 2:
        problems.append(
            f"sweep.alphas: lie on the line between 2 children, and sweep.tuple_size is {size}; leave them out"
        )
    if size > children:
        problems.append(f"sweep.tuple_size: {size} is more than sweep.children, {children}; lower it")
    elif options.tuples == "disjoint" and children % size:
        problems.append(
            f"sweep.children: {children} do not divide into disjoint tuples of {size};"
            f" give {children - children % size} or {children + size - children % size}"
        )
    if count_tuples(options) >= MOST_TUPLES:
        problems.append(
            f"sweep.tuples: {_count(count_tuples(options))} for a parent of {children:,} children, and a parent has"
            f" noise seeds for fewer than {MOST_TUPLES:,}; lower sweep.children"
        )
    if options.memory_GiB <= 0:
        problems.append("sweep.memory_GiB: 0 holds no network; give more")
    return problems


def default_name_problem(name: str) -> str:
    """What is wrong with a name that comes from the sweep file's; empty: nothing."""
    if _name_problems(name) or not name.isprintable():
        return f"sweep.name: is empty, and the file's {show(name)} is no directory's name; give one"
    return ""


def _name_problems(name: str) -> list[str]:
    """What `run.name` would be refused for, said of `sweep.name`."""
    try:
        check_config(Config(run=RunConfig(name=name)))
    except ConfigError as error:
        return [line.replace("run.name", "sweep.name", 1) for line in str(error).splitlines()]
    return []


def point_problems(spec: SweepSpec) -> list[str]:
    """Too many points."""
    count = count_points(spec)
    if count <= MOST_POINTS:
        return []
    options = spec.options
    factors = (
        f"{count_cells(spec.axes):,} cells, {len(options.parents):,} parents, {_count(count_tuples(options))} tuples"
    )
    if options.alphas:
        factors += f", {len(options.alphas):,} alphas"
    return [f"sweep: {_count(count)} points ({factors}); make it at most {MOST_POINTS:,}"]


def cell_problems(base: Config, axes: Sequence[Axis], origins: Mapping[str, str]) -> list[str]:
    """Combinations of axis values that no run could follow, each problem once, with the first cell that has it.

    Args:
        base: the configuration; it need not be possible itself.
        axes: the axes.
        origins: where keys and axes (`axes.section.key`) were given; stands before the line.
    """
    found: dict[str, str] = {}
    counts: Counter[str] = Counter()
    cells = 0
    for values in _checked_cells(axes):
        cells += 1
        try:
            check_config(cell_config(base, axes, values))
        except ConfigError as error:
            where = cell_name(axes, values)
            for line in str(error).splitlines():
                found.setdefault(line, where)
                counts[line] += 1
    problems = []
    for line, where in itertools.islice(found.items(), _MOST_CELL_PROBLEMS):
        path = line.partition(":")[0]
        origin = origins.get(f"axes.{path}") or origins.get(path, "")
        everywhere = counts[line] == cells
        if origin == "--":  # a flag's name must follow, or nothing
            origin = "--" if everywhere and f"axes.{path}" not in origins else ""
        problems.append(f"{origin}{line}" if everywhere else f"{origin}axes at {where}: {line}")
    if len(found) > _MOST_CELL_PROBLEMS:
        problems.append(f"axes: {len(found) - _MOST_CELL_PROBLEMS} more such problems; mend these first")
    return problems


def cell_config(base: Config, axes: Sequence[Axis], values: Sequence[Value]) -> Config:
    """The base with each axis at its value; nothing is checked."""
    sections: dict[str, dict[str, Value]] = {}
    for axis, value in zip(axes, values, strict=True):
        section, _, name = axis.path.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {section: dataclasses.replace(getattr(base, section), **keys) for section, keys in sections.items()}
    return dataclasses.replace(base, **changed)


def cell_name(axes: Sequence[Axis], values: Sequence[Value]) -> str:
    """Where a cell is, in words."""
    return ", ".join(f"{axis.path} = {show_value(value)}" for axis, value in zip(axes, values, strict=True))


def _checked_cells(axes: Sequence[Axis]) -> Iterator[tuple[Value, ...]]:
    if count_cells(axes) <= MOST_CELLS:
        yield from itertools.product(*(axis.values for axis in axes))
        return
    first = tuple(axis.values[0] for axis in axes)
    for place, axis in enumerate(axes):
        for value in itertools.islice(axis.values, MOST_CELLS):
            yield (*first[:place], value, *first[place + 1 :])


def _directory_problems(options: SweepOptions) -> list[str]:
    problems = _name_problems(options.name)
    for name, example in (("directory", "sweeps"), ("store", "store")):
        if not getattr(options, name):
            problems.append(f"sweep.{name}: is empty; give a directory, such as {example}")
    return problems


def _count(number: int) -> str:
    """A whole number in digits; where it has very many, its power of ten (Python prints 4,300 digits at most)."""
    return f"{number:,}" if number < 10**18 else f"about 10^{math.log10(number):.0f}"
