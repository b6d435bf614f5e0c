"""images/s of producing augmented batches on the device, fastwi beside its baselines.

augment          fastwi's resident images: gather, crop, flip and normalise by its kernel; again is the same once more
augment-many     the same for 8 networks at once, each with its own draws
streamed         fastwi's images in a raw beton on the disk, decoded by threads, then by the same kernel;
                 -unchecked: not held to their digests, -jpeg: in a beton of JPEGs (quality 95)
torch-compiled   fastwi's torch reference of the kernel, compiled; torch-eager: not compiled
ffcv             FFCV's Loader with its own crop and flip, then normalised by torch
dataloader       DataLoader workers and torchvision transforms on PIL images; float32
airbench         airbench's CifarLoader, which augments an epoch at once

A round is one pass over as many random images as --batches batches hold. The floor is a copy's bandwidth over the
bytes that must move: a pixel of uint8 in, a value of the task's dtype out.
"""

import functools
import io
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.floor import copy_floor
from benchmarks.peers.airbench import AirbenchBatches
from benchmarks.peers.ffcv import FFCVBatches
from benchmarks.peers.usual import close_loader, data_loader
from benchmarks.runner import AGAIN, GIGA, Case, Report, Run, benchmark
from benchmarks.task import StockBatches, Task, make_task
from fastwi.beton import StoredBeton, StoredImage, write_stored_stream
from fastwi.beton.format import JPEG, RAW, page_size_for
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.data.streamed import StreamedDataset, open_decoder
from fastwi.kernels.augment import augment, augment_many

MANY = 8


def _exhaust(
    task: Task, batches: Callable[[], Iterable[Any]], static: bool = True, close: Run = lambda: None
) -> Case:
    def run() -> None:
        for _ in batches():
            pass

    return Case(run, task.images, close=close, static_memory=static)


def _augmented(task: Task, dataset: Dataset, close: Run = lambda: None) -> Case:
    """Epochs of `dataset`: what an engine's data side does, draws included."""
    kind, epochs = task.config.augment, itertools.count()
    table = dataset.table_C256.to(task.dtype)

    def run() -> None:
        draws = Noise(0).draws(next(epochs), task.images, kind.padding, kind.flip)
        order, offset, flip = (
            torch.from_numpy(a).to(task.device) for a in (draws.order_N, draws.offset_N2, draws.flip_N)
        )
        first = 0
        for images_DHWC, at_N in dataset.chunks(order, task.batch):
            part = slice(first, first + len(at_N))
            augment(images_DHWC, at_N, offset[part], flip[part], table, kind.padding)
            first += len(at_N)

    return Case(run, task.images, close=close, static_memory=True)


def _many(task: Task) -> Case:
    kind, epochs = task.config.augment, itertools.count()
    table = task.dataset.table_C256.to(task.dtype)

    def run() -> None:
        number = next(epochs)
        draws = [Noise(m).draws(number, task.images, kind.padding, kind.flip) for m in range(MANY)]
        order_MS, offset_MS2, flip_MS = (
            torch.stack([torch.from_numpy(getattr(draw, field)) for draw in draws]).to(task.device)
            for field in ("order_N", "offset_N2", "flip_N")
        )
        first = torch.zeros(1, dtype=torch.int64, device=task.device)
        images_NHWC = task.dataset.images_NHWC
        for _ in range(task.steps):
            augment_many(images_NHWC, order_MS, offset_MS2, flip_MS, table, kind.padding, first, task.batch)
            first += task.batch

    return Case(run, MANY * task.images, static_memory=True)


def _streamed(task: Task, jpeg: bool = False, checked: bool = True) -> Case:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "train.beton"
    images_NHWC, labels_N = task.dataset.images_NHWC.cpu().numpy(), task.dataset.labels_N.cpu().numpy()
    height, width, channels = images_NHWC.shape[1:]
    data = [_encoded(image_HWC) if jpeg else image_HWC.tobytes() for image_HWC in images_NHWC]
    images = [StoredImage(JPEG if jpeg else RAW, height, width, each) for each in data]
    with path.open("wb") as stream:
        write_stored_stream(stream, images, labels_N, page_size_for(max(map(len, data))))
    beton = StoredBeton(path)
    if checked:
        named = zip(images, labels_N.tolist(), strict=True)
        digests = (image_digest(each.mode, height, width, label, each.data) for each, label in named)
        beton.hold_to(ImageDigests.of(digests, labels_N))
    dataset = StreamedDataset(
        open_decoder(beton, "auto"), np.arange(len(images)), task.dataset.labels_N, task.dataset.table_C256,
        task.dataset.classes, (height, width, channels),
    )  # fmt: skip

    def close() -> None:
        beton.close()
        folder.cleanup()

    return _augmented(task, dataset, close)


def _encoded(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _ffcv(task: Task) -> Case:
    batches = FFCVBatches(task)
    return _exhaust(task, batches.epoch, False, batches.close)


def _dataloader(task: Task) -> Case:
    loader = data_loader(task)

    def to_device(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(task.device, non_blocking=True) for tensor in batch)

    return _exhaust(task, lambda: map(to_device, loader), False, lambda: close_loader(loader))


RESIDENT = "fastwi resident"
CASES: dict[str, tuple[str, Callable[[Task], Case]]] = {
    "augment": (RESIDENT, lambda task: _augmented(task, task.dataset)),
    "augment-many": (f"{RESIDENT}, {MANY} networks", _many),
    "streamed": ("fastwi streamed, raw beton", _streamed),
    "streamed-unchecked": ("fastwi streamed, raw beton, unchecked", functools.partial(_streamed, checked=False)),
    "streamed-jpeg": ("fastwi streamed, JPEGs", functools.partial(_streamed, jpeg=True)),
    "streamed-jpeg-unchecked": (
        "fastwi streamed, JPEGs, unchecked",
        functools.partial(_streamed, jpeg=True, checked=False),
    ),
    "torch-compiled": ("torch, compiled", lambda task: _exhaust(task, StockBatches(task, 1).epoch)),
    "torch-eager": ("torch, eager", lambda task: _exhaust(task, StockBatches(task, 1, False).epoch)),
    "ffcv": ("FFCV Loader", _ffcv),
    "dataloader": ("DataLoader, torchvision", _dataloader),
    "airbench": ("airbench CifarLoader", lambda task: _exhaust(task, AirbenchBatches(task).epoch)),
}
"""By their names among --baselines: name in tables, builder."""


@benchmark(batches=8, rounds=3)
def main(
    report: Report, data: str = "data/cifar10", device: str = "auto", baselines: tuple[str, ...] = (*CASES, AGAIN),
    batch: int = 128, batches: int = 64, rounds: int = 9, workers: int = 2,
) -> None:  # fmt: skip
    """One table."""
    task = make_task(data, batches, batch, str(report.device), workers)
    bytes_each = task.image_HWC.numel() * (1 + task.dtype.itemsize)
    cases = {shown: functools.partial(build, task) for name, (shown, build) in CASES.items() if name in baselines}
    report.time(
        f"Augmented batches of {batch}, {task.images:,} images, {bytes_each:,} bytes each", "images", cases, rounds,
        reference=[RESIDENT], again=RESIDENT if AGAIN in baselines else "", each={"GB": bytes_each / GIGA},
        floors=[copy_floor(task.device, bytes_each)],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
