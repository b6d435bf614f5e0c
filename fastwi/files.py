"""Files that are either whole or absent: written beside their final name, flushed, then renamed."""

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from fastwi.errors import UserError


def _say(error: OSError, path: Path) -> UserError:
    """The one line for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: no space left on the device; free some or write elsewhere")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: not writable ({os.strerror(error.errno)}); choose another directory")
    fix = "; choose another directory" if error.errno in (errno.EEXIST, errno.ENOTDIR) else ""
    return UserError(f"{path}: cannot be written ({error.strerror or error}){fix}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Whatever goes wrong inside the block (an exception, Ctrl-C) removes the temporary file and leaves any
    earlier `path` as it was. A kill -9 leaves at most the hidden temporary file, never a half `path`.
    Raises UserError, in one line, where the operating system refuses to write.
    """
    final = Path(path)
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        beside = final.parent / f".{final.name}.{secrets.token_hex(4)}.tmp"
        # Not by tempfile: its files are the user's alone, and no thread can ask for the umask without changing it.
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        temporary = beside
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise _say(error, final) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """`open(path, mode)` for writing a whole file, with the promise of `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, mode) as stream:
        yield stream


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text`, atomically."""
    with atomic_open(path, "w") as stream:
        stream.write(text)


@contextlib.contextmanager
def locked_directory(directory: Path, busy: str = "") -> Iterator[None]:
    """Make `directory` where it is not there, and hold it within the block: other processes wait here.

    With `busy` they do not wait: UserError says that. Raises UserError where the directory cannot be written, too.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stream = open(directory / ".lock", "w")  # noqa: SIM115 - held open for as long as the block lasts
    except OSError as error:
        raise _say(error, directory) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise UserError(f"{directory}: {busy}") from None
        except OSError as error:  # a file system without locks
            raise _say(error, directory) from error
        yield


def plain_json(value: Any) -> Any:
    """`value` with numbers that JSON has not as strings: "NaN", "Infinity", "-Infinity"; tuples become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: plain_json(each) for name, each in value.items()}
    return [plain_json(each) for each in value] if isinstance(value, (list, tuple)) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every reader takes: see `plain_json`."""
    return json.dumps(plain_json(value), indent=indent, allow_nan=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")
