"""Progress over a sweep's tree with time left: a live bar on a terminal, now and then a line elsewhere. To stderr."""

import time
from collections.abc import Callable

from fastwi.experiment.planner import Todo
from fastwi.experiment.store import Measurement
from fastwi.experiment.tree import Epoch, Task
from fastwi.report.progress import EVALUATION_COST, LiveProgress, clock

_LINE_EVERY_S = 10.0


class SweepProgress(LiveProgress):
    """A `Listener` that shows how far a sweep is."""

    def __init__(self, cost: Callable[[Task], float]) -> None:
        """`cost` of a task, in trained images."""
        self._cost = cost
        self._total = self._done = self._elsewhere = self._here = 0.0
        self._epochs = self._epochs_done = self._probes = self._probes_done = 0
        self._begun = time.monotonic()
        self._last_line = -_LINE_EVERY_S
        super().__init__("planning", 1.0)

    def planned(self, todo: Todo) -> None:
        """Take `todo` as what is left."""
        self._total = self._done + sum(map(self._cost, todo.epochs)) + sum(map(self._cost, todo.probes))
        self._epochs, self._probes = self._epochs_done + len(todo.epochs), self._probes_done + len(todo.probes)
        self._bar.update(self._task, total=self._total)
        self._print(f"{len(todo.epochs)} epochs to train, {len(todo.probes)} networks to measure")

    def images(self, trained: int, evaluated: int) -> None:
        """Advance within the job in progress."""
        self._here += trained + EVALUATION_COST * evaluated
        self._bar.update(self._task, completed=self._done + self._here)

    def done(self, tasks: list[Task], measurements: list[Measurement], elsewhere: bool) -> None:
        """Advance past `tasks`."""
        cost = sum(map(self._cost, tasks))
        self._done += cost
        self._elsewhere += cost if elsewhere else 0.0
        self._here = 0.0
        epochs = sum(isinstance(task, Epoch) for task in tasks)
        self._epochs_done += epochs
        self._probes_done += len(tasks) - epochs
        spent = time.monotonic() - self._begun
        description = f"epochs {self._epochs_done}/{self._epochs}, networks {self._probes_done}/{self._probes}"
        # What other processes do speeds the sweep up, so it counts in the time left, not in this process's speed.
        speed = f"{(self._done - self._elsewhere) / max(spent, 1e-9):,.0f} images/s"
        self._bar.update(self._task, completed=self._done, description=description, speed=speed)
        if time.monotonic() - self._last_line < _LINE_EVERY_S and self._done < self._total * (1 - 1e-9):
            return
        self._last_line = time.monotonic()
        left = (self._total - self._done) * spent / max(self._done, 1e-9)
        kind = "trained to" if epochs else "measured at"
        last = measurements[-1]
        self._print(
            f"{description}: {len(tasks)} networks {kind} epoch {last.epoch}, the last at {last.test_accuracy:.2f} %"
            f"  [{speed}, {clock(spent)} spent, {clock(left)} left]"
        )

    def told(self, message: str) -> None:
        """Say it."""
        self._print(message)
