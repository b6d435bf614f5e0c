"""Files that are checked where they are read: JSON with its own checksum, and the SHA-256 of other files in it."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from fastwi.errors import CheckpointError
from fastwi.files import plain_json, write_json

CHECKSUM = "checksum"
"""The key under which a sealed file has the SHA-256 of all its other values."""

MANIFEST = "manifest.json"
_FILES = "files"
_READ_AGAIN = (".parquet", ".png", ".svg", ".yaml")
_SEAL = "\n# SHA-256 of all lines above: "
_PIECE = 1 << 20  # bytes


def write_sealed(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write `value` as JSON with a checksum of it, atomically. Numbers that are not finite become strings."""
    written: dict[str, Any] = plain_json(dict(value))
    write_json(path, {**written, CHECKSUM: checksum_of(written)})


def read_sealed(path: Path, fix: str) -> dict[str, Any]:
    """What `write_sealed` wrote. `fix` says in the error how the file is made again.

    Raises CheckpointError, in one line, where the file cannot be read or is not as it was written.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is damaged (not JSON); {fix}") from None
    if not isinstance(found, dict) or CHECKSUM not in found:
        raise CheckpointError(f"{path}: is damaged, or of an earlier fastwi (no checksum); {fix}")
    if found.pop(CHECKSUM) != checksum_of(found):
        raise CheckpointError(f"{path}: is damaged or was changed (checksum); {fix}")
    return found


def seal_directory(directory: Path, about: Mapping[str, Any], written: Iterable[str]) -> None:
    """Write manifest.json: `about`, and the SHA-256 of every file of the directory that is read again.

    written: the names of those that may be, so that a file of the user's own stays theirs.

    Write it last, and remove an old one first: its presence says that all other files belong together.
    """
    kept = {name: value for name, value in about.items() if name not in (_FILES, CHECKSUM)}
    paths = map(directory.joinpath, written)
    names = sorted(path.name for path in paths if path.suffix in _READ_AGAIN and path.is_file())
    write_sealed(directory / MANIFEST, {**kept, _FILES: {name: file_sha256(directory / name) for name in names}})


def open_directory(directory: Path, fix: str) -> dict[str, Any]:
    """What `seal_directory` was given, once every file is seen to be the one that was there.

    Raises CheckpointError, naming the file, where one is missing or is not as it was.
    """
    found = read_sealed(directory / MANIFEST, fix)
    files = found.pop(_FILES, None)
    if not isinstance(files, dict):
        raise CheckpointError(f"{directory / MANIFEST}: lists no files; {fix}")
    for name, digest in files.items():
        path = directory / name
        try:
            whole = file_sha256(path) == digest
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); {fix}") from None
        if not whole:
            raise CheckpointError(f"{path}: is damaged or was changed (checksum); {fix}")
    return found


def sealed_yaml(text: str) -> str:
    """`text`, which ends a line, with a comment at its end that holds the SHA-256 of all before it."""
    return f"{text}{_SEAL}{sha256_of(text.encode())}\n"


def yaml_damage(text: str) -> str:
    """What is wrong with a text that has the seal of `sealed_yaml`; empty: nothing, or it has none."""
    body, seal, digest = text.rpartition(_SEAL)
    if not seal or digest.strip() == sha256_of(body.encode()):
        return ""
    return "is damaged or was changed (checksum)"


def is_sealed(text: str) -> bool:
    """Whether a text has the seal of `sealed_yaml`, whole or not."""
    return _SEAL in text


def sha256_of(content: bytes) -> str:
    """The SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises OSError where it cannot be read."""
    with open(path, "rb") as stream:
        return stream_sha256(stream)


def stream_sha256(stream: IO[bytes]) -> str:
    """The SHA-256 of the rest of a stream in hexadecimal."""
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def checksum_of(value: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON object in hexadecimal, whatever the order of its keys and its spaces."""
    return sha256_of(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
