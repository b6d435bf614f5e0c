"""`fastwi COMMAND ...`: the commands under one name. `python -m fastwi.COMMAND ...` is the same.

(For data-prep, which is a package of its own, `python -m data_prep ...`.)
"""

import importlib
import sys

from fastwi.beside import data_prep_module
from fastwi.cli import EXIT_USAGE, run_command
from fastwi.config.wording import did_you_mean
from fastwi.errors import UserError
from fastwi.version import __version__

COMMANDS = {
    "data-prep": "datasets and image folders as the .beton files that all others read",
    "train": "one run: train a parent, its children, their average",
    "sweep": "a grid of runs as one tree of trajectories",
    "analyze": "the paper's questions on a finished sweep",
    "report": "one page of everything that a store holds",
    "store": "list, measure, verify, tidy or rebuild a store",
    "convert": "networks from and to ordinary state dicts",
    "tune": "measure which engine is the fastest here",
    "doctor": "what this machine has, and what it lacks",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point: hand the rest of the arguments to the command that the first one names."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        if words[0] == "data-prep":
            return data_prep(words[1:])
        module = importlib.import_module(f"fastwi.{words[0]}" + (".__main__" if words[0] == "report" else ""))
        return int(module.main(words[1:]))
    return run_command(lambda: _show(words))


def data_prep(argv: list[str] | None = None) -> int:
    """`fastwi data-prep`: `python -m data_prep`, but never another package of that name."""
    return int(data_prep_module("__main__").main(argv, "fastwi data-prep"))


def _show(words: list[str]) -> int:
    if words in (["--version"], ["-V"]):
        print(f"fastwi {__version__}")
        return 0
    if words and words[0] not in ("--help", "-h"):
        raise UserError(f"fastwi: {words[0]!r} is no command; {did_you_mean(words[0], COMMANDS)}")
    print("usage: fastwi COMMAND ...\n")
    for name, what in COMMANDS.items():
        print(f"  {name:<9} {what}")
    print("\nfastwi COMMAND --help says more.")
    return 0 if words else EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
