"""What is in a store, who works on it, and how much room it takes."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

from fastwi.experiment.store.index import ATTEMPTS, CLAIMS, MEASUREMENTS, PINS, STATES, Index
from fastwi.experiment.store.owner import KEPT, live_owners
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import bytes_float
from fastwi.experiment.store.removal import files_under
from fastwi.experiment.tree import OWN
from fastwi.files import open_plain

_SUMS = ("measurements", "trained", "states", "seconds")
_LONGEST_NAME = 300  # bytes of an owner's host and process number


def list_store(index: Index) -> dict[str, Any]:
    """The whole store, at one moment, as plain values.

    `groups`: by epoch and treatment, the measurements, those that end an epoch of training, the states measured with
    their own statistics whose files are kept, and seconds of work. `bytes` are of all files, `state_bytes` of states.
    `owners`: for each that is live "host process-number", its claims and its pins. `attempts`: claims so far.
    """
    places = index.places
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    with index.reading() as transaction:
        states = {row[0]: row[1] for row in transaction.rows(STATES)}
        for state, treatment, epoch, train_loss, *_, seconds, _ in transaction.rows(MEASUREMENTS):
            group = groups.setdefault((epoch, treatment), dict.fromkeys(_SUMS, 0))
            group["measurements"] += 1
            group["trained"] += train_loss is not None
            group["states"] += treatment == OWN and state in states
            group["seconds"] += bytes_float(seconds) or 0.0
        claims, pins = (Counter(row[-2] for row in transaction.rows(table)) for table in (CLAIMS, PINS))
        attempts = sum(1 for _ in transaction.rows(ATTEMPTS))
    known = {path.stem for path in places.owners.glob("*.lock")}.union(claims, pins) - {KEPT}
    live = sorted(live_owners(places, known))
    return {
        "groups": [{"epoch": e, "treatment": t} | sums for (e, t), sums in sorted(groups.items())],
        "measurements": sum(group["measurements"] for group in groups.values()),
        "states": len(states),
        "state_bytes": sum(states.values()),
        "bytes": sum(measure_sizes(places).values()),
        "attempts": attempts,
        "claims": sum(claims[owner] for owner in live),
        "owners": [{"process": _process_of(places, o), "claims": claims[o], "pins": pins[o]} for o in live],
    }


def _process_of(places: StorePlaces, owner: str) -> str:
    with contextlib.suppress(OSError), open_plain(places.owner(owner)) as stream:
        return stream.read(_LONGEST_NAME).decode(errors="replace").strip() or owner
    return owner


def measure_sizes(places: StorePlaces) -> dict[str, int]:
    """Bytes of files by kind. `temporary`: unfinished ones; `other`: locks, the card, what is not the store's."""
    sizes = dict.fromkeys(("states", "index", "metrics", "damaged", "temporary", "other"), 0)
    for path in files_under(places.directory):
        with contextlib.suppress(FileNotFoundError):
            sizes[_kind(places, path)] += path.stat(follow_symlinks=False).st_size
    return sizes


def _kind(places: StorePlaces, path: Path) -> str:
    if places.damaged in path.parents:
        return "damaged"
    if places.is_unfinished(path):
        return "temporary"
    if path in (*places.index_files, places.rebuilt_index):
        return "index"
    if path == places.metrics:
        return "metrics"
    return "states" if places.key_of(path) is not None else "other"
