"""`python -m fastwi.store ls|du|verify|gc|rebuild [DIR]`: look after a store of states and measurements."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastwi.cli import EXIT_FAILED, command
from fastwi.config.sweep import SweepOptions
from fastwi.experiment.store.listing import Listing, list_store
from fastwi.experiment.store.rebuilding import rebuild
from fastwi.experiment.store.records import DamagedIndex
from fastwi.experiment.store.store import Store
from fastwi.experiment.store.verify import Verification, damage_of_error, examine
from fastwi.files import plain_json
from fastwi.version import __version__

_ACTIONS = {
    "ls": "what is in it, by epoch and treatment, and who works on it",
    "du": "bytes by kind of file",
    "verify": "check every byte against what was stored; exit code 1 where there is damage",
    "gc": "remove unfinished files, states that the index does not have, what dead processes held, damaged/",
    "rebuild": "make a lost or damaged index again, from what is left of it, metrics.parquet and the states",
}
_EPILOG = (
    "Exit codes: 0 ok; 1 verify found damage; 2 bad use, or a store that cannot be used; 130 Ctrl-C. "
    "Results go to stdout, everything else to stderr."
)


@command
def main(argv: list[str]) -> int:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    if arguments.action == "rebuild":
        return _rebuild(arguments)
    try:
        opened = Store.open(arguments.directory, create=False)
    except DamagedIndex as error:
        if arguments.action != "verify":
            raise
        found = Verification(structure_broken=True, damage=[damage_of_error(error)])
        return _show_verification(found, 0.0, arguments)
    with opened as store:
        action: Callable[[Store, argparse.Namespace], int] = globals()[f"_{arguments.action}"]
        return action(store, arguments)


def _parser() -> argparse.ArgumentParser:
    description = "Look after a store of trained states and measurements."
    parser = argparse.ArgumentParser(
        "python -m fastwi.store", description=description, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=__version__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    default = SweepOptions().store
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text, epilog=_EPILOG, allow_abbrev=False)
        action.add_argument("directory", nargs="?", default=default, metavar="DIR", help=f"default: {default}")
        action.add_argument("--json", action="store_true", help="one JSON object instead of text")
        if name == "verify":
            action.add_argument(
                "--repair",
                action="store_true",
                help="forget damaged states, so that the next sweep trains them again, delete damaged rows, and "
                "export a damaged metrics.parquet anew; exit code 1 all the same",
            )
    return parser


def _ls(store: Store, arguments: argparse.Namespace) -> int:
    listing = list_store(store.database)
    if arguments.json:
        _print_json(asdict(listing))
    else:
        _print_listing(listing)
    return 0


def _print_listing(listing: Listing) -> None:
    columns = ("epoch", "treatment", "measurements", "epochs trained", "states kept", "hours")
    lines = [columns] + [
        (
            str(group.epoch),
            group.treatment,
            f"{group.measurements:,}",
            f"{group.trained:,}",
            f"{group.states:,}",
            f"{group.seconds / 3600:.2f}",
        )
        for group in listing.groups
    ]
    if listing.groups:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        print()
    print(f"{listing.directory}: {listing.states:,} states ({_size(listing.state_bytes)}), "
          f"{listing.measurements:,} measurements, {listing.bytes:,} bytes in all")  # fmt: skip
    print(f"{len(listing.owners)} live owners with {listing.claims:,} claims; {listing.attempts:,} attempts so far")
    for owner in listing.owners:
        print(f"  {owner.process}: {owner.claims:,} claims, {owner.pins:,} states pinned")


def _du(store: Store, arguments: argparse.Namespace) -> int:
    sizes = store.sizes()
    values = asdict(sizes) | {"total": sizes.total}
    if arguments.json:
        _print_json({"directory": str(store.directory), "bytes": values})
        return 0
    for name, value in values.items():
        print(f"{value:>20,}  {_size(value):>10}  {name}")
    return 0


def _verify(store: Store, arguments: argparse.Namespace) -> int:
    begun = time.monotonic()
    found = examine(store.database, arguments.repair, _Progress())
    seconds = time.monotonic() - begun
    return _show_verification(found, seconds, arguments)


def _show_verification(found: Verification, seconds: float, arguments: argparse.Namespace) -> int:
    for note in found.notes:
        print(note, file=sys.stderr)
    status = EXIT_FAILED if found.damage else 0
    if arguments.json:
        _print_json({"directory": arguments.directory, "seconds": seconds} | asdict(found))
        return status
    for damage in found.damage:
        print(damage.line())
    verdict = f"{len(found.damage):,} damaged" if found.damage else "all whole"
    print(
        f"{arguments.directory}: {found.states:,} states ({_size(found.bytes)}), {found.rows:,} rows checked "
        f"in {seconds:.1f} s: {verdict}"
    )
    return status


class _Progress:
    """A line to stderr about every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= 10:
            self._last = now
            print(f"checked {_size(done)} of {_size(total)}", file=sys.stderr)


def _gc(store: Store, arguments: argparse.Namespace) -> int:
    freed = store.gc()
    if arguments.json:
        _print_json({"directory": str(store.directory), "bytes": freed.bytes} | asdict(freed))
        return 0
    print(
        f"{store.directory}: {_size(freed.bytes)} freed: unfinished files {_size(freed.temporary)}, states that the "
        f"index does not have {_size(freed.orphans)}, damaged/ {_size(freed.damaged)}; "
        f"{freed.claims:,} claims and pins and {freed.locks:,} locks of dead processes removed"
    )
    return 0


def _rebuild(arguments: argparse.Namespace) -> int:
    rebuilt = rebuild(arguments.directory)
    if arguments.json:
        _print_json({"directory": arguments.directory} | asdict(rebuilt))
        return 0
    print(
        f"{arguments.directory}: index made again: {rebuilt.measurements:,} measurements, {rebuilt.states:,} states; "
        f"left out as damaged: {rebuilt.damaged_rows:,} rows, {rebuilt.damaged_states:,} states"
    )
    return 0


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(plain_json(value), default=str, allow_nan=False))


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


if __name__ == "__main__":
    sys.exit(main())
