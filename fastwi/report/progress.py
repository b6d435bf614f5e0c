"""Progress with time left: a live bar on a terminal or in a notebook, lines elsewhere. To stderr."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastwi.experiment.planner import PlannedSweep
    from fastwi.experiment.store import Measurement

_LINE_EVERY_S = 10.0

EVALUATION_COST = 0.25
"""Of an image that is only evaluated, in trained images: an estimate, for the time left."""


def cost_of(planned: "PlannedSweep", task: int) -> float:
    """The cost of a task, in trained images."""
    tree = planned.tree
    config = tree.config_of(task)
    inputs = planned.inputs_of(config)
    tested = EVALUATION_COST * inputs.images("test", config.data)
    if task < len(tree):
        return inputs.images("train", config.data) + tested
    return tested + EVALUATION_COST * tree.treatment_of(task).images


def auto_line(planned: "PlannedSweep") -> str:
    """What engine.precision: auto is, and why; empty where no point has it."""
    auto = planned.auto
    return f"engine.precision: auto is {auto.precision}: {auto.reason}" if auto else ""


def clock(seconds: float) -> str:
    """12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveProgress:
    """A bar with time left on a terminal or in a notebook, and lines above it or, elsewhere, alone. To stderr."""

    def __init__(self, description: str, total: float | None, speed: bool = True, quiet: bool = False) -> None:
        """`quiet`: nothing is shown."""
        console = Console(file=sys.stderr, quiet=quiet)
        # Without ipywidgets a notebook shows lines, as a file does.
        live = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        fields = (TextColumn("{task.fields[speed]}"),) if speed else ()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                   *fields, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=quiet or not live)
        self._task = self._bar.add_task(description, total=total, speed="")

    def __enter__(self) -> "Self":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _print(self, message: str) -> None:
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)


class TreeProgress(LiveProgress):
    """The `Listener` of a run or a sweep: how far it is."""

    def __init__(
        self,
        planned: "PlannedSweep",
        describe: Callable[[Sequence["Measurement"]], str] | None = None,
        first: str = "",
        quiet: bool = False,
    ) -> None:
        """`describe`: measurements in words, for a line at each of them. `quiet`: nothing is shown.

        `first` is shown before the first images; without it, what engine.precision: auto is.
        """
        self._tree, self._cost, self._describe = planned.tree, partial(cost_of, planned), describe
        first = first or auto_line(planned)
        self._waiting = {"first": first} if first else {}  # lines that are shown before the first images
        self._total = self._done = self._here = 0.0
        self._tasks = self._tasks_done = 0
        self._begun = time.monotonic()
        self._last_line = -_LINE_EVERY_S
        super().__init__("planning", 1.0, quiet=quiet)

    def planned(self, left: Sequence[int]) -> None:
        """Take `left` as what is left."""
        if not left:
            finished = "finished before; its results are shown again, whatever engine.* says now"
            self._print("other processes did the rest" if self._tasks else finished)
        self._total = self._done + sum(map(self._cost, left))
        self._tasks = self._tasks_done + len(left)
        self._bar.update(self._task, total=self._total)
        epochs, probes = self._tree.count(left)
        self._waiting["planned"] = f"{epochs:,} epochs to train, {probes:,} networks to measure"

    def images(self, trained: int, evaluated: int) -> None:
        """Advance within what is being measured."""
        self._say_first()
        self._here += trained + EVALUATION_COST * evaluated
        self._bar.update(self._task, completed=self._done + self._here)

    def measured(self, tasks: Sequence[int], measurements: Sequence["Measurement"]) -> None:
        """Advance past `tasks`."""
        self._say_first()
        self._done += sum(map(self._cost, tasks))
        self._here = 0.0
        self._tasks_done += len(tasks)
        spent = time.monotonic() - self._begun
        speed = f"{self._done / max(spent, 1e-9):,.0f} images/s"
        last = measurements[-1]
        if self._describe is not None:
            said = self._describe(measurements)
            description, _, _ = said.partition(":")
        else:
            description = f"networks measured: {self._tasks_done:,} of {self._tasks:,}"
            said = f"{description}, the last at epoch {last.epoch}: {last.test_accuracy:.2f} %"
        self._bar.update(self._task, completed=self._done, description=description, speed=speed)
        ended = self._done >= self._total * (1 - 1e-9)
        if self._describe is None and time.monotonic() - self._last_line < _LINE_EVERY_S and not ended:
            return
        self._last_line = time.monotonic()
        left = (self._total - self._done) * spent / max(self._done, 1e-9)
        self._print(f"{said}  [{speed}, {clock(spent)} spent, {clock(left)} left]")

    def told(self, message: str) -> None:
        """Show it."""
        self._print(message)

    def _say_first(self) -> None:
        for line in self._waiting.values():
            self._print(line)
        self._waiting.clear()
