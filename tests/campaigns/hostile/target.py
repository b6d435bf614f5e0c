"""What every kind of hostile input has in common: how a try is judged."""

import contextlib
import io
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastwi.errors import UserError


class Finding(Exception):
    """An outcome that must not be: wrong content, a message that is no clean line, another exit code."""


class Target(Protocol):
    """One kind of input. Made once a process, from the directory of valid files that `make_corpus` filled."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        """Write valid files."""

    def __init__(self, corpus: Path) -> None: ...

    def attempt(self, draw: random.Random, work: Path) -> bool:
        """Make one input in the empty directory `work` and try it; whether it was accepted.

        False: it was refused, cleanly. Raises Finding, or whatever the code under test let through.
        """


def check_lines(text: str) -> None:
    """A refusal's text: printable lines of a bearable length."""
    for line in text.split("\n"):
        if not line or len(line) > 5000 or not line.isprintable():
            raise Finding(f"no clean line: {line[:300]!r}")


def accepted(body: Callable[[], Any], lines: int = 1) -> Any:
    """What `body` returns, which is not None; None where it raised a UserError of at most so many lines."""
    try:
        return body()
    except UserError as error:
        check_lines(str(error))
        if str(error).count("\n") >= lines:
            raise Finding(f"more than {lines} lines: {str(error)[:300]!r}") from error
        return None


def refused(body: Callable[[], object], lines: int = 1) -> bool:
    """Whether `body` raised such an error."""
    return accepted(lambda: (body(),), lines) is None


def command(main: Callable[[list[str]], int], argv: Sequence[str], codes: Sequence[int] = (0, 2)) -> tuple[int, str]:
    """Run a command's entry point in this process: its exit code, one of `codes`, and its standard output."""
    streams = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main(list(argv))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    texts = []
    for stream in streams:
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    if code not in codes or "Traceback" in texts[1]:
        raise Finding(f"{list(argv)}: exit code {code}\n{texts[1][-3000:]}")
    if code == 2:
        errors = [line for line in texts[1].splitlines() if line.startswith("fastwi: error: ")]
        if not errors:
            raise Finding(f"{list(argv)}: exit code 2 without a line that says why: {texts[1][:500]!r}")
        # Every line of an error has its prefix: one that has none came out of a name within the input.
        check_lines("\n".join(line for line in texts[1].split("\n") if line))
    return code, texts[0]


def odd_file(draw: random.Random, path: Path, outside: Path) -> None:
    """Put something that is no plain file at `path`."""
    kind = draw.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/full", "/proc/self/mem", "/nowhere", ".", "..")))
    elif kind == 4:
        path.symlink_to(outside / "canary.txt")
    else:
        path.touch()
