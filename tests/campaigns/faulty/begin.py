"""How a campaign begins: with a seed that it prints, in a place that is fast."""

import contextlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/dev/shm")  # faster than a disk, and a store's commits wait for the disk


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
