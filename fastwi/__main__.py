"""`fastwi COMMAND ...`: the commands under one name. `python -m fastwi.COMMAND ...` is the same.

(For data-prep, which is a package of its own, `python -m data_prep ...`.)
"""

import importlib
import sys

from fastwi.beside import data_prep_module
from fastwi.cli import EXIT_USAGE, command
from fastwi.config.values import did_you_mean
from fastwi.errors import UserError
from fastwi.version import __version__

COMMANDS = {
    "data-prep": "datasets and image folders as the .beton files that all others read",
    "train": "one run: train a parent, its children, their average",
    "sweep": "a grid of runs as one tree of trajectories",
    "analyze": "the paper's questions on a finished sweep",
    "report": "one page of everything that a store holds",
    "store": "list, measure, verify, clean or rebuild a store",
    "convert": "networks from and to ordinary state dicts",
    "tune": "measure which engine is the fastest here",
    "doctor": "what this machine has, and what it lacks",
}


@command
def main(argv: list[str]) -> int:
    """Hand the rest of the arguments to the command that the first one names, and return its exit code."""
    name, more = (argv[0], argv[1:]) if argv else ("", [])
    if name == "data-prep":
        return data_prep(more)
    if name in COMMANDS:
        module = importlib.import_module(f"fastwi.{name}" + (".__main__" if name == "report" else ""))
        return int(module.main(more))
    if argv in (["--version"], ["-V"]):
        print(f"fastwi {__version__}")
        return 0
    if name not in ("", "--help", "-h"):
        raise UserError(f"fastwi: {name!r} is not a command; {did_you_mean(name, COMMANDS)}")
    print("usage: fastwi COMMAND ...\n")
    for each, what in COMMANDS.items():
        print(f"  {each:<9} {what}")
    print("\nfastwi COMMAND --help says more.")
    return 0 if name else EXIT_USAGE


def data_prep(argv: list[str] | None = None) -> int:
    """`fastwi data-prep`: `python -m data_prep`, but never another package of that name."""
    return int(data_prep_module("__main__").main(argv, "fastwi data-prep"))


if __name__ == "__main__":
    sys.exit(main())
