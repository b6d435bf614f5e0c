"""What cannot be run though each of its values is allowed: a configuration, a sweep, the options of its studies.

Each problem is one line that begins with the key that it is about. Whether the dataset and the device exist is found
out by those who open them.
"""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from fastwi.config.schema import Config
from fastwi.config.sweep import (
    AVERAGE_SEEDS,
    AnalysisOptions,
    SweepOptions,
    SweepSpec,
    cells,
    count_points,
    count_tuples,
)
from fastwi.config.values import show
from fastwi.errors import ConfigError
from fastwi.models.names import model_problem

MOST_EPOCHS = 1_000_000
"""Of all networks of a run together. Steps, measurements and progress are lists as long."""

MOST_POINTS = 1_000_000
"""Each takes about 0.8 KB."""

WEIGHT_SUM_TOLERANCE = 1e-6
LONGEST_NAME = 100  # characters; with hash and suffixes it stays below a file system's 255
_MOST_CELL_PROBLEMS = 10
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?")
_CELL = re.compile(r" *([0-9]{1,9}) *, *([0-9]{1,9}) *")


def check_config(config: Config) -> None:
    """Raise ConfigError, with one line for each problem, for a configuration that no run could follow."""
    if problems := list(config_problems(config)):
        raise ConfigError("\n".join(problems))


def config_problems(config: Config) -> Iterator[str]:
    """What is wrong between the values of a run; each by itself is taken as right."""
    run, data, experiment, noise = config.run, config.data, config.experiment, config.seeds.child_noise
    yield from name_problems("run.name", run.name)
    if not run.directory:
        yield "run.directory: is empty; give a directory, such as runs"
    if not data.path:
        yield "data.path: is empty; give a directory that python -m data_prep wrote"
    if problem := model_problem(config.model.name, config.model.width):
        yield problem
    if not _DEVICE.fullmatch(config.engine.device):
        yield f"engine.device: {show(config.engine.device)} is not one of auto, cpu, cuda, cuda:N; give one"
    if experiment.k + experiment.s + experiment.after < 1:
        yield "experiment.k: k, s and after are all 0, so nothing is trained; make one at least 1"
    children = experiment.children
    trained_on = 1 + children * experiment.continue_children
    epochs = {"k": experiment.k, "s": experiment.s * children, "after": experiment.after * trained_on}
    if sum(epochs.values()) > MOST_EPOCHS:
        most = max(epochs, key=lambda name: epochs[name])
        yield (
            f"experiment.{most}: {getattr(experiment, most):,} makes {sum(epochs.values()):,} epochs of all networks "
            f"together; make these at most {MOST_EPOCHS:,}"
        )
    for name, given in (("experiment.weights", experiment.weights), ("seeds.child_noise", noise)):
        if given and len(given) != children:
            yield f"{name}: has {len(given)} values for {children} children; give {children}, or none"
    if experiment.weights and abs(math.fsum(experiment.weights) - 1) > WEIGHT_SUM_TOLERANCE:
        yield f"experiment.weights: sum to {math.fsum(experiment.weights):.9g}; make them sum to 1"
    if experiment.children_rate_factor != 1 and not experiment.continue_children:
        yield "experiment.children_rate_factor: the children are not trained on; set continue_children: true"
    for earlier, later in itertools.pairwise(config.schedule.drop_epochs):
        if later <= earlier:
            yield f"schedule.drop_epochs: {later} follows {earlier}; give them strictly increasing"
    most_images = data.train_images or math.inf
    for name, images in (
        ("optimizer.batch_size", config.optimizer.batch_size),
        ("experiment.recompute_images", experiment.recompute_images),
    ):
        if images > most_images:
            yield f"{name}: {images} is more than data.train_images, {most_images}; lower it"


def name_problems(path: str, name: str) -> Iterator[str]:
    """Why `name`, the value of the key `path`, cannot be the name of a directory."""
    if name and (PurePosixPath(name).name != name or name == ".." or "\\" in name):
        yield f"{path}: {show(name)} is not the name of one directory; leave out / and \\"
    if len(name) > LONGEST_NAME:
        yield f"{path}: {len(name)} characters; give at most {LONGEST_NAME}"


def sweep_problems(spec: SweepSpec) -> Iterator[str]:
    """What is wrong between the values of a sweep; a line names the first cell that has the problem."""
    yield from _option_problems(spec.options)
    count, options = count_points(spec), spec.options
    if count > MOST_POINTS:
        tuples = _count(count_tuples(options))
        yield (
            f"sweep: {_count(count)} points ({math.prod(len(axis.values) for axis in spec.axes):,} cells, "
            f"{len(options.parents):,} parents, {tuples} tuples, {max(1, len(options.alphas)):,} alphas); "
            f"make it at most {MOST_POINTS:,}"
        )
        return
    found: dict[str, list[str]] = {}
    for values, config in cells(spec):
        for line in config_problems(config):
            where = ", ".join(f"{axis.path} = {show(value)}" for axis, value in zip(spec.axes, values, strict=True))
            found.setdefault(line, []).append(where)
    every = math.prod(len(axis.values) for axis in spec.axes)
    for line, places in itertools.islice(found.items(), _MOST_CELL_PROBLEMS):
        yield line if len(places) == every else f"{line} (at {places[0]})"
    if len(found) > _MOST_CELL_PROBLEMS:
        yield f"axes: {len(found) - _MOST_CELL_PROBLEMS} more such problems; fix these first"


def _option_problems(options: SweepOptions) -> Iterator[str]:
    size, children = options.tuple_size, options.children
    yield from name_problems("sweep.name", options.name)
    for name, value in (("directory", options.directory), ("store", options.store)):
        if not value:
            yield f"sweep.{name}: is empty; give a directory"
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
    if count_tuples(options) >= AVERAGE_SEEDS:
        yield (
            f"sweep.tuples: {_count(count_tuples(options))} for a parent, which has noise seeds for fewer than "
            f"{AVERAGE_SEEDS:,}; lower sweep.children"
        )
    if options.memory_GiB <= 0:
        yield "sweep.memory_GiB: 0 holds no network; give more"


def _count(number: int) -> str:
    """A whole number in digits; where it has very many, its power of ten (Python prints 4,300 digits at most)."""
    return f"{number:,}" if number < 10**18 else f"about 10^{math.log10(number):.0f}"


def chosen_cells(options: AnalysisOptions) -> tuple[tuple[int, int], ...]:
    """The cells asked for as (k, s), in the order given; none: all. Of checked options."""
    found = (_CELL.fullmatch(text) for text in options.cells)
    return tuple((int(match[1]), int(match[2])) for match in found if match is not None)


def analysis_problems(options: AnalysisOptions, spec: SweepSpec) -> Iterator[str]:
    """What is wrong among the options of a study, and between them and the sweep."""
    if options.low >= options.high:
        yield f"analysis.low: {options.low:g} is not below analysis.high, {options.high:g}; lower it"
    axes, base = {axis.path: axis.values for axis in spec.axes}, spec.base.experiment
    k, s = axes.get("experiment.k", (base.k,)), axes.get("experiment.s", (base.s,))
    for text in options.cells:
        match = _CELL.fullmatch(text)
        if match is None:
            yield f'analysis.cells: {show(text)} is not a cell; write k,s in quotes, such as "8,4"'
        elif int(match[1]) not in k or int(match[2]) not in s:
            yield f"analysis.cells: {show(text)} is not a cell of this sweep; k is of {show(k)}, s of {show(s)}"
