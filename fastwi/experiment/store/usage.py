"""What a store holds and how much room it takes."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastwi.experiment.store.places import StorePlaces, is_temporary


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of files by kind. `temporary`: unfinished ones; `other`: locks, the card, what is not the store's."""

    states: int
    index: int
    metrics: int
    damaged: int
    temporary: int
    other: int

    @property
    def total(self) -> int:
        """All together."""
        return self.states + self.index + self.metrics + self.damaged + self.temporary + self.other


def files_under(directory: Path) -> Iterator[Path]:
    """Every file below a directory. Directories and files that vanish meanwhile are passed over."""
    for folder, _, names in os.walk(directory):
        for name in names:
            yield Path(folder, name)


def measure_sizes(places: StorePlaces) -> Sizes:
    """Add up the files of a store."""
    totals = dict.fromkeys(("states", "index", "metrics", "damaged", "temporary", "other"), 0)
    for path in files_under(places.directory):
        with contextlib.suppress(FileNotFoundError):
            totals[_kind(places, path)] += path.stat(follow_symlinks=False).st_size
    return Sizes(**totals)


def _kind(places: StorePlaces, path: Path) -> str:
    if places.damaged in path.parents:
        return "damaged"
    if is_temporary(path.relative_to(places.directory)):
        return "temporary"
    if path in (*places.index_files, places.rebuilt_index):
        return "index"
    if path == places.metrics:
        return "metrics"
    return "states" if places.key_of(path) is not None else "other"
