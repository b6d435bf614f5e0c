"""What is written of all that a run or a sweep measured. It comes from the store, whichever process measured it."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars

from fastwi.config.read import sweep_from_yaml
from fastwi.config.sweep import SweepOptions
from fastwi.config.write import sweep_to_yaml
from fastwi.errors import CheckpointError, ConfigError
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.todo import lost_measurements
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.files import locked_directory, write_text
from fastwi.report.progress import trained_epochs
from fastwi.report.rows import (
    COLUMNS,
    GAIN_COLUMNS,
    Measured,
    gains,
    point_rows,
    result_frame,
    row_name,
    rows_frame,
    write_frame,
)
from fastwi.report.run_directory import RunDirectory
from fastwi.report.summary import Summary, count_of
from fastwi.report.tables import cell_table, run_tables, summary_markdown
from fastwi.sealed import MANIFEST, read_sealed, seal_directory, sealed_yaml

if TYPE_CHECKING:
    from fastwi.experiment.resources import Resources
    from fastwi.experiment.store import Measurement, Store

_MADE_WITH = "versions", "commit", "device", "backend"
_FIGURES = re.compile(r"(heatmap|gains|curves)(-[0-9]+)?\.(png|pdf|svg)")


@dataclass(frozen=True, eq=False)
class Results:
    """What a run or a sweep measured, and where its files are.

    Attributes:
        directory: the run's or the sweep's. `fastwi.load_network` takes it, or the results themselves.
        problems: a line for each network that diverged, and for each reason why something was not done.
        frame: a row a measurement. Of a run the columns of metrics.jsonl, null where there is none; of a sweep those
            of results.parquet. A network that diverged has no further rows.
        gains: a row an average and its children, as in gains.parquet: accuracies at interpolation (%), gains over the
            best child and over the children's mean (points), lists over the epochs trained on.
        missing: how many measurements are not there.
        summary: what the command prints.
    """

    directory: Path
    problems: tuple[str, ...]
    frame: polars.DataFrame
    gains: polars.DataFrame
    missing: int = field(repr=False)
    summary: Summary = field(repr=False)


def write_run(
    planned: PlannedSweep, paths: RunDirectory, store: "Store", dataset: str, failures: Sequence[str]
) -> Results:
    """Write summary.md and the figure, where there is something for them, and the cost into the manifest.

    `failures`: what could not be done.
    """
    from fastwi.experiment.store.records import infinite_loss
    from fastwi.report.curves import draw_run

    point, place = planned.points[0], planned.places[0]
    measured, missing, _ = _measured(planned, store)
    rows, averages = point_rows(point, place, measured), gains(planned, measured)
    tables, lines, problems = [], [], []
    if any(row["network"] == "average" for row in rows):
        e = point.config.experiment
        subject = f"{point.config.model.name} on {dataset}: k = {e.k}, s = {e.s}, {e.children} children"
        subject += f", {e.rounds} rounds" if e.rounds > 1 else ""
        tables = run_tables(rows, averages, place.end)
        write_text(paths.table, f"# {subject}\n\n" + "\n".join(table.markdown() for table in tables))
        draw_run(planned, measured, paths.figure, subject)
        lines = [f"{paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/, store/"]
    for row in rows:
        loss = infinite_loss(row.get("train_loss"), row["test_loss"], row["batch_norm"] == OWN)
        if loss:
            fix = "lower optimizer.learning_rate, or give schedule.warmup_iterations"
            problems.append(f"{row_name(row)} diverged in epoch {row['epoch']}: {loss}; {fix}")
    paths.note_cost(_cost(planned, measured))
    values = {"directory": str(paths.directory), "metrics": rows}
    summary = Summary(values, lines, tables, [*problems, *failures])
    return Results(paths.directory, tuple(summary.problems), rows_frame(rows), averages, missing, summary)


def write_sweep(
    planned: PlannedSweep, store: "Store", resources: "Resources", failures: Sequence[str], worked: bool
) -> Results:
    """Write the sweep's directory, its manifest last, and note the sweep in its store.

    `failures`: what could not be done. worked: whether anything was done here and now; else the manifest goes on
    saying where it was. Raises UserError where a file cannot be written.
    """
    from fastwi.report.curves import draw_curves
    from fastwi.report.heatmap import draw_gains
    from fastwi.report.manifest import cards_of, manifest, subject_of
    from fastwi.report.study import INPUTS

    spec, points, directory = planned.spec, planned.points, sweep_directory(planned)
    config = points[0].config
    resolved = sweep_to_yaml(spec)
    cards = cards_of(planned, resources)
    # One process at a time: the manifest has the checksums of all other files. The store is read within its turn, or
    # of shards that end at once the one that read less might write last.
    with locked_directory(directory):
        measured, missing, left = _measured(planned, store)
        diverged = [m for m in measured.values() if m.diverged]
        problems = sorted(m.divergence() for m in diverged)
        frame = result_frame(planned, measured)
        averages = gains(planned, measured)
        begun = _manifest_of(directory)
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in directory.iterdir():  # an earlier sweep of this name may have had more of them
            if _FIGURES.fullmatch(path.name):
                path.unlink()
        write_frame(frame, directory / "results.parquet", COLUMNS)
        write_frame(averages, directory / "gains.parquet", GAIN_COLUMNS)
        write_text(directory / "sweep.yaml", sealed_yaml(resolved))
        networks = len({m.state for m in diverged})
        write_text(directory / "summary.md", summary_markdown(spec, averages, len(points), left, networks))
        figures = list[Path]()
        if averages.height:
            subject = subject_of(spec, cards)
            figures += draw_gains(averages, directory, subject)
            figures += draw_curves(planned, measured, directory / "curves.png", subject)
        identity = hashlib.sha256(resolved.encode()).hexdigest()[:12]
        about = manifest(cards, resources.engine(config).resolved, identity, planned.networks)
        about |= {INPUTS: planned.contents(), "cost": _cost(planned, measured)}
        if not worked and begun.get(INPUTS) == about[INPUTS] and begun.get("precision") == about["precision"]:
            about |= {name: begun[name] for name in _MADE_WITH if name in begun}
        drawn = [path.with_suffix(kind).name for path in figures for kind in (".png", ".svg")]
        seal_directory(directory, about, ["results.parquet", "gains.parquet", "sweep.yaml", *drawn])
    # For `python -m fastwi.report STORE`: which sweeps the store was made for.
    write_text(_note_of(spec.options, store.directory / "sweeps"), sealed_yaml(resolved))
    counts = {"points": len(points), "measurements": len(measured), "missing": missing}
    names = ["results.parquet", "gains.parquet", "summary.md", *(path.name for path in figures)]
    line = f"{directory}: {', '.join(names)}"
    line += f"; not there yet: {count_of(left, 'measurement')}" if left else ""
    tables = [cell_table(averages)] if averages.height else []
    summary = Summary({"directory": str(directory), **counts}, [line], tables, [*problems, *failures])
    late = [f"measurements that are not there yet: {left:,}"] if left else []
    return Results(directory, tuple(summary.problems or late), frame, averages, missing, summary)


def _manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest that is there; empty where there is none, or it is damaged."""
    try:
        return read_sealed(directory / MANIFEST, "")
    except CheckpointError:
        return {}


def sweep_directory(planned: PlannedSweep) -> Path:
    """Where a sweep's results are."""
    return Path(planned.spec.options.directory) / planned.spec.options.name


def _note_of(options: SweepOptions, notes: Path) -> Path:
    """Where a store notes a sweep: by its name, with a hash of its directory where another of its name has that."""
    here, plain = Path(options.directory).resolve(), notes / f"{options.name}.yaml"
    try:
        noted = sweep_from_yaml(plain.read_text(encoding="utf-8"), str(plain), notes).options
    except (OSError, ValueError, ConfigError):
        return plain
    there = Path(noted.directory).resolve()
    if there == here or not (there / options.name / "gains.parquet").exists():  # else it was moved
        return plain
    return notes / f"{options.name}-{hashlib.sha256(os.fsencode(here)).hexdigest()[:8]}.yaml"


def _cost(planned: PlannedSweep, measured: Measured) -> dict[str, float]:
    """Epochs that were trained, and seconds of work for them and for all tests, whoever did it and when."""
    trained = (planned.tree.nodes[m.state] for m in measured.values() if m.train_loss is not None)
    return {
        "trained_epochs": trained_epochs(planned.tree, trained),
        "seconds": round(sum(m.seconds for m in measured.values()), 1),
    }


def _measured(planned: PlannedSweep, store: "Store") -> "tuple[dict[MeasurementKey, Measurement], int, int]":
    """The measurements that count, how many are missing, and how many of these are not of what diverged."""
    wanted = planned.tree.measurement_keys()
    found = store.measurements(wanted)
    gone = lost_measurements(planned.tree, found)
    measured = {key: m for key, m in found.items() if key not in gone}
    missing = len(wanted) - len(measured)
    return measured, missing, missing - len(gone)
