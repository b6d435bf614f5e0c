"""Files that are whole or absent: written beside their final name, flushed, then renamed. And locks of files."""

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fastwi.errors import UserError

if TYPE_CHECKING:
    import polars


def refusal(error: OSError, path: Path) -> UserError:
    """The one line for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: no space left on the device; free some or write elsewhere")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: not writable ({os.strerror(error.errno)}); choose another directory")
    fix = "; choose another directory" if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP) else ""
    return UserError(f"{path}: cannot be written ({error.strerror or error}){fix}")


def cache_directory() -> Path:
    """Where this user's machine keeps what can be made again. It need not be there yet.

    Raises UserError for a user without a home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastwi"
    except RuntimeError as error:  # neither $HOME nor an entry of the user, as in a container run under any user
        raise UserError("there is no home directory for a cache; set HOME or XDG_CACHE_HOME") from error


def check_writable(directory: Path) -> None:
    """Raise UserError where files could not be written in `directory`. It is not made where it is missing."""
    place = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise refusal(error, directory) from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Any exception inside the block removes the temporary file and leaves an earlier `path` as it was. A kill -9
    leaves at most the hidden temporary file. Raises UserError where the operating system refuses to write.
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
        raise refusal(error, final) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """`open(path, mode)` for writing a whole file, with the promise of `atomic_path`. Text is UTF-8."""
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as stream:
        yield stream


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text`, atomically."""
    with atomic_open(path, "w") as stream:
        stream.write(text)


def plain_json(value: Any) -> Any:
    """`value` with NaN and infinite numbers as strings: "NaN", "Infinity", "-Infinity"; tuples become lists."""
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


def write_parquet(
    path: str | os.PathLike[str], frame: "polars.DataFrame", metadata: dict[str, str] | None = None
) -> None:
    """Write `frame` as Parquet, atomically.

    By way of memory: of a disk that fills while Polars writes, its error says neither that nor a number.
    """
    written = io.BytesIO()
    frame.write_parquet(written, metadata=metadata)
    with atomic_open(path) as stream:
        stream.write(written.getbuffer())


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk: the fsync of a file does not do that."""
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_plain(path: Path) -> io.BufferedReader:
    """Open a regular file to read. OSError for anything else: a named pipe would wait, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def open_lock(path: Path) -> int:
    """A descriptor of the lock file `path`, created if it is missing. UserError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link is refused: it would have the file made elsewhere.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise refusal(error, path) from error


def lock(descriptor: int, path: Path, exclusive: bool, wait: bool = True) -> bool:
    """flock an open file; False where `wait` is not set and another process has it.

    The system releases the lock when the process ends, also by kill -9. UserError on a file system without locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES) and not wait:
            return False
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); use a file system with flock (Lustre: -o flock)"
        ) from error
    return True


@contextlib.contextmanager
def locked(path: Path, exclusive: bool, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` within the block. Yields whether it is held, which it may not be without `wait`."""
    descriptor = open_lock(path)
    try:
        yield lock(descriptor, path, exclusive, wait)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_directory(directory: Path, busy: str = "") -> Iterator[None]:
    """Create `directory` if it is missing, and hold it within the block: other processes wait here.

    With `busy` they do not wait: UserError with that message. UserError too where the directory cannot be written.
    """
    with locked(directory / ".lock", exclusive=True, wait=not busy) as held:
        if not held:
            raise UserError(f"{directory}: {busy}")
        yield
