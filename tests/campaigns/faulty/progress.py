"""How far a campaign is, to stderr."""

import sys
import time
from collections.abc import Iterator

_EVERY_S = 20.0


def shown(count: int, what: str) -> Iterator[int]:
    """0 to `count` - 1; now and then a line says how many of them are done, and how long the rest will take."""
    said = begun = time.monotonic()
    for number in range(count):
        yield number
        now = time.monotonic()
        if now - said > _EVERY_S:
            said, left = now, (now - begun) / (number + 1) * (count - number - 1)
            print(f"{number + 1} of {count} {what}, about {left / 60:.0f} min left", file=sys.stderr, flush=True)
