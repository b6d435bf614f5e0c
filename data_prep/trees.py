"""Folders of files, on disk or inside a zip archive, seen the same way. Nothing is extracted."""

import contextlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from fastwi.errors import UserError

# No image of a dataset is larger. An archive may claim to hold files that no memory could.
MAX_FILE_BYTES = 1 << 28


class FileTree(Protocol):
    """Files under one root. Paths are relative to it, with `/` between parts; the root itself is ''.

    `hidden`: paths of what `entries` left out because it is hidden, those of folders with a `/` at the end. Not of
    what file managers leave behind.
    """

    hidden: set[str]

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in `folder`, each sorted; hidden ones are left out."""

    def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError if it cannot be read or is too large to be an image."""


@contextlib.contextmanager
def open_tree(source: Path) -> Iterator[FileTree]:
    """The tree of a folder or of a zip archive. Raises UserError if `source` is neither."""
    if source.is_dir():
        yield _FolderTree(source)
        return
    if not source.is_file():
        raise UserError(f"{source}: does not exist; give an image folder or a zip of one")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UserError(f"{source}: not a zip archive that can be read ({error}); extract it yourself") from error
    with archive:
        yield _ZipTree(source, archive)


def join(*parts: str) -> str:
    """Parts of a tree's path joined; empty ones vanish."""
    return "/".join(part for part in parts if part)


def read_file(path: Path) -> bytes | None:
    """The content of a plain file of bearable size; None where there is none at `path`. Raises UserError."""
    try:
        if not path.is_file():  # a named pipe would wait for ever
            return None
        with open(path, "rb") as stream:
            _check_size(str(path), os.fstat(stream.fileno()).st_size)
            return stream.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); see to its permissions") from error


def _left_behind(name: str) -> bool:
    """What file managers leave behind."""
    return name.startswith("._") or name in (".DS_Store", "__MACOSX", "Thumbs.db", "desktop.ini")


def _shown(
    folder: str, folders: Iterable[str], files: Iterable[str], hidden: set[str]
) -> tuple[list[str], list[str]]:
    """The names that are not hidden, sorted; paths of the others are added to `hidden`."""
    kept = [[name for name in names if not _left_behind(name)] for names in (folders, files)]
    for names, ending in zip(kept, ("/", ""), strict=True):
        hidden |= {join(folder, name) + ending for name in names if name.startswith(".")}
    shown_folders, shown_files = (sorted(name for name in names if not name.startswith(".")) for names in kept)
    return shown_folders, shown_files


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: has {size} bytes, too many for an image; remove it")


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.hidden: set[str] = set()

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
                    elif not entry.name.startswith("."):
                        # A named pipe would wait for ever, a broken link has nothing to read.
                        raise UserError(f"{entry.path}: neither a file nor a folder; remove it")
        except OSError as error:
            raise UserError(f"{self._root / folder}: cannot be read ({error.strerror or error})") from error
        return _shown(folder, folders, files, self.hidden)

    def read(self, path: str) -> bytes:
        content = read_file(self._root / path)
        if content is None:
            raise UserError(f"{self._root / path}: vanished while it was read; leave the folder be and start again")
        return content


class _ZipTree:
    def __init__(self, source: Path, archive: zipfile.ZipFile) -> None:
        self._source = source
        self._archive = archive
        self._files: dict[str, dict[str, zipfile.ZipInfo]] = {}
        self._folders: dict[str, set[str]] = {}
        self.hidden: set[str] = set()
        for info in archive.infolist():
            self._add(info)

    def _add(self, info: zipfile.ZipInfo) -> None:
        # Some programs for Windows write its own separators, others begin every name with ./
        written = info.filename.replace("\\", "/")
        *folders, name = written.split("/")
        if ".." in (*folders, name) or "" in folders:
            raise UserError(f"{self._source}: entry {info.filename!r} does not lie within the archive; repack it")
        folders = [folder for folder in folders if folder != "."]
        name = "" if name == "." else name
        parent = ""
        for folder in folders:
            self._folders.setdefault(parent, set()).add(folder)
            parent = join(parent, folder)
        if not name:  # the entry of a folder ends in a slash
            return
        entries = self._files.setdefault(parent, {})
        if name in entries:
            raise UserError(f"{self._source}: entry {info.filename!r} occurs twice; repack it")
        entries[name] = info

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._folders.get(folder, set()), self._files.get(folder, {})
        for name, info in files.items():
            if stat.S_ISLNK(info.external_attr >> 16):  # its content is the path that it leads to
                raise UserError(f"{self._source}: {join(folder, name)}: is a link; pack what it leads to")
        return _shown(folder, folders, files, self.hidden)

    def read(self, path: str) -> bytes:
        folder, _, name = path.rpartition("/")
        info = self._files[folder][name]
        _check_size(f"{self._source}: {path}", info.file_size)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of other kinds a part is always unpacked whole, however much that is.
            raise UserError(f"{self._source}: {path}: compressed in an unusual way; repack the archive")
        try:
            with self._archive.open(info) as stream:
                # With a size: without one all that a part unpacks to is held in memory, and then cut to its size.
                return stream.read(info.file_size)
        # What zipfile raises for a damaged, encrypted or oddly compressed entry.
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            EOFError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise UserError(f"{self._source}: {path}: cannot be read ({error}); repack the archive") from error
