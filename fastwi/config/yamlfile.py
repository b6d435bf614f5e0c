"""A config file's YAML, read strictly: sections of keys, each with its line; no duplicates, no surprises.

The safe loader's node tree is walked rather than its constructed values, because only nodes know their lines
and only nodes show a duplicate key (PyYAML keeps the last one without a word).
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import yaml

from fastwi.config.keys import KEYS, SECTIONS, Key, unknown_key, unknown_section
from fastwi.config.values import Given, number_from_text
from fastwi.config.wording import nearest, show, show_path
from fastwi.sealed import yaml_damage

LARGEST_FILE = 1 << 20  # bytes; a configuration has a few thousand
_DEEPEST = 32  # lists and mappings within each other; PyYAML's time grows with the square
_BOOL_TAG = "tag:yaml.org,2002:bool"
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def read_config_file(path: Path) -> tuple[dict[str, Given], list[str]]:
    """The values of a config file by dotted key, and every problem met (one line each)."""
    text, problem = read_text(path)
    if problem:
        return {}, [f"{show_path(path)}: {problem}"]
    return values_from_yaml(text, show_path(path))


def values_from_yaml(text: str, origin: str) -> tuple[dict[str, Given], list[str]]:
    """The same for YAML text; `origin` names it in messages."""
    root, problems = root_mapping(text, origin)
    values: dict[str, Given] = {}
    if root is not None:
        for section, where, node in named_nodes(root, origin, "section", problems):
            if section in SECTIONS:
                values |= section_values(section, where, node, origin, problems)
            else:
                problems.append(f"{where}: {unknown_section(section)}")
    return values, problems


def root_mapping(text: str, origin: str) -> tuple[yaml.MappingNode | None, list[str]]:
    """The document's mapping, or None and the problem."""
    root, problem = compose(text, origin)
    if problem:
        return None, [problem]
    if root is None:
        return None, [f"{origin}: holds no settings; give it a section, or leave out --config for the defaults"]
    if not isinstance(root, yaml.MappingNode):
        return None, [f"{place(origin, root)}: not a mapping; give sections, each 'name:' with keys below"]
    return root, []


def compose(text: str, origin: str) -> tuple[yaml.Node | None, str]:
    """The document's node (None: it is empty) and no problem, or None and the problem."""
    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _DEEPEST:
                return None, f"{place(origin, token)}: nested too deeply; a configuration has sections of keys alone"
            if isinstance(token, yaml.TagToken):
                return None, f"{place(origin, token)}: YAML tags (!words) are not supported; remove it"
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        return root, ""
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin} line {mark.line + 1}" if mark else origin
        return None, f"{where}: not valid YAML: {_one_line(error.problem or error.context or error)}"
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets chr()'s errors through
        return None, f"{origin}: not valid YAML: {_one_line(error)}"


def section_values(
    section: str,
    where: str,
    section_node: yaml.Node,
    origin: str,
    problems: list[str],
    keys: Mapping[str, Key] = KEYS,
) -> dict[str, Given]:
    """The values of one section by dotted key; `where` is the section's place. Problems are appended."""
    values: dict[str, Given] = {}
    if not isinstance(section_node, yaml.MappingNode):
        problems.append(f"{where}: {section}: a section needs keys below it; add some or remove it")
        return values
    for name, key_place, node in named_nodes(section_node, origin, f"key of {section}", problems):
        if f"{section}.{name}" not in keys:
            problems.append(f"{key_place}: {unknown_key(section, name, keys)}")
        else:
            values[f"{section}.{name}"] = Given(plain_value(node), f"{key_place}: ")
    return values


def named_nodes(
    mapping: yaml.MappingNode, origin: str, kind: str, problems: list[str]
) -> list[tuple[str, str, yaml.Node]]:
    """Each name's first use as (name, its place, value); repeats and names that are no text are problems."""
    lines: dict[str, int] = {}
    pairs = []
    for name_node, node in mapping.value:
        where = place(origin, name_node)
        if not isinstance(name_node, yaml.ScalarNode):
            problems.append(f"{where}: the name of a {kind} must be plain text")
            continue
        name: str = name_node.value
        if name in lines:
            problems.append(
                f"{where}: duplicate {kind} {show(name)}, given on line {lines[name]} already; remove one"
            )
        else:
            lines[name] = name_node.start_mark.line + 1
            pairs.append((name, where, node))
    return pairs


def plain_value(node: yaml.Node, *, nested: bool = False) -> object:
    """A node as null, bool, int, float, text or a flat list; anything deeper as a mapping, to be refused."""
    if isinstance(node, yaml.SequenceNode):
        return [] if nested else [plain_value(element, nested=True) for element in node.value]
    if not isinstance(node, yaml.ScalarNode):
        return {}
    text: str = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if node.tag == _BOOL_TAG:
        return text.lower() in ("true", "yes", "on")
    if text.lower().lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    number = number_from_text(text)
    return text if number is None else number


def read_text(path: Path) -> tuple[str, str]:
    """The file's text and no problem, or no text and the problem with its mend."""
    try:
        # Before opening: opening a named pipe would wait for a writer, for ever if none comes.
        if stat.S_ISFIFO(os.stat(path).st_mode):
            return "", "a named pipe; give a YAML file"
        with open(path, "rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            return "", "larger than 1 MiB; a configuration is a few lines of YAML"
        text = raw.decode("utf-8-sig")
        problem = yaml_damage(text)
        return ("", f"{problem}; where you changed it, remove its last line") if problem else (text, "")
    except FileNotFoundError:
        return "", f"no such config file; {_other_files(path)}"
    except UnicodeDecodeError:
        return "", "not UTF-8 text; give a YAML file"
    except OSError as error:
        return "", f"cannot be read ({error.strerror or error}); give a YAML file"
    except ValueError:  # a NUL or a lone surrogate in the name
        return "", "not a possible file name; give a YAML file"


def _other_files(path: Path) -> str:
    try:
        names = [each.name for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml")]
    except OSError:
        return f"there is no directory {show_path(path.parent)} either; check the path"
    guess = nearest(path.name, names)
    return f"did you mean {show_path(path.parent / guess)}?" if guess else "check the path"


def place(origin: str, node: yaml.Node | yaml.Token) -> str:
    """Where a node stands, for messages: 'my.yaml line 3'."""
    return f"{origin} line {node.start_mark.line + 1}"


def _one_line(message: object) -> str:
    line = " ".join(str(message).split())[:200]
    return "".join(each if each.isprintable() else "?" for each in line)
