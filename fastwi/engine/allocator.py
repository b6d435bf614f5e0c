"""Keeps freed activations mapped, so that a CPU does not pay page faults for them again at every step.

glibc returns each large block to the system when it is freed, and the next step faults it in again. With these
settings the heap keeps what a step needs. It grows into pages of 2 MiB where the system has them on request.
"""

import ctypes
import functools

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_MIB = 2**20
_AHEAD, _HUGE_PAGE, _MADV_HUGEPAGE = 1024 * _MIB, 2 * _MIB, 14


def _mallopt(settings: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, macOS, Windows: other allocators, other costs
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings.items())


def keep_freed_memory() -> bool:
    """Let the heap grow and stay. Returns whether this C library has the settings (glibc has)."""
    kept = _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * _MIB})
    if kept:
        _ask_for_huge_pages()
    return kept


@functools.cache
def _ask_for_huge_pages() -> None:
    """Have the next GiB of the heap backed by huge pages as it is touched. Once a process; best effort."""
    c = ctypes.CDLL(None)
    c.malloc.argtypes, c.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    c.free.argtypes, c.free.restype = [ctypes.c_void_p], None
    c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = c.malloc(_AHEAD)
    if start:
        aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        c.madvise(aligned, _AHEAD - (aligned - start) - _HUGE_PAGE, _MADV_HUGEPAGE)
        c.free(start)  # below the trim threshold: the heap keeps the addresses


def restore_defaults() -> bool:
    """glibc's own settings again: for benchmarks that compare with code that does not change them.

    The thresholds are where glibc's own end up in a process that frees blocks of a few MiB.
    """
    threshold = 32 * _MIB
    trim = {_M_TRIM_THRESHOLD: 2 * threshold, _M_TOP_PAD: _MIB // 8}
    return _mallopt({_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: threshold, **trim})
