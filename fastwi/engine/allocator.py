"""Keeps freed activations mapped, so that a CPU does not pay page faults for them again at every step.

glibc hands each large block back to the system when it is freed, and the next step faults it in anew, page by page:
about 22,000 faults a step of ResNet20 at batch 128. With these settings the heap keeps what a step needs, and
steps after the first reuse the same memory: static buffers, without a word of it in the model's code.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
# Where glibc's own settings end up in a process that frees blocks of a few MiB: the threshold above which blocks are
# mapped one by one grows to the largest block freed, 32 MiB at most, and the trim threshold is kept at twice it.
_DEFAULT_MMAP_MAX, _SETTLED_THRESHOLD = 65536, 32 * 2**20


def _mallopt(settings: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, macOS, Windows: other allocators, other costs
        return False
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings.items())


def keep_freed_memory() -> bool:
    """Let the heap grow and stay. Returns whether this C library has the settings (glibc has)."""
    return _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20})


def restore_defaults() -> bool:
    """glibc's own settings again: for benchmarks that compare with code that does not change them."""
    return _mallopt(
        {
            _M_MMAP_MAX: _DEFAULT_MMAP_MAX,
            _M_MMAP_THRESHOLD: _SETTLED_THRESHOLD,
            _M_TRIM_THRESHOLD: 2 * _SETTLED_THRESHOLD,
            _M_TOP_PAD: 128 * 1024,
        }
    )
