"""A run's directory: the names of its files, who may write there, and what is written from its store."""

import fcntl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwi.config.schema import Config
from fastwi.config.write import to_yaml
from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.networks import source_change
from fastwi.experiment.planner import PlannedSweep
from fastwi.files import atomic_open, to_json, write_text
from fastwi.sealed import MANIFEST, read_sealed, sealed_yaml, write_sealed

if TYPE_CHECKING:
    from fastwi.experiment.resident import ResidentStates
    from fastwi.experiment.store import Store

_EARLIER = "progress.json"  # of runs before they had stores


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    directory: Path

    @property
    def store(self) -> Path:
        """The store of the run's states and measurements. All else but the manifest is made from it."""
        return self.directory / "store"

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.directory / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What decides the results; versions, commit, device."""
        return self.directory / MANIFEST

    @property
    def metrics(self) -> Path:
        """One JSON object a line: one measurement of one network at one epoch."""
        return self.directory / "metrics.jsonl"

    @property
    def table(self) -> Path:
        """The summary table, in Markdown."""
        return self.directory / "summary.md"

    @property
    def figure(self) -> Path:
        """The run in the shape of the paper's Figure 1."""
        return self.directory / "figure.png"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard's event files."""
        return self.directory / "tensorboard"

    def checkpoint(self, name: str) -> Path:
        """Networks that are kept: parent, children, average, final."""
        return self.directory / "checkpoints" / f"{name}.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory: two processes that train one run would only wait for each other.

        Raises UserError where another one does, or where it cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            stream = open(self.directory / ".lock", "w")  # noqa: SIM115 - held open for as long as the run lasts
        except OSError as error:
            raise UserError(
                f"{self.directory}: cannot be written ({error.strerror}); give another run.directory"
            ) from None
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.directory}: another process trains this run; wait for it or give another run.name"
                ) from None
            yield

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
            change = source_change(self.manifest, [config.model.name])
            what = "another configuration or dataset" if change is None else f"another network: {change}"
            raise CheckpointError(
                f"{self.directory}: holds a run of {what}; give another run.name, or delete the directory"
            )

    def begin(self, manifest: Mapping[str, Any], config: Config) -> None:
        """Note what the run is, where it is new."""
        if not self.manifest.exists():
            write_text(self.config, sealed_yaml(to_yaml(config)))
            write_sealed(self.manifest, manifest)

    def write_checkpoints(self, planned: PlannedSweep, store: "Store", resident: "ResidentStates") -> None:
        """Write the networks that are kept, by name, where they are made and not written yet.

        `average` has the batch-norm statistics that it is trained on with; `final` are the networks at the end.
        """
        tree, place, config = planned.tree, planned.places[0], planned.points[0].config
        last = list(place.after[-1:] or (place.average,))
        if config.experiment.continue_children:
            last += [child[-1] if child else end for child, end in zip(place.children, place.ends, strict=True)]
        networks = {"parent": place.parent[-1:], "children": place.ends, "average": (place.average,), "final": last}
        for name, keys in networks.items():
            nodes = [tree.nodes[key] for key in keys]
            sources = {tree.keys[source] for node in nodes for source in tree.sources(node)}
            files = store.state_files(sources)
            if keys and len(files) == len(sources) and not self.checkpoint(name).exists():
                population = resident.gather(keys, config, tree.made_of(nodes), files, trains=True)
                population.save(self.checkpoint(name))

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl, atomically."""
        with atomic_open(self.metrics) as stream:
            stream.write(b"".join(to_json(row).encode() + b"\n" for row in rows))
