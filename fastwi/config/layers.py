"""From files, command lines and Python objects to layers: checked values by dotted name, each with its place.

fastargs merges the layers: its Sections and Params are made of the declarations, and its `collect` is called for each
layer in turn, so that a flag wins over the file, the file over its base, and all win over the default. All else that
fastargs offers is left alone: it drops unknown keys, turns 3.7 into 3 and 'False' into True, lets environment
variables win, and exits with 0 on bad input.
"""

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fastargs
import yaml
from fastargs.validation import Anything

from fastwi.config.schema import KEYS
from fastwi.config.sweep import axis_refusal
from fastwi.config.values import Key, nearest, number_from_text, one_line, show, show_name
from fastwi.errors import ConfigError, printable
from fastwi.files import open_plain
from fastwi.sealed import yaml_damage

LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
_DEEPEST = 32  # lists and mappings within each other; PyYAML's time grows with the square
_LONGEST_CHAIN = 8  # bases under a file

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
    return {f"fastwi:{path.stem}": path for path in sorted(directory.glob("*.yaml"))}


def read_text(path: Path) -> str:
    """The text of a config file. Raises ConfigError, in one line that begins with the path."""
    problem = "is larger than 1 MiB; a configuration is a few lines of YAML"
    try:
        with open_plain(path) as stream:
            raw = stream.read(LARGEST_FILE + 1)
        if len(raw) <= LARGEST_FILE:
            text = raw.decode("utf-8-sig")
            damage = yaml_damage(text)
            if not damage:
                return text
            problem = f"{damage}; where you changed it, remove its last line"
    except FileNotFoundError:
        guess = nearest(path.name, [*shipped_configs(), *(each.name for each in path.parent.glob("*.y*ml"))])
        problem = f"no such config file; did you mean {guess}?" if guess else "no such config file; check the path"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); give a YAML file"
    except ValueError:  # not UTF-8; or a NUL or a lone surrogate in the name
        problem = "is not UTF-8 text, or not a possible file name; give a YAML file"
    raise ConfigError(f"{printable(str(path))}: {problem}")


def parse_yaml(text: str, origin: str) -> Any:
    """A document as plain values; each value of a mapping is `Placed`, with `origin` and its line.

    The node tree is walked rather than the constructed values: only nodes know their lines, and show a duplicate key.
    Raises ConfigError in one line.
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
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr()'s errors through
        mark = getattr(error, "problem_mark", None)
        where = f"{origin} line {mark.line + 1}" if mark else origin
        raise ConfigError(f"{where}: not valid YAML: {one_line(getattr(error, 'problem', error))}") from None
    if root is None:
        raise ConfigError(f"{origin}: is empty; give it a section, or leave out --config for the defaults")
    return _plain(root, origin)


def _plain(node: Any, origin: str) -> object:
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Placed] = {}
        for name_node, value in node.value:
            place = _place(name_node, origin)
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "[...]"
            if name == "[...]":
                raise ConfigError(f"{place}{name}: a name must be plain text; give a section or a key")
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
    """What files, a command line or a program say so far, later layers over earlier ones, and every problem met.

    `names`: what files may say. `given`: each name that was given, with the value that holds. `last`: the names that
    the last layer gave. `file`: that of `config`.
    """

    def __init__(self, names: Mapping[str, Key]) -> None:
        self.names = names
        self.file: Path | None = None
        self.given = dict[str, Placed]()
        self.last = set[str]()
        self.problems = list[str]()
        self._merged = fastargs.Config()
        keys = [key for key in names.values() if key.section]
        for section, group in itertools.groupby(keys, key=lambda key: key.section):
            params = {key.name: fastargs.Param(Anything(), key.help, key.default) for key in group}
            fastargs.Section(section, config_descriptor=self._merged).params(**params)

    @contextlib.contextmanager
    def noting(self, origin: str = "") -> Iterator[None]:
        """Note what the block refuses, and go on after it."""
        try:
            yield
        except (ConfigError, ValueError) as error:
            self.problems += [f"{origin}{line}" for line in str(error).splitlines()]

    def add_text(self, text: str, origin: str, directory: Path = Path(), chain: tuple[str, ...] = ()) -> None:
        """Add YAML text: `origin` names it in messages, a base is looked for in `directory`."""
        with self.noting():
            given = parse_yaml(text, origin)
            for name in ("base", "axes", "sweep"):
                if self.names is KEYS and isinstance(given, dict) and name in given:
                    place = f"{given[name].origin}{name}"
                    raise ConfigError(f"{place}: is of a sweep file; give the file to python -m fastwi.sweep")
            self.add(given, self.names, origin, directory, chain)

    def add(
        self,
        given: object,
        names: Mapping[str, Key],
        origin: str = "configuration",
        directory: Path = Path(),
        chain: tuple[str, ...] = (),
        last: bool = False,
    ) -> None:
        """Add a mapping, nested or with dotted names, and below it the file of `base` or `config`.

        `names`: what it may say. `chain`: the files that led here. A key that is an axis of a layer below is refused,
        as the axis would win; in the `last` layer one that is its own axis too.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(f"{origin}: {show(given)} is not a mapping of sections; give one")
        layer: dict[str, Placed] = {}
        sections = {path.partition(".")[0] for path in names if "." in path}
        for path, (value, origin) in _flat(given):
            if path in layer:
                self.problems.append(f"{origin}{path}: given twice; remove one")
            elif path == "config" and path in names:
                layer[path] = Placed(value, origin)  # any file name that the system has, not only printable text
            elif path in names:
                with self.noting(f"{origin}{path}: "):
                    layer[path] = Placed(names[path].check(value), origin)
            elif path not in sections or value != {}:
                self.problems.append(unknown_name(path, names, origin))
        for name in ("base", "config"):
            if name not in layer:
                continue
            below = layer.pop(name)
            path = shipped_configs().get(below.value, directory / below.value)
            if name == "config":
                self.file = path
            with self.noting(f"{below.origin}{name}: "):
                self._add_file(path, chain)
        named = self.given.keys() | layer.keys() if last else self.given.keys() - layer.keys()
        for path, (_, origin) in layer.items():
            axis = f"axes.{path}"
            if axis in named:
                flag = "--" if origin == "--" else ""
                self.problems.append(
                    f"{origin}{path}: a sweep does not use it; use {flag}{axis}, as it is an axis here"
                )
        self.given |= layer
        self.last = set(layer)
        self._merged.collect({path: placed.value for path, placed in layer.items()})

    def _add_file(self, path: Path, chain: tuple[str, ...]) -> None:
        text, origin, real = read_text(path), printable(str(path)), os.path.realpath(path)
        if real in chain:
            raise ConfigError(f"{origin} leads round in a circle; remove one of its bases")
        if len(chain) > _LONGEST_CHAIN:
            raise ConfigError(f"{origin} is base number {len(chain)} in a chain; use at most {_LONGEST_CHAIN}")
        self.add_text(text, origin, path.parent, (*chain, real))

    def merged(self) -> dict[str, Any]:
        """The value of every key. Raises ConfigError with what was noted."""
        self.refuse(())
        return {path: self._merged[path] for path, key in self.names.items() if key.section}

    def refuse(self, lines: Iterable[str]) -> None:
        """Raise ConfigError with what was noted and `lines`, each with the place where its key or axis was given."""
        for line in lines:
            path = line.partition(":")[0]
            if f"axes.{path}" in self.given:
                path, line = f"axes.{path}", f"axes.{line}"
            self.problems.append((self.given[path].origin if path in self.given else "") + line)
        if self.problems:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))


def _flat(given: Mapping[str, Any], prefix: str = "", origin: str = "") -> Iterator[tuple[str, Placed]]:
    """Each value by its dotted name. An empty mapping is a value too: only a section may be empty."""
    for name, each in given.items():
        placed = each if isinstance(each, Placed) else Placed(each, origin)
        path = f"{prefix}{name}"
        if isinstance(placed.value, Mapping) and placed.value:
            yield from _flat(placed.value, f"{path}.", placed.origin)
        else:
            yield path, placed


def unknown_name(path: str, names: Collection[str], origin: str) -> str:
    """Why `path` is not one of `names`, and what may be meant. `origin`: as in `Placed`."""
    flag = "--" if origin == "--" else ""
    section, _, rest = path.partition(".")
    head, _, last = path.rpartition(".")
    below = next((each for each in names if each.startswith(f"{path}.")), None)
    if below is not None:
        end = f"is a section and needs keys below it, such as {below}"
    elif section in ("base", "axes", "sweep", "analysis") and not any(each.startswith(section) for each in names):
        command = "analyze" if section == "analysis" else "sweep"
        end = f"belongs to a file of python -m fastwi.{command}; leave it out here"
    elif section == "axes" and rest in KEYS:
        end = f"cannot be an axis; {axis_refusal(KEYS[rest])}"
    else:
        alike = [each for each in names if each.startswith("axes.") == (section == "axes")]
        parts = [(each, *each.rpartition(".")[::2]) for each in alike]
        own = {its_last: each for each, its_head, its_last in parts if head and its_head == head}
        same = [each for each, _, its_last in parts if its_last == last]
        alias = "axes." * (section == "axes") + ALIASES.get(last, "")
        if alias in names:
            meant = alias
        elif len(same) == 1:
            meant = same[0]
        elif own:
            meant = own.get(nearest(last, own) or "", "")
        else:
            meant = nearest(path, names) or ""
        valid = own or sorted({its_head or each for each, its_head, _ in parts})
        end = f"unknown name; did you mean {flag}{meant}?" if meant else f"unknown name; valid: {', '.join(valid)}"
    return f"{origin.removesuffix('--')}{show_name(flag + path)}: {end}"
