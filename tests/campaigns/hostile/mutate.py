"""Damage to bytes and texts, drawn at random: what a bad disk does, and what somebody of ill will would."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

# Values around which code that adds and multiplies sizes goes wrong.
_EDGES = tuple(sorted({0, 1, 2, 3} | {(1 << bits) + near for bits in (7, 8, 15, 16, 24, 31, 32, 48, 53, 62, 63, 64)
                                      for near in (-2, -1, 0, 1)}))  # fmt: skip


def number(draw: random.Random, size: int, near: int = 0) -> int:
    """A hostile unsigned number of `size` bytes; `near` is a value that is right, or almost."""
    values: tuple[Callable[[], int], ...] = (
        lambda: draw.choice(_EDGES),
        lambda: near + draw.choice((-8, -2, -1, 1, 2, 8, 4096)),
        lambda: near * draw.choice((0, 2, 3, 256)),
        lambda: draw.getrandbits(8 * size),
        lambda: draw.getrandbits(draw.randrange(1, 8 * size + 1)),
    )
    return draw.choice(values)() % (1 << 8 * size)


def damaged(
    draw: random.Random, data: bytes, fields: Sequence[tuple[int, int]] = (), others: Sequence[bytes] = ()
) -> bytes:
    """`data` with one to a few kinds of damage.

    Args:
        draw: where the choices come from.
        data: a valid file.
        fields: (offset, bytes) of little-endian numbers in it that say sizes, counts and places.
        others: other files, to splice parts of.
    """
    found = bytearray(data)
    for _ in range(1 + min(int(draw.expovariate(1.0)), 6)):
        if fields and draw.random() < 0.55:
            offset, size = draw.choice(fields)
            if offset + size <= len(found):
                near = draw.choice((int.from_bytes(found[offset : offset + size], "little"), len(found)))
                found[offset : offset + size] = number(draw, size, near).to_bytes(size, "little")
        else:
            _damage(draw, found, others)
    return bytes(found)


def _damage(draw: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """One kind of damage that knows nothing of the format."""
    place = draw.randrange(len(data) + 1)
    if draw.random() < 0.3:  # formats keep what matters at their ends
        place = draw.choice((min(place, draw.randrange(256)), max(0, len(data) - draw.randrange(1, 256))))
    length = min(draw.choice((1, 2, 4, 8, 64, 1024)), max(0, len(data) - place))
    kind = draw.randrange(9)
    if kind <= 1 and data:
        data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
    elif kind == 2 and data:
        data[min(place, len(data) - 1)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + length]
    elif kind == 5:
        data[place:place] = draw.randbytes(draw.choice((1, 2, 8, 100)))
    elif kind == 6:
        data[place : place + length] = bytes(length)
    elif kind == 7 and others:
        other = draw.choice(others)
        start = draw.randrange(len(other) + 1)
        data[place:] = other[start:]
    else:
        start = draw.randrange(len(data) + 1)
        data[place : place + length] = data[start : start + length]


# Words that text formats trip over, each as it would stand in a file.
TEXTS = (
    "", " ", "\n", "\t", "\0", "\x1b[31m", "\r", "\u2028", "\ud800", "\ufeff", "\U0001f600", "é", "..", "/", "\\", "%s", "{}", "~",
    "null", "true", "no", "NaN", ".inf", "-.nan", "1e999", "-0", "0x10", "0o7", "1_000", "1:30", "2001-01-01",
    "9" * 400, "9" * 5000, "1e99999", str(2**63), str(-(2**63) - 1), str(2**64), "0..1000000", "0..9e999", "1..4 step 0",
    "&a [*a]", "*a", "&a", "<<: *a", "!!python/object/apply:os.system [true]", "!!int 1", "!!binary aGk=", "? ", "- ", ": ",
    "[" * 50, "{a: " * 50, "[" * 3000, "{a: " * 3000, "]", "}", "|", ">", "'", '"', "#", "%YAML 9.9", "---", "...", "@", "`",
)  # fmt: skip


def damaged_text(draw: random.Random, text: str, words: Sequence[str] = ()) -> str:
    """`text` with lines and words moved, lost, doubled and replaced; `words` are those that the format knows."""
    for _ in range(1 + min(int(draw.expovariate(0.7)), 8)):
        place, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        end = min(end, place + draw.choice((0, 1, 3, 10, 40)))
        lines = text.split("\n")
        kind = draw.randrange(7)
        if kind <= 1:
            text = text[:place] + draw.choice(TEXTS) + text[end:]
        elif kind == 2 and words:
            text = text[:place] + draw.choice(words) + text[end:]
        elif kind == 3:  # the value of one line
            line = draw.randrange(len(lines))
            name, colon, _ = lines[line].partition(":")
            lines[line] = f"{name}{colon} {draw.choice(TEXTS)}"
            text = "\n".join(lines)
        elif kind == 4:
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
            text = "\n".join(lines)
        elif kind == 5:
            line = draw.randrange(len(lines))
            lines[line] = draw.choice(("  ", "", "\t", "- ")) + lines[line].lstrip()
            text = "\n".join(lines)
        else:
            text = text[:place] + text[end:]
    return text


def damaged_value(draw: random.Random, value: Any, words: Sequence[Any] = ()) -> Any:
    """`value`, a tree of JSON, with one to three of its parts replaced, lost, renamed, exchanged or doubled."""
    root = [copy.deepcopy(value)]
    for _ in range(draw.randrange(1, 4)):
        holder, key = _part(draw, root)
        old, kind = holder[key], draw.randrange(8)
        other, other_key = _part(draw, root)
        if kind <= 3:
            near = old if isinstance(old, int) else 0
            texts = (draw.choice(TEXTS), "x" * draw.choice((1, 300, 10**5)), [draw.choice(TEXTS)] * 3)
            values = (*_VALUES, *texts, *words, number(draw, 8, near), number(draw, 4, near))
            holder[key] = copy.deepcopy(draw.choice(values))  # a shared list could come to hold itself
        elif kind == 4:
            del holder[key]
        elif kind == 5 and isinstance(holder, dict):
            holder[draw.choice((*TEXTS, *holder))] = holder.pop(key)
        elif kind == 6 and isinstance(old, list):
            holder[key] = draw.choice((old * 2, old[:1], old[1:], old[::-1], [*old, *old[:1]]))
        elif kind == 6 and isinstance(old, str):
            holder[key] = damaged_text(draw, old, [word for word in words if isinstance(word, str)])
        else:
            holder[key] = copy.deepcopy(other[other_key])
        if not root:
            return None
    return root[0]


def _part(draw: random.Random, root: list[Any]) -> tuple[Any, Any]:
    """Where a part of the tree is: a list or an object, and a key of it."""
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and draw.random() < 0.8:
        holder = holder[key]
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    return holder, key


# Values that no reader of JSON expects.
_VALUES = (
    None, True, False, -1, 0, 0.5, 1.5, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "1", "12", [], {}, [[]],
    {"a": "b"}, [1] * 200, [1] * 500, [0] * 9, [0.5] * 3, [4] * 10, [16, 16, 3], [10**9, 10**9, 3],
)  # fmt: skip
