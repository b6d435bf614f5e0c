"""The directory of a run: which run it is of, the networks that are kept, and the rows as they are measured."""

import glob
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.config.read import config_from_yaml
from fastwi.config.schema import Config
from fastwi.config.sweep import in_parts
from fastwi.config.time import AnyTime, iterations_of
from fastwi.config.write import config_hash, to_yaml
from fastwi.errors import CheckpointError, ConfigError, UserError
from fastwi.experiment.planner import PlannedSweep, plan_run
from fastwi.experiment.todo import left_of, without_lost
from fastwi.files import locked_directory, to_json, write_text
from fastwi.models.changes import network_change
from fastwi.report.rows import ACCURACY, point_rows, row_name
from fastwi.sealed import MANIFEST, read_sealed, sealed_yaml, write_sealed

if TYPE_CHECKING:
    from fastwi.experiment.resident import ResidentStates
    from fastwi.experiment.store import Measurement, Store

_ROWS_EVERY_S = 5.0
_SCALARS = ("train_loss", "learning_rate", "test_loss", ACCURACY)


class RunDirectory:
    """The files of one run: manifest and config, which say what it is; its store; what is made from the store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.manifest = directory / MANIFEST
        self.config = directory / "config.yaml"
        self.metrics = directory / "metrics.jsonl"  # a line a measurement
        self.table = directory / "summary.md"
        self.figure = directory / "figure.png"

    def checkpoint(self, name: str) -> Path:
        """Networks that are kept: parent, children, average, final."""
        return self.directory / "checkpoints" / f"{name}.safetensors"

    def check(self, planned: PlannedSweep, fix: str = "give another run.name, or delete the directory") -> bool:
        """Whether the directory has this run already; False where it is new, or has it with fewer epochs after.

        fix: what the error of another run advises.
        Raises CheckpointError where it has another run. One with more epochs after is another: its store need not
        have the network at the shorter run's end.
        """
        if not self.manifest.exists():
            return False
        begun = self._about().get("identity")
        config = planned.spec.base
        digest = planned.inputs_of(config).digest
        if begun == config_hash(config, digest):
            return True
        after = self._further_epochs()
        if begun == config_hash(_with_after(config, after), digest):
            if self._shorter(after, planned):
                return False
            raise CheckpointError(
                f"{self.directory}: holds this run with experiment.after: {after}; give that, or another run.name"
            )
        change = network_change(self.manifest, planned.networks)
        what = "another configuration or dataset" if change is None else f"another network: {change}"
        raise CheckpointError(f"{self.directory}: holds a run of {what}; {fix}")

    def _about(self) -> dict[str, Any]:
        """What the manifest says."""
        return read_sealed(self.manifest, f"delete {self.directory} to start this run again")

    def note_cost(self, cost: Mapping[str, float]) -> None:
        """Have the manifest say what the run has cost so far, beside what it was begun with."""
        write_sealed(self.manifest, {**self._about(), "cost": cost})

    def shorter_run(self, planned: PlannedSweep) -> str:
        """A line on a directory beside this one that could go on as this run; empty: there is none.

        It has this run with fewer epochs after, and its name differs in the hash alone. Empty too where the run was
        given its name, or has begun.
        """
        config = planned.spec.base
        if config.run.name or self.manifest.exists():
            return ""
        stem = self.directory.name.rpartition("-")[0]
        inputs = planned.inputs_of(config)
        begun = {path.parent.name for path in self.directory.parent.glob(f"{glob.escape(stem)}-*/{MANIFEST}")}
        epochs = math.ceil(planned.tree.time(planned.places[0].after_node) - planned.places[0].end)
        for after in reversed(range(epochs if begun else 0)):
            name = f"{stem}-{config_hash(_with_after(config, after), inputs.digest)}"
            if name not in begun:
                continue
            other = RunDirectory(self.directory.with_name(name))
            with suppress(UserError):  # damaged, or of another run
                other.check(planned)
                longer = plan_run(config, other.store, inputs)
                epochs = longer.tree.count(longer.tree.tasks())[0]
                done = epochs - longer.tree.count(left_of(longer))[0]
                if done:
                    return f"{other.directory}: has {done:,} of the {epochs:,} epochs; --run.name {name} continues it"
        return ""

    def _shorter(self, after: AnyTime, planned: PlannedSweep) -> bool:
        """Whether a run with this `experiment.after` is the planned one's beginning."""
        place = planned.places[0]
        tree, end = planned.tree, place.average_node
        further = tree.iterations[place.after_node] - tree.iterations[end]
        return iterations_of(after, tree.per_epoch[end]) < further

    def _further_epochs(self) -> AnyTime:
        """Of the run that is there."""
        try:
            return config_from_yaml(self.config.read_text(encoding="utf-8"), str(self.config)).experiment.after
        except (OSError, UnicodeDecodeError, UserError):
            return 0

    def _made(self) -> list[Path]:
        """What is made from the store."""
        networks = map(self.checkpoint, ("parent", "children", "average", "final"))
        return [*networks, self.metrics, self.table, self.figure, self.figure.with_suffix(".pdf")]

    @contextmanager
    def begun(self, manifest: Mapping[str, Any], planned: PlannedSweep) -> Iterator[None]:
        """Hold the directory; where it is new, or its run goes on as a longer one, note in it what the run is.

        Raises UserError where another process or another run has it, or where it cannot be written.
        """
        busy = "another process trains this run; wait for it or give another run.name"
        with locked_directory(self.directory, busy):
            if not self.check(planned):
                self.manifest.unlink(missing_ok=True)
                # Of the shorter run, or of any where the manifest was lost. The store has what they are made of.
                for path in self._made():
                    path.unlink(missing_ok=True)
                write_text(self.config, sealed_yaml(to_yaml(planned.spec.base)))
                write_sealed(self.manifest, manifest)
            yield

    def write_checkpoints(self, planned: PlannedSweep, store: "Store", resident: "ResidentStates") -> None:
        """Write the networks that are kept, by name, where they are made and not written yet.

        `average` has the batch-norm statistics that it is trained on with; `final` are the networks at the end.
        """
        tree, place, experiment = planned.tree, planned.places[0], planned.points[0].config.experiment
        networks = {
            "parent": (place.clone_node,) if experiment.k else (),
            "children": place.end_nodes,
            "average": (place.average_node,),
            "final": (place.after_node, *(place.last_nodes if experiment.continue_children else ())),
        }
        for name, nodes in networks.items():
            sources = {tree.keys[source] for node in nodes for source in tree.sources(node)}
            files = store.state_files(sources)
            if nodes and len(files) == len(sources) and not self.checkpoint(name).exists():
                resident.gather(nodes, files, trains=True).plain.save(self.checkpoint(name))


def _with_after(config: Config, after: AnyTime) -> Config:
    return replace(config, experiment=replace(config.experiment, after=after))


def require_tensorboard() -> None:
    """Raise ConfigError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "run.tensorboard: tensorboard is not installed; pip install 'fastwi[tensorboard]', or leave it false"
        )


class RunRecord:
    """The rows of a run, kept up to date as it goes on: metrics.jsonl, and TensorBoard where it is wanted.

    There a scalar is called `column/network/batch_norm`, and its step is the epoch, or the iteration in a run with
    times within epochs. Event files are begun again.
    """

    def __init__(self, planned: PlannedSweep, store: "Store", paths: RunDirectory) -> None:
        self._planned, self._metrics = planned, paths.metrics
        self._measured = store.measurements(planned.tree.measurement_keys())
        self._written_at = time.monotonic()
        self._board: Any = None
        self._scalars: set[tuple[str, int]] = set()
        if planned.points[0].config.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            home = paths.directory / "tensorboard"
            for stale in home.glob("events.out.tfevents.*"):
                stale.unlink(missing_ok=True)
            self._board = SummaryWriter(str(home))

    def add(self, measurements: "Sequence[Measurement]") -> None:
        """Take in what was measured; now and then the files are written."""
        self._measured |= {m.key: m for m in measurements}
        if time.monotonic() - self._written_at > _ROWS_EVERY_S:
            self._write()

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._write()
        if self._board is not None:
            self._board.close()

    def _write(self) -> None:
        counts = without_lost(self._planned.tree, self._measured)
        rows = point_rows(self._planned.points[0], self._planned.places[0], counts)
        if rows:
            write_text(self._metrics, "".join(f"{to_json(row)}\n" for row in rows))
        for row in rows if self._board is not None else ():
            step = row["iteration" if in_parts(self._planned.spec) else "epoch"]
            for column in _SCALARS:
                name = f"{column}/{row_name(row)}/{row['batch_norm']}"
                # A child's last epoch and its measurement at interpolation are one point.
                if row.get(column) is not None and (name, step) not in self._scalars:
                    self._scalars.add((name, step))
                    self._board.add_scalar(name, row[column], step)
        if self._board is not None:
            self._board.flush()
        self._written_at = time.monotonic()
