"""A sweep's axes: which keys may be one, and their values, each checked as the key itself is."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from fastwi.config.keys import KEYS, SECTIONS, Key, Scalar, Value
from fastwi.config.sweep import SweepSpec
from fastwi.config.sweeprange import expand_range, is_range
from fastwi.config.values import Given, StrictChecker
from fastwi.config.wording import did_you_mean, show
from fastwi.config.write import yaml_value
from fastwi.config.yamlfile import compose, named_nodes, place, plain_value

MOST_PROBLEMS = 5  # of one axis; a wrong range would have as many as values


@dataclass(frozen=True)
class GivenAxis:
    """An axis's checked values and where they were given, as in `Given`."""

    values: tuple[Value, ...]
    origin: str


_SET_BY_SWEEP = {
    "run.name": "a sweep has its own directory; use sweep.name",
    "run.directory": "a sweep has its own directory; use sweep.directory",
    "run.tensorboard": "it is for runs of fastwi.train; a sweep's measurements are in results.parquet",
    "seeds.init": "a sweep sets the seeds; use sweep.parents",
    "seeds.parent_noise": "a sweep sets the seeds; use sweep.parents",
    "seeds.child_noise": "a sweep sets the seeds; use sweep.children for more children",
    "seeds.average_noise": "a sweep sets the seeds; use sweep.parents",
    "experiment.children": "a sweep averages tuples; use sweep.children and sweep.tuple_size",
    "experiment.weights": "a sweep sets the weights; use sweep.alphas",
}


def set_by_sweep(path: str) -> str:
    """Why the base's value of the key `path` has no say in a sweep, and what has; empty: it has its say."""
    return _SET_BY_SWEEP.get(path, "")


def axis_problem(path: str, names: Iterable[str]) -> str:
    """Why `path` cannot be an axis, and what to use instead; empty: it can. `names`: the sweep's own options."""
    if path in _SET_BY_SWEEP:
        return f"{path}: cannot be an axis; {_SET_BY_SWEEP[path]}"
    if path.startswith("seeds.") and path in KEYS:
        return f"{path}: cannot be an axis; use sweep.parents and sweep.children for other seeds"
    if path.startswith("engine.") and path in KEYS and path != "engine.precision":
        return f"{path}: cannot be an axis, as it changes no result; give it one value, below 'engine:'"
    if path in KEYS:
        return ""
    if path in names:
        return f"{path}: an option of the sweep cannot be an axis; give it one value, below 'sweep:'"
    if path in SECTIONS:
        first = next(key.path for key in KEYS.values() if key.section == path)
        return f"{path}: a section cannot be an axis; write whole keys, such as {first}"
    allowed = [known for known in KEYS if not axis_problem(known, names)]
    hint = did_you_mean(path, allowed)
    if not hint.startswith("did you mean"):
        hint = "give a key of the configuration, such as experiment.k"
    return f"{show(path)}: unknown axis; {hint}"


def axes_from_yaml(
    where: str, axes_node: yaml.Node, origin: str, names: Iterable[str], problems: list[str]
) -> dict[str, GivenAxis]:
    """The axes of a file by key. `where` is the place of the word axes; problems are appended."""
    if not isinstance(axes_node, yaml.MappingNode):
        problems.append(f"{where}: axes: needs keys below it, each with its values; add some or remove it")
        return {}
    axes: dict[str, GivenAxis] = {}
    for path, key_place, node in named_nodes(axes_node, origin, "axis", problems):
        refusal = axis_problem(path, names)
        if refusal:
            problems.append(f"{key_place}: axes: {refusal}")
            continue
        found: list[str] = []
        values = _values_from_node(KEYS[path], key_place, node, origin, found)
        problems += found
        if not found:
            axes[path] = GivenAxis(values, f"{key_place}: ")
    return axes


def axis_from_text(path: str, text: str, names: Iterable[str], problems: list[str]) -> GivenAxis | None:
    """The axis that `--axes.path TEXT` says: `[1,2]` as in a file, `1..4`, or `1,2`; None: problems were appended."""
    refusal = axis_problem(path, names)
    if refusal:
        problems.append(f"--axes.{refusal}")
        return None
    key, found = KEYS[path], list[str]()
    origin = f"--axes.{path}"
    if text.lstrip().startswith("["):
        node, problem = compose(text, origin)
        if node is None:
            found.append(problem)
            values: tuple[Value, ...] = ()
        else:
            elements = node.value if isinstance(node, yaml.SequenceNode) else [node]
            values = _checked(key, (Given(plain_value(each), "--") for each in elements), "--", found)
    elif key.many:
        found.append(f"{origin}: {show(text)} is not a list of lists; {_example(key)}")
        values = ()
    elif key.scalar in (int, float) and is_range(text):
        values = _range_values(key, text, "--", found)
    else:
        words = text.split(",") if text.strip() else []
        values = _checked(key, (Given(word.strip(), "--", text=True) for word in words), "--", found)
    problems += found
    return None if found else GivenAxis(values, "--")


def axis_from_value(path: str, value: object, names: Iterable[str], problems: list[str]) -> GivenAxis | None:
    """The axis that a Python value says: a list, or the text of a range; None: problems were appended."""
    refusal = axis_problem(path, names)
    if refusal:
        problems.append(f"axes.{refusal}")
        return None
    key, found, values = KEYS[path], list[str](), tuple[Value, ...]()
    if isinstance(value, (list, tuple)):
        values = _checked(key, (Given(each, "") for each in value), "", found)
    elif isinstance(value, str) and key.scalar in (int, float) and not key.many and is_range(value):
        values = _range_values(key, value, "", found)
    else:
        found.append(f"axes.{path}: {show(value)} is not a list; {_example(key)}")
    problems += found
    return None if found else GivenAxis(values, "")


def _values_from_node(
    key: Key, key_place: str, node: yaml.Node, origin: str, problems: list[str]
) -> tuple[Value, ...]:
    if isinstance(node, yaml.SequenceNode):
        if key.many and node.value and not any(isinstance(each, yaml.SequenceNode) for each in node.value):
            problems.append(f"{key_place}: axes.{key.path}: is a flat list; {_example(key)}")
            return ()
        # One at a time: aliases make a short file's lists long, and reading stops at the first repeated one.
        elements = (Given(plain_value(each), f"{place(origin, each)}: ") for each in node.value)
        return _checked(key, elements, f"{key_place}: ", problems)
    value = plain_value(node)
    if isinstance(value, str) and key.scalar in (int, float) and not key.many and is_range(value):
        return _range_values(key, value, f"{key_place}: ", problems)
    problems.append(f"{key_place}: axes.{key.path}: {show(value)} is not a list; {_example(key)}")
    return ()


def _range_values(key: Key, text: str, origin: str, problems: list[str]) -> tuple[Value, ...]:
    try:
        numbers = expand_range(text)
    except ValueError as error:
        problems.append(f"{origin}axes.{key.path}: {error}")
        return ()
    return _checked(key, (Given(number, origin) for number in numbers), origin, problems)


def _checked(key: Key, elements: Iterator[Given], origin: str, problems: list[str]) -> tuple[Value, ...]:
    """The elements in the key's type; empty axes, repeated values and what the key refuses are problems."""
    checker = StrictChecker(key)
    values: dict[Value, None] = {}
    refused = 0
    for element in elements:
        name = f"{element.origin}axes.{key.path}"
        try:
            value = checker.check(element)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            refused += 1
            if refused == MOST_PROBLEMS:
                break
            continue
        if value in values:
            problems.append(f"{name}: {show_value(value)} is given twice; remove one")
            break
        values[value] = None
    if not values and not refused:
        problems.append(f"{origin}axes.{key.path}: is empty; {_example(key)}, or remove the axis")
    return tuple(values)


def other_axes(spec: SweepSpec) -> dict[str, int]:
    """The axes beside k and s: dotted name to index among the sweep's axes."""
    return {axis.path: i for i, axis in enumerate(spec.axes) if axis.path not in ("experiment.k", "experiment.s")}


def axis_value(path: str, value: Any) -> Any:
    """An axis value in its key's own type: 0 is 0.0 where the key is a float."""
    key = KEYS[path]
    return tuple(key.scalar(each) for each in value) if key.many else key.scalar(value)


def show_value(value: Value) -> str:
    """A checked value, tuples too, as in a message."""
    if not isinstance(value, tuple):
        return show(value)
    text = "[" + ", ".join(show(each) for each in value[:10]) + (", ..." if len(value) > 10 else "") + "]"
    return text


def _example(key: Key) -> str:
    """'give ...', with values that the key takes."""
    if key.many:
        return f"give a list of lists, such as [{yaml_value(key.default or (1, 2))}]"
    scalars: tuple[Scalar, ...] = key.choices[:2] or (key.default,)  # type: ignore[assignment]
    example = "[" + ", ".join(each if isinstance(each, str) else yaml_value(each) for each in scalars) + "]"
    return f"give its values, such as {example}"
