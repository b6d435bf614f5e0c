"""Whether a directory is on a network, and locks that the system releases when their holder dies."""

import contextlib
import errno
import fcntl
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fastwi.errors import UserError

# fmt: off
NETWORK_TYPES = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "fhgfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
))
# fmt: on


def network_type(directory: Path, mountinfo: str | None = None) -> str | None:
    """The file system of `directory`, such as "nfs4", where it is one that several machines may have mounted.

    `mountinfo` is the text of /proc/self/mountinfo (proc(5)); where there is none the disk is taken for local.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    target = Path(os.path.realpath(directory))
    depth, found = -1, ""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        words = before.split()
        if not dash or len(words) < 5 or not after:
            continue
        point = Path(_unescape(words[4]))
        # Of two mounts on one point the later hides the earlier.
        if (target == point or point in target.parents) and len(point.parts) >= depth:
            depth, found = len(point.parts), after.split()[0]
    return found if found in NETWORK_TYPES or found == "fuse" or found.startswith("fuse.") else None


def _unescape(text: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text


def refusal(error: OSError, path: Path) -> UserError:
    """The one line for an operating-system error met while changing the store."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: no space left on the device; free some or use another store")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: not writable ({os.strerror(error.errno)}); use another store")
    return UserError(f"{path}: {error.strerror or error}; use another store")


def open_lock(path: Path) -> int:
    """A descriptor of the lock file `path`, made where it is missing. UserError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link is refused: it would have the file made elsewhere.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise refusal(error, path) from error


def take(descriptor: int, path: Path, exclusive: bool, wait: bool = True) -> bool:
    """flock an open file; False where `wait` is not set and another has it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES) and not wait:
            return False
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); put the store on a file system with flock "
            "(Lustre: mounted with -o flock)"
        ) from error
    return True


def open_plain(path: Path) -> io.BufferedReader:
    """Open a regular file to read. OSError for anything else: a named pipe would wait, a device never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


@contextlib.contextmanager
def locked(path: Path, exclusive: bool, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path` within the block. Yields whether it is held: it may not be where `wait` is not set."""
    descriptor = open_lock(path)
    try:
        yield take(descriptor, path, exclusive, wait)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on the disk: a file's own fsync does not do that."""
    with contextlib.suppress(OSError):  # some network file systems cannot
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
