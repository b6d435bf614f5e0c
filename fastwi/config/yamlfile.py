"""Config files: where they are, and their YAML, read strictly, each value with its line.

The node tree is walked rather than the constructed values, because only nodes know their lines and only nodes show a
duplicate key (PyYAML keeps the last one without a word).
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import yaml

from fastwi.config.values import nearest, number_from_text, one_line, show, show_name
from fastwi.errors import ConfigError
from fastwi.sealed import yaml_damage

LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
_PREFIX = "fastwi:"
_DEEPEST = 32  # lists and mappings within each other; PyYAML's time grows with the square
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_UNPLAIN = (yaml.TagToken, yaml.AnchorToken, yaml.AliasToken)


class Placed(NamedTuple):
    """A value, and what stands before its name in messages: 'my.yaml line 3: ', '--' or nothing."""

    value: object
    origin: str


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with fastwi, as `fastwi:NAME`."""
    package = Path(__file__).resolve().parents[1]
    # Installed, they are a folder of the package (setup.py); in a checkout they lie beside it.
    directory = package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
    return {f"{_PREFIX}{path.stem}": path for path in sorted(directory.glob("*.yaml"))}


def config_path(given: str, directory: Path = Path()) -> Path:
    """The file that `--config` or `base` means: a path, from `directory`, or `fastwi:NAME`.

    Raises ConfigError where no configuration of that name comes with fastwi.
    """
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
        names = [each.name for each in path.parent.glob("*.y*ml")]
        guess = nearest(path.name, names)
        hint = f"did you mean {show_name(path.parent / guess, 4096)}?" if guess else "check the path"
        problem = f"no such config file; {hint}"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error}); give a YAML file"
    except ValueError:  # not UTF-8; or a NUL or a lone surrogate in the name
        problem = "is not UTF-8 text, or not a possible file name; give a YAML file"
    raise ConfigError(f"{show_name(path, 4096)}: {problem}")


def parse_yaml(text: str, origin: str) -> object:
    """A document as plain values; each value of a mapping is `Placed`, with `origin` and its line.

    Raises ConfigError, with one line for each problem.
    """
    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _DEEPEST or isinstance(token, _UNPLAIN):
                what = "nested too deeply" if depth > _DEEPEST else "tags (!), anchors (&) and aliases (*)"
                raise ConfigError(f"{_place(token, origin)}{what}: not supported in a configuration; remove it")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin} line {mark.line + 1}" if mark else origin
        raise ConfigError(f"{where}: not valid YAML: {one_line(error.problem or error.context or error)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr()'s errors through
        raise ConfigError(f"{origin}: not valid YAML: {one_line(error)}") from None
    if root is None:
        raise ConfigError(f"{origin}: is empty; give it a section, or leave out --config for the defaults")
    problems: list[str] = []
    value = _plain(root, origin, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return value


def _plain(node: yaml.Node, origin: str, problems: list[str]) -> object:
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Placed] = {}
        for name_node, value in node.value:
            place, name = _place(name_node, origin), name_node.value
            if not isinstance(name_node, yaml.ScalarNode):
                problems.append(f"{place}a name must be plain text; remove the brackets")
            elif name in found:
                problems.append(f"{place}{show_name(name)}: is given above already; remove one")
            else:
                found[name] = Placed(_plain(value, origin, problems), place)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, origin, problems) for each in node.value]
    assert isinstance(node, yaml.ScalarNode)
    text: str = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if node.tag.endswith(":null"):
        return None
    if node.tag.endswith(":bool"):
        return text.lower() in ("true", "yes", "on")
    number = number_from_text(text)
    return text if number is None else number


def _place(node: yaml.Node | yaml.Token, origin: str) -> str:
    return f"{origin} line {node.start_mark.line + 1}: "
