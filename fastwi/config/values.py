"""Strict checking of one value, where fastargs's own int, bool and float checkers would let much through."""

import math
import re
import unicodedata
from dataclasses import dataclass

from fastargs.validation import Checker

from fastwi.config.keys import SINGULAR, Key, Scalar, Value
from fastwi.config.wording import INT64_MAX, did_you_mean, show

# YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-4 as text. These read decimal numbers, as everybody else does.
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_LONGEST_NUMBER = 400


@dataclass(frozen=True)
class Given:
    """A value that somebody gave, and where: what travels through fastargs to the checkers.

    `origin` is what a message puts before the key's name: '--', 'my.yaml line 3: ' or nothing. `text` marks
    the command line, where every value arrives as text and is parsed by the key's type.
    """

    value: object
    origin: str
    text: bool = False


def number_from_text(text: str) -> int | float | None:
    """The decimal number that `text` spells, an int where it has neither point nor exponent, else None.

    Too large an exponent gives infinity, which the checkers refuse by name.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else None


class StrictChecker(Checker):
    """Checks one key's value: type, finiteness, bounds, choices. A ValueError's text says what is wrong."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def help(self) -> str:
        """What the value must be, in words (fastargs asks for it)."""
        return self.key.expected

    def check(self, value: object) -> Value:
        """Return the value in its schema type; raise ValueError saying what is wrong and what to give."""
        if not isinstance(value, Given):  # the schema's own default
            return value  # type: ignore[return-value]
        if self.key.many:
            return tuple(self._scalar(each, value.text) for each in self._elements(value))
        return self._scalar(value.value, value.text)

    def _elements(self, given: Given) -> list[object]:
        example = ", ".join(str(each) for each in self.key.default or (1, 2))  # type: ignore[union-attr]
        if given.text:
            text = str(given.value).strip()
            return [part.strip() for part in text.split(",")] if text else []
        if not isinstance(given.value, (list, tuple)):
            raise ValueError(f"{show(given.value)} is not a list; write one, such as [{example}]")
        return list(given.value)

    def _scalar(self, value: object, text: bool) -> Scalar:
        if self.key.scalar is not str and text:
            value = _from_command_line(str(value), self.key.scalar)
        typed = self._typed(value)
        if not isinstance(typed, str) and not self._within_bounds(typed):
            raise ValueError(f"{show(typed)} is out of range; give {self.key.expected}")
        if self.key.choices and typed not in self.key.choices:
            raise ValueError(f"{show(typed)} is not a choice; {self._choice_hint(str(typed))}")
        return typed

    def _within_bounds(self, number: int | float) -> bool:
        low, high = self.key.low, self.key.high
        return (low is None or number >= low) and (high is None or number <= high)

    def _choice_hint(self, text: str) -> str:
        hint = did_you_mean(text, self.key.choices)
        valid = "valid: " + ", ".join(self.key.choices)
        return valid if hint.startswith("valid") else f"{hint} {valid}"

    def _typed(self, value: object) -> Scalar:
        """The value in the key's scalar type; strict, so 3.7 is no int, true no number and 5 no text."""
        kind = self.key.scalar
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is None:
            raise ValueError(f"null is no value; give {self.key.expected}, or leave the key out")
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and is_number and isinstance(value, int):
            if abs(value) > INT64_MAX:
                raise ValueError(f"{show(value)}; give {self.key.expected}")
            return int(value)
        if kind is float and is_number:
            return _finite(value)  # type: ignore[arg-type]
        if kind is str and isinstance(value, str):
            return _plain(value)
        mend = f"give {self.key.expected}"
        if kind is str and not isinstance(value, (list, tuple, dict)):
            mend = "put it in quotes"
        elif isinstance(value, str) and number_from_text(value) is not None:
            mend += ", without quotes"
        raise ValueError(f"{show(value)} is not {SINGULAR[kind]}; {mend}")


def _from_command_line(text: str, kind: type) -> object:
    """Parse a word of the command line as far as it can be; what cannot stays text, to be refused by type."""
    if kind is bool:
        return _BOOLEANS.get(text.lower(), text)
    number = number_from_text(text)
    return text if number is None else number


def _finite(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{show(number)} is not finite; give a finite number")
    return number + 0.0  # -0.0 becomes 0.0: the same setting must have the same text and hash


def _plain(value: str) -> str:
    """Refuse text that no line of YAML, no path and no message should hold."""
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError(f"{show(value)} holds the unprintable character {character!r}; remove it")
    return str(value)
