"""A run's measurements as TensorBoard scalars, beside metrics.jsonl and from it.

The event file is derived: a process that goes on with a run writes it anew, with the points of all rows so far, so
that none is missing and none is there twice wherever the earlier one was stopped.
"""

import importlib.util
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastwi.errors import ConfigError
from fastwi.experiment.paths import RunPaths
from fastwi.experiment.plan import Step
from fastwi.experiment.progress import Row, read_progress, read_rows
from fastwi.experiment.protocol import Listener

if TYPE_CHECKING:
    from typing_extensions import Self

_NO_SCALARS = ("stage", "epoch", "network", "batch_norm")


def require_tensorboard() -> None:
    """Raise ConfigError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "run.tensorboard: tensorboard is not installed; pip install 'fastwi[tensorboard]', or leave it false"
        )


class TensorBoard:
    """A `Listener` that writes event files and passes all on to `listener`.

    A scalar is called `column/network/batch_norm`, such as test_accuracy_%/child 1/own: columns and units are those
    of metrics.jsonl. Its step is the epoch.
    """

    def __init__(self, paths: RunPaths, listener: Listener) -> None:
        """Raises ConfigError where the package is not installed."""
        require_tensorboard()
        self._paths, self._listener = paths, listener
        self._writer: Any = None
        self._written: set[tuple[str, int]] = set()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._writer is None:  # all steps were done: perhaps without this listener
            self._begin()
        if self._writer is not None:
            self._writer.close()

    def images(self, trained: int, evaluated: int) -> None:
        """Nothing to write."""
        self._listener.images(trained, evaluated)

    def step_done(self, step: Step, rows: list[Row]) -> None:
        """Write the step's rows; with the first that are new, all before them too."""
        if rows and self._writer is None:
            self._begin()
        elif rows:
            self._write(rows)
        self._listener.step_done(step, rows)

    def _begin(self) -> None:
        """A new event file with all that is in metrics.jsonl, in place of those of earlier processes."""
        from torch.utils.tensorboard import SummaryWriter

        directory = self._paths.tensorboard
        for stale in directory.glob("events.out.tfevents.*"):
            stale.unlink(missing_ok=True)
        self._writer = SummaryWriter(str(directory))
        self._write(read_rows(self._paths, read_progress(self._paths)))

    def _write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            for column in [name for name in row if name not in _NO_SCALARS]:
                tag = f"{column}/{row['network']}/{row['batch_norm']}"
                # A child's last epoch and its measurement at interpolation are one point.
                if row[column] is not None and (tag, row["epoch"]) not in self._written:
                    self._written.add((tag, row["epoch"]))
                    self._writer.add_scalar(tag, row[column], row["epoch"])
        self._writer.flush()
