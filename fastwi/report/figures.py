"""A figure's files: on a screen with its title; for a paper without one, with fonts that stay text."""

import io
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastwi.files import atomic_path

DPI = 130
_style: ContextVar[str] = ContextVar("_style", default="screen")


def set_style(style: str) -> None:
    """Draw figures from here on for a `screen`, or for a `paper`."""
    _style.set(style)


def save_figure(figure: Any, path: Path, dpi: int = DPI, kinds: Sequence[str] = ("png", "pdf", "svg")) -> None:
    """Write a figure in each of `kinds`, beside `path` by its ending, whole or not at all.

    The same figure gives the same bytes: no dates are written. Dollar signs of names are drawn. Raises UserError
    where a file cannot be written.
    """
    from matplotlib import rc_context

    _as_they_are(figure)
    rc: dict[str, Any] = {"svg.hashsalt": "fastwi"}
    if _style.get() == "paper":  # a caption says what the title does
        figure.suptitle("")
        rc |= {"pdf.fonttype": 42, "svg.fonttype": "none"}
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    with rc_context(rc):  # type: ignore[arg-type]
        for kind in kinds:
            drawn = io.BytesIO()  # on a full disk Matplotlib's PDF writer raises an error of its own
            figure.savefig(drawn, format=kind, dpi=dpi, metadata=dates.get(kind))
            content = drawn.getvalue() if kind != "png" else _with_palette(drawn, dpi)
            with atomic_path(path.with_suffix(f".{kind}")) as temporary:
                temporary.write_bytes(content)


def _as_they_are(figure: Any) -> None:
    """Have the figure's texts drawn as they are: Matplotlib takes what is between two dollar signs for a formula.

    Names and paths of the user's may have such signs. Ticks of logarithmic axes are formulas, and stay.
    """
    from matplotlib.text import Text

    every = (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis))
    powers = {tick for axis in every if axis.get_scale() == "log" for tick in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        text.set_parse_math(text in powers)


def _with_palette(png: io.BytesIO, dpi: int) -> bytes:
    """A PNG in 256 colours: a third of its bytes, and no colour changes by more than the eye sees.

    Lines have few colours; the thousands of others are their edges, smoothed.
    """
    from PIL import Image

    colours = Image.open(png).convert("RGB")
    # Maximum coverage keeps rare colours, such as one marker's; the median cut would let frequent ones decide.
    drawn = colours.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    written = io.BytesIO()
    drawn.save(written, "png", optimize=True, dpi=(dpi, dpi))
    return written.getvalue()


def numbered(path: Path, number: int) -> Path:
    """`path` for the first of several files, then `path` with -2, -3 ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
