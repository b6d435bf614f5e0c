"""How the messages of this package show values and suggest names. Every message is one line."""

import difflib
from collections.abc import Iterable

LONGEST_SHOWN = 60
INT64_MAX = 2**63 - 1


def show(value: object) -> str:
    """A user's value as it appears in a message: one line, printable, at most about 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Cut before repr: a repr of megabytes is slow, and the end of it helps nobody.
        return repr(value if len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "...")
    if isinstance(value, int):
        # Python refuses to print integers of more than 4,300 digits.
        return str(value) if abs(value) <= INT64_MAX else "a whole number beyond 64 bits"
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a value of type {type(value).__name__}"


def show_path(path: object) -> str:
    """A file's path as it is where it is printable, else quoted and escaped."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 4096 else show(text)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` most likely means, or None. Case and `-` for `_` count for little.

    A dotted name is also found by its last part: `batch_size` finds `optimizer.batch_size`.
    """
    plain = name[:LONGEST_SHOWN].lower().replace("-", "_")
    by_plain = {known.lower().replace("-", "_"): known for known in names}
    if plain in by_plain:
        return by_plain[plain]
    last = plain.rpartition(".")[2]
    same_last = [known for known in by_plain if last and known.rpartition(".")[2] == last]
    close = difflib.get_close_matches(plain, same_last or by_plain, n=1, cutoff=0.0 if same_last else 0.6)
    return by_plain[close[0]] if close else None


def did_you_mean(name: str, names: Iterable[str], *, prefix: str = "") -> str:
    """The end of an 'unknown name' message: the nearest valid name, or all of them where none is near."""
    known = sorted(names)
    guess = nearest(name, known)
    if guess is not None:
        return f"did you mean {prefix}{guess}?"
    return "valid: " + ", ".join(prefix + each for each in known)
