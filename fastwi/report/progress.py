"""Progress with the time left: a live bar on a terminal or in a notebook, lines elsewhere. To stderr."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fastwi.config.time import epochs_of
from fastwi.report.rows import ACCURACY, point_rows, row_name
from fastwi.report.summary import count_of, value_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastwi.experiment.planner import PlannedSweep
    from fastwi.experiment.store import Measurement
    from fastwi.experiment.tree import Tree
    from fastwi.report.run_directory import RunRecord

_LINE_EVERY_S = 10.0
_MOST_NAMED = 6
_EVALUATION_COST = 0.25  # of an image that is only evaluated, in trained images: an estimate, for the time left


def cost_of(planned: "PlannedSweep", task: int) -> float:
    """The cost of a task, in trained images."""
    tree = planned.tree
    config = tree.config_of(task)
    inputs = planned.inputs_of(config)
    tested = _EVALUATION_COST * inputs.images("test", config.data)
    if task < len(tree):
        return trained_images(planned, task) + tested
    return tested + _EVALUATION_COST * tree.treatment_of(task).images


def trained_images(planned: "PlannedSweep", epoch: int) -> int:
    """The images that the steps of an epoch, or of a part of one, take: without those that data.last_batch drops."""
    tree = planned.tree
    config = tree.config_of(epoch)
    images, keep = planned.inputs_of(config).images("train", config.data), config.data.last_batch == "keep"
    batch, begun = config.optimizer.batch_size, tree.iterations[tree.before[epoch]]
    first = begun % tree.per_epoch[epoch]
    last = first + tree.iterations[epoch] - begun
    return min(last * batch, images if keep else images - images % batch) - first * batch


def trained_epochs(tree: "Tree", nodes: Iterable[int]) -> int | float:
    """The epochs of training that the states `nodes` take; of an epoch in part, its part."""
    steps = Counter[int]()  # by the iterations of an epoch
    for node in nodes:
        steps[tree.per_epoch[node]] += tree.iterations[node] - tree.iterations[tree.before[node]]
    return round(sum(epochs_of(done, per_epoch) for per_epoch, done in steps.items()), 2)


def clock(seconds: float) -> str:
    """12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Shows how far something is. `name`: what the bar is called; `quiet`: nothing is shown."""

    def __init__(self, name: str, quiet: bool = False) -> None:
        console = Console(file=sys.stderr, quiet=quiet)
        # Without ipywidgets a notebook shows lines, as a file does.
        live = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        share = [BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[speed]}")]
        times = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()]
        columns = [TextColumn("{task.description}", markup=False), *share, *times]
        self._bar = RichProgress(*columns, console=console, disable=quiet or not live)
        self._task = self._bar.add_task(name, total=None, speed="")
        self._name, self._begun = name, time.monotonic()
        self._next_line, self._ended = 0.0, False

    def __enter__(self) -> "Self":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: float, total: float, said: str = "", speed: str = "", every: bool = False) -> None:
        """Report that `done` of `total` is done; in lines at most every 10 s and at the end, or `every` time.

        A line has `said`, or the share that is done. Without `said` there are no lines on a terminal.
        """
        now = time.monotonic()
        description = said.partition(":" if every else ",")[0] or self._name
        self._bar.update(self._task, completed=done, total=total, speed=speed, description=description)
        ended = done >= total * (1 - 1e-9)
        due = every or (done > 0 and now >= self._next_line) or (ended and not self._ended)
        self._ended = ended
        if not due or (self._bar.console.is_terminal and not said):
            return
        self._next_line = now + _LINE_EVERY_S
        spent = now - self._begun
        percent = f"{100 * done / max(total, 1):.0f} %"
        left = "" if percent == "0 %" else f"{clock((total - done) * spent / max(done, 1e-9))} left"
        times = [speed, f"{clock(spent)} spent", left]
        said = said or f"{self._name}: {percent}"
        self._print(f"{said}  [{', '.join(filter(None, times))}]")

    def _print(self, message: str) -> None:
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)


class TreeProgress(Progress):
    """The `Listener` of a sweep, or with `record` of a run. `first` is shown before the first images."""

    def __init__(
        self, planned: "PlannedSweep", first: str = "", quiet: bool = False, record: "RunRecord | None" = None
    ) -> None:
        super().__init__("planning", quiet)
        self._planned, self._record = planned, record
        self._waiting = {"first": first} if first else {}  # lines that are shown before the first images
        self._total = self._done = self._here = 0.0
        self._tasks = 0
        self.tasks_done = 0  # here

    def planned(self, left: Sequence[int]) -> None:
        """Take `left` as what is left."""
        if not left:
            finished = "already finished; showing the stored results (engine.* is ignored)"
            self._print("other processes did the rest" if self._tasks else finished)
        self._total = self._done + self._cost(left)
        self._tasks = self.tasks_done + len(left)
        self._bar.update(self._task, total=self._total)
        tree = self._planned.tree
        nodes, probes = tree.count(left)
        epochs = trained_epochs(tree, left[:nodes])
        self._waiting["planned"] = f"{count_of(epochs, 'epoch')} to train, {count_of(probes, 'network')} to measure"

    def images(self, trained: int, evaluated: int) -> None:
        """Advance within what is being measured."""
        self._say_first()
        self._here += trained + _EVALUATION_COST * evaluated
        self._bar.update(self._task, completed=self._done + self._here)

    def measured(self, tasks: Sequence[int], measurements: "Sequence[Measurement]") -> None:
        """Advance past `tasks`. A run has a line each time."""
        self._say_first()
        self._done += self._cost(tasks)
        self._here = 0.0
        self.tasks_done += len(tasks)
        speed = f"{self._done / max(time.monotonic() - self._begun, 1e-9):,.0f} images/s"
        last = measurements[-1]
        said = (
            f"networks measured: {self.tasks_done:,} of {self._tasks:,}, the last at epoch {last.epoch}: "
            f"{last.test_accuracy:.2f} %"
        )
        if self._record is None:
            self.show(self._done, self._total, said, speed)
        else:
            self.show(self._done, self._total, _named(self._planned, measurements), speed, every=True)
            self._record.add(measurements)

    def warned(self, message: str) -> None:
        """Show it."""
        self._print(message)

    def _cost(self, tasks: Sequence[int]) -> float:
        return sum(cost_of(self._planned, task) for task in tasks)

    def _say_first(self) -> None:
        for line in self._waiting.values():
            self._print(line)
        self._waiting.clear()


def _named(planned: "PlannedSweep", measurements: "Sequence[Measurement]") -> str:
    """Measurements of a run in words, each network once."""
    rows = point_rows(planned.points[0], planned.places[0], {m.key: m for m in measurements})
    if not rows:  # of the interpolation, and the average is measured already
        return f"epoch {measurements[-1].epoch}: {len(measurements)} networks measured"
    shown = dict.fromkeys(
        f"{row_name(row)}{'*' if row['batch_norm'] == 'recomputed' else ''} {row[ACCURACY]:.2f} %" for row in rows
    )
    named = ", ".join(list(shown)[:_MOST_NAMED]) + (", ..." if len(shown) > _MOST_NAMED else "")
    return f"epoch {value_text(rows[0]['epoch'])} {rows[0]['stage']}: {named}"
