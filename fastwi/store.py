"""`python -m fastwi.store ls|du|verify|gc|rebuild [DIR]`: look after a store of states and measurements."""

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastwi.cli import EXIT_FAILED, command
from fastwi.config.sweep import SweepOptions
from fastwi.experiment.store.index import ATTEMPTS, CLAIMS, MEASUREMENTS, PINS, STATES
from fastwi.experiment.store.owner import KEPT, live_owners
from fastwi.experiment.store.places import StorePlaces
from fastwi.experiment.store.records import DamagedIndex, bytes_float
from fastwi.experiment.store.repair import Verification, rebuild, verify
from fastwi.experiment.store.store import Store, files_under
from fastwi.experiment.tree import OWN
from fastwi.files import open_plain, to_json
from fastwi.version import __version__

_SUMS = ("measurements", "trained", "states", "seconds")
_LONGEST_NAME = 300  # bytes of an owner's host and process number
_EPILOG = (
    "Exit codes: 0 ok; 1 verify found damage; 2 bad use, or a store that cannot be used; 130 Ctrl-C. "
    "Results go to stdout, everything else to stderr."
)
_REPAIR = (
    "forget damaged states, so that the next sweep trains them again, and export a damaged metrics.parquet again; "
    "exit code 1 all the same"
)
_COLUMNS = {
    "epoch": "epoch", "treatment": "treatment", "measurements": "measurements", "trained": "epochs trained",
    "states": "states kept", "hours": "hours",
}  # fmt: skip

Shown = tuple[dict[str, Any], list[str]]
"""What is printed: with --json the first, else the lines."""


@command
def main(argv: list[str]) -> int:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    body, _ = _ACTIONS[arguments.action]
    if arguments.action in ("verify", "rebuild"):  # which find a damaged index out for themselves
        found, lines = body(arguments)
    else:
        with Store.open(arguments.directory, create=False) as store:
            found, lines = body(store)
    for line in [to_json({"directory": arguments.directory} | found)] if arguments.json else lines:
        print(line)
    return EXIT_FAILED if found.get("damage") else 0


def _parser() -> argparse.ArgumentParser:
    description = "Look after a store of trained states and measurements."
    common: dict[str, Any] = {"epilog": _EPILOG, "allow_abbrev": False}
    parser = argparse.ArgumentParser("python -m fastwi.store", description=description, **common)
    parser.add_argument("--version", action="version", version=__version__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    default = SweepOptions().store
    for name, (_, text) in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text, **common)
        action.add_argument("directory", nargs="?", default=default, metavar="DIR", help=f"default: {default}")
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
        if name == "verify":
            action.add_argument("--repair", action="store_true", help=_REPAIR)
    return parser


def _ls(store: Store) -> Shown:
    found = listing(store)
    rows = [list(_COLUMNS.values())] if found["groups"] else []
    for group in found["groups"]:
        values = group | {"hours": f"{group['seconds'] / 3600:.2f}"}
        rows.append([f"{values[name]:,}" if isinstance(values[name], int) else values[name] for name in _COLUMNS])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.rjust, cells, widths)) for cells in rows]
    return found, [
        *lines, *([""] if lines else []),
        f"{store.directory}: {found['states']:,} states ({_size(found['state_bytes'])}), "
        f"{found['measurements']:,} measurements, {found['bytes']:,} bytes in all",
        f"{len(found['owners'])} live owners with {found['claims']:,} claims; {found['attempts']:,} attempts so far",
        *(f"  {each['process']}: {each['claims']} claims, {each['pins']} states pinned" for each in found["owners"]),
    ]  # fmt: skip


def listing(store: Store) -> dict[str, Any]:
    """The whole store, at one moment, as plain values.

    `groups`: by epoch and treatment, the measurements, those that end an epoch of training, the states measured with
    their own statistics whose files are kept, and seconds of work. `bytes` are of all files, `state_bytes` of states.
    `owners`: for each that is live "host process-number", its claims and its pins. `attempts`: claims so far.
    """
    places = store.places
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    with store.reading() as transaction:
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
        "bytes": sum(_sizes(places).values()),
        "attempts": attempts,
        "claims": sum(claims[owner] for owner in live),
        "owners": [{"process": _process_of(places, o), "claims": claims[o], "pins": pins[o]} for o in live],
    }


def _process_of(places: StorePlaces, owner: str) -> str:
    with contextlib.suppress(OSError), open_plain(places.owners / f"{owner}.lock") as stream:
        return stream.read(_LONGEST_NAME).decode(errors="replace").strip() or owner
    return owner


def _sizes(places: StorePlaces) -> dict[str, int]:
    """Bytes of files by kind. `temporary`: unfinished ones; `other`: locks, the card, what is not the store's."""
    sizes = dict.fromkeys(("states", "index", "metrics", "damaged", "temporary", "other"), 0)
    index = (*places.index_files, places.rebuilt_index)
    for path in files_under(places.directory):
        # The order matters: what is in damaged/, or is unfinished, may have the name of a state too.
        if places.damaged in path.parents:
            kind = "damaged"
        elif places.is_unfinished(path):
            kind = "temporary"
        elif path in index:
            kind = "index"
        elif path == places.metrics:
            kind = "metrics"
        else:
            kind = "states" if places.key_of(path) else "other"
        with contextlib.suppress(FileNotFoundError):
            sizes[kind] += path.stat(follow_symlinks=False).st_size
    return sizes


def _du(store: Store) -> Shown:
    sizes = _sizes(store.places)
    sizes["total"] = sum(sizes.values())
    return {"bytes": sizes}, [f"{value:>20,}  {_size(value):>10}  {name}" for name, value in sizes.items()]


def _verify(arguments: argparse.Namespace) -> Shown:
    from fastwi.report.progress import Progress  # imports polars

    begun = time.monotonic()
    try:
        with Store.open(arguments.directory, create=False) as store, Progress("verifying") as progress:
            found = verify(store, arguments.repair, progress.show)
    except DamagedIndex as error:
        found = Verification(damage=[str(error)])
    seconds = time.monotonic() - begun
    verdict = f"{len(found.damage):,} damaged" if found.damage else "all whole"
    return {"seconds": seconds} | asdict(found), [
        *found.damage,
        *found.notes,
        f"{arguments.directory}: {found.states:,} states ({_size(found.bytes)}), {found.rows:,} rows checked "
        f"in {seconds:.1f} s: {verdict}",
    ]


def _gc(store: Store) -> Shown:
    freed = store.gc()
    kinds = {"temporary": "unfinished files", "orphans": "states that the index does not have", "damaged": "damaged/"}
    total = sum(freed[kind] for kind in kinds)
    return {"bytes": total} | freed, [
        f"{store.directory}: {_size(total)} freed: "
        + ", ".join(f"{name} {_size(freed[kind])}" for kind, name in kinds.items())
        + f"; {freed['claims']:,} claims and pins and {freed['locks']:,} locks of dead processes removed"
    ]


def _rebuild(arguments: argparse.Namespace) -> Shown:
    found = rebuild(arguments.directory)
    return dict(found), [
        f"{arguments.directory}: index made again: {found['measurements']:,} measurements, "
        f"{found['states']:,} states; left out as damaged: {found['damaged_rows']:,} rows, "
        f"{found['damaged_states']:,} states"
    ]


_ACTIONS: dict[str, tuple[Callable[[Any], Shown], str]] = {
    "ls": (_ls, "what is in it, by epoch and treatment, and who works on it"),
    "du": (_du, "bytes by kind of file"),
    "verify": (_verify, "check every byte against what was stored; exit code 1 where there is damage"),
    "gc": (_gc, "remove unfinished files, states that the index does not have, what dead processes held, damaged/"),
    "rebuild": (_rebuild, "make a lost or damaged index again, from what is left of it, metrics.parquet and states"),
}


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


if __name__ == "__main__":
    sys.exit(main())
