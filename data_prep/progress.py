"""Progress on stderr: one line that is rewritten where it is a terminal, a line now and then where it is not."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total): what is being done, and how many images of how many."""


def silent(stage: str, done: int, total: int) -> None:
    """A Report that prints nothing."""


def shown_progress() -> Report:
    """A Report that shows itself on stderr, with the time left for each stage."""
    terminal = sys.stderr.isatty()
    seconds_between = 0.2 if terminal else 10.0
    last = 0.0
    begun: dict[str, float] = {}

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage not in begun:
            begun[stage] = last = now
        if done < total and now - last < seconds_between:
            return
        last = now
        left = (now - begun[stage]) * (total - done) / max(done, 1)
        time_left = f", {timedelta(seconds=round(left))} left" if 0 < done < total else ""
        line = f"{stage}: {done:,} of {total:,} images{time_left}"
        rewritten = terminal and done < total
        print(f"{line:<70}" if terminal else line, end="\r" if rewritten else "\n", file=sys.stderr, flush=True)

    return show
