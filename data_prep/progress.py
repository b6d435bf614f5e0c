"""Progress on stderr: one line that is rewritten where it is a terminal, a line now and then where it is not."""

import sys
import time
from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total): what is being done, and how many images of how many."""


def silent(stage: str, done: int, total: int) -> None:
    """A Report that prints nothing."""


def shown_progress() -> Report:
    """A Report that shows itself on stderr."""
    terminal = sys.stderr.isatty()
    seconds_between = 0.2 if terminal else 10.0
    last = time.monotonic()

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= seconds_between:
            last = now
            end = "\r" if terminal and done < total else "\n"
            print(f"{stage}: {done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)

    return show
