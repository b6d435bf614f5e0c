"""Is a write-ahead log that a killed process left behind whole?

SQLite reads such a log up to the first frame whose checksum fails and takes the rest as never written. So one
flipped byte would silently undo transactions, or mix pages of different age. This check tells a log that was cut off
by a kill, which is as it should be, from a damaged one.

Format (sqlite.org/fileformat2.html, section 4): a header of 32 bytes, then frames of a 24-byte header and a page.
Checksums are chained from the header through all frames. A frame's salts say which generation of the log it is of.
"""

import struct
from pathlib import Path

_MAGIC = 0x377F0682
_HEADER = 32
_FRAME_HEADER = 24


def damage_in_wal(path: Path) -> str | None:
    """What is wrong with the log, or None. Nobody may have the database open.

    What can be missing after kill -9 is the end of a transaction that was not committed: the file ends within a
    frame, or without a commit. A log that was started anew over an older one is cut to its length at its first
    commit (journal_size_limit = 0), so before that commit old frames may follow a half-written one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < _HEADER:
        # The header is the first thing that is written, in one piece.
        return None if not content else "its header is cut off"
    magic, _, page_size = struct.unpack(">3I", content[:12])
    if magic & ~1 != _MAGIC or page_size & (page_size - 1) or not 512 <= page_size <= 65536:
        return "its header is damaged"
    order = ">" if magic & 1 else "<"
    chain = _checksum(content[:24], (0, 0), order)
    if chain != struct.unpack(">2I", content[24:32]):
        return "its header is damaged (checksum)"
    salts = content[16:24]
    size = _FRAME_HEADER + page_size
    frames = (len(content) - _HEADER) // size
    committed = False
    for number in range(frames):
        start = _HEADER + number * size
        head = content[start : start + _FRAME_HEADER]
        chain = _checksum(head[:8], chain, order)
        chain = _checksum(content[start + _FRAME_HEADER : start + size], chain, order)
        sums_fit, salts_fit = chain == struct.unpack(">2I", head[16:24]), head[8:16] == salts
        if sums_fit and salts_fit:
            committed = committed or head[4:8] != bytes(4)
            continue
        later = (content[_HEADER + n * size + 8 : _HEADER + n * size + 16] for n in range(number + 1, frames))
        followed = list(later)
        old_follow = bool(followed) and salts not in followed
        if not sums_fit and not salts_fit and salts not in followed:
            return None  # from here on frames of an older generation
        if not committed and old_follow and salts_fit:
            return None  # killed within the first transaction since the log was started anew
        return f"frame {number + 1} of {frames} is damaged"
    return None


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    """The log's checksum of `data` (a multiple of 8 bytes) on from `sums`."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
