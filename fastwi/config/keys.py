"""The schema's sections and keys as plain records, for whatever is generated from them.

The dataclasses of `fastwi.config.schema` are the only source: a field added there appears in the reader, in
`--help`, in the YAML writer and in the hash without a line written here.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fastwi.config import schema
from fastwi.config.wording import did_you_mean, show

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

SINGULAR = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""The scalar types that the schema may use, in words."""

_PLURAL = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}


@dataclass(frozen=True)
class Key:
    """One setting: `section.name`, its scalar type (`many`: a tuple of such) and its metadata."""

    section: str
    name: str
    scalar: type
    many: bool
    default: Value
    help: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]

    @property
    def path(self) -> str:
        """The dotted name, as on the command line."""
        return f"{self.section}.{self.name}"

    @property
    def expected(self) -> str:
        """What a value must be, for messages: 'a whole number, from 0 to 64'."""
        one = f"one of {', '.join(self.choices)}" if self.choices else SINGULAR[self.scalar]
        several = ", ".join(self.choices) or _PLURAL[self.scalar]
        kind = f"a list of {several}" if self.many else one
        return f"{kind}, {self.limits}" if self.limits else kind

    @property
    def limits(self) -> str:
        """The inclusive bounds in words; empty where there are none."""
        if self.low is not None and self.high is not None:
            return f"from {_number(self.low)} to {_number(self.high)}"
        if self.low is not None:
            return f"at least {_number(self.low)}"
        return f"at most {_number(self.high)}" if self.high is not None else ""


def _number(bound: float) -> str:
    return str(int(bound) if bound == int(bound) else bound)


def _key(section: str, field: dataclasses.Field[typing.Any], annotation: typing.Any) -> Key:
    """The record of one dataclass field. Raises TypeError for a type that no reader here understands."""
    many = typing.get_origin(annotation) is tuple
    scalar = typing.get_args(annotation)[0] if many else annotation
    if scalar not in SINGULAR or (many and typing.get_args(annotation)[1:] != (Ellipsis,)):
        raise TypeError(f"schema: {section}.{field.name} has the unsupported type {annotation}")
    facts = field.metadata
    default: typing.Any = field.default
    return Key(
        section=section,
        name=field.name,
        scalar=scalar,
        many=many,
        default=default,
        help=facts["help"],
        unit=facts["unit"],
        low=facts["low"],
        high=facts["high"],
        choices=facts["choices"],
    )


def _sections() -> dict[str, type]:
    hints = typing.get_type_hints(schema.Config)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema.Config)}


def keys_of(section: str, kind: type) -> dict[str, Key]:
    """The keys of the dataclass `kind` by dotted name, in its order."""
    hints = typing.get_type_hints(kind)
    keys = [_key(section, field, hints[field.name]) for field in dataclasses.fields(kind)]
    return {key.path: key for key in keys}


SECTIONS: dict[str, type] = _sections()
"""The dataclass of each section, in the schema's order."""

KEYS: dict[str, Key] = {
    path: key for section, kind in SECTIONS.items() for path, key in keys_of(section, kind).items()
}
"""Every key by its dotted name, in the schema's order."""


SWEEP_NAMES = ("base", "axes", "sweep", "analysis")
"""What a sweep file has at its top beside the sections."""


def section_keys(section: str, keys: Mapping[str, Key] = KEYS) -> list[Key]:
    """The keys of one section, in the schema's order."""
    return [key for key in keys.values() if key.section == section]


def section_title(kind: type) -> str:
    """The first line of a section's docstring (empty under `python -OO`)."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def unknown_section(name: str, sections: Iterable[str] = SECTIONS, keys: Mapping[str, Key] = KEYS) -> str:
    """The message for a section that is none of `sections`."""
    if name in keys:
        key = keys[name]
        return f"{name}: sections are nested here; write '{key.name}:' indented below '{key.section}:'"
    if name in SWEEP_NAMES:
        return f"{name}: belongs to a sweep; use python -m fastwi.sweep, or remove it"
    return f"{show(name)}: unknown section; {did_you_mean(name, sections)}"


def unknown_key(section: str, name: str, keys: Mapping[str, Key] = KEYS) -> str:
    """The message for a key that `section` lacks; a key of another section is found too."""
    own = [key.name for key in section_keys(section, keys)]
    elsewhere = [key.path for key in keys.values() if key.name == name]
    end = f"did you mean {elsewhere[0]}?" if elsewhere else did_you_mean(name, own)
    return f"{section}: unknown key {show(name)}; {end}"
