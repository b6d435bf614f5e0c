"""The commands' requests, and configurations and sweeps from YAML text and from a program's objects: all checked.

Whatever is wrong is a ConfigError with one line for each problem. A command line also raises ShowAndExit, where it
has `--help`, `--version` or `--print-config`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fastwi.cli import ShowAndExit
from fastwi.config.layers import Layers, Placed, config_path, parse_yaml, shipped_configs, unknown_name
from fastwi.config.schema import KEYS, SECTIONS, Config, config_problems, section_keys
from fastwi.config.sweep import (
    ALL_SECTIONS,
    ANALYSIS,
    NAMES,
    AnalysisOptions,
    Axis,
    SweepSpec,
    analysis_problems,
    sweep_problems,
)
from fastwi.config.values import Key, did_you_mean, number_from_text, show
from fastwi.config.write import FIGURES, FLAGS, help_text, study_lines, sweep_to_yaml, to_yaml
from fastwi.version import __version__

ConfigLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config

FIGURE_STYLES = ("screen", "paper")
_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_BASE = Key(help="a config or sweep file", section="", name="base", scalar=str, depth=0, default=None)
_SWEEP_FILE = NAMES | {"base": _BASE}
_SWEEP_FLAGS = {path: key for path, key in NAMES.items() if path not in ANALYSIS}


@dataclass(frozen=True)
class Request:
    """What a command was asked to do.

    `spec`: the sweep; of a run, its configuration alone. `figures`: one of `FIGURE_STYLES`. `sweep`: the name of the
    sweep's directory. `shard`: (i, n), part i of n, from 1; None: all. `study` and `options`: what analyze measures;
    no study: list them.
    """

    spec: SweepSpec
    config_file: Path | None
    dry_run: bool
    json: bool
    figures: str = "screen"
    sweep: str = ""
    shard: tuple[int, int] | None = None
    study: str = ""
    options: AnalysisOptions = field(default_factory=AnalysisOptions)

    @property
    def config(self) -> Config:
        """The configuration of a run."""
        return self.spec.base

    @property
    def directory(self) -> Path:
        """Where a study's files go: `analyses/STUDY` in the sweep's results, or in analysis.directory."""
        home = self.options.directory or Path(self.spec.options.directory, self.sweep)
        return Path(home) / "analyses" / self.study


def read_request(argv: Sequence[str], program: str, about: str = "", draws: bool = False) -> Request:
    """Read a command's arguments (without the program's name) and its config file.

    `about`: what the command does. `draws`: whether it takes --figures.
    """
    layers, words, asked = _begin(argv, KEYS, KEYS, program, about, FIGURES if draws else {}, SECTIONS)
    config = _config(layers)
    _print(words, to_yaml(config))
    return Request(SweepSpec(config), **asked)


def read_sweep_request(argv: Sequence[str]) -> Request:
    """Read the sweep command's arguments, its sweep file and the file's bases."""
    flags = {
        "axes.section.key VALUES": "override or add an axis: 1,2,4 or '[1, 2, 4]' or 1..4",
        "shard I/N": "carry out part I of N, 1/N to N/N, such as 2/4",
        **FIGURES,
    }
    about = "Carries out the protocol at every cell of a grid, for parents, tuples of children and alphas."
    sample = f"A sweep file:\n\n{shipped_configs()['fastwi:digits_k_s_grid'].read_text()}"
    layers, words, asked = _begin(argv, _SWEEP_FILE, _SWEEP_FLAGS, "fastwi.sweep", about, flags, ["sweep"], sample)
    match = _SHARD.fullmatch(words.get("shard", "1/1"))
    shard = (int(match[1]), int(match[2])) if match is not None else (1, 0)
    if shard[0] > shard[1]:
        layers.problems.append(f"--shard: {show(words['shard'])} is not a part; write I/N with I from 1 to N")
    spec, _, name = _sweep(layers, asked["config_file"])
    _print(words, sweep_to_yaml(spec))
    return Request(spec, sweep=name, shard=shard if "shard" in words else None, **asked)


def read_analysis_request(argv: Sequence[str], studies: Mapping[str, str]) -> Request:
    """Read the analyze command's arguments and its sweep file. `studies`: each with what it answers in one line."""
    flags = {"list": "print the studies and stop; with --json as JSON", **FIGURES}
    about = "Answers one question for a finished sweep from its stored states and measurements. Nothing is trained."
    text = "\n".join(["The studies:", *study_lines(studies)])
    study, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    layers, words, asked = _begin(rest, _SWEEP_FILE, NAMES, "fastwi.analyze STUDY", about, flags, ["analysis"], text)
    if "list" not in words:
        if study not in studies:
            named = show(study) if study else "STUDY"
            layers.problems.append(f"{named}: is not a study; {did_you_mean(study, studies)}")
        if "config" not in words and set(layers.all[-1]) <= set(ANALYSIS):
            layers.problems.append("--config: is missing; give the sweep's file, or sweep.yaml in its results")
    spec, options, name = _sweep(layers, asked["config_file"])
    layers.refuse(analysis_problems(options, spec))
    _print(words, sweep_to_yaml(spec, options))
    return Request(spec, sweep=name, study="" if "list" in words else study, options=options, **asked)


def config_from_mapping(mapping: Mapping[str, Any]) -> Config:
    """The Config that `{section: {key: value}}` says, with defaults for what it leaves out."""
    return read_config(mapping, {})[0]


def config_from_yaml(text: str, origin: str = "configuration") -> Config:
    """The Config that YAML text says, such as a run directory's stored one; `origin` names it in messages."""
    layers = Layers(KEYS)
    layers.add_text(text, origin)
    return _config(layers)


def sweep_from_yaml(text: str, origin: str = "sweep", directory: Path = Path()) -> SweepSpec:
    """The SweepSpec that YAML text says, such as a stored one, with a `base` in `directory`."""
    layers = Layers(_SWEEP_FILE)
    layers.add_text(text, origin, directory)
    return _sweep(layers, None)[0]


def read_config(given: ConfigLike, overrides: Mapping[str, Any]) -> tuple[Config, Path | None]:
    """The configuration that a program gives, and the file that it is from."""
    layers = Layers(KEYS)
    file = _add_object(layers, given)
    layers.add(overrides, KEYS)
    return _config(layers), file


def read_sweep(given: ConfigLike | SweepSpec, overrides: Mapping[str, Any]) -> tuple[SweepSpec, str]:
    """The sweep that a program gives, and its name."""
    layers = Layers(_SWEEP_FILE)
    file = _add_object(layers, given)
    layers.add(overrides, _SWEEP_FLAGS)
    _refuse_without_effect(layers)
    spec, _, name = _sweep(layers, file)
    return spec, name


def _add_object(layers: Layers, given: ConfigLike | SweepSpec) -> Path | None:
    """Add what a program gives; returns the file where it is one."""
    if isinstance(given, (str, os.PathLike)):
        file = config_path(os.fspath(given))
        with layers.noting():
            layers.add_file(file)
        return file
    if isinstance(given, SweepSpec):
        axes = {axis.path: axis.values for axis in given.axes}
        given = {**asdict(given.base), "sweep": asdict(given.options), "axes": axes}
    layers.add(asdict(given) if isinstance(given, Config) else given, layers.names)
    return None


def _begin(
    argv: Sequence[str],
    in_file: Mapping[str, Key],
    in_flags: Mapping[str, Key],
    program: str,
    about: str,
    more: Mapping[str, str],
    sections: Iterable[str],
    text: str = "",
) -> tuple[Layers, dict[str, str], dict[str, Any]]:
    """Read a command line and the file of its `--config`.

    `in_file` and `in_flags`: the keys that may be there. `more`: further flags with their meaning. For the rest see
    `help_text`.
    Returns the layers, each flag's text, and the fields that all requests have.
    """
    flags = {**FLAGS, **more}
    for flag in {"--help", "-h"}.intersection(argv):  # it wins, so that no mistake hides the help
        topic = "".join(argv[argv.index(flag) + 1 :][:1])
        raise ShowAndExit(help_text(program, about, flags, text, sections, topic))
    if "--version" in argv:
        raise ShowAndExit(f"fastwi {__version__}")
    layers, file = Layers(in_file), None
    words = _words(layers.problems, list(argv), in_flags, dict(flag.partition(" ")[::2] for flag in flags))
    if "config" in words:
        with layers.noting("--config: "):
            file = config_path(words["config"])
    if file is not None:
        with layers.noting():
            layers.add_file(file)
    given = {}
    for path in filter(in_flags.__contains__, words):
        with layers.noting():
            given[path] = Placed(_from_text(in_flags[path], words[path]), "--")
    layers.add(given, in_flags)
    _refuse_without_effect(layers)
    figures = words.get("figures", FIGURE_STYLES[0])
    if figures not in FIGURE_STYLES:
        layers.problems.append(f"--figures: {show(figures)} is not one of {', '.join(FIGURE_STYLES)}")
    asked = {"config_file": file, "dry_run": "dry-run" in words, "json": "json" in words, "figures": figures}
    return layers, words, asked


def _print(words: Mapping[str, str], text: str) -> None:
    if "print-config" in words:
        raise ShowAndExit(text.removesuffix("\n"))


def _words(problems: list[str], argv: list[str], keys: Iterable[str], flags: Mapping[str, str]) -> dict[str, str]:
    """The text of each flag of a command line. `flags`: those that are no key; a switch's metavar is empty."""
    words: dict[str, str] = {}
    known = dict.fromkeys(keys, "VALUE") | {name: metavar for name, metavar in flags.items() if "." not in name}
    while argv:
        word = argv.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        # A value that starts with -- needs the form with =, else a forgotten one would eat the next flag.
        follows = not equals and known.get(name, "VALUE") and argv and not argv[0].startswith("--")
        if not word.startswith("--") or not name:
            problems.append(f"{show(word)}: is not a flag; write --section.key VALUE")
            continue
        text = argv.pop(0) if follows else text
        if name not in known:
            problems.append(unknown_name(name, known, "--"))
        elif equals and not known[name]:
            problems.append(f"--{name}: takes no value; write --{name} alone")
        elif known[name] and not equals and not follows:
            problems.append(f"--{name}: a value is missing; write --{name} {known[name]}")
        elif name in words:
            problems.append(f"--{name}: given twice; remove one")
        else:
            words[name] = text
    return words


def _from_text(key: Key, text: str) -> object:
    """What a word of the command line says. A list is [1, 2] as in a file, 1..4 or 1,2."""
    if key.many and text.lstrip().startswith("["):
        return parse_yaml(text, f"--{key.path}")
    if key.many and not (key.scalar in (int, float) and ".." in text):
        return [_scalar(key.scalar, word.strip()) for word in text.split(key.separator)] if text.strip() else []
    return _scalar(key.scalar, text)


def _scalar(kind: type, text: str) -> object:
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    number = None if kind is str else number_from_text(text)
    return text if number is None else number


def _refuse_without_effect(layers: Layers) -> None:
    """Note what the last layer overrides though a sweep does not use it: that would mislead."""
    for path, given in layers.all[-1].items() if layers.names is _SWEEP_FILE else ():
        instead = KEYS[path].instead if path in KEYS else ""
        if any(f"axes.{path}" in layer for layer in layers.all):
            instead = f"{given.origin}axes.{path}, as it is an axis here"
        if instead:
            layers.problems.append(f"{given.origin}{path}: a sweep does not use it; use {instead}")


def _config(layers: Layers) -> Config:
    config = Config(**_sections(layers.merged(), SECTIONS))
    layers.refuse(config_problems(config))
    return config


def _sweep(layers: Layers, file: Path | None) -> tuple[SweepSpec, AnalysisOptions, str]:
    """The sweep, the options of its studies, not checked together, and its name: sweep.name, or that of its file."""
    values = layers.merged()
    sections = _sections(values, ALL_SECTIONS)
    options, analysis = sections.pop("sweep"), sections.pop("analysis")
    # An axis that is overridden keeps its place.
    axes = dict.fromkeys(path for layer in layers.all for path in layer if path.startswith("axes."))
    spec = SweepSpec(Config(**sections), tuple(Axis(path[5:], values[path]) for path in axes), options)
    name = options.name or (file.stem if file else "sweep")
    with layers.noting("sweep.name: "):
        NAMES["sweep.name"].check(name)
    layers.refuse(sweep_problems(spec, name))
    return spec, analysis, name


def _sections(values: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    keys = {section: section_keys(section, NAMES) for section in kinds}
    return {section: kinds[section](**{key.name: values[key.path] for key in keys[section]}) for section in kinds}
