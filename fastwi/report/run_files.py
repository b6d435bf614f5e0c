"""What a run shows when it is done: its tables and figure, and the networks that diverged."""

from collections.abc import Sequence

from fastwi.config.schema import Config
from fastwi.data.card import Card
from fastwi.experiment.results import divergence
from fastwi.experiment.rundir import RunDirectory
from fastwi.files import write_text
from fastwi.report.figure import draw_run
from fastwi.report.summary import Row, Table, after_table, interpolation_table


def run_tables(rows: Sequence[Row], config: Config) -> list[Table]:
    """The interpolation, and the average's further training; none where there is no average."""
    if not any(row["network"] == "average" for row in rows):
        return []
    return [interpolation_table(rows)] + ([after_table(rows)] if config.experiment.after else [])


def write_report(rows: Sequence[Row], paths: RunDirectory, config: Config, card: Card) -> None:
    """Write summary.md and the figure, where there is something for them."""
    tables, experiment = run_tables(rows, config), config.experiment
    if not tables:
        return
    title = f"{config.model.name} on {card.name}: k = {experiment.k}, s = {experiment.s}, "
    title += f"{experiment.children} children"
    write_text(paths.table, f"# {title}\n\n" + "\n".join(table.markdown() for table in tables))
    draw_run(rows, paths.figure, title)


def diverged_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each measurement that found that a network diverged."""
    return [
        f"{row['network']} diverged in epoch {row['epoch']}: {divergence(row)}; lower optimizer.learning_rate, or "
        "give schedule.warmup_iterations"
        for row in rows
        if divergence(row)
    ]
