"""`--help`, generated from the schema: every key with its default, unit, choices and meaning, by section."""

import textwrap
from collections.abc import Iterable

from fastwi.config.commandline import SWITCHES
from fastwi.config.keys import SECTIONS, Key, Scalar, section_keys, section_title
from fastwi.config.shipped import PREFIX, shipped_names

WIDTH = 100
_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}


def help_text(command: str, description: str) -> str:
    """The help of `python -m command`; `description` says in a line or two what it does."""
    usage = f"usage: python -m {command} [--config FILE] [--section.key VALUE ...] "
    usage += " ".join(f"[--{switch}]" for switch in SWITCHES)
    lines = textwrap.wrap(usage, WIDTH, subsequent_indent=" " * 7)
    if description:
        lines += ["", *textwrap.wrap(description, WIDTH)]
    lines += ["", "A flag wins over the config file, the file over the defaults."]
    lines += ["", "  --config FILE", "      YAML file with the sections and keys below", *shipped_lines()]
    lines += switch_lines()
    for section, kind in SECTIONS.items():
        lines += ["", f"{section}: {section_title(kind)}", *key_lines(section_keys(section))]
    return "\n".join(lines)


def shipped_lines() -> list[str]:
    """What else may stand after `--config`."""
    text = f"or one that comes with fastwi, from anywhere: {PREFIX} and {', '.join(shipped_names())}"
    return textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def switch_lines() -> list[str]:
    """The switches, each with its meaning."""
    return [line for switch, text in SWITCHES.items() for line in (f"  --{switch}", f"      {text}")]


def key_lines(keys: Iterable[Key]) -> list[str]:
    """Each key's flag, meaning and facts."""
    lines = []
    for key in keys:
        lines.append(f"  --{key.path} {metavar(key)}")
        lines += textwrap.wrap(key.help, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append(f"      [{facts(key)}]")
    return lines


def metavar(key: Key) -> str:
    """What stands for the value: INT, or INT,INT,... for a list, or the choices."""
    one = "{" + ",".join(key.choices) + "}" if key.choices else _METAVARS[key.scalar]
    return f"{one},{one},..." if key.many else one


def facts(key: Key) -> str:
    """Default, unit and bounds in one line."""
    parts = [f"default {_default(key)}"]
    if key.unit:
        parts.append(f"in {key.unit}")
    if key.limits:
        parts.append(key.limits)
    return "; ".join(parts)


def _default(key: Key) -> str:
    if isinstance(key.default, tuple):
        return ",".join(_word(each) for each in key.default) or "empty"
    return _word(key.default) or "empty"


def _word(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
