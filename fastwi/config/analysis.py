"""The `analysis` section of a sweep file: what the studies of a finished sweep measure, and on what.

Described as the sweep's own options are (`fastwi.config.sweep`); `python -m fastwi.sweep` checks the section's values
and has no other use for it.
"""

import itertools
import re
from dataclasses import dataclass

from fastwi.config.schema import option
from fastwi.config.sweep import SweepSpec
from fastwi.config.wording import show

_CELL = re.compile(r" *([0-9]{1,9}) *, *([0-9]{1,9}) *")
_MOST_SHOWN = 12


@dataclass(frozen=True)
class AnalysisOptions:
    """The `analysis` section of a sweep file."""

    alphas: int = option(
        30, "evenly spaced places on the line A -> B, and on each side of the plane", low=2, high=10_000
    )
    low: float = option(0.0, "first place on the line: 0 is A; below 0 it goes on beyond A")
    high: float = option(1.0, "last place on the line: 1 is B; above 1 it goes on beyond B")
    train_images: int = option(
        0, "training images to measure on, drawn evenly over classes; 0: those the sweep trained on",
        unit="images", low=0,
    )  # fmt: skip
    test_images: int = option(0, "test images, likewise; 0: all of the sweep's", unit="images", low=0)
    splits: int = option(4, "equal parts of the training images, by importance score", low=2, high=1000)
    score_epoch: int = option(
        0, "epoch at which importance scores are computed; 0: the last that all parents reached",
        unit="epochs", low=0,
    )  # fmt: skip
    treatments: tuple[str, ...] = option(
        ("averaged", "recomputed"),
        "batch-norm statistics of interpolated networks: the ends' averaged, or recomputed on training images",
        choices=("averaged", "recomputed"),
    )
    cells: tuple[str, ...] = option(
        (), "cells of the sweep, each as 'k,s', such as \"8,4\"; on the command line 8,4;16,4; empty: all"
    )
    pairs: int = option(0, "pairs of each parent in each cell, the first ones; 0: all", low=0)
    directory: str = option("", "directory to write analyses/NAME in; empty: that of the sweep's results")


def chosen_cells(options: AnalysisOptions) -> tuple[tuple[int, int], ...]:
    """The cells asked for as (k, s), in the order given; none: all. Of checked options."""
    found = (_CELL.fullmatch(text) for text in options.cells)
    return tuple((int(match[1]), int(match[2])) for match in found if match is not None)


def analysis_problems(options: AnalysisOptions, spec: SweepSpec) -> list[str]:
    """What is wrong among the options, and between them and the sweep; each line begins with the option's name."""
    problems = []
    if options.low >= options.high:
        problems.append(f"analysis.low: {options.low:g} is not below analysis.high, {options.high:g}; lower it")
    if not options.treatments:
        problems.append("analysis.treatments: is empty; give averaged, recomputed, or both")
    for name, values in (("treatments", options.treatments), ("cells", options.cells)):
        twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
        if twice is not None:
            problems.append(f"analysis.{name}: {show(twice)} is given twice; remove one")
    there = _cells_of(spec)
    for text in options.cells:
        match = _CELL.fullmatch(text)
        if match is None:
            problems.append(f'analysis.cells: {show(text)} is no cell; write k,s in quotes, such as "8,4"')
        elif (int(match[1]), int(match[2])) not in there:
            some = "; ".join(f"{k},{s}" for k, s in there[:_MOST_SHOWN]) + (
                " ..." if len(there) > _MOST_SHOWN else ""
            )
            problems.append(f"analysis.cells: {show(text)} is no cell of this sweep; it has {some}")
    return problems


def _cells_of(spec: SweepSpec) -> list[tuple[int, int]]:
    """The sweep's k and s, each combination once."""
    axes = {axis.path: axis.values for axis in spec.axes}
    base = spec.base.experiment
    sides = (axes.get("experiment.k", (base.k,)), axes.get("experiment.s", (base.s,)))
    return [(int(k), int(s)) for k, s in itertools.product(*sides)]  # type: ignore[arg-type]
