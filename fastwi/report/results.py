"""The directories of runs and sweeps: who may write there, and what is written of all that is measured.

A run's manifest is written as it begins and says what the run is. A sweep's is written last: it has the checksums of
all other files. Results come from the store alone, whichever process measured them.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars

from fastwi.config.read import config_from_yaml
from fastwi.config.schema import Config
from fastwi.config.write import config_hash, sweep_to_yaml, to_yaml
from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.todo import without_lost
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.files import locked_directory, to_json, write_text
from fastwi.models.changes import network_change
from fastwi.report.rows import (
    COLUMNS,
    GAIN_COLUMNS,
    gains,
    point_rows,
    result_frame,
    rows_frame,
    write_frame,
)
from fastwi.report.summary import Summary
from fastwi.report.tables import cell_table, cells, run_tables, summary_markdown
from fastwi.sealed import MANIFEST, read_sealed, seal_directory, sealed_yaml, write_sealed

if TYPE_CHECKING:
    from fastwi.experiment.resident import ResidentStates
    from fastwi.experiment.resources import Resources
    from fastwi.experiment.store import Measurement, Store

_EARLIER = "progress.json"  # of runs before they had stores
_ROWS_EVERY_S = 5.0
_FIGURES = re.compile(r"(heatmap|curves)(-[0-9]+)?\.(png|pdf|svg)")


@dataclass(frozen=True)
class Results:
    """What was written, and what the command prints of it.

    `frame`: a sweep's results.parquet, or a run's rows. `gains`: a row an average. `missing`: how many measurements
    are not there.
    """

    directory: Path
    frame: polars.DataFrame
    gains: polars.DataFrame
    missing: int
    summary: Summary


class RunDirectory:
    """The files of one run: manifest and config, which say what it is; its store; what is made from the store."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.store, self.manifest = directory, directory / "store", directory / MANIFEST
        self.config, self.metrics = directory / "config.yaml", directory / "metrics.jsonl"  # a line a measurement
        self.table, self.figure = directory / "summary.md", directory / "figure.png"
        self.tensorboard, self.checkpoints = directory / "tensorboard", directory / "checkpoints"

    def checkpoint(self, name: str) -> Path:
        """Networks that are kept: parent, children, average, final."""
        return self.checkpoints / f"{name}.safetensors"

    def check(self, identity: str, planned: PlannedSweep) -> None:
        """Raise CheckpointError where the directory has another run than the one of `identity`, which is `planned`.

        A run of which all is part of `planned` may go on as that: one with a smaller experiment.after. The other way
        round it may not: the store need not have the network at the shorter run's end.
        """
        if (self.directory / _EARLIER).exists():
            raise CheckpointError(
                f"{self.directory}: holds a run of an earlier fastwi, which this one does not go on with; "
                "give another run.name, or use the version that began it"
            )
        if not self.manifest.exists() or self._begun_as() == identity:
            return
        wanted, earlier = set(planned.tree.measurement_keys()), self._earlier(planned.spec.base)
        there = set(earlier.tree.measurement_keys()) if earlier else set()
        if earlier and there <= wanted:
            return
        if earlier and wanted < there:
            raise CheckpointError(
                f"{self.directory}: holds this run with experiment.after: {earlier.spec.base.experiment.after}; "
                "give that, or another run.name"
            )
        change = network_change(self.manifest, planned.networks)
        what = "another configuration or dataset" if change is None else f"another network: {change}"
        raise CheckpointError(
            f"{self.directory}: holds a run of {what}; give another run.name, or delete the directory"
        )

    @contextmanager
    def begun(self, manifest: Mapping[str, Any], planned: PlannedSweep) -> Iterator[None]:
        """Hold the directory; where it is new, or its run goes on as a longer one, note in it what the run is.

        Raises UserError where another process holds it (two would only wait for each other), where it has come to
        hold another run since `check`, or where it cannot be written.
        """
        busy = "another process trains this run; wait for it or give another run.name"
        with locked_directory(self.directory, busy):
            self.check(manifest["identity"], planned)
            if not self.manifest.exists() or self._begun_as() != manifest["identity"]:
                self.manifest.unlink(missing_ok=True)
                # Of the shorter run. Its parent, children and average are those of the longer one.
                for path in (self.checkpoint("final"), self.table, self.figure, self.figure.with_suffix(".pdf")):
                    path.unlink(missing_ok=True)
                write_text(self.config, sealed_yaml(to_yaml(planned.spec.base)))
                write_sealed(self.manifest, manifest)
            yield

    def write_checkpoints(self, planned: PlannedSweep, store: "Store", resident: "ResidentStates") -> None:
        """Write the networks that are kept, by name, where they are made and not written yet.

        `average` has the batch-norm statistics that it is trained on with; `final` are the networks at the end.
        """
        tree, place, config = planned.tree, planned.places[0], planned.points[0].config
        networks = {
            "parent": (place.clone_node,) if config.experiment.k else (),
            "children": place.end_nodes,
            "average": (place.average_node,),
            "final": (place.after_node, *(place.last_nodes if config.experiment.continue_children else ())),
        }
        for name, nodes in networks.items():
            sources = {tree.keys[source] for node in nodes for source in tree.sources(node)}
            files = store.state_files(sources)
            if nodes and len(files) == len(sources) and not self.checkpoint(name).exists():
                resident.gather(nodes, files, trains=True).save(self.checkpoint(name))

    def _begun_as(self) -> str | None:
        identity: str | None = read_sealed(self.manifest, f"delete {self.directory} to start this run again").get(
            "identity"
        )
        return identity

    def _earlier(self, config: Config) -> PlannedSweep | None:
        """The run that is there, planned again with the files of `config`; None where these are not what it had."""
        try:
            there = config_from_yaml(self.config.read_text(encoding="utf-8"), str(self.config))
            there = replace(
                there,
                data=replace(there.data, path=config.data.path),
                model=replace(there.model, name=config.model.name, weights=config.model.weights),
            )
            earlier = plan_run(there, self.store)
            digest = earlier.inputs_of(there).digest
        except (OSError, UnicodeDecodeError, UserError):  # a dataset or a network that is gone, say
            return None
        return earlier if config_hash(there, digest) == self._begun_as() else None


class RunRecord:
    """The rows of a run, kept up to date as it goes on: metrics.jsonl, and TensorBoard where it is wanted."""

    def __init__(self, planned: PlannedSweep, store: "Store", paths: RunDirectory) -> None:
        from fastwi.report.tensorboard import TensorBoard

        self._planned, self._paths = planned, paths
        self._board = TensorBoard(paths.tensorboard) if planned.points[0].config.run.tensorboard else None
        self._measured = store.measurements(planned.tree.measurement_keys())
        self._written = time.monotonic()

    def add(self, measurements: "Sequence[Measurement]") -> None:
        """Take in what was measured; now and then the files are written."""
        self._measured |= {m.key: m for m in measurements}
        if time.monotonic() - self._written > _ROWS_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the rows of all that is measured."""
        counts = without_lost(self._planned.tree, self._measured)
        rows = point_rows(self._planned.points[0], self._planned.places[0], counts)
        if rows:
            write_text(self._paths.metrics, "".join(f"{to_json(row)}\n" for row in rows))
        if self._board is not None:
            self._board.write(rows)
        self._written = time.monotonic()

    def close(self) -> None:
        """Write what is left, and close the files."""
        self.write()
        if self._board is not None:
            self._board.close()


def write_run(
    planned: PlannedSweep, paths: RunDirectory, store: "Store", dataset: str, failures: Sequence[str]
) -> Results:
    """Write summary.md and the figure, where there is something for them. `failures`: what could not be done."""
    from fastwi.experiment.store.records import infinite_loss
    from fastwi.report.curves import draw_run

    (point,), (place,), (measured, missing) = planned.points, planned.places, _measured(planned, store)
    rows, e = point_rows(point, place, measured), point.config.experiment
    averages, lines, tables = gains(planned.spec, [point], [place], measured), list[str](), []
    if any(row["network"] == "average" for row in rows):
        tables = run_tables(rows, averages)
        subject = f"{point.config.model.name} on {dataset}: k = {e.k}, s = {e.s}, {e.children} children"
        write_text(paths.table, f"# {subject}\n\n" + "\n".join(table.markdown() for table in tables))
        draw_run(point, place, measured, paths.figure, subject)
        lines = [f"{paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/, store/"]
    diverged = [
        f"{row['network']} diverged in epoch {row['epoch']}: {loss}; lower optimizer.learning_rate, or give "
        "schedule.warmup_iterations"
        for row in rows
        if (loss := infinite_loss(row.get("train_loss"), row["test_loss"], row["batch_norm"] == OWN))
    ]
    values = {"directory": str(paths.directory), "metrics": rows}
    summary = Summary(values, lines, tables, [*diverged, *failures])
    return Results(paths.directory, rows_frame(rows), averages, missing, summary)


def write_sweep(planned: PlannedSweep, store: "Store", resources: "Resources", failures: Sequence[str]) -> Results:
    """Write the sweep's directory, and note the sweep in its store. Raises UserError where that cannot be.

    `failures`: what could not be done.
    """
    from fastwi.report.curves import draw_curves
    from fastwi.report.heatmap import draw_heatmap
    from fastwi.report.manifest import manifest

    spec, config = planned.spec, planned.points[0].config
    directory = sweep_directory(planned)
    measured, missing = _measured(planned, store)
    problems = sorted(m.divergence() for m in measured.values() if m.diverged)
    frame = result_frame(spec, planned.points, planned.places, measured, planned.inputs_of)
    averages = gains(spec, planned.points, planned.places, measured)
    found = cells(averages)
    resolved = sweep_to_yaml(spec)
    identity = hashlib.sha256(resolved.encode()).hexdigest()[:12]
    card = resources.card(config)
    # One process at a time: the manifest has the checksums of all other files.
    with locked_directory(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        for path in directory.iterdir():  # an earlier sweep of this name may have had more of them
            if _FIGURES.fullmatch(path.name):
                path.unlink()
        write_frame(frame, directory / "results.parquet", COLUMNS)
        write_frame(averages, directory / "gains.parquet", GAIN_COLUMNS)
        write_text(directory / "sweep.yaml", sealed_yaml(resolved))
        write_text(directory / "summary.md", summary_markdown(spec, found, len(planned.points), missing))
        if found:
            subject = f"{config.model.name} on {card.name}"
            draw_heatmap(found, directory / "heatmap.png", subject)
            draw_curves(spec, planned.points, planned.places, measured, directory / "curves.png", subject)
        about = manifest(card, resources.engine(config).resolved, identity, planned.networks)
        seal_directory(directory, about)
    # For `python -m fastwi.report STORE`: which sweeps the store was made for.
    write_text(store.directory / "sweeps" / f"{spec.options.name}.yaml", sealed_yaml(resolved))
    values = {
        "directory": str(directory), "points": len(planned.points), "measurements": len(measured), "missing": missing,
    }  # fmt: skip
    line = f"{directory}: results.parquet, gains.parquet, summary.md, heatmap.png, curves.png"
    line += f"; {missing:,} measurements are not there yet" if missing else ""
    tables = [cell_table(found)] if found else []
    return Results(directory, frame, averages, missing, Summary(values, [line], tables, [*problems, *failures]))


def sweep_directory(planned: PlannedSweep) -> Path:
    """Where a sweep's results are."""
    return Path(planned.spec.options.directory) / planned.spec.options.name


def _measured(planned: PlannedSweep, store: "Store") -> "tuple[dict[MeasurementKey, Measurement], int]":
    """The measurements that count, and how many are missing."""
    wanted = planned.tree.measurement_keys()
    measured = without_lost(planned.tree, store.measurements(wanted))
    return measured, len(wanted) - len(measured)
