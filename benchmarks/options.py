"""Command-line options that benchmarks share."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, short: Mapping[str, Any]
) -> argparse.Namespace:
    """Parse; with `--short`, options that are not given are those of `short`."""
    words = ", ".join(f"--{name} {_words(value)}" for name, value in short.items())
    parser.add_argument("--short", action="store_true", help=f"a quick look, no result: {words}")
    if parser.parse_known_args(arguments)[0].short:
        parser.set_defaults(**short)
    return parser.parse_args(arguments)


def numbers(text: str) -> tuple[int, ...]:
    """'1,2,4' as (1, 2, 4): whole numbers of at least 1, each once, in ascending order."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1 or sorted(set(found)) != list(found):
        raise argparse.ArgumentTypeError("want whole numbers of at least 1 in ascending order, such as 1,2,4")
    return found


def names(text: str) -> tuple[str, ...]:
    """'a,b' as ('a', 'b')."""
    return tuple(part.strip() for part in text.split(","))


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
