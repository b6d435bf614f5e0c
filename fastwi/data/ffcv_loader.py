"""FFCV's Loader as a decoder: its threads read and decode the images in the order that this project's noise says.

FFCV decodes JPEGs with the fast inverse DCT: almost every image differs from the reference, by one intensity of 256
in the mean. So it is chosen by `data.decoder: ffcv`, never by what is installed. Raw images are the same.

Each JPEG is read a second time for its digest: FFCV maps the same file, so the bytes are the same.

What FFCV 1.0.2 does that is corrected here: it ignores what its JPEG decoder returns, sets torch's threads, waits
forever for a thread that failed or for a queue that is not emptied, and leaks what a loop that is left early has
started. Importing it takes seconds, and compiling the pipeline takes some more.
"""

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwi.beton import StoredBeton
from fastwi.beton.format import JPEG, RAW
from fastwi.data.decode import check_jpeg, fit
from fastwi.data.pool import AHEAD, bad_image, processors
from fastwi.errors import BetonError, UserError

_BUFFER_BYTES = 1 << 28  # that FFCV decodes into, as long as one image a slot fits
_compiled: list[Any] = []  # numba complains on stderr, now and then, when compiled code is collected


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Importing and starting FFCV set torch's threads to 1."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


with torch_threads_kept():
    import numba
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import imdecode, memcpy
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler


class _CheckedDecoder(SimpleRGBImageDecoder):
    """Images of any size, each at the start of a row; the row's last byte says whether decoding failed."""

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """FFCV asks for the output's shape and the memory for it."""
        sides = self.metadata["height"].astype(np.int64) * self.metadata["width"]
        shape, dtype = (int(sides.max()) * 3 + 1,), np.dtype("<u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        """FFCV compiles what this returns."""
        read, numbers = self.memory_read, Compiler.get_iterator()
        decode_jpeg, copy = Compiler.compile(imdecode), Compiler.compile(memcpy)

        def decode(batch_indices, destination, metadata, storage_state):  # type: ignore[no-untyped-def]
            for n in numbers(len(batch_indices)):
                field = metadata[batch_indices[n]]
                data = read(field["data_ptr"], storage_state)
                height, width = np.uint32(field["height"]), np.uint32(field["width"])
                size = np.int64(height) * np.int64(width) * 3
                row = destination[n]
                row[-1] = 1
                if field["mode"] == JPEG:
                    if decode_jpeg(data, row, height, width, height, width, 0, 0, 1, 1, False, False) == 0:
                        row[-1] = 0
                elif data.size >= size:  # never more than the row holds, whatever the file says
                    copy(data[:size], row)
                    row[-1] = 0
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class LoaderDecoder:
    """`fastwi.data.pool.Decoder` with FFCV's Loader; each iterator has a thread and buffers of its own."""

    def __init__(self, beton: StoredBeton) -> None:
        """Open the file again with FFCV and compile the pipeline (seconds).

        Raises:
            UserError: two fields have one name, so that FFCV takes them for one.
        """
        self._beton = beton
        names = beton.field_names
        if len(set(names)) != len(names):
            raise UserError(f"{beton.path}: has fields of one name, which FFCV takes for one; set data.decoder: auto")
        self._seen_N = np.zeros(len(beton), bool)
        self._row_bytes = int((beton.heights_N * beton.widths_N).max()) * 3 + 1
        self._lock = threading.Lock()
        pipelines: dict[str, Any] = dict.fromkeys(names)
        pipelines[beton.image_field] = [_CheckedDecoder()]
        with torch_threads_kept():
            self._loader = Loader(
                str(_same_file(beton)), batch_size=1, num_workers=_workers(), order=OrderOption.SEQUENTIAL,
                os_cache=True, pipelines=pipelines, drop_last=False, batches_ahead=AHEAD,
            )  # fmt: skip
        _compiled.append(self._loader.code)

    def chunks(self, at_N: np.ndarray, size: int, height: int, width: int, pinned: bool) -> Iterator[Tensor]:
        """As `fastwi.data.pool.Decoder.chunks` says."""
        block = max(1, min(size, _BUFFER_BYTES // (self._row_bytes * (AHEAD + 2))))
        with contextlib.closing(self._blocks(at_N, block)) as blocks:  # type: ignore[type-var]
            rows = (row for block_rows in blocks for row in block_rows)
            for first in range(0, len(at_N), size):
                chosen = at_N[first : first + size].tolist()
                images_NHWC = torch.empty((len(chosen), height, width, 3), dtype=torch.uint8, pin_memory=pinned)
                for n, target_HWC in zip(chosen, images_NHWC.numpy(), strict=True):
                    target_HWC[...] = fit(self._pixels(n, next(rows)), height, width)
                yield images_NHWC

    def _pixels(self, n: int, row: np.ndarray) -> np.ndarray:
        """The pixels of image n, uint8 [H, W, 3], where FFCV has put them."""
        height, width = self._beton.size(n)
        pixels = row[: height * width * 3]
        if self._beton.modes_N[n] == RAW:
            self._beton.check(n, pixels.data)
        else:
            stored = self._beton.read(n)
            if not self._seen_N[n]:
                # FFCV scales a JPEG of another size to the one that the file says, or leaves pixels unwritten.
                try:
                    check_jpeg(stored, height, width)
                except BetonError as error:
                    raise bad_image(self._beton, n, str(error)) from error
                self._seen_N[n] = True
        if row[-1]:
            raise bad_image(self._beton, n, "is damaged, or a JPEG of a kind that FFCV cannot decode")
        return pixels.reshape(height, width, 3)

    def _blocks(self, at_N: np.ndarray, block: int) -> Iterator[np.ndarray]:
        """Rows of `block` images after the other, each valid until the next is asked for."""
        loader = self._loader
        with self._lock, torch_threads_kept():
            loader.batch_size, loader.num_workers = block, _workers()
            # FFCV's own orders are drawn by its own seeds.
            loader.traversal_order = SimpleNamespace(sample_order=lambda epoch: at_N.astype(np.uint64))
            loader.first_traversal_order = at_N  # its length is the epoch's
            epoch = iter(loader)
        try:
            for _ in range(0, len(at_N), block):
                yield self._take(epoch)
        finally:
            _end(epoch)

    def _take(self, epoch: Any) -> np.ndarray:
        """The next block, or an error where FFCV's thread has died and nothing will come."""
        taken, alive = None, True
        while taken is None and alive:
            alive = epoch.is_alive()
            with contextlib.suppress(Empty):
                taken = epoch.output_queue.get(timeout=1.0)
                alive = taken is not None
        if taken is None:
            raise UserError(f"{self._beton.path}: FFCV's Loader failed (see above); set data.decoder: reference")
        rows: np.ndarray = taken[1][0]
        return rows


def _end(epoch: Any) -> None:
    """Stop FFCV's thread after the block that it is at, and wait for it.

    Its own `close` lets it fill its queue first, and then wait forever until it is emptied.
    """
    epoch.iter_ixes = iter(())
    epoch.terminate_event.set()
    while epoch.is_alive():
        with contextlib.suppress(Empty):
            while True:
                epoch.output_queue.get_nowait()
        epoch.join(0.01)
    epoch.close()


def _workers() -> int:
    """Threads of FFCV's loop over images. It sets torch's threads to its own number: the same changes nothing.

    Numba's last resort among its threading layers aborts the process where two iterators decode at once.
    """
    if importlib.util.find_spec("numba.np.ufunc.omppool") is None:
        return 1
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return min(torch.get_num_threads(), most, processors())


def _same_file(beton: StoredBeton) -> Path:
    """A path to the very file that was checked, though another may stand at its path by now."""
    open_file = Path(f"/proc/self/fd/{beton.descriptor}")
    return open_file if open_file.exists() else beton.path
