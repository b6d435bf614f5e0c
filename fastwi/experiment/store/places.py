"""Every file name of a store, in one place, and the check that a directory is a store."""

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from fastwi.errors import UserError
from fastwi.files import write_json

FORMAT = "fastwi.store"
VERSION = 1
_KEY = re.compile("[0-9A-Za-z_-]{2,200}")


@dataclass(frozen=True, slots=True)
class StorePlaces:
    """The files of one store."""

    directory: Path

    @property
    def card(self) -> Path:
        """Format and version."""
        return self.directory / "store.json"

    @property
    def index(self) -> Path:
        """SQLite."""
        return self.directory / "index.sqlite"

    @property
    def wal(self) -> Path:
        """SQLite's write-ahead log. It stays behind where a process was killed."""
        return self.directory / "index.sqlite-wal"

    @property
    def index_files(self) -> tuple[Path, ...]:
        """The index and what SQLite may put beside it."""
        return tuple(self.directory / f"index.sqlite{end}" for end in ("", "-wal", "-shm", "-journal"))

    @property
    def rebuilt_index(self) -> Path:
        """A whole new index that is about to take the old one's place."""
        return self.directory / "index.rebuilt.sqlite"

    @property
    def index_lock(self) -> Path:
        """flock: shared by whoever has the index open, exclusive for who must be alone with it."""
        return self.directory / "index.lock"

    @property
    def writing_lock(self) -> Path:
        """flock: shared by whoever writes a file beside its final name, exclusive for who removes left ones."""
        return self.directory / "writing.lock"

    @property
    def metrics(self) -> Path:
        """All measurements, as Parquet."""
        return self.directory / "metrics.parquet"

    @property
    def metrics_lock(self) -> Path:
        """flock: held by the process that exports."""
        return self.directory / "metrics.lock"

    @property
    def states(self) -> Path:
        """Directory of the states."""
        return self.directory / "states"

    @property
    def owners(self) -> Path:
        """Directory of the owners' locks."""
        return self.directory / "owners"

    @property
    def damaged(self) -> Path:
        """Directory of files that were found damaged."""
        return self.directory / "damaged"

    def state(self, key: str) -> Path:
        """File of the state `key`. ValueError for a key that is no name of a file."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a state: 2 to 200 letters, digits, - or _")
        return self.states / key[:2] / f"{key}.safetensors"

    def owner(self, owner: str) -> Path:
        """Lock of an owner."""
        return self.owners / f"{owner}.lock"

    def key_of(self, path: Path) -> str | None:
        """The key of the state whose file, or whose unfinished file, `path` is; None for any other file."""
        found = re.fullmatch(rf"\.?({_KEY.pattern})\.safetensors(\..*\.tmp)?", path.name)
        if found is None or self.state(found[1]).parent != path.parent:
            return None
        return found[1] if path.name.startswith(".") == bool(found[2]) else None


def is_temporary(path: Path) -> bool:
    """Whether `path`, within a store, is an unfinished file by its name or its directory's."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in path.parts)


def rebuild_line(places: StorePlaces) -> str:
    """The command that makes the index again."""
    return f"`python -m fastwi.store rebuild {places.directory}` makes it again"


def check_directory(places: StorePlaces, create: bool) -> None:
    """See that the directory is a store of this version; make a new one of an empty or missing one.

    Raises UserError, in one line, for anything else.
    """
    directory = places.directory
    try:
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: a file, not a directory; name another store")
        # Looked at before the card: another process may be making the store, and writes the card first.
        present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        begun = looks_like_store(places)
        check_plain(places)
        if places.card.is_file():
            _check_card(places, places.card.read_bytes())
            return
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}); name another store") from None
    # No more than this is there while a store is made, or where that was cut off.
    present = [name for name in present if not (name.startswith(".store.json.") and name.endswith(".tmp"))]
    if begun:
        raise UserError(f"{places.card}: lost; {rebuild_line(places)}")
    if present:
        raise UserError(f"{directory}: holds other files ({present[0]}), no store; name an empty or a new directory")
    if not create:
        raise UserError(f"{directory}: no store there; name the directory of one")
    write_card(places)


def check_plain(places: StorePlaces) -> None:
    """Raise UserError where what should be a file is a directory, a link, a named pipe or a device.

    A link would have the store write elsewhere.
    """
    locks = (places.index_lock, places.writing_lock, places.metrics_lock)
    for path in (places.card, *places.index_files, places.rebuilt_index, places.metrics, *locks):
        try:  # one look at each: another process's SQLite makes and removes its journal meanwhile
            plain = stat.S_ISREG(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not plain:
            raise UserError(f"{path}: not a regular file; remove it, then {rebuild_line(places)}")
    for path in (places.states, places.owners, places.damaged):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path}: not a directory; remove it, then {rebuild_line(places)}")


def looks_like_store(places: StorePlaces) -> bool:
    """Whether, its card aside, the directory has a store's files in it."""
    return any(path.exists() for path in (places.index, places.rebuilt_index, places.metrics, places.states))


def write_card(places: StorePlaces) -> None:
    """Write store.json."""
    write_json(places.card, {"format": FORMAT, "version": VERSION})


def _check_card(places: StorePlaces, content: bytes) -> None:
    try:
        card = json.loads(content)
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT or set(card) != {"format", "version"}:
        raise UserError(f"{places.card}: damaged, or not of a fastwi store; {rebuild_line(places)}, if it is one")
    if card["version"] != VERSION or isinstance(card["version"], bool):
        raise UserError(
            f"{places.card}: store format version {card['version']!r}, this fastwi reads {VERSION}; "
            "use the fastwi that wrote it, or name another store"
        )
