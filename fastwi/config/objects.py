"""From Python objects to a checked `Config` or `SweepSpec`, as strictly as from a command line and its file.

A configuration is the path of a YAML file, `fastwi:NAME`, a mapping, or a `Config` or `SweepSpec`; what overrides it
is a mapping (`fastwi.config.mapping`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fastwi.config.keys import KEYS, SECTIONS
from fastwi.config.mapping import values_by_name
from fastwi.config.read import build, given_values
from fastwi.config.schema import Config
from fastwi.config.shipped import config_path
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweepaxes import axis_from_value
from fastwi.config.sweepfile import default_name, overridden
from fastwi.config.sweeplayers import (
    ALL_OPTIONS,
    ANALYSIS_OPTIONS,
    OPTION_SECTIONS,
    OPTIONS,
    Layer,
    base_layers,
    expand_options,
    layers_from_yaml,
    read_layers,
)
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.config.values import Given
from fastwi.config.wording import show
from fastwi.config.write import to_mapping, to_yaml
from fastwi.config.yamlfile import read_config_file

ConfigLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config


def read_config(given: ConfigLike, overrides: Mapping[str, Any]) -> tuple[Config, Path | None]:
    """The configuration of a run, and the file that it is from.

    Raises ConfigError with one line for each problem.
    """
    problems: list[str] = []
    file = _file(given)
    if file is not None:
        values, problems = read_config_file(file)
    else:
        values = given_values(to_mapping(given) if isinstance(given, Config) else given, problems)
    return build([values, given_values(overrides, problems)], problems), file


def read_sweep(given: ConfigLike | SweepSpec, overrides: Mapping[str, Any]) -> tuple[SweepSpec, str]:
    """The sweep, and its name.

    Raises ConfigError with one line for each problem.
    """
    problems: list[str] = []
    file = _file(given)
    if file is not None:
        layers = read_layers(file, problems)
    elif isinstance(given, (Config, SweepSpec)):
        text = to_yaml(given) if isinstance(given, Config) else sweep_to_yaml(given)
        layers = layers_from_yaml(text, "configuration", Path(), problems)
    else:
        layer = _layer(given, problems)
        layers = [*base_layers(layer, Path(), [], problems), layer]
    top = _layer(overrides, problems)
    for path in top.options:
        if path in ANALYSIS_OPTIONS:
            problems.append(f"{path}: belongs to python -m fastwi.analyze; leave it out")
    if top.base is not None:
        problems.append("base: cannot be overridden; give that file as the configuration")
    spec, _, _ = overridden(layers, top, "", problems, default_name(file))
    return spec, spec.options.name or default_name(file)


def _file(given: object) -> Path | None:
    """The file that a configuration is in; None where it is an object."""
    return config_path(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else None


def _layer(given: object, problems: list[str]) -> Layer:
    """What a mapping says of a sweep."""
    layer, options = Layer(), dict[str, Given]()
    keys, sections = KEYS | ALL_OPTIONS, (*SECTIONS, *OPTION_SECTIONS)
    for path, value in values_by_name(given, problems, sections, keys, ("axes", "base")).items():
        if path in KEYS:
            layer.values[path] = Given(value, "")
        elif path in ALL_OPTIONS:
            options[path] = Given(value, "")
        elif path.startswith("axes."):
            key = path.removeprefix("axes.")
            axis = axis_from_value(key, value, OPTIONS, problems)
            layer.axes |= {} if axis is None else {key: axis}
        elif path == "base" and isinstance(value, str):
            layer.base = Given(value, "base: ")
        else:
            problems.append(f"{path}: {show(value)}; base is a config file's name, axes a mapping of keys")
    layer.options = expand_options(options, problems)
    return layer
