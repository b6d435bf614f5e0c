"""A sweep file and the files that it is based on, read strictly: one layer of values each, the root first."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from fastwi.config.analysis import AnalysisOptions
from fastwi.config.keys import KEYS, SECTIONS, SWEEP_NAMES, Key, keys_of, unknown_section
from fastwi.config.shipped import config_path
from fastwi.config.sweep import SweepOptions
from fastwi.config.sweepaxes import GivenAxis, axes_from_yaml
from fastwi.config.sweeprange import expand_range, is_range
from fastwi.config.values import Given
from fastwi.config.wording import show, show_path
from fastwi.config.yamlfile import compose, named_nodes, plain_value, read_text, root_mapping, section_values
from fastwi.errors import ConfigError

OPTIONS: dict[str, Key] = keys_of("sweep", SweepOptions)
"""Every option of a sweep by its dotted name, `sweep.children`."""

ANALYSIS_OPTIONS: dict[str, Key] = keys_of("analysis", AnalysisOptions)
"""Every option of the studies of a sweep, likewise: `analysis.alphas`."""

OPTION_SECTIONS: dict[str, type] = {"sweep": SweepOptions, "analysis": AnalysisOptions}
"""The dataclasses of a sweep file's sections of options."""

LONGEST_CHAIN = 8  # bases

_NAMES = (*SECTIONS, *SWEEP_NAMES)
ALL_OPTIONS = OPTIONS | ANALYSIS_OPTIONS
_KEYS = KEYS | ALL_OPTIONS


@dataclass
class Layer:
    """What one file, or the command line, says; nearer layers win, key by key, an axis as a whole.

    `base` is None where the layer has none. `options` are the sweep's and the analysis's; ranges among them are
    expanded.
    """

    values: dict[str, Given] = field(default_factory=dict)
    options: dict[str, Given] = field(default_factory=dict)
    axes: dict[str, GivenAxis] = field(default_factory=dict)
    base: Given | None = None


def read_layers(path: Path, problems: list[str]) -> list[Layer]:
    """The layers of a sweep file, those of its bases first. Problems are appended."""
    text, problem = read_text(path)
    if problem:
        problems.append(f"{show_path(path)}: {problem}")
        return []
    layer = layer_from_yaml(text, show_path(path), problems)
    return [*base_layers(layer, path.parent, [os.path.realpath(path)], problems), layer]


def layers_from_yaml(text: str, origin: str, directory: Path, problems: list[str]) -> list[Layer]:
    """The same for YAML text; a base is looked for in `directory`."""
    layer = layer_from_yaml(text, origin, problems)
    return [*base_layers(layer, directory, [], problems), layer]


def layer_from_yaml(text: str, origin: str, problems: list[str]) -> Layer:
    """The layer of one file's text; its base is named and not read."""
    layer = Layer()
    root, root_problems = root_mapping(text, origin)
    problems += root_problems
    if root is None:
        return layer
    for name, where, node in named_nodes(root, origin, "section", problems):
        if name == "base":
            value = plain_value(node)
            if isinstance(value, str) and value and value.isprintable():
                layer.base = Given(value, f"{where}: base: ")
            else:
                problems.append(f"{where}: base: {show(value)} is not a file's name; give a config file's")
        elif name == "axes":
            layer.axes = axes_from_yaml(where, node, origin, OPTIONS, problems)
        elif name in OPTION_SECTIONS:
            given = section_values(name, where, node, origin, problems, ALL_OPTIONS)
            layer.options |= expand_options(given, problems)
        elif name in SECTIONS:
            layer.values |= section_values(name, where, node, origin, problems)
        else:
            problems.append(f"{where}: {unknown_section(name, _NAMES, _KEYS)}")
    return layer


def expand_options(given: dict[str, Given], problems: list[str]) -> dict[str, Given]:
    """The options with ranges in the place of their text; on the command line `[0, 1]` becomes a list too."""
    expanded = {}
    for path, option in given.items():
        text, key = option.value, ALL_OPTIONS[path]
        if key.many and isinstance(text, str):
            if key.scalar in (int, float) and is_range(text):
                try:
                    option = Given(expand_range(text), option.origin)
                except ValueError as error:
                    problems.append(f"{option.origin}{path}: {error}")
                    continue
            elif option.text and text.lstrip().startswith("["):
                node, problem = compose(text, f"{option.origin}{path}")
                if node is None:
                    problems.append(problem)
                    continue
                option = Given(plain_value(node), option.origin)
            elif option.text and path == "analysis.cells":  # a cell has a comma itself
                option = Given([word.strip() for word in text.split(";") if word.strip()], option.origin)
        expanded[path] = option
    return expanded


def base_layers(layer: Layer, directory: Path, chain: list[str], problems: list[str]) -> list[Layer]:
    """The layers that `layer` is based on, the root first. `chain`: the files that led here."""
    bases: list[Layer] = []
    while layer.base is not None:
        try:
            path = config_path(str(layer.base.value), directory)
        except ConfigError as error:
            problems.append(f"{layer.base.origin}{error}")
            break
        real = os.path.realpath(path)
        if real in chain:
            problems.append(f"{layer.base.origin}{show_path(path)} leads round in a circle; remove one of its bases")
            break
        if len(bases) == LONGEST_CHAIN:
            problems.append(
                f"{layer.base.origin}one base too many; chain at most {LONGEST_CHAIN}, and write out the rest"
            )
            break
        text, problem = read_text(path)
        if problem:
            problems.append(f"{layer.base.origin}{show_path(path)}: {problem}")
            break
        chain.append(real)
        layer = layer_from_yaml(text, show_path(path), problems)
        bases.insert(0, layer)
        directory = path.parent
    return bases
