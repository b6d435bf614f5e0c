"""What a try may not do: write outside of its directory, start programs, open connections, unpickle, take all memory."""

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from hostile.target import Finding

MEMORY = 4 << 30  # bytes beyond what the process has once all is imported
MOST_GROWTH = 1 << 30  # bytes of resident memory that one try may add to the most there ever was
MOST_SECONDS = 10.0  # of processor time, a try

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect", "socket.bind",
              "socket.getaddrinfo", "urllib.", "pickle.find_class", "pty.", "ftplib.", "http.")  # fmt: skip
# What the official CIFAR batches hold, which torchvision unpickles behind their checksums.
_ARRAYS = {("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
           ("numpy", "dtype"), ("_codecs", "encode")}  # fmt: skip
_PATHS = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
          "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.mkfifo": 1, "sqlite3.connect": 1}  # fmt: skip


class Guard:
    """Watches this process (audit events, PEP 578) and the files beside the input's directory, within its block.

    Libraries that open files in native code raise no audit events: for them there is the tree of canaries.
    """

    def __init__(self, box: Path, work: Path) -> None:
        """`work`, the input's directory, lies right below a directory of `box`.

        Bounds the address space too, so that a blow-up is a MemoryError here and no swapping machine."""
        self._box, self._work, self._watching = box, work, False
        self._allowed = os.path.realpath(work) + os.sep
        self._broken: list[str] = []
        self._canaries = self._look()
        sys.addaudithook(self._hear)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))

    def __enter__(self) -> None:
        self._broken.clear()
        self._resident, self._begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        self._watching = True

    def __exit__(self, *_: object) -> None:
        self._watching = False

    def check(self) -> None:
        """Raise Finding for what was done since the block began."""
        seconds = time.process_time() - self._begun
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._resident) << 10
        if seconds > MOST_SECONDS:
            self._broken.append(f"took {seconds:.1f} s")
        if grown > MOST_GROWTH:
            self._broken.append(f"took {grown / 2**30:.1f} GiB of memory")
        if self._look() != self._canaries:
            self._broken.append("files outside of the input's directory changed")
        if self._broken:
            raise Finding("; ".join(self._broken[:5]))

    def _look(self) -> list[tuple[str, int, int]]:
        """Name, size and time of everything beside the input's directory."""
        paths = {*self._box.iterdir(), *self._work.parent.iterdir(), *(self._box / "outside").rglob("*")}
        paths -= {self._work, self._work.parent}
        return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                self._check_path(path, follows=not flags & os.O_NOFOLLOW)
        elif event in _PATHS:
            for path in arguments[1:2] if event == "os.symlink" else arguments[: _PATHS[event]]:
                self._check_path(path, follows=False, event=event)
        elif event.startswith(_FORBIDDEN) and not (event == "pickle.find_class" and arguments in _ARRAYS):
            self._broken.append(f"{event} {arguments!r:.200}")

    def _check_path(self, path: Any, follows: bool, event: str = "open") -> None:
        if isinstance(path, int) or path in ("/dev/null", b"/dev/null", ":memory:"):
            return
        folder, name = os.path.split(os.fsdecode(path))
        # Only an open follows the name itself, unless it is told not to: a link is removed or replaced as such.
        real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(folder), name)
        if not os.fsdecode(real).startswith(self._allowed):
            self._broken.append(f"{event} {path!r:.200}")
