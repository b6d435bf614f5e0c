"""How a network of the user's own is refused, in one line."""

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from fastwi.config.values import show
from fastwi.errors import ConfigError

_MOST_LISTED = 8
_LONGEST_REASON = 200
_HERE = os.path.join(os.path.dirname(__file__), "")


def refusal(name: str, problem: str) -> ConfigError:
    """The error for the network `name`."""
    return ConfigError(f"model.name: {show(name)}: {problem}")


def type_of(value: object) -> str:
    """What a value is that should have been another."""
    return "None" if value is None else f"a value of type {type(value).__name__}"


def reason(error: BaseException) -> str:
    """The error in one line, with the last line of code that it came through."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."
    # import machinery has frames of its own, of no use to the reader
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    last = frames[-1] if frames and not frames[-1].filename.startswith(_HERE) else None
    place = f" ({Path(last.filename).name} line {last.lineno})" if last else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


def hint(wrong: str, names: Iterable[str], prefix: str = "", listed: bool = False) -> str:
    """'; did you mean ...?' with the nearest name, else a few of them where `listed`, else nothing."""
    known = sorted(set(names))
    lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(wrong.lower(), lower, n=1)
    if near:
        return f"; did you mean {prefix}{lower[near[0]]}?"
    if not known or not listed:
        return ""
    return f"; it has {', '.join(known[:_MOST_LISTED])}{', ...' if len(known) > _MOST_LISTED else ''}"
