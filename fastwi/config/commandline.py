"""The command line's grammar: `--config FILE`, switches, and `--section.key VALUE` for every key.

Not argparse: it abbreviates flags, keeps the last of two, and prints and exits by itself.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastwi.cli import ShowAndExit
from fastwi.config.keys import KEYS
from fastwi.config.shipped import config_path
from fastwi.config.values import Given
from fastwi.config.wording import nearest, show
from fastwi.errors import ConfigError
from fastwi.version import __version__

SWITCHES = {
    "dry-run": "check everything, say what would be done, and stop",
    "print-config": "print the whole configuration as YAML and stop",
    "json": "print results as JSON",
    "help": "print this and stop",
    "version": "print the version and stop",
}


@dataclass
class Arguments:
    """What a command line says, before any value is checked. `problems` are one line each."""

    config_file: Path | None = None
    switches: set[str] = field(default_factory=set)
    values: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def asks_for(argv: Sequence[str], name: str) -> bool:
    """Whether `--help` or `--version` stands anywhere: they win, so no mistake elsewhere hides the help."""
    return f"--{name}" in argv or (name == "help" and "-h" in argv)


def answer(argv: Sequence[str], help_text: Callable[[], str]) -> None:
    """Raise ShowAndExit where `--help` or `--version` stands in `argv`."""
    if asks_for(argv, "help"):
        raise ShowAndExit(help_text())
    if asks_for(argv, "version"):
        raise ShowAndExit(f"fastwi {__version__}")


def parse(argv: Sequence[str], names: Collection[str] = KEYS) -> Arguments:
    """Read every argument; what cannot be understood becomes a problem, and reading goes on.

    `names` are the flags, beside `--config` and the switches, that take a value.
    """
    found = Arguments()
    seen: set[str] = set()
    place = 0
    while place < len(argv):
        token = argv[place]
        place += 1
        if not token.startswith("--") or token == "--":
            is_flag = token.startswith("-")
            what = "unknown flag; flags start with --" if is_flag else "stray argument; use --section.key VALUE"
            found.problems.append(f"{show(token)}: {what}")
            continue
        name, equals, value = token[2:].partition("=")
        known = name == "config" or name in SWITCHES or name in names
        if name in SWITCHES:
            if equals:
                found.problems.append(f"--{name}: takes no value; write --{name} alone")
                continue
        elif not equals:
            # A value that starts with -- needs the form with =, else a forgotten one would eat the next flag.
            missing = place >= len(argv) or argv[place].startswith("--")
            if known and missing:
                mend = "FILE" if name == "config" else "VALUE"
                found.problems.append(f"--{name}: a value is missing; write --{name} {mend}")
                seen.add(name)
                continue
            value = "" if missing else argv[place]
            place += 0 if missing else 1
        if not known:
            found.problems.append(_unknown(name, names))
        elif name in seen:
            found.problems.append(f"--{name}: given twice; remove one")
        else:
            seen.add(name)
            _keep(found, name, value)
    return found


def _keep(found: Arguments, name: str, value: str) -> None:
    if name in SWITCHES:
        found.switches.add(name)
    elif name == "config":
        if value:
            try:
                found.config_file = config_path(value)
            except ConfigError as error:
                found.problems.append(f"--config: {error}")
        else:
            found.problems.append("--config: an empty file name; give a YAML file, or leave --config out")
    else:
        found.values[name] = Given(value, "--", text=True)


def _unknown(name: str, names: Collection[str]) -> str:
    guess = nearest(name, [*names, "config", *SWITCHES])
    end = f"did you mean --{guess}?" if guess else "--help lists all"
    return f"--{name}: unknown flag; {end}" if _is_tame(name) else f"{show('--' + name)}: unknown flag; {end}"


def _is_tame(name: str) -> bool:
    return name.isprintable() and len(name) <= 60
