"""What a run leaves when it is done: its tables and figure, and what is said of networks that diverged."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastwi.data.card import Card
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.results import divergence, point_rows
from fastwi.experiment.rundir import RunDirectory
from fastwi.experiment.store import Measurement
from fastwi.experiment.tree import MeasurementKey
from fastwi.files import write_text
from fastwi.report.figure import draw_run
from fastwi.report.summary import Row, Table, after_table, interpolation_table


@dataclass(frozen=True)
class RunResults:
    """What was measured, as rows and tables; a line for each network that diverged, and for what failed.

    `rows`: those of metrics.jsonl. `tables`: none where the run did not come to an average.
    """

    measured: dict[MeasurementKey, Measurement]
    rows: list[Row]
    tables: list[Table]
    problems: list[str]


def write_run(
    planned: PlannedSweep,
    paths: RunDirectory,
    card: Card,
    measured: dict[MeasurementKey, Measurement],
    failures: Sequence[str],
) -> RunResults:
    """Write summary.md and the figure, where there is something for them. `failures`: what could not be done."""
    (point,), (place,) = planned.points, planned.places
    rows, e = point_rows(point, place, measured), point.config.experiment
    tables: list[Table] = []
    if any(row["network"] == "average" for row in rows):
        tables = [interpolation_table(rows)] + ([after_table(rows)] if e.after else [])
        title = f"{point.config.model.name} on {card.name}: k = {e.k}, s = {e.s}, {e.children} children"
        write_text(paths.table, f"# {title}\n\n" + "\n".join(table.markdown() for table in tables))
        draw_run(rows, paths.figure, title)
    diverged = [
        f"{row['network']} diverged in epoch {row['epoch']}: {divergence(row)}; lower optimizer.learning_rate, or "
        "give schedule.warmup_iterations"
        for row in rows
        if divergence(row)
    ]
    return RunResults(measured, rows, tables, [*diverged, *failures])
