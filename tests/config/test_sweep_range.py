"""Ranges are exact and hold both ends, or say why not."""

import random
from decimal import Decimal

import pytest

from fastwi.config.values import MOST_VALUES, expand_range


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3..3", [3]),
        ("-2..1", [-2, -1, 0, 1]),
        ("  0 .. 10   step 5 ", [0, 5, 10]),
        ("0.05..0.2 step 0.05", [0.05, 0.1, 0.15, 0.2]),
        ("0..1 step 0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("1e-4..3e-4 step 1e-4", [1e-4, 2e-4, 3e-4]),
        ("1.0..2.0 step 1", [1.0, 2.0]),
        (f"1..{MOST_VALUES}", list(range(1, MOST_VALUES + 1))),
    ],
)
def test_accepted(text: str, numbers: list[float]) -> None:
    found = expand_range(text)
    assert found == numbers
    assert [type(each) for each in found] == [type(each) for each in numbers]


@pytest.mark.parametrize(
    "text",
    [
        "1..", "1...4", "a..b", "1..4 by 2", "01..4", "1..\u0664", "1..4" + " " * 200, "1..1e9999", "0.5..2.5",
        "1..4 step 0", "4..1 step -1", "4..1", "0..10 step 3", "0..1 step 0.3", f"1..{MOST_VALUES + 1}",
        "0..9e999 step 1e-999", "0..1e400 step 1e400",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"; ") as caught:
        expand_range(text)
    assert str(caught.value).startswith(f"'{text[:60]}")


def test_values_are_those_that_their_decimals_spell(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(200):
        places = draw.randint(1, 12)
        unit = Decimal(1).scaleb(-places)
        first, step, count = draw.randint(-999, 999) * unit, draw.randint(1, 999) * unit, draw.randint(1, 40)
        spelled = [first + index * step for index in range(count)]
        found = expand_range(f"{first:f}..{spelled[-1]:f} step {step:f}")
        assert found == [float(f"{each:f}") for each in spelled]
