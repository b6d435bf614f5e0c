"""The files of a sweep's directory: tables and figures of all that is measured, by whichever process."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars

from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import Store
from fastwi.experiment.todo import without_lost
from fastwi.files import locked_directory, write_text
from fastwi.report.curves import draw_curves
from fastwi.report.heatmap import draw_heatmap
from fastwi.report.manifest import manifest
from fastwi.report.rows import COLUMNS, GAIN_COLUMNS, gains, result_frame, write_frame
from fastwi.report.summary import Summary
from fastwi.report.tables import cell_table, cells, summary_markdown
from fastwi.sealed import MANIFEST, seal_directory, sealed_yaml


@dataclass(frozen=True)
class SweepResults:
    """What was written: the frames of results.parquet and gains.parquet, and what the command prints of them.

    `missing`: how many of the sweep's measurements are not there.
    """

    directory: Path
    frame: polars.DataFrame
    gains: polars.DataFrame
    missing: int
    summary: Summary


def write_sweep(planned: PlannedSweep, store: Store, resources: Resources, failures: list[str]) -> SweepResults:
    """Write the sweep's directory, and note the sweep in its store. Raises UserError where that cannot be.

    `failures`: what could not be done.
    """
    spec, config = planned.spec, planned.points[0].config
    directory = Path(spec.options.directory) / spec.options.name
    wanted = planned.tree.measurement_keys()
    measured = without_lost(planned.tree, store.measurements(wanted))
    missing = len(wanted) - len(measured)
    problems = sorted(m.divergence() for m in measured.values() if m.diverged) + failures
    frame = result_frame(spec, planned.points, planned.places, measured, planned.inputs_of)
    every_gain = gains(spec, planned.points, planned.places, measured)
    found = cells(every_gain)
    resolved = sweep_to_yaml(spec)
    identity = hashlib.sha256(resolved.encode()).hexdigest()[:12]
    card = resources.card(config)
    # One process at a time: the manifest has the checksums of all other files.
    with locked_directory(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        write_frame(frame, directory / "results.parquet", COLUMNS)
        write_frame(every_gain, directory / "gains.parquet", GAIN_COLUMNS)
        write_text(directory / "sweep.yaml", sealed_yaml(resolved))
        write_text(directory / "summary.md", summary_markdown(spec, found, len(planned.points), missing))
        if found:
            title = f"{directory.name}: {config.model.name} on {card.name}"
            draw_heatmap(found, directory / "heatmap.png", title)
            draw_curves(spec, planned.points, planned.places, measured, directory / "curves.png", title)
        about = manifest(card, resources.engine(config).resolved, identity, planned.networks)
        seal_directory(directory, about)
    # For `python -m fastwi.report STORE`: which sweeps the store was made for.
    write_text(store.directory / "sweeps" / f"{spec.options.name}.yaml", sealed_yaml(resolved))
    values = {
        "directory": str(directory),
        "points": len(planned.points),
        "measurements": len(measured),
        "missing": missing,
    }
    line = f"{directory}: results.parquet, gains.parquet, summary.md, heatmap.png, curves.png"
    line += f"; {missing:,} measurements are not there yet" if missing else ""
    summary = Summary(values, [line], [cell_table(found)] if found else [], problems)
    return SweepResults(directory, frame, every_gain, missing, summary)
