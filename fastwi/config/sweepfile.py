"""From the command line of `python -m fastwi.sweep`, or from YAML text, to a checked `SweepSpec`.

A sweep file is a config file with four more names at its top: `base`, `axes`, `sweep`, and `analysis` for the
studies of the finished sweep. It is read as strictly as a config file is (`fastwi.config.read`), and by the same
parts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastwi.cli import ShowAndExit
from fastwi.config import commandline
from fastwi.config.analysis import AnalysisOptions
from fastwi.config.keys import KEYS, SECTIONS
from fastwi.config.read import merge
from fastwi.config.schema import Config
from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
from fastwi.config.sweepaxes import GivenAxis, axis_from_text, set_by_sweep
from fastwi.config.sweepcheck import cell_problems, default_name_problem, option_problems, point_problems
from fastwi.config.sweephelp import sweep_help_text
from fastwi.config.sweeplayers import (
    ALL_OPTIONS,
    ANALYSIS_OPTIONS,
    OPTION_SECTIONS,
    OPTIONS,
    Layer,
    expand_options,
    layers_from_yaml,
    read_layers,
)
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.config.values import Given
from fastwi.config.wording import show
from fastwi.errors import ConfigError

NAMELESS = "sweep"  # the name where neither sweep.name nor a file gives one

_DESCRIPTION = "Carries out the protocol at every cell of a grid, for parents, tuples of children and alphas."
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
SWEEP_FLAGS = (*KEYS, *OPTIONS, *(f"axes.{path}" for path in KEYS))


@dataclass(frozen=True)
class SweepRequest:
    """What the sweep command was asked to do. `shard`: (i, n), part i of n, from 1; None: all of it."""

    spec: SweepSpec
    config_file: Path | None
    dry_run: bool
    json: bool
    shard: tuple[int, int] | None


def read_sweep_request(
    argv: Sequence[str], command: str = "fastwi.sweep", description: str = _DESCRIPTION
) -> SweepRequest:
    """Read the sweep command's arguments (without the program's name), its sweep file and the file's bases.

    Args:
        argv: the arguments, such as `sys.argv[1:]`.
        command: the module that was run, for `--help`.
        description: what the command does, for `--help`.

    Raises:
        ConfigError: with one line for each problem found, in the command line, the files and the values.
        ShowAndExit: `--help`, `--version` or `--print-config` stands in `argv`.
    """
    commandline.answer(argv, lambda: sweep_help_text(command, description))
    foreign = [path for path in ANALYSIS_OPTIONS if any(word.partition("=")[0] == f"--{path}" for word in argv)]
    arguments = commandline.parse(argv, (*SWEEP_FLAGS, "shard", *foreign))
    problems = list(arguments.problems)
    for path in foreign:
        if arguments.values.pop(path, None) is not None:
            problems.append(f"--{path}: belongs to python -m fastwi.analyze; leave it out here")
    shard = _shard(arguments.values.pop("shard", None), problems)
    spec, _, _ = read_arguments(arguments, problems)
    if "print-config" in arguments.switches:
        raise ShowAndExit(sweep_to_yaml(spec).removesuffix("\n"))
    return SweepRequest(
        spec=spec,
        config_file=arguments.config_file,
        dry_run="dry-run" in arguments.switches,
        json="json" in arguments.switches,
        shard=shard,
    )


def read_arguments(
    arguments: commandline.Arguments, problems: list[str]
) -> tuple[SweepSpec, AnalysisOptions, dict[str, str]]:
    """The sweep and the options of its analyses that a command line and its sweep file say.

    Also the origin of each value that was given, by dotted name, as in `Given`. The analysis options' values are each
    checked; whether they go together is the business of `fastwi.config.analysis.analysis_problems`.

    Raises:
        ConfigError: with `problems` and one line for each further problem.
    """
    file = arguments.config_file
    layers = [] if file is None else read_layers(file, problems)
    return overridden(layers, _flag_layer(arguments.values, problems), "--", problems, default_name(file))


def overridden(
    layers: list[Layer], overrides: Layer, origin: str, problems: list[str], nameless: str
) -> tuple[SweepSpec, AnalysisOptions, dict[str, str]]:
    """The same of layers and what overrides them; `origin` stands before the overrides' names in messages.

    `nameless`: the sweep's name where none is given.
    """
    for path in overrides.values:
        # An override without effect would mislead; in a file such a key is fine, since fastwi.train may read it too.
        mend = set_by_sweep(path)
        if any(path in layer.axes for layer in (*layers, overrides)):
            mend = f"is an axis of this sweep; use {origin}axes.{path}"
        if mend:
            problems.append(f"{origin}{path}: {mend}")
    return _checked([*layers, overrides], problems, nameless)


def sweep_from_yaml(text: str, origin: str = "sweep", directory: Path = Path()) -> SweepSpec:
    """The SweepSpec that YAML text says, such as a stored one; a `base` is looked for in `directory`.

    Raises:
        ConfigError: with one line for each problem.
    """
    problems: list[str] = []
    layers = layers_from_yaml(text, origin, directory, problems)
    return _checked(layers, problems, NAMELESS)[0]


def sweep_name(request: SweepRequest) -> str:
    """The name of the sweep's directory: `sweep.name`, else the file's without its ending, else 'sweep'."""
    return request.spec.options.name or default_name(request.config_file)


def default_name(config_file: Path | None) -> str:
    """The name of a sweep that gives none."""
    return config_file.stem if config_file is not None else NAMELESS


def _flag_layer(values: dict[str, Given], problems: list[str]) -> Layer:
    """The command line's layer."""
    layer = Layer(values={path: given for path, given in values.items() if path in KEYS})
    options = {path: given for path, given in values.items() if path in ALL_OPTIONS}
    layer.options = expand_options(options, problems)
    for path, given in values.items():
        if path.startswith("axes."):
            key = path.removeprefix("axes.")
            axis = axis_from_text(key, str(given.value), OPTIONS, problems)
            if axis is not None:
                layer.axes[key] = axis
    return layer


def _checked(
    layers: list[Layer], problems: list[str], nameless: str
) -> tuple[SweepSpec, AnalysisOptions, dict[str, str]]:
    """Merge the layers and check all, or raise everything that is wrong, `problems` first."""
    readable = not problems
    sections = merge([layer.values for layer in layers], problems, SECTIONS, KEYS)
    merged = merge([layer.options for layer in layers], problems, OPTION_SECTIONS, ALL_OPTIONS)
    given: dict[str, GivenAxis] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        given |= layer.axes
        origins |= {path: each.origin for path, each in (layer.values | layer.options).items()}
        origins |= {f"axes.{path}": axis.origin for path, axis in layer.axes.items()}
    axes = tuple(Axis(path, axis.values) for path, axis in given.items())
    # What goes together is judged only where all of it could be read: else one mistake would be told twice.
    if merged and readable:
        options: SweepOptions = merged["sweep"]
        found = option_problems(options)
        if not options.name and (problem := default_name_problem(nameless)):
            found.append(problem)
        problems += [f"{origins.get(line.partition(':')[0], '')}{line}" for line in found]
    if sections and readable:
        problems += cell_problems(Config(**sections), axes, origins)
    if sections and merged and readable:
        problems += point_problems(SweepSpec(Config(**sections), axes, merged["sweep"]))
    if problems:
        raise ConfigError("\n".join(problems))
    return SweepSpec(Config(**sections), axes, merged["sweep"]), merged["analysis"], origins


def _shard(given: Given | None, problems: list[str]) -> tuple[int, int] | None:
    if given is None:
        return None
    match = _SHARD.fullmatch(str(given.value))
    if match is not None and int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    problems.append(f"--shard: {show(given.value)} is not a part; write I/N with I from 1 to N, such as 2/4")
    return None
