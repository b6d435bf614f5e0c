"""A figure's files: on a screen with its title; for a paper without one, with fonts that stay text."""

import io
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastwi.errors import ConfigError
from fastwi.files import atomic_path

DPI = 130
STYLES = ("screen", "paper")
_style: ContextVar[str] = ContextVar("_style", default="screen")


def take_style(argv: list[str]) -> list[str]:
    """A command's arguments without --figures, which says what its figures are for. Raises ConfigError."""
    rest, given, words = list[str](), list[str](), [*argv, "--"]
    while len(words) > 1:
        name, equals, value = words.pop(0).partition("=")
        if name != "--figures":
            rest.append(name + equals + value)
        elif equals or not words[0].startswith("--"):
            given.append(value if equals else words.pop(0))
        else:
            raise ConfigError(f"--figures: has no value; give {' or '.join(STYLES)}")
    if len(given) > 1:
        raise ConfigError("--figures: is given twice; remove one")
    if given and given[0] not in STYLES:
        raise ConfigError(f"--figures: {given[0]!r} is not one of {', '.join(STYLES)}")
    _style.set(given[0] if given else STYLES[0])
    return rest


def save_figure(figure: Any, path: Path, dpi: int = DPI, kinds: Sequence[str] = ("png", "pdf", "svg")) -> None:
    """Write a figure in each of `kinds`, beside `path` by its ending, whole or not at all.

    The same figure gives the same bytes: no dates are written. Raises UserError where a file cannot be written.
    """
    from matplotlib import rc_context

    rc: dict[str, Any] = {"svg.hashsalt": "fastwi"}
    if _style.get() == "paper":  # a caption says what the title does
        figure.suptitle("")
        rc |= {"pdf.fonttype": 42, "svg.fonttype": "none"}
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with rc_context(rc):  # type: ignore[arg-type]
        for kind in kinds:
            drawn = io.BytesIO()  # on a full disk Matplotlib's PDF writer raises an error of its own
            figure.savefig(drawn, format=kind, dpi=dpi, metadata=dates.get(kind))
            with atomic_path(path.with_suffix(f".{kind}")) as temporary:
                temporary.write_bytes(drawn.getvalue())


def numbered(path: Path, number: int) -> Path:
    """`path` for the first of several files, then `path` with -2, -3 ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
