"""Training time in epochs and iterations: `10ep`, `500it`, `10ep50it`.

An epoch's length is known once the dataset is. `iterations_of` turns a key's value into iterations, and all
arithmetic and comparison is done on these.
"""

import re
from typing import TypeAlias

_COUNT = "(?:0|[1-9][0-9]{0,17})"
TIME = rf"(?=[0-9])(?:({_COUNT})ep)?(?:({_COUNT})it)?"
TIME_OR_TO = rf"{TIME}(-k)?"
_TIME = re.compile(TIME_OR_TO)


class Time(str):
    """A time that is no bare number, as text in its one spelling: `epochs` and beside them `iterations`.

    `160ep-k` (of s) is from k up to 160 epochs in all: `less_k`. A time has no order: 1ep may be more or less than
    500it.
    """

    epochs: int
    iterations: int
    less_k: bool

    def __new__(cls, text: str) -> "Time":
        """Read one of any spelling. Raises ValueError for other text."""
        match = _TIME.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a time; write one as 10ep, 500it or 10ep50it")
        epochs, iterations = (int(count or 0) for count in match.groups()[:2])
        counts = f"{epochs}ep" * (epochs > 0) + f"{iterations}it" * (iterations > 0)
        time = super().__new__(cls, (counts or "0ep") + (match[3] or ""))
        time.epochs, time.iterations, time.less_k = epochs, iterations, bool(match[3])
        return time


AnyTime: TypeAlias = int | Time
"""What a key holds: a number in the key's own unit where that says it all, else a `Time`. So 1ep is 1."""


def read_time(given: object, unit: str) -> AnyTime:
    """What a user gives to a key whose bare numbers are in `unit`, epochs or iterations. Raises ValueError."""
    if isinstance(given, str):
        time = Time(given)
        number, other = time.epochs, time.iterations
        if unit == "iterations":
            number, other = other, number
        return time if other or time.less_k else number
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError("not a time")
    return given


def iterations_of(time: AnyTime, per_epoch: int, unit: str = "epochs") -> int:
    """A time in iterations, where an epoch has `per_epoch`. `unit`: of bare numbers.

    A `Time` up to a global time (`less_k`) gives that global time.
    """
    if isinstance(time, Time):
        return time.epochs * per_epoch + time.iterations
    return time * per_epoch if unit == "epochs" else time


def time_at(iterations: int, per_epoch: int) -> AnyTime:
    """Iterations as a key with epochs as its unit holds them."""
    epochs, rest = divmod(iterations, per_epoch)
    return Time(f"{epochs}ep{rest}it") if rest else epochs


def epochs_of(iterations: int, per_epoch: int) -> int | float:
    """Iterations in epochs: an int where they are whole ones, else with the part."""
    epochs, rest = divmod(iterations, per_epoch)
    return iterations / per_epoch if rest else epochs


def parts_of(time: AnyTime) -> tuple[int, int]:
    """Epochs and iterations of a time in epochs."""
    return (time.epochs, time.iterations) if isinstance(time, Time) else (time, 0)


def step_sizes(images: int, batch: int, keep: bool) -> list[int]:
    """Images of each step of a pass over `images`: whole batches and, with `keep`, the rest (data.last_batch)."""
    rest = images % batch if keep else 0
    return [batch] * (images // batch) + [rest] * (rest > 0)
