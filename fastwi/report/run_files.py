"""A run's directory: its files, who may write there, and what is written of a run that is done."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.config.schema import Config
from fastwi.config.write import to_yaml
from fastwi.data.card import Card
from fastwi.errors import CheckpointError
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.store.records import infinite_loss
from fastwi.experiment.tree import OWN, MeasurementKey
from fastwi.files import locked_directory, write_text
from fastwi.models.changes import network_change, networks_of
from fastwi.report.rows import Row, gains, point_rows
from fastwi.report.summary import Summary, Table
from fastwi.report.tables import run_tables
from fastwi.sealed import MANIFEST, read_sealed, sealed_yaml, write_sealed

if TYPE_CHECKING:
    from fastwi.experiment.resident import ResidentStates
    from fastwi.experiment.store import Measurement, Store

_EARLIER = "progress.json"  # of runs before they had stores


class RunDirectory:
    """The files of one run: manifest and config, which say what it is; its store; what is made from the store."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.store, self.manifest = directory, directory / "store", directory / MANIFEST
        self.config, self.metrics = directory / "config.yaml", directory / "metrics.jsonl"  # a line a measurement
        self.table, self.figure = directory / "summary.md", directory / "figure.png"
        self.tensorboard = directory / "tensorboard"

    def checkpoint(self, name: str) -> Path:
        """Networks that are kept: parent, children, average, final."""
        return self.directory / "checkpoints" / f"{name}.safetensors"

    def check(self, identity: str, config: Config) -> None:
        """Raise CheckpointError where the directory has another run than the one of `identity`."""
        if (self.directory / _EARLIER).exists():
            raise CheckpointError(
                f"{self.directory}: holds a run of an earlier fastwi, which this one does not go on with; "
                "give another run.name, or use the version that began it"
            )
        if not self.manifest.exists():
            return
        found = read_sealed(self.manifest, f"delete {self.directory} to start this run again")
        if found.get("identity") != identity:
            change = network_change(self.manifest, networks_of([config.model.name]))
            what = "another configuration or dataset" if change is None else f"another network: {change}"
            raise CheckpointError(
                f"{self.directory}: holds a run of {what}; give another run.name, or delete the directory"
            )

    @contextmanager
    def begun(self, manifest: Mapping[str, Any], config: Config) -> Iterator[None]:
        """Hold the directory; where it is new, note in it what the run is.

        Raises UserError where another process holds it (two would only wait for each other), or where it cannot be
        written.
        """
        busy = "another process trains this run; wait for it or give another run.name"
        with locked_directory(self.directory, busy):
            if not self.manifest.exists():
                write_text(self.config, sealed_yaml(to_yaml(config)))
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


@dataclass(frozen=True)
class RunResults:
    """What was measured, also as the rows of metrics.jsonl, and what the command prints of it."""

    measured: "dict[MeasurementKey, Measurement]"
    rows: list[Row]
    summary: Summary


def write_run(
    planned: PlannedSweep,
    paths: RunDirectory,
    card: Card,
    measured: "dict[MeasurementKey, Measurement]",
    failures: Sequence[str],
) -> RunResults:
    """Write summary.md and the figure, where there is something for them. `failures`: what could not be done."""
    from fastwi.report.figure import draw_run

    (point,), (place,) = planned.points, planned.places
    rows, e = point_rows(point, place, measured), point.config.experiment
    lines, tables = list[str](), list[Table]()
    if any(row["network"] == "average" for row in rows):
        tables = run_tables(rows, gains(planned.spec, [point], [place], measured))
        title = f"{point.config.model.name} on {card.name}: k = {e.k}, s = {e.s}, {e.children} children"
        write_text(paths.table, f"# {title}\n\n" + "\n".join(table.markdown() for table in tables))
        draw_run(rows, paths.figure, title)
        lines = [f"{paths.directory}: metrics.jsonl, summary.md, figure.png, checkpoints/, store/"]
    diverged = [
        f"{row['network']} diverged in epoch {row['epoch']}: {loss}; lower optimizer.learning_rate, or give "
        "schedule.warmup_iterations"
        for row in rows
        if (loss := infinite_loss(row.get("train_loss"), row["test_loss"], row["batch_norm"] == OWN))
    ]
    values = {"directory": str(paths.directory), "metrics": rows}
    return RunResults(measured, rows, Summary(values, lines, tables, [*diverged, *failures]))
