"""Finds the C++ compiler that builds the CPU's kernels. Imports no torch: `fastwi.doctor` asks here."""

import os
import shutil


def compiler() -> str | None:
    """The C++ compiler's path, or None: $CXX, else g++, else c++."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None
