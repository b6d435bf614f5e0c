"""From files, command lines and Python objects to layers: checked values by dotted name, each with its place.

fastargs merges the layers: its Sections and Params are made of the declarations, and its `collect` is called for each
layer in turn, so that a flag wins over the file, the file over its base, and all win over the default. All else that
fastargs offers is left alone: it drops unknown keys, turns 3.7 into 3 and 'False' into True, lets environment
variables win, and exits with 0 on bad input.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fastargs
import yaml
from fastargs.validation import Anything

from fastwi.config.schema import KEYS
from fastwi.config.sweep import axis_refusal
from fastwi.config.values import Key, nearest, number_from_text, one_line, show, show_name
from fastwi.errors import ConfigError
from fastwi.sealed import yaml_damage

LONGEST_CHAIN = 8  # bases
LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
_DEEPEST = 32  # lists and mappings within each other; PyYAML's time grows with the square
_PREFIX = "fastwi:"

ALIASES = {
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "bs": "optimizer.batch_size",
    "epochs": "experiment.k", "seed": "seeds.init", "arch": "model.name", "network": "model.name",
    "dataset": "data.path", "data_dir": "data.path", "gpu": "engine.device", "dtype": "engine.precision",
    "amp": "engine.precision", "output": "run.directory", "pretrained": "model.weights",
}  # fmt: skip
"""Other frameworks' names of the keys."""


class Placed(NamedTuple):
    """A value, and what stands before its name in messages: 'my.yaml line 3: ', '--' or nothing."""

    value: Any
    origin: str


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with fastwi, as `fastwi:NAME`."""
    package = Path(__file__).resolve().parents[1]
    # Installed, they are a folder of the package (setup.py); in a checkout they lie beside it.
    directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {f"{_PREFIX}{path.stem}": path for path in sorted(directory.glob("*.yaml"))}


def config_path(given: str, directory: Path = Path()) -> Path:
    """The file that `--config` or `base` means: a path, from `directory`, or `fastwi:NAME`. Raises ConfigError."""
    if not given.startswith(_PREFIX):
        return directory / given
    shipped = shipped_configs()
    if given not in shipped:
        raise ConfigError(f"{show(given)}: does not come with fastwi; write one of {', '.join(shipped)}")
    return shipped[given]


def read_text(path: Path) -> str:
    """The text of a config file. Raises ConfigError, in one line that begins with the path."""
    try:
        # Before opening: opening a named pipe would wait for a writer, for ever if none comes.
        if stat.S_ISFIFO(os.stat(path).st_mode):
            raise OSError("a named pipe")
        with open(path, "rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
        text = raw.decode("utf-8-sig")
        problem = yaml_damage(text) and f"{yaml_damage(text)}; where you changed it, remove its last line"
        if len(raw) > LARGEST_FILE:
            problem = "is larger than 1 MiB; a configuration is a few lines of YAML"
        if not problem:
            return text
    except FileNotFoundError:
        guess = nearest(path.name, (each.name for each in path.parent.glob("*.y*ml")))
        problem = f"no such config file; did you mean {guess}?" if guess else "no such config file; check the path"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error}); give a YAML file"
    except ValueError:  # not UTF-8; or a NUL or a lone surrogate in the name
        problem = "is not UTF-8 text, or not a possible file name; give a YAML file"
    raise ConfigError(f"{show_name(path, 4096)}: {problem}")


def parse_yaml(text: str, origin: str) -> Any:
    """A document as plain values; each value of a mapping is `Placed`, with `origin` and its line.

    The node tree is walked rather than the constructed values: only nodes know their lines, and show a duplicate key.
    Raises ConfigError, with one line for each problem.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ConfigError(f"{_place(event, origin)}nested too deeply; a configuration has sections of keys")
            if getattr(event, "tag", None) or getattr(event, "anchor", None):
                raise ConfigError(f"{_place(event, origin)}tags (!), anchors (&) and aliases (*) are not supported")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin} line {mark.line + 1}" if mark else origin
        raise ConfigError(f"{where}: not valid YAML: {one_line(error.problem or error.context or error)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr()'s errors through
        raise ConfigError(f"{origin}: not valid YAML: {one_line(error)}") from None
    if root is None:
        raise ConfigError(f"{origin}: is empty; give it a section, or leave out --config for the defaults")
    return _plain(root, origin)


def _plain(node: Any, origin: str) -> object:
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Placed] = {}
        for name_node, value in node.value:
            place, name = _place(name_node, origin), name_node.value
            if not isinstance(name, str):
                raise ConfigError(f"{place}a name must be plain text; remove the brackets")
            if name in found:
                raise ConfigError(f"{place}{show_name(name)}: is given above already; remove one")
            found[name] = Placed(_plain(value, origin), place)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, origin) for each in node.value]
    text: str = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if node.tag.endswith(":null"):
        return None
    if node.tag.endswith(":bool"):
        return text.lower() in ("true", "yes", "on")
    number = number_from_text(text)
    return text if number is None else number


def _place(node: Any, origin: str) -> str:
    return f"{origin} line {node.start_mark.line + 1}: "


class Layers:
    """Layers, the later ones winning, and every problem met, a line each. `names`: what files may say."""

    def __init__(self, names: Mapping[str, Key]) -> None:
        self.names, self.all, self.problems = names, list[dict[str, Placed]](), list[str]()

    @contextlib.contextmanager
    def noting(self, origin: str = "") -> Iterator[None]:
        """Note what the block refuses, and go on after it."""
        try:
            yield
        except (ConfigError, ValueError) as error:
            self.problems += [f"{origin}{line}" for line in str(error).splitlines()]

    def add_file(self, path: Path, chain: tuple[str, ...] = ()) -> None:
        """Add a config file and those that it is based on. `chain`: the files that led here."""
        text, origin, real = read_text(path), show_name(path, 4096), os.path.realpath(path)
        if real in chain:
            raise ConfigError(f"{origin} leads round in a circle; remove one of its bases")
        if len(chain) > LONGEST_CHAIN:
            raise ConfigError(f"one base too many; chain at most {LONGEST_CHAIN}")
        self.add_text(text, origin, path.parent, (*chain, real))

    def add_text(self, text: str, origin: str, directory: Path = Path(), chain: tuple[str, ...] = ()) -> None:
        """Add YAML text: `origin` names it in messages, a base is looked for in `directory`."""
        with self.noting():
            self.add(parse_yaml(text, origin), self.names, origin, directory, chain)

    def add(
        self,
        given: object,
        names: Mapping[str, Key],
        origin: str = "configuration",
        directory: Path = Path(),
        chain: tuple[str, ...] = (),
    ) -> None:
        """Add a mapping, nested or with dotted names, and below it the file of `base`. Only `names` may be given."""
        if not isinstance(given, Mapping):
            raise ConfigError(f"{origin}: {show(given)} is not a mapping of sections; give one")
        layer: dict[str, Placed] = {}
        sections = {path.partition(".")[0] for path in names}
        unknown = set[str]()
        for path, (value, origin) in _flat("", Placed(given, "")):
            section = path.partition(".")[0]
            if path in layer:
                self.problems.append(f"{origin}{path}: given twice; remove one")
            elif path in names:
                with self.noting(f"{origin}{path}: "):
                    layer[path] = Placed(names[path].check(value), origin)
            elif section not in unknown and not (path in sections and value == {}):
                self.problems.append(unknown_name(path, names, origin))
                unknown |= {section} - sections  # one line for all its keys
        if base := layer.pop("base", None):
            with self.noting(f"{base.origin}base: "):
                self.add_file(config_path(base.value, directory), chain)
        self.all.append(layer)

    def merged(self) -> dict[str, Any]:
        """The value of every key. Raises ConfigError with what was noted."""
        self.refuse(())
        descriptor = fastargs.Config()
        keys = [key for path, key in self.names.items() if path != "base"]
        for section, group in itertools.groupby(keys, key=lambda key: key.section):
            params = {key.name: fastargs.Param(Anything(), key.help, key.default) for key in group}
            fastargs.Section(section, config_descriptor=descriptor).params(**params)
        for layer in self.all:
            descriptor.collect({path: placed.value for path, placed in layer.items()})
        return {key.path: descriptor[key.path] for key in keys}

    def refuse(self, lines: Iterable[str]) -> None:
        """Raise ConfigError with what was noted and `lines`, each with the place where its key or axis was given."""
        origins = {path: placed.origin for layer in self.all for path, placed in layer.items()}
        for line in lines:
            path = line.partition(":")[0]
            if f"axes.{path}" in origins:
                path, line = f"axes.{path}", f"axes.{line}"
            self.problems.append(origins.get(path, "") + line)
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))


def _flat(path: str, placed: Placed) -> Iterator[tuple[str, Placed]]:
    if not isinstance(placed.value, Mapping) or (path and not placed.value):
        yield path, placed
        return
    for name, each in placed.value.items():
        each = each if isinstance(each, Placed) else Placed(each, placed.origin)
        yield from _flat(f"{path}.{name}" if path else str(name), each)


def unknown_name(path: str, names: Collection[str], origin: str) -> str:
    """Why `path` is not one of `names`, and what may be meant. `origin`: as in `Placed`."""
    flag, section, rest = "--" * (origin == "--"), *path.partition(".")[::2]
    head, _, last = path.rpartition(".")
    alike = [each for each in names if each.startswith("axes.") == (section == "axes")]
    own = {each.rpartition(".")[2]: each for each in alike if each.rpartition(".")[0] == head and head}
    elsewhere = [each for each in alike if each.rpartition(".")[2] == last]
    meant: str | None = ("axes." if section == "axes" else "") + ALIASES.get(last, "")
    if meant not in names:
        near = nearest(last, own) if own else nearest(path, names)
        meant = elsewhere[0] if len(elsewhere) == 1 else own.get(near or "", None if own else near)
    valid = own or sorted({each.rpartition(".")[0] or each for each in alike})
    if below := next((each for each in names if each.startswith(f"{path}.")), None):
        end = f"is a section and needs keys below it, such as {below}"
    elif section in ("base", "axes", "sweep", "analysis") and not any(each.startswith(section) for each in names):
        command = "analyze" if section == "analysis" else "sweep"
        end = f"belongs to a file of python -m fastwi.{command}; leave it out here"
    elif section == "axes" and rest in KEYS:
        end = f"cannot be an axis; {axis_refusal(KEYS[rest])}"
    else:
        end = f"unknown name; did you mean {flag}{meant}?" if meant else f"unknown name; valid: {', '.join(valid)}"
    return f"{origin.removesuffix('--')}{show_name(flag + path)}: {end}"
