"""Listeners for tests of what is carried out: silent, counting, and stopping at a chosen moment."""

from collections import Counter
from collections.abc import Sequence

from fastwi.experiment.store import Measurement
from fastwi.report.progress import TreeProgress


class Stopped(KeyboardInterrupt):
    """Raised by the listener in place of a power cut."""


class Silent:
    """A listener that notes what it hears, and stops at the report of a measurement number `stop_after`.

    `here`: how often each task was measured. `lines`: what was shown.
    """

    def __init__(self, stop_after: int = -1) -> None:
        self._stop_after, self.reports = stop_after, 0
        self.here = Counter[int]()
        self.lines: list[str] = []

    def planned(self, left: Sequence[int]) -> None: ...

    def images(self, trained: int, evaluated: int) -> None: ...

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
        self.here.update(tasks)
        self.reports += 1
        if self.reports == self._stop_after:
            raise Stopped

    def warned(self, message: str) -> None:
        self.lines.append(message)


def stopping(report: int, shown: bool = False) -> type[TreeProgress]:
    """A run's progress that ends the run, as Ctrl-C does, at a report of measurements; `shown`: after it is shown."""

    class Stopping(TreeProgress):
        _reports = 0

        def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
            self._reports += 1
            if shown:
                super().measured(tasks, measurements)
            if self._reports == report:
                raise KeyboardInterrupt
            if not shown:
                super().measured(tasks, measurements)

    return Stopping
