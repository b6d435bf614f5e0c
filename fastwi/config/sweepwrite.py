"""A sweep out again, as YAML that reads back to an equal one."""

from collections.abc import Iterable

from fastwi.config.keys import Key, Value, section_title
from fastwi.config.sweep import SweepOptions, SweepSpec
from fastwi.config.sweeplayers import OPTIONS
from fastwi.config.sweeprange import MOST_VALUES
from fastwi.config.write import config_lines, key_lines, yaml_value

_LONGEST_LIST = 8  # whole numbers; more in a row are written as a range


def sweep_to_yaml(spec: SweepSpec) -> str:
    """The whole sweep as commented YAML (ASCII), the base written out; `sweep_from_yaml` gives an equal one back."""
    lines = ["# A complete fastwi sweep."]
    lines += config_lines(spec.base)
    if spec.axes:
        lines += ["", "axes:  # keys of the configuration, each with the values that it takes in turn"]
        lines += [f"  {axis.path}: {_many(axis.values)}" for axis in spec.axes]
    lines += ["", f"sweep:  # {section_title(SweepOptions)}"]
    lines += option_lines(OPTIONS.values(), spec.options)
    return "\n".join(lines) + "\n"


def option_lines(keys: Iterable[Key], options: object) -> list[str]:
    """The lines of a section of options, `options` its dataclass."""
    lines = []
    for key in keys:
        value = getattr(options, key.name)
        lines += key_lines(key, _many(value) if key.many else yaml_value(value))
    return lines


def _many(values: tuple[Value, ...]) -> str:
    numbers = [value for value in values if type(value) is int]
    if _LONGEST_LIST < len(values) <= MOST_VALUES and len(numbers) == len(values):
        whole = range(numbers[0], numbers[0] + len(numbers))
        if all(number == expected for number, expected in zip(numbers, whole, strict=True)):
            return f"{numbers[0]}..{numbers[-1]}"
    return "[" + ", ".join(yaml_value(value) for value in values) + "]"
