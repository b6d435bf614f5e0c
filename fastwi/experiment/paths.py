"""Every file name of a run's directory, in one place."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    directory: Path

    @property
    def config(self) -> Path:
        """The configuration as resolved."""
        return self.directory / "config.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, commit, device, dataset digest."""
        return self.directory / "manifest.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: one measurement of one network at one epoch."""
        return self.directory / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """How far the run is; written last, so that what it names is whole."""
        return self.directory / "progress.json"

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

    @property
    def lock(self) -> Path:
        """Held by the process that trains this run."""
        return self.directory / ".lock"

    def state(self, steps_done: int) -> Path:
        """The networks after `steps_done` steps, to go on from."""
        return self.directory / f"state-{steps_done:05d}.safetensors"

    def checkpoint(self, name: str) -> Path:
        """Networks that are kept: parent, children, average, final."""
        return self.directory / "checkpoints" / f"{name}.safetensors"
