"""Every file name of a store, and the check that a directory is a store."""

import contextlib
import json
import re
import stat
from pathlib import Path

from fastwi.errors import UserError
from fastwi.files import write_json

CARD = {"format": "fastwi.store", "version": 1}
_KEY = "[0-9A-Za-z_-]{2,200}"
_UNFINISHED = (".tmp", ".tmp-journal")  # the second is SQLite's


class StorePlaces:
    """The files of one store, and what messages name: `rebuild_line` for its index, `repair_command` for the rest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.card = directory / "store.json"
        self.index = directory / "index.sqlite"
        # SQLite's journals first; the write-ahead log is of earlier versions.
        self.index_files = tuple(directory / f"index.sqlite{end}" for end in ("-wal", "-shm", "-journal", ""))
        self.rebuilt_index = directory / "index.rebuilt.sqlite"  # complete, about to take the index's place
        self.metrics = directory / "metrics.parquet"
        self.states, self.owners, self.damaged = (directory / name for name in ("states", "owners", "damaged"))
        self.index_lock = directory / "index.lock"  # of all that have the index open; exclusive for a rebuild
        self.writing_lock = directory / "writing.lock"  # of all that write a file; exclusive for `gc`
        self.turn_lock = directory / "turn.lock"  # of the one that writes to the index
        self.rebuild_line = f"`python -m fastwi.store rebuild {directory}` makes it again"
        self.repair_command = f"`python -m fastwi.store verify --repair {directory}`"

    def state(self, key: str) -> Path:
        """File of the state `key`. ValueError for a key that cannot be a file's name."""
        if not re.fullmatch(_KEY, key):
            raise ValueError(f"{key!r} is not a state's key: 2 to 200 letters, digits, - or _")
        return self.states / key[:2] / f"{key}.safetensors"

    def key_of(self, path: Path) -> str:
        """The key of the state whose file, or whose unfinished file, `path` is; empty for any other file."""
        found = re.fullmatch(rf"({_KEY})\.safetensors|\.({_KEY})\.safetensors\..*\.tmp", path.name)
        key = found[1] or found[2] if found else ""
        return key if key and self.state(key).parent == path.parent else ""

    def is_unfinished(self, path: Path) -> bool:
        """Whether `path`, within the store, is an unfinished file by its name or its directory's."""
        parts = path.relative_to(self.directory).parts
        return any(part.startswith(".") and part.endswith(_UNFINISHED) for part in parts)

    def is_begun(self) -> bool:
        """Whether, its card aside, the directory has a store's files in it."""
        return any(path.exists() for path in (self.index, self.rebuilt_index, self.metrics, self.states))


def check_directory(places: StorePlaces, create: bool) -> None:
    """UserError where the directory is not a store of this version; `create` makes one of an empty or missing one."""
    directory = places.directory
    try:
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: a file, not a directory; name another store")
        # Listed before the card is looked for: another process may be making the store, and writes the card first.
        present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        begun = places.is_begun()
        check_plain(places)
        if places.card.is_file():
            return _check_card(places)
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}); name another store") from None
    if begun:
        raise UserError(f"{places.card}: lost; {places.rebuild_line}")
    # No more than this is there while a store is made, or where that was cut off.
    present = [name for name in present if not (name.startswith(".store.json.") and name.endswith(".tmp"))]
    if present:
        raise UserError(f"{directory}: not a store, and not empty ({present[0]}); name an empty or a new directory")
    if not create:
        raise UserError(f"{directory}: no store there; name the directory of one")
    write_json(places.card, CARD)


def check_plain(places: StorePlaces) -> None:
    """UserError where what should be a file is a directory, a named pipe, a device, or a link to somewhere else."""
    locks = (places.index_lock, places.writing_lock, places.turn_lock)
    for path in (places.card, *places.index_files, places.rebuilt_index, places.metrics, *locks):
        # One look at each: SQLite of another process creates and removes its journal meanwhile.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise UserError(f"{path}: not a regular file; remove it, then {places.rebuild_line}")


def _check_card(places: StorePlaces) -> None:
    try:
        card = json.loads(places.card.read_bytes())
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.keys() != CARD.keys() or card["format"] != CARD["format"]:
        raise UserError(f"{places.card}: damaged, or not of a fastwi store; {places.rebuild_line}, if it is one")
    if repr(card["version"]) != repr(CARD["version"]):
        versions = f"store format version {card['version']!r}, this fastwi reads {CARD['version']}"
        raise UserError(f"{places.card}: {versions}; use the fastwi that wrote it, or name another store")
