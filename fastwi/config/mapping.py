"""Values by dotted name from a mapping, nested (`{"experiment": {"k": 3}}`) or with dotted names of its own."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from fastwi.config.keys import KEYS, SECTIONS, Key, unknown_key, unknown_section
from fastwi.config.wording import nearest, show
from fastwi.errors import ConfigError


def values_by_name(
    given: object,
    problems: list[str],
    sections: Collection[str] = tuple(SECTIONS),
    keys: Mapping[str, Key] = KEYS,
    others: Collection[str] = (),
) -> dict[str, Any]:
    """The values of `keys` by dotted name, in Python's own types; problems are appended.

    `others`: sections whose names are not looked at, and names without a section. Raises ConfigError for what is no
    mapping.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"configuration: {show(given)} is no mapping of sections; give one")
    found: dict[str, Any] = {}
    for name, value in given.items():
        section, _, key = str(name).partition(".")
        if section not in sections and section not in others:
            meant = None if key or isinstance(value, Mapping) else nearest(section, keys)
            end = unknown_section(section, (*sections, *others), keys)
            problems.append(end if meant is None else f"{show(section)}: unknown name; did you mean {meant}?")
        elif isinstance(value, Mapping) and not key:
            for each in value:
                _add(found, f"{section}.{each}", value[each], problems)
        elif key or section in others:
            _add(found, str(name), value, problems)
        else:
            problems.append(f"{section}: {show(value)} is no mapping of keys; give one")
    for path in [path for path in found if path not in keys and path.partition(".")[0] not in others]:
        section, _, key = path.partition(".")
        problems.append(unknown_key(section, key, keys))
        del found[path]
    return found


def _add(found: dict[str, Any], path: str, value: object, problems: list[str]) -> None:
    if path in found:
        problems.append(f"{path}: given twice; remove one")
    found[path] = _plain(value)


def _plain(value: object) -> Any:
    """Paths as text; NumPy's and torch's numbers and arrays, tuples and ranges as numbers and lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, (list, tuple, range)) else value
