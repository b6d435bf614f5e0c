"""A configuration out again: as plain data, as YAML that reads back to an equal one, as a hash"""

import hashlib
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from fastwi.config.layers import shipped_configs
from fastwi.config.schema import KEYS, SECTIONS, Config, section_keys
from fastwi.config.sweep import ALL_SECTIONS, NAMES, AnalysisOptions, SweepSpec
from fastwi.config.values import Key
from fastwi.models.names import placeless

HASH_VERSION = 1
"""Raise it when a default or a key's meaning changes: the same hash must not name another experiment."""

HASH_DIGITS = 12
WIDTH = 100
FLAGS = {
    "config FILE": f"YAML file, or one that comes with fastwi: {', '.join(shipped_configs())}",
    "section.key VALUE": "override a value of the file, which overrides the defaults",
    "dry-run": "check everything, say what would be done, and stop",
    "print-config": "print the whole configuration as YAML and stop",
    "json": "print results as JSON",
    "version": "print the version and stop",
    "help SECTION": f"all about the keys of {', '.join(ALL_SECTIONS)}; --help all: of all sections",
}
"""Of every command that takes a configuration."""

FIGURES = {"figures STYLE": "screen, or paper: without titles, with fonts that stay text"}
"""Of every command that draws."""

_METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}
_LONGEST_LIST = 8  # whole numbers of an option; more in a row are written as a range

# What cannot change a result. run: where it is written. data.streaming: where images wait. data.decoder: it changes
# the pixels of JPEGs only, and then the dataset's digest (`experiment.inputs`). engine: how it is computed; all agree
# to float tolerance, which is what this project calls the same result. bf16 and fp32 differ by far more than that.
_NO_RESULT = {key.path for key in KEYS.values() if key.section in ("run", "engine")} - {"engine.precision"} | {
    "data.streaming",
    "data.decoder",
}


def changes(config: Config, keys: Iterable[Key]) -> dict[str, Any]:
    """The values of `keys` that differ from their defaults, by path.

    Names of results are made of these: a key that is added later leaves the earlier names as they were.
    """
    values = ((key, getattr(getattr(config, key.section), key.name)) for key in keys)
    return {key.path: value for key, value in values if value != key.default}


def config_hash(config: Config, dataset_digest: str | None = None) -> str:
    """12 hex digits that name what decides a run's result.

    A value equal to its default adds nothing. Child noise spelled out as 1, 2, ... n is the default.

    Args:
        config: a checked configuration, as the user wrote it: `auto` is not resolved.
        dataset_digest: what the data is, the weights started from and the source of a network of the user's own.
            It stands for `data.path`, `model.weights` and the directory in `model.name`, so that files that moved
            keep their hash; without it the paths count.
    """
    decides = changes(config, (key for key in KEYS.values() if key.path not in _NO_RESULT))
    if config.seeds.child_noise == tuple(range(1, config.experiment.children + 1)):
        decides.pop("seeds.child_noise", None)
    if dataset_digest is not None:
        decides.pop("model.weights", None)
        if "model.name" in decides:
            decides["model.name"] = placeless(config.model.name)
        decides["data.path"] = {"digest": dataset_digest}
    text = json.dumps([HASH_VERSION, decides], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:HASH_DIGITS]


def to_yaml(config: Config, changed: bool = False) -> str:
    """The complete configuration as commented YAML (ASCII); `config_from_yaml` gives an equal one back.

    `changed`: only the keys that differ from their defaults, without comments.
    """
    return "\n".join(["# A complete fastwi configuration."][changed:] + _config_lines(config, changed)) + "\n"


def sweep_to_yaml(spec: SweepSpec, analysis: AnalysisOptions | None = None, changed: bool = False) -> str:
    """The whole sweep likewise, the base written out, with the options of its studies where they are given."""
    lines = ["# A complete fastwi sweep."][changed:] + _config_lines(spec.base, changed)
    if spec.axes:
        lines += ["", "axes:  # keys of the configuration, each with the values that it takes in turn"]
        lines += [f"  {axis.path}: {_yaml(axis.values, ranges=True)}" for axis in spec.axes]
    lines += _section_lines("sweep", spec.options, changed)
    if analysis is not None:
        lines += _section_lines("analysis", analysis, changed)
    return "\n".join(lines) + "\n"


def _config_lines(config: Config, changed: bool) -> list[str]:
    return [line for section in SECTIONS for line in _section_lines(section, getattr(config, section), changed)]


def _section_lines(section: str, values: object, changed: bool) -> list[str]:
    lines = []
    for key in section_keys(section, NAMES):
        value = getattr(values, key.name)
        if not changed:
            comment = f"{key.help} [{_facts(key)}]"
            lines += textwrap.wrap(comment, 110, initial_indent="  # ", subsequent_indent="  # ")
        if not changed or value != key.default:
            lines.append(f"  {key.name}: {_yaml(value, ranges=section not in SECTIONS)}")
    return ["", f"{section}:  # {_title(section)}", *lines] if lines else []


def _yaml(value: Any, ranges: bool = False) -> str:
    """A value as YAML in one line; with `ranges`, many whole numbers in a row as a range."""
    if isinstance(value, tuple):
        first = value[0] if ranges and len(value) > _LONGEST_LIST else None
        if type(first) is int and value == tuple(range(first, first + len(value))):
            return f"{first}..{value[-1]}"
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        # Quoted always: a run named 2024 or yes stays text.
        return yaml.safe_dump(value, default_style='"', width=sys.maxsize).rstrip("\n")
    text = _word(value) if isinstance(value, bool) else repr(value)
    # Other YAML 1.1 readers take 1e-05 for text.
    return text.replace("e", ".0e") if isinstance(value, float) and "e" in text and "." not in text else text


def _title(section: str) -> str:
    """The first line of a section's docstring (empty under `python -OO`)."""
    return (ALL_SECTIONS[section].__doc__ or "").strip().partition("\n")[0]


def _facts(key: Key) -> str:
    """Default, unit and bounds in one line."""
    facts = (f"default {_default(key) or 'empty'}", f"in {key.unit}" if key.unit else "", key.limits)
    return "; ".join(filter(None, facts))


def _default(key: Key) -> str:
    return ",".join(map(_word, key.default)) if key.many else _word(key.default)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def study_lines(studies: Mapping[str, str]) -> list[str]:
    """Each study with what it answers, one line each."""
    width = max(map(len, studies))
    return [f"  {name:<{width}}  {text}" for name, text in studies.items()]


def help_text(
    program: str, about: str, flags: Mapping[str, str], text: str, sections: Iterable[str], topic: str
) -> str:
    """The help of `python -m program`.

    `flags`: each with its meaning. `text`: what else is to be said. `sections`: those whose keys are named.
    `topic`: a section for all about its keys, or `all`; else the short help.
    """
    if topic in ALL_SECTIONS or topic == "all":
        chosen = ALL_SECTIONS if topic == "all" else [topic]
        return "\n\n".join("\n".join([f"{name}: {_title(name)}", *_key_lines(name)]) for name in chosen)
    lines = [f"usage: python -m {program} [--config FILE] [--section.key VALUE ...]", "", *_wrap(about, ""), ""]
    for flag, meaning in flags.items():
        lines += [f"  --{flag}", *_wrap(meaning, " " * 6)]
    lines += ["", *text.splitlines()] if text else []
    for section in sections:
        keys = (f"{key.name} {_default(key)}".rstrip() for key in section_keys(section, NAMES))
        lines += ["", f"{section}: {_title(section)}", *_wrap("Keys and defaults: " + ", ".join(keys), "  ")]
    return "\n".join(lines)


def _key_lines(section: str) -> list[str]:
    lines = []
    for key in section_keys(section, NAMES):
        one = "{" + ",".join(key.choices) + "}" if key.choices else _METAVARS[key.scalar]
        lines.append(f"  --{key.path} " + (f"{one}{key.separator}{one}{key.separator}..." if key.many else one))
        lines += _wrap(f"{key.help} [{_facts(key)}]", " " * 6)
    return lines


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
