"""Finds the C++ compiler that builds the CPU's kernels. Imports no torch: `fastwi.doctor` asks here."""

import os
import shutil


def compilers() -> list[str]:
    """Paths of the C++ compilers: of $CXX, g++ and c++ those that are there."""
    found = [shutil.which(name) for name in (os.environ.get("CXX"), "g++", "c++") if name]
    return [path for path in found if path]


def compiler() -> str | None:
    """The path of the first of them, which is also torch.compile's, or None."""
    return next(iter(compilers()), None)
