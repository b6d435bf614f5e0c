"""A configuration out again: as plain data, as YAML that reads back to an equal one, as a hash"""

import hashlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from fastwi.config.schema import KEYS, SECTIONS, Config, section_keys
from fastwi.config.sweep import ALL_SECTIONS, INSTEAD, NAMES, AnalysisOptions, SweepSpec
from fastwi.config.time import Time, parts_of, read_time
from fastwi.config.values import Key
from fastwi.models.names import placeless

HASH_VERSION = 1
"""Raise it when a default or a key's meaning changes: the same hash must not name another experiment."""

HASH_DIGITS = 12
WIDTH = 100
_LONGEST_LIST = 8  # whole numbers of an option; more in a row are written as a range

# What cannot change a result. run: where it is written. data.streaming: where images wait. data.decoder: it changes
# the pixels of JPEGs only, and then the dataset's digest (`experiment.inputs`). engine: how it is computed; all agree
# to float tolerance, which is what this project calls the same result. bf16 and fp32 differ by far more than that.
_NO_RESULT = {key.path for key in KEYS.values() if key.section in ("run", "engine")} - {"engine.precision"} | {
    "data.streaming",
    "data.decoder",
}
_PLACES = {"data.path", "model.weights"}


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


def deciding(spec: SweepSpec) -> dict[str, list[str]]:
    """The values, as text, of each key that decides a sweep's results, where they are not the default alone.

    Without the places of files, whose contents decide (`fastwi.report.study.INPUTS`).
    """
    named = {*_NO_RESULT, *INSTEAD, *_PLACES, "experiment.measure"}
    keys = [key for key in KEYS.values() if key.path not in named]
    found = {path: [_yaml(value)] for path, value in changes(spec.base, keys).items()}
    found |= {path: [_yaml(value) for value in values] for path, values in spec.axes.items() if path not in named}
    if "model.name" in found:
        found["model.name"] = [placeless(yaml.safe_load(name)) for name in found["model.name"]]
    options = spec.options
    alphas = options.alphas or ((0.5,) if options.tuple_size == 2 else ())  # the plain mean of two is at 1/2
    return found | {
        "sweep.parents": [str(parent) for parent in options.parents],
        "sweep.tuple_size": [str(options.tuple_size)],
        "sweep.tuples": [options.tuples],
        "sweep.children": [str(options.children)],
        "sweep.alphas": [str(alpha) for alpha in alphas],
    }


def decided_otherwise(part: Mapping[str, list[str]], whole: Mapping[str, list[str]]) -> str:
    """The first key of which `part` has a value that `whole` lacks; empty: there is none. Both are of `deciding`.

    Fewer epochs of further training are a part of more, and fewer children of more.
    """
    for path in {**part, **whole}:
        default = [_yaml(KEYS[path].default)] if path in KEYS else []
        of_part, of_whole = part.get(path, default), whole.get(path, default)
        contained = set(of_part) <= set(of_whole)
        if path in _PART_OF_MORE and _PART_OF_MORE[path](whole):
            contained = all(any(_at_most(less, more) for more in of_whole) for less in of_part)
        if not contained:
            return path
    return ""


def _at_most(less: str, more: str) -> bool:
    """Whether the time or number `less` is at most `more`, however many iterations an epoch has."""
    times = (parts_of(read_time(yaml.safe_load(text), "epochs")) for text in (less, more))
    return all(one <= other for one, other in zip(*times, strict=True))


# Keys of which a lower value makes a part of what a higher one makes, and whether that is so beside the other keys:
# rates that go down to the last epoch depend on it, and of all tuples those of more children are numbered otherwise.
_PART_OF_MORE: dict[str, Callable[[Mapping[str, list[str]]], bool]] = {
    "experiment.after": lambda whole: _yaml("anneal") not in whole.get("schedule.at_average", ()),
    "sweep.children": lambda whole: whole.get("sweep.tuples") == ["disjoint"],
}


def to_yaml(config: Config, changed: bool = False) -> str:
    """The complete configuration as commented YAML (ASCII); `config_from_yaml` gives an equal one back.

    `changed`: only the keys that differ from their defaults, without comments.
    """
    lines = [] if changed else ["# A complete fastwi configuration."]
    for section in SECTIONS:
        lines += _section_lines(section, getattr(config, section), changed)
    return "\n".join(lines) + "\n"


def sweep_to_yaml(spec: SweepSpec, analysis: AnalysisOptions | None = None, changed: bool = False) -> str:
    """The whole sweep likewise, the base written out, with the options of its studies where they are given."""
    lines = []
    if spec.axes:
        lines += ["", "axes:  # keys of the configuration, each with the values that it takes in turn"]
        lines += [f"  {path}: {_yaml(values, ranges=True)}" for path, values in spec.axes.items()]
    lines += _section_lines("sweep", spec.options, changed)
    if analysis is not None:
        lines += _section_lines("analysis", analysis, changed)
    return to_yaml(spec.base, changed) + "\n".join(lines) + "\n"


def _section_lines(section: str, values: object, changed: bool = False) -> list[str]:
    lines = []
    for key in section_keys(section, NAMES.values()):
        value = getattr(values, key.name)
        if not changed:
            unit = f"in {key.unit}" * bool(key.unit) + ", or as 10ep50it" * (key.scalar is Time)
            facts = (f"default {default_text(key) or 'empty'}", unit, key.allowed)
            lines += _wrap(f"{key.help} [{'; '.join(filter(None, facts))}]", "  # ")
        if not changed or value != key.default:
            lines.append(f"  {key.name}: {_yaml(value, ranges=section not in SECTIONS)}")
    return ["", f"{section}:  # {title(section)}", *lines] if lines else []


def _yaml(value: Any, ranges: bool = False) -> str:
    """A value as YAML in one line; with `ranges`, many whole numbers in a row as a range."""
    if isinstance(value, tuple):
        first = value[0] if ranges and len(value) > _LONGEST_LIST else None
        if type(first) is int and value == tuple(range(first, first + len(value))):
            return f"{first}..{value[-1]}"
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, Time):
        return str(value)
    # Texts are quoted always: a run named 2024 or yes stays text.
    style = '"' if isinstance(value, str) else None
    return yaml.safe_dump(value, default_style=style, width=sys.maxsize).partition("\n")[0]


def title(section: str) -> str:
    """The first line of a section's docstring (empty under `python -OO`)."""
    return (ALL_SECTIONS[section].__doc__ or "").strip().partition("\n")[0]


def default_text(key: Key) -> str:
    """The default as on the command line."""
    words = [
        str(each).lower() if isinstance(each, bool) else str(each)
        for each in (key.default if key.many else [key.default])
    ]
    return ",".join(words)


def study_lines(studies: Mapping[str, str]) -> list[str]:
    """Each study with what it answers, one line each."""
    width = max(map(len, studies))
    return [f"  {name:<{width}}  {text}" for name, text in studies.items()]


def help_text(
    topic: str, flags: Iterable[Key], program: str, about: str, sections: Iterable[str], text: str = ""
) -> str:
    """The help of `python -m program`.

    `topic`: a section, written out as in a file, or `all`; else the short help. `flags`: those that are no keys.
    `sections`: those whose keys are named. `text`: what else is to be said.
    """
    if topic in ALL_SECTIONS or topic == "all":
        chosen = ALL_SECTIONS if topic == "all" else [topic]
        lines = [line for name in chosen for line in _section_lines(name, ALL_SECTIONS[name]())]
        return "\n".join(lines[1:])
    lines = [f"usage: python -m {program} [--config FILE] [--section.key VALUE ...]", "", *_wrap(about, ""), ""]
    lines += _wrap("--section.key VALUE: replaces the value of the file, which replaces the default", "  ")
    for flag in flags:
        lines += _wrap(f"--{flag.path}: {flag.help}", "  ")
    lines += ["  --version: print the version and stop"]
    lines += _wrap(f"--help SECTION: every key of {', '.join(ALL_SECTIONS)}; or --help all", "  ")
    lines += ["", *text.splitlines()] if text else []
    for section in sections:
        named = (f"{key.name} {default_text(key)}".rstrip() for key in section_keys(section, NAMES.values()))
        lines += ["", f"{section}: {title(section)}", *_wrap("Keys and defaults: " + ", ".join(named), "  ")]
    return "\n".join(lines)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
