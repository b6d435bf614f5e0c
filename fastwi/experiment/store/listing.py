"""`ls`: what is in a store, and who works on it."""

import contextlib
from dataclasses import dataclass

from fastwi.experiment.store.database import Database
from fastwi.experiment.store.filesystem import open_plain
from fastwi.experiment.store.owner import KEPT, live_owners
from fastwi.experiment.store.records import bytes_float
from fastwi.experiment.store.rows import ATTEMPTS, CLAIMS, MEASUREMENTS, PINS, STATES
from fastwi.experiment.store.select import all_rows
from fastwi.experiment.store.usage import measure_sizes
from fastwi.experiment.tree import OWN

_LONGEST_NAME = 300  # bytes of an owner's host and process number


@dataclass(frozen=True, slots=True)
class Group:
    """All measurements at one epoch under one treatment.

    Attributes:
        measurements: how many.
        trained: those that end an epoch of training.
        states: measured here with their own statistics whose files are kept; 0 in other treatments' groups.
        seconds: of work in all.
    """

    epoch: int
    treatment: str
    measurements: int
    trained: int
    states: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """A live owner: "host process-number", and what it holds."""

    process: str
    claims: int
    pins: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The whole store. `claims` are those of live owners; `bytes` of all files, `state_bytes` of the states'."""

    directory: str
    groups: list[Group]
    measurements: int
    states: int
    state_bytes: int
    bytes: int
    attempts: int
    claims: int
    owners: list[OwnerLine]


def list_store(database: Database) -> Listing:
    """Read the whole index, at one moment."""
    places = database.places
    groups: dict[tuple[int, str], list[float]] = {}
    claims: dict[str, int] = {}
    pins: dict[str, int] = {}
    with database.snapshot() as connection:
        states = {row[0]: row[1] for row in all_rows(connection, places, STATES)}
        for row in all_rows(connection, places, MEASUREMENTS):
            state, treatment, epoch, train_loss = row[:4]
            sums = groups.setdefault((epoch, treatment), [0, 0, 0, 0.0])
            sums[0] += 1
            sums[1] += train_loss is not None
            sums[2] += treatment == OWN and state in states
            sums[3] += bytes_float(row[7]) or 0.0
        for table, counts in ((CLAIMS, claims), (PINS, pins)):
            for row in all_rows(connection, places, table):
                owner = row[-2]
                if owner == KEPT:
                    continue
                counts[owner] = counts.get(owner, 0) + 1
        attempts = sum(1 for _ in all_rows(connection, places, ATTEMPTS))
    found = {path.stem for path in places.owners.glob("*.lock")}
    live = sorted(live_owners(places, found | claims.keys() | pins.keys()))
    lines = []
    for owner in live:
        process = owner
        with contextlib.suppress(OSError), open_plain(places.owner(owner)) as stream:
            process = stream.read(_LONGEST_NAME).decode(errors="replace").strip() or owner
        lines.append(OwnerLine(process, claims.get(owner, 0), pins.get(owner, 0)))
    return Listing(
        directory=str(places.directory),
        groups=[
            Group(epoch, treatment, int(sums[0]), int(sums[1]), int(sums[2]), sums[3])
            for (epoch, treatment), sums in sorted(groups.items())
        ],
        measurements=sum(int(sums[0]) for sums in groups.values()),
        states=len(states),
        state_bytes=sum(states.values()),
        bytes=measure_sizes(places).total,
        attempts=attempts,
        claims=sum(line.claims for line in lines),
        owners=lines,
    )
