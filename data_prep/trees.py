"""Folders of files, on disk or inside a zip archive, seen the same way. Nothing is extracted."""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from fastwi.errors import UserError

# No image of a dataset is larger. An archive may claim to hold files that no memory could.
MAX_FILE_BYTES = 1 << 28


class Tree(Protocol):
    """Files under one root. Paths are relative to it, with `/` between parts; the root itself is ''."""

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in `folder`, each sorted; hidden ones are left out."""

    def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError if it cannot be read or is too large to be an image."""


@contextlib.contextmanager
def open_tree(source: Path) -> Iterator[Tree]:
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


def _hidden(name: str) -> bool:
    """What file managers leave behind: .DS_Store, __MACOSX, Thumbs.db, ..."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(f"{where}: has {size} bytes, too many for an image; remove it")


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if _hidden(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files.append(entry.name)
                    else:  # a named pipe would wait for ever, a broken link has nothing to read
                        raise UserError(f"{entry.path}: neither a file nor a folder; remove it")
        except OSError as error:
            raise UserError(f"{self._root / folder}: cannot be read ({error.strerror or error})") from error
        return sorted(folders), sorted(files)

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
        for info in archive.infolist():
            self._add(info)

    def _add(self, info: zipfile.ZipInfo) -> None:
        *folders, name = info.filename.split("/")
        if ".." in (*folders, name) or info.filename.startswith("/") or "" in folders:
            raise UserError(f"{self._source}: entry {info.filename!r} does not lie within the archive; repack it")
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
        folders, files = self._folders.get(folder, ()), self._files.get(folder, ())
        return sorted(n for n in folders if not _hidden(n)), sorted(n for n in files if not _hidden(n))

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
