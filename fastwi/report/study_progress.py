"""Progress of a study with time left: a live bar on a terminal, now and then a line elsewhere. To stderr."""

import time

from fastwi.report.progress import LiveProgress, clock

_LINE_EVERY_S = 10.0


class StudyProgress(LiveProgress):
    """Shows how far a study is, in whatever the study counts."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None, speed=False)
        self._name, self._begun = name, time.monotonic()
        self._last_line, self._said = self._begun, False

    def tell(self, done: int, total: int) -> None:
        """Say that `done` of `total` is done."""
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        early = now - self._last_line < _LINE_EVERY_S if done < total else self._said
        if self._bar.console.is_terminal or early:
            return
        self._said = done >= total
        self._last_line = now
        spent = now - self._begun
        left = (total - done) * spent / max(done, 1)
        share = 100 * done / max(total, 1)
        self._print(f"{self._name}: {share:.0f} %  [{clock(spent)} spent, {clock(left)} left]")
