"""How a campaign begins: with a seed that it prints, in a place that is fast. And how far it is, to stderr."""

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/dev/shm")  # faster than a disk, and a store's commits wait for the disk
_EVERY_S = 20.0


def printed_seed(given: int | None) -> int:
    """The seed that is given, or one that is drawn."""
    seed = given if given is not None else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    return seed


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A directory that is gone afterwards: in memory, where there is such a place."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as place:
        yield Path(place)


def shown(count: int, what: str) -> Iterator[int]:
    """0 to `count` - 1; now and then a line says how many of them are done, and how long the rest will take."""
    said = begun = time.monotonic()
    for number in range(count):
        yield number
        now = time.monotonic()
        if now - said > _EVERY_S:
            said, left = now, (now - begun) / (number + 1) * (count - number - 1)
            print(f"{number + 1} of {count} {what}, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
