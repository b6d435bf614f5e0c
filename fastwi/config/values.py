"""Values: how a key declares what it takes and checks it, numbers and ranges in text, and how messages show them."""

import dataclasses
import difflib
import functools
import math
import os
import re
import textwrap
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from fastwi.config.time import TIME, AnyTime, Time, parts_of, read_time

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | tuple[Scalar, ...]

LONGEST_SHOWN = 60
INT64_MAX = 2**63 - 1
MOST_VALUES = 1_000_000
"""Of a range."""

# YAML 1.1 reads 010 as 8, 1:30 as 90 and 1e-4 as text. These read decimal numbers, as everybody else does.
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 400
_END = r"([-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?)"
_TIME_UNIT = re.compile(r"(?<=[0-9])(?:ep|it)")
_RANGE = re.compile(rf"\s*{_END}\s*\.\.\s*{_END}(?:\s+step\s+{_END})?\s*")


def show(value: object) -> str:
    """A user's value in a message: one line, printable, and short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # Cut before repr, which is slow for megabytes.
        return repr(value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "...")
    if isinstance(value, int):  # Python refuses to print integers of more than 4,300 digits
        return str(value) if abs(value) <= INT64_MAX else "a whole number beyond 64 bits"
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        shown = ["[...]" if isinstance(each, (list, tuple)) else show(each) for each in value[:10]]
        return "[" + ", ".join([*shown, "..."] if len(value) > len(shown) else shown) + "]"
    return "a mapping" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def show_name(name: object) -> str:
    """A name as it is where it is printable and short, else quoted and escaped."""
    text = str(name)
    return text if text.isprintable() and len(text) <= LONGEST_SHOWN else show(text)


def one_line(text: object) -> str:
    """Another program's message as one printable line of at most 200 characters, cut between words."""
    line = textwrap.shorten(" ".join(str(text).split()), 200, placeholder=" ...")
    return "".join(each if each.isprintable() else "?" for each in line)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` most likely means, or None. Case and `-` for `_` count for little."""
    plain = name[:LONGEST_SHOWN].lower().replace("-", "_")
    known = {each.lower().replace("-", "_"): each for each in sorted(names)}
    close = difflib.get_close_matches(plain, known, n=5, cutoff=0.6)

    def likeness(each: str) -> tuple[float, bool]:
        # resnet21 is as like resnet32 as resnet20, which differs in its last letter only.
        return difflib.SequenceMatcher(None, each, plain).ratio(), each[:-1] == plain[:-1]

    return known[max(close, key=likeness)] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of an 'unknown name' message: the nearest valid name, or all of them where none is near."""
    known = sorted(names)
    guess = nearest(name, known)
    return f"did you mean {guess}?" if guess else "valid: " + ", ".join(known)


def number_from_text(text: str) -> int | float | None:
    """The decimal number that `text` spells, an int where it has neither point nor exponent, else None.

    None too for too large an exponent: no key takes infinity, and messages show what was typed.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    if _WHOLE.fullmatch(text):
        return int(text)
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def expand_range(text: str) -> list[int] | list[float]:
    """The numbers of a range such as `1..4` or `0.05..0.2 step 0.05`, both ends included.

    They are ints where both ends and the step are whole numbers. The arithmetic is exact, on the decimals as they are
    written: adding 0.05 in floating point would give 0.15000000000000002. Raises ValueError, in one line.
    """
    match = _RANGE.fullmatch(text) if len(text) <= 100 else None
    if match is None:
        raise ValueError(f"{show(text)} is not a range; write one as 1..4 or 0..1 step 0.25")
    whole = all(word is None or _WHOLE.fullmatch(word) for word in match.groups())
    if match[3] is None and not whole:
        raise ValueError(f"{show(text)} needs a step; write one as 0.05..0.2 step 0.05")
    first, last, step = (Fraction(word or 1) for word in match.groups())
    steps = (last - first) / step if step > 0 else Fraction(-1)
    if steps < 0 or steps.denominator != 1:
        raise ValueError(f"{show(text)} does not go up to its end in whole steps; change an end or the step")
    if steps >= MOST_VALUES:
        raise ValueError(f"{show(text)} has too many values; give at most {MOST_VALUES:,}")
    if whole:
        return list(range(int(first), int(last) + 1, int(step)))
    try:
        return [float(first + index * step) for index in range(int(steps) + 1)]
    except OverflowError:
        raise ValueError(f"{show(text)} has an infinite end; give finite numbers") from None


def expand_times(text: str) -> list[str] | list[int] | list[float]:
    """The times of a range of numbers, or of numbers in one unit: `0it..2000it step 500it`. Raises ValueError."""
    units = _TIME_UNIT.findall(text)
    numbers = expand_range(_TIME_UNIT.sub("", text))
    if not units:
        return numbers
    if len(set(units)) > 1 or len(units) != 2 + ("step" in text):
        raise ValueError(f"{show(text)} has more than one unit; write one as 0it..2000it step 500it")
    return [f"{number}{units[0]}" for number in numbers]


def option(default: Any, text: str, **facts: Any) -> Any:
    """A dataclass field with its default, its help and further facts, as in `Key`."""
    return dataclasses.field(default=default, metadata={"help": text, **facts})


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Time: "a whole number, or a time such as 10ep, 500it or 10ep50it",
    str: "printable text, in quotes if it looks like a number",
}
_PRINTABLE = r"[^\p{Cc}\p{Zl}\p{Zp}]*"


@dataclass(frozen=True)
class Key:
    """One key, `section.name`. `depth`: 0 for a value of the type `scalar`, 1 for a list, 2 for a list of lists.

    Bounds are inclusive. `pattern`: of a text, a regular expression; `form` says it in words. `filled`: not
    empty. `most_bytes`: of a text in UTF-8, as in a file's name; 0: any. `repeats`: a list may have a value twice.
    `separator`: of a list on the command line.
    """

    section: str
    name: str
    scalar: type
    depth: int
    default: Any
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""
    filled: bool = False
    most_bytes: int = 0
    repeats: bool = False
    separator: str = ","

    @property
    def path(self) -> str:
        """The dotted name, as on the command line. A flag that is no key of a configuration has no section."""
        return f"{self.section}.{self.name}" if self.section else self.name.replace("_", "-")

    @property
    def many(self) -> bool:
        """Whether it takes a list."""
        return self.depth > 0

    @property
    def allowed(self) -> str:
        """What a value may be, beside its type, in words: one of several words, or between bounds."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        low, high = ("" if each is None else str(each).removesuffix(".0") for each in (self.low, self.high))
        if low and high:
            return f"from {low} to {high}"
        return f"at least {low}" if low else f"at most {high}" if high else ""

    @property
    def expected(self) -> str:
        """What a value must be, for messages: 'a whole number, from 0 to 64'."""
        if self.form:
            return self.form
        filled = self.filled or self.section == "axes"
        facts = [_WORDS[self.scalar] * (not self.choices), self.allowed]
        if self.filled and self.scalar is str and not self.many:
            facts.append("not empty")
        value = ", ".join(filter(None, facts))
        if not self.many:
            return value
        kind = "a list" + " of lists" * (self.depth - 1) + " that is not empty" * filled
        return f"{kind}, each value {value}"

    @functools.cached_property
    def _type(self) -> "TypeAdapter[Any]":
        from pydantic import AfterValidator, ConfigDict, FailFast, Field, TypeAdapter  # for values that users give

        kind: Any = self.scalar
        depth = self.depth - (self.section == "axes")  # without the axis's own list
        if self.choices:
            kind = Literal[self.choices]
        elif kind is str:
            least = int(self.filled and depth == 0)
            kind = Annotated[str, Field(pattern=rf"^(?:{self.pattern or _PRINTABLE})$", min_length=least)]
        elif kind is Time:
            kind = Annotated[Any, AfterValidator(self._read_time)]
        elif kind is not bool:
            high = INT64_MAX if self.high is None and kind is int else self.high
            kind = Annotated[kind, Field(ge=self.low, le=high)]
        if self.scalar is float:
            # -0.0 becomes 0.0: the same setting must have the same text and hash.
            kind = Annotated[kind, AfterValidator(lambda number: number + 0.0)]
        for level in range(1, self.depth + 1):
            least = int(self.filled or level > depth)
            kind = Annotated[tuple[kind, ...], Field(min_length=least), FailFast()]
        return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))

    def _read_time(self, given: object) -> AnyTime:
        if isinstance(given, str) and not re.fullmatch(self.pattern or TIME, given):
            raise ValueError("another form")
        time = read_time(given, self.unit)
        # The sum of its counts is a lower bound in iterations, for any length of an epoch, and 0 for no time only.
        if not (self.low or 0) <= sum(parts_of(time)) <= INT64_MAX:
            raise ValueError("out of bounds")
        return time

    def check(self, given: object) -> Any:
        """The value in the key's type, lists as tuples, a range of numbers expanded.

        Strict: 3.7 is no int, true no number, 5 no text. Raises ValueError: one line with the value and what to give.
        """
        from pydantic import ValidationError

        value = _plain(given)
        if self.depth == 1 and self.scalar in (int, float, Time) and isinstance(value, str) and ".." in value:
            value = tuple((expand_times if self.scalar is Time else expand_range)(value))
        try:
            checked = self._type.validate_python(value)
        except ValidationError as error:
            bad = error.errors(include_url=False)[0]["input"]
            guess = nearest(bad, self.choices) if isinstance(bad, str) else None
            end = f"; did you mean {guess}?" if guess else ""
            raise ValueError(f"{show(bad)} is not valid; give {self.expected}{end}") from None
        size = len(checked.encode()) if self.most_bytes else 0
        if size > self.most_bytes:
            raise ValueError(f"{show(checked)} takes {size} bytes as a file name; give at most {self.most_bytes}")
        lists = (checked, *checked) if self.depth > 1 else (checked,) if self.many else ()
        for values in () if self.repeats else lists:
            if len(set(values)) < len(values):
                twice = next(each for index, each in enumerate(values) if each in values[:index])
                raise ValueError(f"{show(twice)} is given twice; remove one")
        return checked


def _plain(value: Any) -> Any:
    """Paths as text; NumPy's and torch's numbers and arrays as Python's; lists and ranges as tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple, range)) else value


def keys_of(section: str, kind: type) -> dict[str, Key]:
    """The keys of the dataclass `kind` by dotted name, in its order."""
    found = {}
    hints = typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        many = typing.get_origin(hints[each.name]) is tuple
        scalar = typing.get_args(hints[each.name])[0] if many else hints[each.name]
        scalar = Time if scalar == AnyTime else scalar
        key = Key(section, each.name, scalar, int(many), each.default, **each.metadata)
        found[key.path] = key
    return found
