"""From a command line or a mapping to a checked `Config`: fastargs, fenced in.

fastargs holds the Sections and Params, which are generated from the schema, and merges the layers: its
`collect` is called once for the file and once for the command line, so that a flag wins over the file and
both win over the default. All else that fastargs offers is left alone, because it drops unknown keys, turns
3.7 into 3 and 'False' into True, lets environment variables win, and exits with 0 on bad input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastargs

from fastwi.cli import ShowAndExit
from fastwi.config import commandline
from fastwi.config.check import check_config
from fastwi.config.helptext import help_text
from fastwi.config.keys import (
    KEYS,
    SECTIONS,
    Key,
    Value,
    section_keys,
    section_title,
)
from fastwi.config.mapping import values_by_name
from fastwi.config.schema import Config
from fastwi.config.values import Given, StrictChecker
from fastwi.config.write import to_yaml
from fastwi.config.yamlfile import read_config_file, values_from_yaml
from fastwi.errors import ConfigError


@dataclass(frozen=True)
class Request:
    """What a command was asked to do."""

    config: Config
    config_file: Path | None
    dry_run: bool
    json: bool


def read_request(argv: Sequence[str], command: str, description: str = "") -> Request:
    """Read a command's arguments (without the program's name) and its config file.

    Args:
        argv: the arguments, such as `sys.argv[1:]`.
        command: the module that was run, such as `fastwi.train`; for `--help`.
        description: what the command does, in a line or two; for `--help`.

    Raises:
        ConfigError: with one line for each problem found, in the command line, the file and the values.
        ShowAndExit: `--help`, `--version` or `--print-config` stands in `argv`.
    """
    commandline.answer(argv, lambda: help_text(command, description))
    arguments = commandline.parse(argv)
    problems = list(arguments.problems)
    from_file: dict[str, Given] = {}
    if arguments.config_file is not None:
        from_file, file_problems = read_config_file(arguments.config_file)
        problems += file_problems
    config = build([from_file, arguments.values], problems)
    if "print-config" in arguments.switches:
        raise ShowAndExit(to_yaml(config).removesuffix("\n"))
    return Request(
        config=config,
        config_file=arguments.config_file,
        dry_run="dry-run" in arguments.switches,
        json="json" in arguments.switches,
    )


def config_from_mapping(mapping: Mapping[str, Any]) -> Config:
    """The Config that `{section: {key: value}}` says, with defaults for what it leaves out.

    As strict as the file reader, and every check is made. `config_from_mapping(to_mapping(config))` checks a
    Config that was built by hand. Lists and tuples may both stand for tuples.

    Raises:
        ConfigError: with one line for each problem.
    """
    problems: list[str] = []
    return build([given_values(mapping, problems)], problems)


def given_values(mapping: object, problems: list[str]) -> dict[str, Given]:
    """The values of a run's configuration that a mapping says; problems are appended."""
    return {path: Given(value, "") for path, value in values_by_name(mapping, problems).items()}


def config_from_yaml(text: str, origin: str = "configuration") -> Config:
    """The Config that YAML text says, such as a run directory's stored one; `origin` names it in messages.

    Raises:
        ConfigError: with one line for each problem.
    """
    given, problems = values_from_yaml(text, origin)
    return build([given], problems)


def build(layers: list[dict[str, Given]], problems: list[str]) -> Config:
    """Merge the layers, later ones winning, and check every one of them, overridden values included.

    Raises ConfigError with `problems` and one line for each further one.
    """
    sections = merge(layers, problems, SECTIONS, KEYS)
    if problems:
        raise ConfigError("\n".join(problems))
    config = Config(**sections)
    check_config(config)
    return config


def merge(
    layers: list[dict[str, Given]], problems: list[str], sections: Mapping[str, type], keys: Mapping[str, Key]
) -> dict[str, Any]:
    """Merge layers of values by dotted key, later ones winning, and check every one, overridden values included.

    Args:
        layers: the values, each with its origin.
        problems: one line is appended for each value that its key refuses.
        sections: the dataclass of each section.
        keys: the sections' keys.

    Returns:
        An instance of each section's dataclass; nothing where a value was refused.
    """
    merged = _descriptor(sections, keys)
    good = True
    for layer in layers:
        merged.collect(_nested(layer))
        for path, error in merged.validate(mode="errordict").items():
            # fastargs drops the checker's message; Python keeps it as the context.
            line = f"{merged.content[path].origin}{'.'.join(path)}: {error.__context__}"
            good = False
            if line not in problems:
                problems.append(line)
    if not good:
        return {}
    values: dict[str, Value] = {path: merged[path] for path in keys}
    return {
        section: kind(**{key.name: values[key.path] for key in section_keys(section, keys)})
        for section, kind in sections.items()
    }


def _descriptor(sections: Mapping[str, type], keys: Mapping[str, Key]) -> Any:
    """A fresh fastargs Config with the schema's Sections and Params; fastargs's global one is not touched."""
    descriptor = fastargs.Config()
    for section, kind in sections.items():
        params = {
            key.name: fastargs.Param(StrictChecker(key), desc=key.help, default=key.default)
            for key in section_keys(section, keys)
        }
        fastargs.Section(section, section_title(kind), config_descriptor=descriptor).params(**params)
    return descriptor


def _nested(layer: dict[str, Given]) -> dict[str, dict[str, Given]]:
    nested: dict[str, dict[str, Given]] = {}
    for path, given in layer.items():
        section, _, name = path.partition(".")
        nested.setdefault(section, {})[name] = given
    return nested
