"""From files, command lines and Python objects to checked configurations, sweeps and requests.

Each source gives layers: values by dotted name, each with its place. fastargs merges them: its Sections and Params
are made of the declarations, and its `collect` is called for each layer in turn, so that a flag wins over the file,
the file over its base, and all win over the default. All else that fastargs offers is left alone: it drops unknown
keys, turns 3.7 into 3 and 'False' into True, lets environment variables win, and exits with 0 on bad input.
"""

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import fastargs
from fastargs.validation import Checker

from fastwi.cli import ShowAndExit
from fastwi.config.check import analysis_problems, config_problems, name_problems, sweep_problems
from fastwi.config.help import SWITCHES, analysis_help, run_help, sweep_help
from fastwi.config.schema import KEYS, SECTIONS, Config, section_keys
from fastwi.config.sweep import ALL_SECTIONS, ANALYSIS, NAMES, AnalysisOptions, Axis, SweepSpec, axis_refusal
from fastwi.config.values import Key, did_you_mean, is_range, nearest, number_from_text, show, show_name
from fastwi.config.write import sweep_to_yaml, to_yaml
from fastwi.config.yamlfile import Placed, config_path, parse_yaml, read_text
from fastwi.errors import ConfigError
from fastwi.version import __version__

ConfigLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config

LONGEST_CHAIN = 8  # bases
ALIASES = {
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "bs": "optimizer.batch_size",
    "epochs": "experiment.k", "seed": "seeds.init", "arch": "model.name", "network": "model.name",
    "dataset": "data.path", "data_dir": "data.path", "gpu": "engine.device", "dtype": "engine.precision",
    "amp": "engine.precision", "output": "run.directory", "pretrained": "model.weights",
}  # fmt: skip
"""Other frameworks' names of the keys."""

_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_BASE = Key(help="a config or sweep file", section="", name="base", scalar=str, depth=0, default=None)
_SWEEP_FILE = NAMES | {"base": _BASE}
_SWEEP_FLAGS = {path: key for path, key in NAMES.items() if path not in ANALYSIS}


@dataclass(frozen=True)
class _Asked:
    """What every command may be asked."""

    config_file: Path | None
    dry_run: bool
    json: bool


@dataclass(frozen=True)
class Request(_Asked):
    """What a command was asked to do with one configuration."""

    config: Config


@dataclass(frozen=True)
class SweepRequest(_Asked):
    """What the sweep command was asked to do. `shard`: (i, n), part i of n, from 1; None: all of it."""

    spec: SweepSpec
    name: str
    shard: tuple[int, int] | None


@dataclass(frozen=True)
class AnalysisRequest(_Asked):
    """What the analyze command was asked to do. `name`: the study's; `sweep`: its directory's."""

    name: str
    spec: SweepSpec
    options: AnalysisOptions
    sweep: str
    list_only: bool

    @property
    def directory(self) -> Path:
        """Where the study's files go: `analyses/NAME` in the sweep's results, or in analysis.directory."""
        home = self.options.directory or Path(self.spec.options.directory, self.sweep)
        return Path(home) / "analyses" / self.name


def read_request(argv: Sequence[str], command: str, description: str = "") -> Request:
    """Read a command's arguments (without the program's name) and its config file.

    Raises ConfigError, with one line for each problem in the command line, the file and the values, and ShowAndExit
    where `argv` has `--help`, `--version` or `--print-config`.
    """
    reader = _Reader(KEYS)
    words, asked = reader.add_command_line(argv, KEYS, lambda topic: run_help(command, description, topic))
    config = reader.config()
    if "print-config" in words:
        raise ShowAndExit(to_yaml(config).removesuffix("\n"))
    return Request(config=config, **asked)


def read_sweep_request(argv: Sequence[str]) -> SweepRequest:
    """Read the sweep command's arguments, its sweep file and the file's bases. Raises as `read_request` does."""
    reader = _Reader(_SWEEP_FILE)
    words, asked = reader.add_command_line(argv, _SWEEP_FLAGS, sweep_help, ("shard",))
    match = _SHARD.fullmatch(words.get("shard", "1/1"))
    shard = (int(match[1]), int(match[2])) if match is not None else (1, 0)
    if shard[0] > shard[1]:
        reader.problems.append(f"--shard: {show(words['shard'])} is not a part; write I/N with I from 1 to N")
    spec, _, name = reader.sweep(asked["config_file"])
    if "print-config" in words:
        raise ShowAndExit(sweep_to_yaml(spec).removesuffix("\n"))
    return SweepRequest(spec=spec, name=name, shard=shard if "shard" in words else None, **asked)


def read_analysis_request(argv: Sequence[str], studies: Mapping[str, str]) -> AnalysisRequest:
    """Read the analyze command's arguments and its sweep file. `studies`: each with what it answers in one line."""
    reader = _Reader(_SWEEP_FILE)
    study, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    help_of = functools.partial(analysis_help, studies)
    words, asked = reader.add_command_line(rest, NAMES, help_of, switches=("list",))
    listed = "list" in words
    if study not in studies and (study or not listed):
        reader.problems.append(f"{(study and show(study)) or 'NAME'}: is not a study; {did_you_mean(study, studies)}")
    if not listed and "config" not in words and set(reader.layers[-1]) <= set(ANALYSIS):
        reader.problems.append("--config: is missing; give the sweep's file, or sweep.yaml in its results")
    spec, options, sweep = reader.sweep(asked["config_file"])
    reader.refuse(analysis_problems(options, spec))
    if "print-config" in words and not listed:
        raise ShowAndExit(sweep_to_yaml(spec, options).removesuffix("\n"))
    return AnalysisRequest(name=study, spec=spec, options=options, sweep=sweep, list_only=listed, **asked)


def config_from_mapping(mapping: Mapping[str, Any]) -> Config:
    """The Config that `{section: {key: value}}` says, with defaults for what it leaves out.

    As strict as the file reader: `config_from_mapping(to_mapping(config))` checks a Config that was built by hand.
    Raises ConfigError with one line for each problem.
    """
    return read_config(mapping, {})[0]


def config_from_yaml(text: str, origin: str = "configuration") -> Config:
    """The Config that YAML text says, such as a run directory's stored one; `origin` names it in messages.

    Raises ConfigError with one line for each problem.
    """
    reader = _Reader(KEYS)
    reader.add_text(text, origin)
    return reader.config()


def sweep_from_yaml(text: str, origin: str = "sweep", directory: Path = Path()) -> SweepSpec:
    """The SweepSpec that YAML text says, such as a stored one, with a `base` in `directory`. Raises likewise."""
    reader = _Reader(_SWEEP_FILE)
    reader.add_text(text, origin, directory)
    return reader.sweep(None)[0]


def read_config(given: ConfigLike, overrides: Mapping[str, Any]) -> tuple[Config, Path | None]:
    """The configuration that a program gives, and the file that it is from. Raises likewise."""
    reader = _Reader(KEYS)
    file = reader.add(given)
    reader.add_mapping(overrides, KEYS)
    return reader.config(), file


def read_sweep(given: ConfigLike | SweepSpec, overrides: Mapping[str, Any]) -> tuple[SweepSpec, str]:
    """The sweep that a program gives, and its name. Raises likewise."""
    reader = _Reader(_SWEEP_FILE)
    file = reader.add(given)
    reader.add_mapping(overrides, _SWEEP_FLAGS)
    reader.refuse_without_effect()
    spec, _, name = reader.sweep(file)
    return spec, name


@dataclass(frozen=True)
class _Given:
    """A value that somebody gave for a key, and where, as in `Placed`."""

    key: Key
    value: object
    origin: str

    @functools.cached_property
    def checked(self) -> tuple[Any, str]:
        """The value in the key's type, and what is wrong with it; empty: nothing."""
        try:
            return self.key.check(self.value), ""
        except ValueError as error:
            return None, str(error)


class _Checker(Checker):  # type: ignore[misc]
    """What fastargs asks for a value in its key's type; what is refused is reported by `_Reader`."""

    def check(self, value: object) -> object:
        return value.checked[0] if isinstance(value, _Given) else value

    def help(self) -> str:
        return "see --help"


class _Reader:
    """Collects layers, the later ones winning, and every problem met, a line each. `names`: what files may say."""

    def __init__(self, names: Mapping[str, Key]) -> None:
        self.names, self.layers, self.problems = names, list[dict[str, _Given]](), list[str]()

    @contextlib.contextmanager
    def noting(self, origin: str = "") -> Iterator[None]:
        """Note what the block refuses, and go on after it."""
        try:
            yield
        except (ConfigError, ValueError) as error:
            self.problems += [f"{origin}{line}" for line in str(error).splitlines()]

    def add(self, source: ConfigLike | SweepSpec) -> Path | None:
        """Add what a program gives; returns the file where it is one."""
        if isinstance(source, (str, os.PathLike)):
            file = config_path(os.fspath(source))
            self.add_file(file)
            return file
        if isinstance(source, SweepSpec):
            axes = {axis.path: axis.values for axis in source.axes}
            source = {**asdict(source.base), "sweep": asdict(source.options), "axes": axes}
        self.add_mapping(asdict(source) if isinstance(source, Config) else source, self.names)
        return None

    def add_file(self, path: Path, chain: tuple[str, ...] = ()) -> None:
        """Add a config file and those that it is based on. `chain`: the files that led here."""
        with self.noting():
            self.add_text(read_text(path), show_name(path, 4096), path.parent, (*chain, os.path.realpath(path)))

    def add_text(self, text: str, origin: str, directory: Path = Path(), chain: tuple[str, ...] = ()) -> None:
        """Add YAML text: `origin` names it in messages, a base is looked for in `directory`."""
        with self.noting():
            self.add_mapping(parse_yaml(text, origin), self.names, origin, directory, chain)

    def add_mapping(
        self,
        source: object,
        names: Mapping[str, Key],
        origin: str = "configuration",
        directory: Path = Path(),
        chain: tuple[str, ...] = (),
    ) -> None:
        """Add a mapping, nested or with dotted names, and its bases; names that are not in `names` are problems."""
        layer: dict[str, _Given] = {}
        unknown, sections = set[str](), {path.partition(".")[0] for path in names}
        if not isinstance(source, Mapping):
            raise ConfigError(f"{origin}: {show(source)} is not a mapping of sections; give one")
        for path, (value, place) in _flat("", Placed(source, "")):
            section = path.partition(".")[0]
            if path in layer:
                self.problems.append(f"{place}{path}: given twice; remove one")
            elif path in names:
                layer[path] = _Given(names[path], value, place)
            elif section not in unknown and not (path in sections and value == {}):
                self.problems.append(place + unknown_name(path, names))
                unknown |= {section} - sections  # one line for all its keys
        if base := layer.pop("base", None):
            with self.noting(f"{base.origin}base: "):
                self._add_base(base, directory, chain)
        self.layers.append(layer)

    def _add_base(self, base: _Given, directory: Path, chain: tuple[str, ...]) -> None:
        name, problem = base.checked
        if not name:
            raise ConfigError(problem or "is empty; give a config file's name")
        path = config_path(name, directory)
        real = os.path.realpath(path)
        if real in chain:
            raise ConfigError(f"{show_name(path, 4096)} leads round in a circle; remove one of its bases")
        if len(chain) > LONGEST_CHAIN:
            raise ConfigError(f"one base too many; chain at most {LONGEST_CHAIN}")
        self.add_text(read_text(path), show_name(path, 4096), path.parent, (*chain, real))

    def add_command_line(
        self,
        argv: Sequence[str],
        names: Mapping[str, Key],
        help_of: Any,
        others: Collection[str] = (),
        switches: Collection[str] = (),
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Add the file of `--config` and the flags of a command line; `--help` and `--version` win over all.

        Args:
            argv: the words.
            names: the keys that may be flags.
            help_of: from the word after `--help` to the help.
            others: further flags.
            switches: further flags without a value.

        Returns:
            Each flag's text, and the fields of `_Asked`.
        """
        for flag in {"--help", "-h"}.intersection(argv):
            raise ShowAndExit(help_of("".join(argv[argv.index(flag) + 1 :][:1])))
        if "--version" in argv:
            raise ShowAndExit(f"fastwi {__version__}")
        words = self._words(list(argv), [*names, *others, "config"], {*SWITCHES, *switches})
        file = None
        with self.noting("--config: "):
            file = config_path(words["config"]) if "config" in words else None
        if file is not None:
            self.add_file(file)
        layer = {}
        for path in filter(names.__contains__, words):
            with self.noting():
                layer[path] = _Given(names[path], _from_text(names[path], words[path]), "--")
        self.layers.append(layer)
        self.refuse_without_effect()
        return words, {"config_file": file, "dry_run": "dry-run" in words, "json": "json" in words}

    def _words(self, argv: list[str], names: Collection[str], switches: Collection[str]) -> dict[str, str]:
        """The text of each flag of a command line; a switch's is empty."""
        words: dict[str, str] = {}
        while argv:
            word = argv.pop(0)
            name, equals, text = word.removeprefix("--").partition("=")
            value_follows = bool(argv) and not argv[0].startswith("--")
            if not word.startswith("--") or not name:
                self.problems.append(f"{show(word)}: is not a flag; write --section.key VALUE")
            elif name in switches and equals:
                self.problems.append(f"--{name}: takes no value; write --{name} alone")
            elif name in names and not equals and not value_follows:
                # A value that starts with -- needs the form with =, else a forgotten one would eat the next flag.
                self.problems.append(f"--{name}: a value is missing; write --{name} VALUE")
            else:
                if name not in switches and not equals and value_follows:
                    text = argv.pop(0)
                if name not in names and name not in switches:
                    self.problems.append(unknown_name(name, [*names, *switches], "--"))
                elif name in words:
                    self.problems.append(f"--{name}: given twice; remove one")
                words[name] = text
        return words

    def refuse_without_effect(self) -> None:
        """Note what the last layer overrides though a sweep does not use it: that would mislead."""
        if self.names is not _SWEEP_FILE:
            return
        for path, given in self.layers[-1].items():
            instead = KEYS[path].instead if path in KEYS else ""
            if any(f"axes.{path}" in layer for layer in self.layers):
                instead = f"{given.origin}axes.{path}, as it is an axis here"
            if instead:
                self.problems.append(f"{given.origin}{path}: a sweep does not use it; use {instead}")

    def config(self) -> Config:
        """The checked configuration. Raises ConfigError with one line for each problem."""
        config = Config(**_sections(self._merged(), SECTIONS))
        self.refuse(config_problems(config))
        return config

    def sweep(self, file: Path | None) -> tuple[SweepSpec, AnalysisOptions, str]:
        """The checked sweep, the unchecked options of its studies, and its name: sweep.name, or that of its file."""
        values = self._merged()
        sections = _sections(values, ALL_SECTIONS)
        options, analysis = sections.pop("sweep"), sections.pop("analysis")
        # An axis that is overridden keeps its place.
        given = dict.fromkeys(path for layer in self.layers for path in layer if path.startswith("axes."))
        axes = tuple(Axis(path.removeprefix("axes."), values[path]) for path in given)
        spec = SweepSpec(Config(**sections), axes, options)
        name = options.name or (file.stem if file else "sweep")
        with self.noting("sweep.name: "):
            NAMES["sweep.name"].check(name)
        self.refuse([*name_problems("sweep.name", name), *sweep_problems(spec)])
        return spec, analysis, name

    def _merged(self) -> dict[str, Any]:
        descriptor = fastargs.Config()
        keys = [key for path, key in self.names.items() if path != "base"]
        for section, group in itertools.groupby(keys, key=lambda key: key.section):
            params = {key.name: fastargs.Param(_Checker(), key.help, key.default) for key in group}
            fastargs.Section(section, config_descriptor=descriptor).params(**params)
        for layer in self.layers:
            descriptor.collect(layer)
            wrong = ((path, given.origin, given.checked[1]) for path, given in layer.items())
            self.problems += [f"{origin}{path}: {problem}" for path, origin, problem in wrong if problem]
        self.refuse(())
        return {key.path: descriptor[key.path] for key in keys}

    def refuse(self, lines: Iterable[str]) -> None:
        """Raise ConfigError with what was noted and `lines`, each with the place where its key or axis was given."""
        origins = {path: given.origin for layer in self.layers for path, given in layer.items()}
        for line in lines:
            path = line.partition(":")[0]
            axis = f"axes.{path}"
            self.problems.append(
                f"{origins[axis]}axes.{line}" if axis in origins else f"{origins.get(path, '')}{line}"
            )
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))


def _sections(values: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    return {
        section: kind(**{key.name: values[key.path] for key in section_keys(section, NAMES)})
        for section, kind in kinds.items()
    }


def _flat(path: str, placed: Placed) -> Iterator[tuple[str, Placed]]:
    value, origin = placed
    if not isinstance(value, Mapping) or (path and not value):
        yield path, placed
        return
    for name, each in value.items():
        each = each if isinstance(each, Placed) else Placed(each, origin)
        yield from _flat(f"{path}.{name}" if path else str(name), each)


def _from_text(key: Key, text: str) -> object:
    """What a word of the command line says. A list is [1, 2] as in a file, 1..4 or 1,2."""
    if not key.many:
        return _scalar(key.scalar, text)
    if text.lstrip().startswith("["):
        return parse_yaml(text, f"--{key.path}")
    if key.scalar in (int, float) and is_range(text):
        return text
    return [_scalar(key.scalar, word.strip()) for word in text.split(key.separator)] if text.strip() else []


def _scalar(kind: type, text: str) -> object:
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    number = None if kind is str else number_from_text(text)
    return text if number is None else number


def unknown_name(path: str, names: Collection[str], flag: str = "") -> str:
    """Why `path` is not one of `names`, and what may be meant. `flag`: `--` before a name on a command line."""
    section, _, rest = path.partition(".")
    head, _, last = path.rpartition(".")
    below = next((each for each in names if each.startswith(f"{path}.")), None)
    if below is not None:
        return f"{flag}{path}: is a section and needs keys below it, such as {below}"
    if section in ("base", "axes", "sweep", "analysis") and not any(each.startswith(section) for each in names):
        command = "analyze" if section == "analysis" else "sweep"
        return f"{flag}{path}: belongs to a file of python -m fastwi.{command}; leave it out here"
    if section == "axes" and rest in KEYS:
        return f"{flag}{path}: cannot be an axis; {axis_refusal(KEYS[rest])}"
    alike = [each for each in names if each.startswith("axes.") == (section == "axes")]
    own = {each.rpartition(".")[2]: each for each in alike if each.rpartition(".")[0] == head and head}
    elsewhere = [each for each in alike if each.rpartition(".")[2] == last]
    meant: str | None = ("axes." if section == "axes" else "") + ALIASES.get(last, "")
    if meant not in names:
        meant = elsewhere[0] if len(elsewhere) == 1 else own.get(nearest(last, own) or "")
    if meant is None and not own:
        meant = nearest(path, names)
    valid = own or sorted({each.rpartition(".")[0] or each for each in alike})
    end = f"did you mean {flag}{meant}?" if meant else f"valid: {', '.join(valid)}"
    return f"{show_name(flag + path)}: unknown name; {end}"
