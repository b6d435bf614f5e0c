"""Folders of files, on disk or inside a zip archive, seen the same way. Nothing is extracted."""

import contextlib
import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fastwi.errors import UserError
from fastwi.files import open_plain

# No image of a dataset is larger. An archive may claim to hold files that no memory could.
MAX_FILE_BYTES = 1 << 28

_IS_UTF_8 = 0x800  # the flag of a zip entry whose name is UTF-8


@contextlib.contextmanager
def open_tree(source: Path) -> Iterator["FileTree"]:
    """The tree of a folder or of a zip archive. Raises UserError if `source` is neither."""
    if source.is_dir():
        yield _FolderTree(source)
        return
    if not source.is_file():
        raise UserError(f"{source}: does not exist; give an image folder or a zip of one")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a zip archive that can be read ({error}); extract it yourself") from error
    with archive:
        yield _ZipTree(source, archive)


def join(*parts: str) -> str:
    """Parts of a tree's path joined; empty ones are left out."""
    return "/".join(part for part in parts if part)


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: has {size} bytes, too many for an image; remove it")


def _entry_name(info: zipfile.ZipInfo) -> str:
    """The name of a zip entry. macOS packs UTF-8 without the flag that says so, which zipfile reads as cp437."""
    if not info.flag_bits & _IS_UTF_8:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode()
    return info.filename


class _FolderTree:
    """A folder on the disk. Paths are relative to it, with `/` between parts; the root itself is ''."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, folder: str) -> set[str]:
        """The names in `folder`; those of folders end in `/`."""
        try:
            with os.scandir(self._root / folder) as entries:
                return {entry.name + "/" * entry.is_dir() for entry in entries}
        except OSError as error:
            raise UserError(f"{self._root / folder}: cannot be read ({error.strerror or error})") from error

    def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError if it cannot be read or is too large to be an image."""
        where = f"{self._root}: {path}"
        try:
            with open_plain(self._root / path) as stream:
                _check_size(where, os.fstat(stream.fileno()).st_size)
                return stream.read()
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror or error}); fix or remove it") from error


class _ZipTree:
    """The same of a zip archive."""

    def __init__(self, source: Path, archive: zipfile.ZipFile) -> None:
        self._source = source
        self._archive = archive
        self._names: dict[str, dict[str, zipfile.ZipInfo | None]] = defaultdict(dict)  # None: a folder
        for info in archive.infolist():
            # Some programs for Windows write its own separators, others begin every name with ./
            *folders, name = _entry_name(info).replace("\\", "/").split("/")
            if ".." in (*folders, name) or "" in folders:
                raise UserError(f"{source}: entry {info.filename!r} does not lie within the archive; repack it")
            parent = ""
            for folder in folders:
                if folder != ".":
                    self._names[parent][folder + "/"] = None
                    parent = join(parent, folder)
            if name in ("", "."):  # the entry of a folder ends in a slash
                continue
            if name in self._names[parent]:
                raise UserError(f"{source}: entry {info.filename!r} occurs twice; repack it")
            self._names[parent][name] = info

    def names(self, folder: str) -> set[str]:
        for name, info in self._names[folder].items():
            if info is not None and stat.S_ISLNK(info.external_attr >> 16):  # its content is the path it leads to
                raise UserError(f"{self._source}: {join(folder, name)}: is a link; pack what it leads to")
        return set(self._names[folder])

    def read(self, path: str) -> bytes:
        folder, _, name = path.rpartition("/")
        info = self._names[folder][name]
        assert info is not None
        where = f"{self._source}: {path}"
        _check_size(where, info.file_size)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of other kinds a part is always unpacked whole, however much that is.
            raise UserError(f"{where}: compressed in an unusual way; repack the archive")
        try:
            with self._archive.open(info) as stream:
                # With a size: without one all that a part unpacks to is held in memory, and then cut to its size.
                return stream.read(info.file_size)
        except Exception as error:  # zipfile raises many kinds for a damaged or encrypted entry
            raise UserError(f"{where}: cannot be read ({error}); repack the archive") from error


FileTree = _FolderTree | _ZipTree
