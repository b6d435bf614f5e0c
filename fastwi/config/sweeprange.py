"""Ranges of numbers, as a sweep file writes them: `1..4`, `0..10 step 2`, `0.05..0.2 step 0.05`.

Both ends are in. The arithmetic is exact, on the decimals as they are written, so that 0.05..0.2 holds the same
0.15 as a list that spells it out; adding 0.05 in floating point would give 0.15000000000000002.
"""

import math
import re
from fractions import Fraction

from fastwi.config.wording import show

MOST_VALUES = 1_000_000
_LONGEST = 100  # characters

_NUMBER = r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s+step\s+({_NUMBER}))?\s*")
_WHOLE = re.compile(r"[-+]?[0-9]+")


def is_range(text: str) -> bool:
    """Whether `text`, found where numbers belong, is meant as a range."""
    return ".." in text


def expand_range(text: str) -> list[int] | list[float]:
    """The numbers of a range, in order: ints where both ends and the step are whole numbers, else floats.

    Raises ValueError, saying what is wrong and what to give.
    """
    match = _RANGE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise ValueError(f"{show(text)} is not a range; write one as 1..4 or 0..10 step 2")
    words = [word for word in match.groups() if word is not None]
    if len(words) == 2:
        if not _WHOLE.fullmatch(words[0]):
            raise ValueError(f"{show(text)} needs a step; write one as 0.05..0.2 step 0.05")
        words.append("1")
    first, last, step = (Fraction(word) for word in words)
    if step <= 0:
        raise ValueError(f"{show(text)} has a step that is not above 0; give one that is")
    if last < first:
        raise ValueError(f"{show(text)} ends before it starts; write the smaller end first, or a list")
    steps = (last - first) / step
    if math.floor(steps) >= MOST_VALUES:
        raise ValueError(f"{show(text)} has too many values; give at most {MOST_VALUES:,}")
    whole = all(_WHOLE.fullmatch(word) for word in words)
    if steps.denominator != 1:
        # An end that the steps miss is a mistyped step as often as not, and both ends are said to be in.
        below = first + math.floor(steps) * step
        ends = " or ".join(
            str(int(end) if whole else _nearest(end.numerator, end.denominator)) for end in (below, below + step)
        )
        raise ValueError(f"{show(text)} does not arrive at its end; end it at {ends}, or change the step")
    if whole:
        return list(range(int(first), int(last) + 1, int(step)))
    unit = math.lcm(first.denominator, step.denominator)
    start, stride = int(first * unit), int(step * unit)
    return [_nearest(start + index * stride, unit) for index in range(int(steps) + 1)]


def _nearest(numerator: int, denominator: int) -> float:
    """The float nearest to the quotient: Python's division of ints rounds once, as reading a decimal does."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf  # the keys' checkers refuse it by name
