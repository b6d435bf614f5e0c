"""What every kind of hostile input has in common: how a try is judged."""

import contextlib
import io
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastwi.errors import UserError


class Finding(Exception):
    """An outcome that must not be: wrong content, a message that is no clean line, another exit code."""


def check_lines(text: str) -> None:
    """A refusal's text: printable lines of a bearable length."""
    for line in text.split("\n"):
        if not line or len(line) > 5000 or not line.isprintable():
            raise Finding(f"no clean line: {line[:300]!r}")


def accepted(body: Callable[[], Any]) -> Any:
    """What `body` returns, which is not None; None where it raised a UserError of one line."""
    try:
        return body()
    except UserError as error:
        check_lines(str(error))
        if "\n" in str(error):
            raise Finding(f"more than a line: {str(error)[:300]!r}") from error
        return None


def refused(body: Callable[[], object]) -> bool:
    """Whether `body` raised such an error."""
    return accepted(lambda: (body(),)) is None


def command(main: Callable[[list[str]], int], argv: Sequence[str], codes: Sequence[int] = (0, 2)) -> tuple[int, str]:
    """Run a command's entry point in this process: its exit code, one of `codes`, and its standard output."""
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main(list(argv))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    for stream in (output, errors):
        stream.flush()
        stream.seek(0)
    text = errors.read()
    if code not in codes or "Traceback" in text:
        raise Finding(f"{list(argv)}: exit code {code}\n{text[-3000:]}")
    if code == 2:
        if not any(line.startswith("fastwi: error: ") for line in text.splitlines()):
            raise Finding(f"{list(argv)}: exit code 2 without a line that says why: {text[:500]!r}")
        # Every line of an error has its prefix: one that has none came out of a name within the input.
        check_lines("\n".join(line for line in text.split("\n") if line))
    return code, output.read()


def odd_file(draw: random.Random, path: Path, outside: Path) -> None:
    """Put something that is no plain file at `path`, in place of a file that is there."""
    path.unlink(missing_ok=True)
    targets = ("/dev/zero", "/dev/full", "/proc/self/mem", "/nowhere", ".", "..")
    draw.choice(
        (
            path.mkdir,
            lambda: os.mkfifo(path),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to(draw.choice(targets)),
            lambda: path.symlink_to(outside / "canary.txt"),
            path.touch,
        )
    )()
