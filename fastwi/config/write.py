"""A Config out again: as plain data, as YAML that reads back to the same Config, as a short stable hash."""

import hashlib
import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import yaml

from fastwi.config.helptext import facts
from fastwi.config.keys import KEYS, SECTIONS, Key, Scalar, Value, section_keys, section_title
from fastwi.config.schema import Config
from fastwi.models.names import placeless

HASH_VERSION = 1
"""Raise it when a default or a key's meaning changes: the same hash must not name another experiment."""

HASH_DIGITS = 12

# What cannot change a result. run: where it is written. data.streaming: where images wait. data.decoder: it changes
# the pixels of JPEGs only, and then the dataset's digest (`experiment.inputs`). engine: how it is
# computed; engines, backends, thread counts and devices agree to float tolerance, which is what this project calls
# the same result. Precision is no member: bf16 and fp32 round differently by far more than that.
_NO_RESULT = frozenset(
    key.path for key in KEYS.values() if key.section in ("run", "engine") and key.path != "engine.precision"
) | {"data.streaming", "data.decoder"}


def value_of(config: Config, key: Key) -> Value:
    """The value that `config` has for `key`."""
    value: Value = getattr(getattr(config, key.section), key.name)
    return value


def changes(config: Config, keys: Iterable[Key]) -> dict[str, Any]:
    """The values of `keys` that differ from their defaults, by path, as plain values that JSON takes.

    Names of results are made of these: a key that is added later leaves the earlier names as they were.
    """
    return {key.path: _plain(value) for key in keys if (value := value_of(config, key)) != key.default}


def to_mapping(config: Config) -> dict[str, dict[str, Any]]:
    """`{section: {key: value}}`, complete, of plain values that JSON takes; tuples are lists."""
    return {
        section: {key.name: _plain(value_of(config, key)) for key in section_keys(section)} for section in SECTIONS
    }


def to_yaml(config: Config) -> str:
    """The complete configuration as commented YAML (ASCII); `config_from_yaml` gives an equal Config back."""
    lines = ["# A complete fastwi configuration."]
    lines += config_lines(config)
    return "\n".join(lines) + "\n"


def config_lines(config: Config) -> list[str]:
    """Every section as lines of commented YAML."""
    lines = []
    for section, kind in SECTIONS.items():
        lines += ["", f"{section}:  # {section_title(kind)}"]
        for key in section_keys(section):
            lines += key_lines(key, yaml_value(value_of(config, key)))
    return lines


def key_lines(key: Key, value: str) -> list[str]:
    """One key with its help as a comment above it; `value` is YAML already."""
    comment = f"{key.help} [{facts(key)}]"
    return [
        *textwrap.wrap(comment, 110, initial_indent="  # ", subsequent_indent="  # "),
        f"  {key.name}: {value}",
    ]


def config_hash(config: Config, dataset_digest: str | None = None) -> str:
    """12 hex digits that name what decides a run's result.

    Left out are `run.*` and, of `engine.*`, all but `precision`. A value equal to its default adds nothing,
    so that a key added to the schema later leaves the hashes of older configurations as they were. Child
    noise spelled out as 1, 2, ... n is the default.

    Args:
        config: a checked configuration, as the user wrote it: `auto` is not resolved.
        dataset_digest: what the data is, the weights started from and the source of a network of the user's own.
            Where it is given it stands for `data.path`, `model.weights` and the directory in `model.name`, so that
            files that moved keep their hash; without it the paths count.
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


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def yaml_value(value: Value) -> str:
    """A value as YAML in one line."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml_scalar(each) for each in value) + "]"
    return _yaml_scalar(value)


def _yaml_scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Quoted always: a run named 2024 or yes stays text.
        return yaml.safe_dump(value, default_style='"', width=sys.maxsize).rstrip("\n")
    text = repr(value)
    if "e" in text and "." not in text:
        return text.replace("e", ".0e")  # other YAML 1.1 readers take 1e-05 for text
    return text
