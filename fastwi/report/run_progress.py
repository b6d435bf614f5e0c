"""The progress of a run: as that of a sweep, with its networks by name, and its rows in metrics.jsonl."""

import time
from collections.abc import Sequence
from types import TracebackType

from fastwi.engine.base import Engine
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.store import Measurement, Store
from fastwi.experiment.todo import without_lost
from fastwi.experiment.tree import MeasurementKey
from fastwi.files import to_json, write_text
from fastwi.report.progress import TreeProgress
from fastwi.report.rows import ACCURACY, Row, point_rows
from fastwi.report.run_files import RunDirectory
from fastwi.report.run_plan import describe
from fastwi.report.tensorboard import TensorBoard

_ROWS_EVERY_S = 5.0
_MOST_NAMED = 6


class RunProgress(TreeProgress):
    """Shows how far a run is and keeps its rows up to date, in its directory and in TensorBoard."""

    def __init__(
        self,
        planned: PlannedSweep,
        store: Store,
        paths: RunDirectory,
        engine: Engine,
        quiet: bool = False,
    ) -> None:
        """`quiet`: nothing is shown."""
        super().__init__(planned, self._networks, describe(engine, planned), quiet)
        self._planned, self._paths = planned, paths
        self._board = TensorBoard(paths.tensorboard) if planned.points[0].config.run.tensorboard else None
        self._measured: dict[MeasurementKey, Measurement] = store.measurements(planned.tree.measurement_keys())
        self._written = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.write_rows()
        if self._board is not None:
            self._board.close()

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
        """See `Listener`."""
        super().measured(tasks, measurements)
        self._measured |= {m.key: m for m in measurements}
        if time.monotonic() - self._written > _ROWS_EVERY_S:
            self.write_rows()

    def found(self) -> dict[MeasurementKey, Measurement]:
        """The measurements that count so far."""
        return without_lost(self._planned.tree, self._measured)

    def write_rows(self) -> None:
        """Write the rows of all that is measured."""
        rows = self._rows(self.found())
        if rows:
            write_text(self._paths.metrics, "".join(f"{to_json(row)}\n" for row in rows))
        if self._board is not None:
            self._board.write(rows)
        self._written = time.monotonic()

    def _rows(self, measured: dict[MeasurementKey, Measurement]) -> list[Row]:
        return point_rows(self._planned.points[0], self._planned.places[0], measured)

    def _networks(self, measurements: Sequence[Measurement]) -> str:
        """Measurements in words, a network once."""
        rows = self._rows({m.key: m for m in measurements})
        if not rows:  # of the interpolation, and the average is measured already
            return f"epoch {measurements[-1].epoch}: {len(measurements)} networks measured"
        shown = dict.fromkeys(
            f"{row['network']}{'*' if row['batch_norm'] == 'recomputed' else ''} {row[ACCURACY]:.2f} %"
            for row in rows
        )
        named = ", ".join(list(shown)[:_MOST_NAMED]) + (", ..." if len(shown) > _MOST_NAMED else "")
        return f"epoch {rows[0]['epoch']} {rows[0]['stage']}: {named}"
