"""Progress on stderr: a bar where it is a terminal, a line now and then where it is not."""

import contextlib
import sys
import time
from collections.abc import Iterator

from data_prep.dataset import Report

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def shown_progress() -> Iterator[Report]:
    """A Report that shows itself on stderr while the block runs."""
    if not sys.stderr.isatty():
        last = [time.monotonic()]

        def line(stage: str, done: int, total: int) -> None:
            if done == total or time.monotonic() - last[0] >= _SECONDS_BETWEEN_LINES:
                last[0] = time.monotonic()
                print(f"{stage}: {done:,} of {total:,} images", file=sys.stderr)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield bar
