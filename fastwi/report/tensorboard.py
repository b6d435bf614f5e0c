"""A run's rows as TensorBoard scalars. A process that goes on with a run writes them again, each once."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastwi.errors import ConfigError
from fastwi.report.rows import Row

_SCALARS = ("train_loss", "learning_rate", "test_loss", "test_accuracy_%")


def require_tensorboard() -> None:
    """Raise ConfigError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "run.tensorboard: tensorboard is not installed; pip install 'fastwi[tensorboard]', or leave it false"
        )


class TensorBoard:
    """The event files of a run. A scalar is called `column/network/batch_norm`; its step is the epoch."""

    def __init__(self, directory: Path) -> None:
        """Takes the place of earlier event files. Raises ConfigError where the package is not installed."""
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        for stale in directory.glob("events.out.tfevents.*"):
            stale.unlink(missing_ok=True)
        self._writer: Any = SummaryWriter(str(directory))
        self._written: set[tuple[str, int]] = set()

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()

    def write(self, rows: Iterable[Row]) -> None:
        """Write those of `rows` that are not written yet."""
        for row in rows:
            for column in _SCALARS:
                place = f"{column}/{row['network']}/{row['batch_norm']}", row["epoch"]
                # A child's last epoch and its measurement at interpolation are one point.
                if row.get(column) is not None and place not in self._written:
                    self._written.add(place)
                    self._writer.add_scalar(place[0], row[column], row["epoch"])
        self._writer.flush()
