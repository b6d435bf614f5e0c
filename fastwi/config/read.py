"""The commands' requests, and configurations and sweeps from YAML text and from a program's objects: all checked.

Whatever is wrong is a ConfigError with one line for each problem. A command line also raises ShowAndExit, where it
has `--help`, `--version` or `--print-config`.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fastwi.cli import ShowAndExit
from fastwi.config.layers import Layers, Placed, parse_yaml, shipped_configs, unknown_name
from fastwi.config.schema import KEYS, SECTIONS, Config, section_keys
from fastwi.config.sweep import (
    ALL_SECTIONS,
    INSTEAD,
    NAMES,
    AnalysisOptions,
    SweepSpec,
    analysis_problems,
    sweep_problems,
)
from fastwi.config.time import Time
from fastwi.config.values import Key, did_you_mean, keys_of, number_from_text, option, show
from fastwi.config.write import help_text, study_lines, sweep_to_yaml, to_yaml
from fastwi.errors import UserError
from fastwi.version import __version__

_PART = "[1-9][0-9]{0,8}/[1-9][0-9]{0,8}"
_PART_FORM = "I/N with I from 1 to N, such as 2/4"
ConfigLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config

_SHIPPED = ", ".join(shipped_configs())


@dataclass(frozen=True)
class Flags:
    """What a command line says beside the keys. The first four are of all commands."""

    config: str = option("", f"YAML file, or one that comes with fastwi: {_SHIPPED}")
    dry_run: bool = option(False, "check everything, say what would be done, and stop")
    print_config: bool = option(False, "print the whole configuration as YAML and stop")
    json: bool = option(False, "print results as JSON")
    figures: str = option(
        "screen", "screen, or paper: without titles, with fonts that stay text", choices=("screen", "paper")
    )
    shard: str = option("", "I/N: do part I of N only, such as 2/4", pattern=_PART, form=_PART_FORM)
    list: bool = option(False, "print the studies and stop; with --json as JSON")

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n), part i of n, from 1; None: all."""
        number, _, count = self.shard.partition("/")
        return (int(number), int(count)) if count else None


_FLAGS = keys_of("", Flags)
_OF_ALL = ("config", "dry-run", "print-config", "json")
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)

_SWEEP_FILE = NAMES | {"base": Key("", "base", str, 0, "", "a config or sweep file")}
_SWEEP_FLAGS = {path: key for path, key in NAMES.items() if key.section != "analysis"}


@dataclass(frozen=True)
class Request:
    """What a command or a program asks for.

    `spec`: the sweep; of a run, its configuration alone. `sweep`: the name of the sweep's directory. `study` and
    `options`: what analyze measures; no study: list them.
    """

    spec: SweepSpec
    config_file: Path | None
    sweep: str
    options: AnalysisOptions
    flags: Flags
    study: str

    @property
    def config(self) -> Config:
        """The configuration of a run."""
        return self.spec.base

    @contextmanager
    def naming_config(self) -> Iterator[None]:
        """Within the block, an error about the default dataset also says that no --config was given."""
        try:
            yield
        except UserError as error:
            if self.config_file is None and str(error).startswith(f"{KEYS['data.path'].default}: "):
                raise UserError(f"{error}; no --config was given") from error
            raise

    @property
    def directory(self) -> Path:
        """Where a study's files go: `analyses/STUDY` in the sweep's results, or in analysis.directory."""
        home = self.options.directory or Path(self.spec.options.directory, self.sweep)
        return Path(home) / "analyses" / self.study


def read_request(argv: Sequence[str], program: str, about: str = "", draws: bool = False) -> Request:
    """Read a command's arguments (without the program's name) and its config file.

    `about`: what the command does. `draws`: whether it takes --figures.
    """
    layers = Layers(KEYS)
    _add_line(layers, argv, KEYS, ["figures"] * draws, program, about, SECTIONS)
    return _built(layers)


def read_sweep_request(argv: Sequence[str]) -> Request:
    """Read the sweep command's arguments, its sweep file and the file's bases."""
    about = "Carries out the protocol at every cell of a grid, for parents, tuples of children and alphas."
    text = (
        "--axes.section.key VALUES overrides or adds an axis: 1,2,4 or '[1, 2, 4]' or 1..4. A sweep file:\n\n"
        f"{shipped_configs()['fastwi:digits_k_s_grid'].read_text()}"
    )
    layers = Layers(_SWEEP_FILE)
    _add_line(layers, argv, _SWEEP_FLAGS, ["shard", "figures"], "fastwi.sweep", about, ["sweep"], text)
    return _built(layers)


def read_analysis_request(argv: Sequence[str], studies: Mapping[str, str]) -> Request:
    """Read the analyze command's arguments and its sweep file. `studies`: each with what it answers in one line."""
    about = "Answers one question for a finished sweep from its stored states and measurements. Nothing is trained."
    text = "\n".join(["The studies:", *study_lines(studies)])
    study, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    layers = Layers(_SWEEP_FILE)
    _add_line(layers, rest, NAMES, ["list", "figures"], "fastwi.analyze STUDY", about, ["analysis"], text)
    if _flags(layers).list:
        study = ""
    elif study not in studies:
        named = f"{show(study)}: is not a study" if study else "no study was given"
        layers.problems.append(f"{named}; {did_you_mean(study, studies)}")
    elif not layers.problems and not layers.file and not layers.last & _SWEEP_FLAGS.keys():
        layers.problems.append("--config: is missing; give the sweep's file, or sweep.yaml in its results")
    return _built(layers, study)


def _add_line(
    layers: Layers, argv: Sequence[str], names: Mapping[str, Key], more: Iterable[str], *about: Any
) -> None:
    """Add a command line, and below it the file of its `--config`.

    `names`: what it may override. `more`: its flags beside those of all commands. `about`: as for `help_text`.
    """
    flags = {name: _FLAGS[name] for name in (*_OF_ALL, *more)}
    for flag in {"--help", "-h"}.intersection(argv):  # it wins, so that no mistake hides the help
        topic = "".join(argv[argv.index(flag) + 1 :][:1])
        raise ShowAndExit(help_text(topic, flags.values(), *about))
    if "--version" in argv:
        raise ShowAndExit(f"fastwi {__version__}")
    known = {**names, **flags}
    given = {}
    for path, word in _words(argv, known, layers.problems).items():
        with layers.noting():
            given[path] = Placed(_from_text(known[path], word), "--")
    _override(layers, given, known)


def config_from_yaml(text: str, origin: str = "configuration") -> Config:
    """The Config that YAML text says, such as a run directory's stored one; `origin` names it in messages."""
    layers = Layers(KEYS)
    layers.add_text(text, origin)
    return _built(layers).config


def sweep_from_yaml(text: str, origin: str = "sweep", directory: Path = Path()) -> SweepSpec:
    """The SweepSpec that YAML text says, such as a stored one, with a `base` in `directory`."""
    layers = Layers(_SWEEP_FILE)
    layers.add_text(text, origin, directory)
    return _built(layers).spec


def read_config(
    given: ConfigLike | SweepSpec, overrides: Mapping[str, Any] | None = None, sweep: bool = False
) -> Request:
    """The run, or the sweep, that a program gives: a file's path, a mapping, or a checked one from before."""
    layers = Layers(_SWEEP_FILE if sweep else KEYS)
    names = layers.names
    if isinstance(given, SweepSpec):
        given = {**asdict(given.base), "sweep": asdict(given.options), "axes": given.axes}
    elif isinstance(given, Config):
        given = asdict(given)
    elif isinstance(given, (str, os.PathLike)):
        given = {"config": os.fspath(given)}
        names = {"config": _FLAGS["config"]}
    layers.add(given, names)
    _override(layers, overrides or {}, _SWEEP_FLAGS if sweep else KEYS)
    return _built(layers)


def _words(argv: Sequence[str], known: Mapping[str, Key], problems: list[str]) -> dict[str, str]:
    """The text of each flag of a command line. One of a yes or no is a yes by itself."""
    words: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            fix = f"--config {word}" if word.endswith((".yaml", ".yml")) else "--section.key VALUE"
            problems.append(f"{show(word)}: is not a flag; write {fix}")
            continue
        given = bool(equals)
        # A value that starts with -- needs the form with =, else a forgotten one would eat the next flag.
        if not given and rest and not rest[0].startswith("--"):
            given, text = True, rest.pop(0)
        if name not in known:
            problems.append(unknown_name(name, known, "--"))
        elif name in words:
            problems.append(f"--{name}: given twice; remove one")
        elif given or known[name].scalar is bool:
            words[name] = text if given else "true"
        else:
            value = "FILE" if name == "config" else "VALUE"
            problems.append(f"--{name}: a value is missing; write --{name} {value}")
    return words


def _from_text(key: Key, text: str) -> object:
    """What a word of the command line says. A list is [1, 2] as in a file, 1..4 or 1,2."""
    if key.many and text.lstrip().startswith("["):
        return parse_yaml(text, f"--{key.path}")
    if key.many and not (key.scalar in (int, float, Time) and ".." in text):
        return [_scalar(key.scalar, word.strip()) for word in text.split(key.separator)] if text.strip() else []
    return _scalar(key.scalar, text)


def _scalar(kind: type, text: str) -> object:
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    number = None if kind is str else number_from_text(text)
    return text if number is None else number


def _override(layers: Layers, given: Mapping[str, Any], names: Mapping[str, Key]) -> None:
    """Add the last layer, and note what it overrides though a sweep does not use it: that would mislead."""
    layers.add(given, names, last=True)
    for path in INSTEAD.keys() & layers.last if layers.names is _SWEEP_FILE else ():
        layers.problems.append(f"{layers.given[path].origin}{path}: a sweep does not use it; use {INSTEAD[path]}")


def _built(layers: Layers, study: str | None = None) -> Request:
    """The request that the layers make. `study`: of analyze, whose options are then compared with the sweep."""
    flags = _flags(layers)
    if flags.part and flags.part[0] > flags.part[1]:
        layers.problems.append(f"--shard: '{flags.shard}' is not valid; give {_PART_FORM}")
    values = layers.merged()
    made = {}
    for section, kind in ALL_SECTIONS.items():
        keys = section_keys(section, layers.names.values())
        made[section] = kind(**{key.name: values[key.path] for key in keys})
    options = made.pop("sweep")
    analysis = made.pop("analysis")
    given_axes = [path for path in layers.given if path.startswith("axes.")]  # one that is overridden keeps its place
    axes = {path.removeprefix("axes."): values[path] for path in given_axes}
    spec = SweepSpec(Config(**made), axes, options)
    name = options.name or (layers.file.stem if layers.file else "sweep")
    if layers.names is _SWEEP_FILE:  # of a run it may be any
        with layers.noting("sweep.name: "):
            NAMES["sweep.name"].check(name)
    layers.refuse(sweep_problems(spec))
    if study is not None:
        layers.refuse(analysis_problems(analysis, spec))
    if flags.print_config:
        if layers.names is KEYS:
            text = to_yaml(spec.base)
        else:
            text = sweep_to_yaml(spec, None if study is None else analysis)
        raise ShowAndExit(text.removesuffix("\n"))
    return Request(spec, layers.file, name, analysis, flags, study or "")


def _flags(layers: Layers) -> Flags:
    return Flags(**{key.name: layers.given[path].value for path, key in _FLAGS.items() if path in layers.given})
