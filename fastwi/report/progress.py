"""Progress of a run with time left: a live bar on a terminal, a plain line an epoch elsewhere. To stderr."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fastwi.config.schema import Config
from fastwi.experiment.plan import Step, plan, work
from fastwi.report.summary import ACCURACY, Row

if TYPE_CHECKING:
    from typing_extensions import Self

# Cost of an image passed forward only, in trained images: the share that the time left is reckoned with.
EVALUATION_COST = 0.25


def clock(seconds: float) -> str:
    """12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveProgress:
    """A bar with time left on a terminal, and lines that are printed above it or, elsewhere, alone. To stderr."""

    def __init__(self, description: str, total: float | None, speed: bool = True) -> None:
        console = Console(file=sys.stderr)
        fields = (TextColumn("{task.fields[speed]}"),) if speed else ()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                   *fields, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(description, total=total, speed="")

    def __enter__(self) -> "Self":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _print(self, message: str, soft_wrap: bool = True) -> None:
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=soft_wrap)


class RunProgress(LiveProgress):
    """A `Listener` that shows how far a run is, and with the first images what they are computed by: `backend`."""

    def __init__(self, config: Config, train_images: int, test_images: int, backend: str) -> None:
        costs = {step: work(step, config, train_images, test_images) for step in plan(config.experiment)}
        self._cost = {step: w.trained + EVALUATION_COST * w.evaluated for step, w in costs.items()}
        self._total, self._done, self._here = sum(self._cost.values()), 0.0, 0.0
        self._resumed, self._begun = 0.0, time.monotonic()
        self._unsaid: str | None = backend
        super().__init__(f"starting: {backend}", self._total)

    def images(self, trained: int, evaluated: int) -> None:
        """Advance within the step in progress."""
        if self._unsaid:
            self._print(self._unsaid)
            self._unsaid = None
        self._here += trained + EVALUATION_COST * evaluated
        self._bar.update(self._task, completed=self._done + self._here)

    def step_done(self, step: Step, rows: list[Row]) -> None:
        """Advance past a step; a step without rows was done by an earlier process."""
        self._done += self._cost[step]
        self._here = 0.0
        if not rows:
            self._resumed += self._cost[step]
            self._bar.update(self._task, completed=self._done)
            if self._resumed >= self._total:
                self._print("finished before; its results are shown again, whatever engine.* says now")
            return
        spent = time.monotonic() - self._begun
        rate = (self._done - self._resumed) / max(spent, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        best = ", ".join(
            f"{row['network']}{'*' if row['batch_norm'] == 'recomputed' else ''} {row[ACCURACY]:.2f} %"
            for row in rows[:6]
        )
        description = f"epoch {rows[-1]['epoch']} {step.stage.value}"
        self._bar.update(self._task, completed=self._done, description=description, speed=f"{rate:,.0f} images/s")
        self._print(f"{description}: {best}  [{clock(spent)} spent, {clock(left)} left]", soft_wrap=False)
