"""CIFAR's batches, which are pickles, read without executing anything of them.

Only the official files get here, by their checksums; and a pickle of any content would still do no more than build
numbers, texts, lists and dictionaries. The few names that a pickled array refers to stand for inert objects of this
module: NumPy's own can be talked into writing anywhere by a crafted state.

Shapes: N images of a batch.
"""

import io
import pickle
from typing import Any, ClassVar

import numpy as np

PIXELS = 3 * 32 * 32  # of an image: red, green and blue planes


class BatchError(ValueError):
    """The pickle is damaged, or holds something else; the message says what."""


class _Inert:
    """What `numpy.ndarray` and `numpy.dtype` become: it keeps what it is called with and what its state is."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode(text: Any, code: Any) -> bytes:
    """`_codecs.encode` as Python 3 pickles bytes in old protocols: each character one byte."""
    if not isinstance(text, str) or code != "latin1":
        raise BatchError("holds text in another encoding")
    return text.encode("latin-1")


# The pure Python unpickler: its C twin takes any amount of memory that a pickle asks for.
class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Inert,
        ("numpy._core.multiarray", "_reconstruct"): _Inert,
        ("numpy", "ndarray"): _Inert,
        ("numpy", "dtype"): _Inert,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise BatchError(f"asks for {module}.{name}") from None

    def get_extension(self, code: int) -> None:
        raise BatchError("asks for an extension")


def unpickle(data: bytes) -> dict[Any, Any]:
    """The dictionary that `data` holds, arrays in it as inert objects (`batch` reads one).

    Raises BatchError for anything else.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except BatchError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise BatchError(f"is no whole pickle ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise BatchError("holds no dictionary")
    return found


def batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 `[N, 3, 32, 32]`, and labels, int64 `[N]`, of one batch. Raises BatchError where it is none."""
    content = unpickle(data)
    labels = content.get("labels", content.get("fine_labels"))
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 100 for label in labels):
        raise BatchError("holds no list of labels")
    pixels = _pixels(content.get("data"))
    if len(pixels) != len(labels) * PIXELS or not labels:
        raise BatchError(f"holds {len(pixels)} bytes of pixels for {len(labels)} labels")
    images_NCHW = np.frombuffer(pixels, np.uint8).reshape(len(labels), 3, 32, 32)
    return images_NCHW, np.array(labels, dtype=np.int64)


def names(data: bytes, key: str) -> tuple[str, ...]:
    """The names of the classes under `key` of the file of them. Raises BatchError where there are none."""
    found = unpickle(data).get(key)
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name for name in found):
        raise BatchError("holds no names of classes")
    if len(set(found)) != len(found):
        raise BatchError("holds a class twice")
    return tuple(found)


def _pixels(array: Any) -> bytes:
    """The bytes of an array `[N, PIXELS]` of uint8, in row-major order."""
    state = array.state if isinstance(array, _Inert) else None
    if not isinstance(state, tuple) or len(state) != 5:  # version, shape, dtype, whether in Fortran's order, bytes
        raise BatchError("holds no array of pixels")
    _, shape, dtype, fortran, pixels = state
    if isinstance(pixels, str):  # Python 2's pickles, whose texts are bytes
        pixels = pixels.encode("latin-1", "replace")
    is_uint8 = isinstance(dtype, _Inert) and dtype.arguments[:1] == ("u1",)
    if not is_uint8 or fortran or not isinstance(pixels, bytes) or not isinstance(shape, tuple):
        raise BatchError("holds an array of another kind")
    if len(shape) != 2 or shape[1] != PIXELS:
        raise BatchError("holds images of another size")
    return pixels
