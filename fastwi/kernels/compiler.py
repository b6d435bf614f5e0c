"""Finds the C++ compiler that builds kernels; keeps what was built. Imports no torch: `fastwi.doctor` asks here."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from fastwi.errors import UserError
from fastwi.files import atomic_path, cache_directory

T = TypeVar("T")


def compilers() -> list[str]:
    """Paths of the C++ compilers: of $CXX, g++ and c++ those that are there."""
    found = [shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++") if name]
    return [path for path in found if path]


def compiler() -> str | None:
    """The path of the first of them, which is also torch.compile's, or None."""
    return next(iter(compilers()), None)


def version_of(command: str) -> str:
    """What a compiler says of itself."""
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout


def built(
    kind: str, suffix: str, made_of: Iterable[str], build: Callable[[Path], object], read: Callable[[Path], T]
) -> T:
    """What `read` makes of the file that `build` writes.

    The file is kept in the user's cache directory under a hash of `made_of`, all that decides it. Where that
    directory cannot be used, it is built for this call alone.
    """
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:20]
    file = f"{kind}-{name}{suffix}"
    try:
        path = cache_directory() / file
        if not path.exists():
            with atomic_path(path) as temporary:
                build(temporary)
        return read(path)
    except (OSError, UserError, subprocess.CalledProcessError):  # no home, a full disk, or one without execution
        with tempfile.TemporaryDirectory() as directory:
            own = Path(directory) / file
            build(own)
            return read(own)
