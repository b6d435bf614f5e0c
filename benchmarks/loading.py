"""images/s of producing augmented batches on the device, fastwi beside baselines.

augment          fastwi's resident images: gather, crop, flip and normalise by its kernel; again is the same once more
augment-many     the same for 8 networks at once, each with its own draws
streamed         the dataset's own file (raw images or JPEGs), decoded by threads, then by the same kernel
torch-compiled   fastwi's torch reference of the kernel, compiled; torch-eager: not compiled
ffcv             FFCV's Loader with its own crop and flip, then normalised by torch
dataloader       DataLoader workers and torchvision transforms on PIL images; float32
airbench         airbench's CifarLoader, which augments an epoch at once

A round is one pass over as many images as --batches batches hold. All run under the allocator settings that fastwi
makes. The floor is a copy's bandwidth over the bytes that must move: a pixel of uint8 in, a value of the task's dtype
out.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.floor import copy_floor
from benchmarks.peers import loaders
from benchmarks.runner import AGAIN, GIGA, Case, Report, Run, benchmark
from benchmarks.task import Task, make_task, stock_batches
from fastwi.config.schema import DataConfig
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.data.split import open_splits
from fastwi.kernels.augment import augment, augment_many

MANY, RESIDENT = 8, "fastwi resident"


def _exhaust(task: Task, batches: Callable[[], Iterable[Any]], close: Run = lambda: None) -> Case:
    def run() -> None:
        for _ in batches():
            pass

    return Case(run, task.images, close=close, static_memory=True)


def _loader(loader: Callable[[Task], loaders.Loader], task: Task, data: str) -> Case:
    batches, close = loader(task)
    return _exhaust(task, lambda: loaders.on_device(task, batches()), close)


def _draws(task: Task, members: int, epoch: int) -> list[torch.Tensor]:
    """order [M, N], offsets [M, N, 2] and flips [M, N] on the device."""
    kind = task.config.augment
    every = [Noise(m).draws(epoch, task.images, kind.padding, kind.flip) for m in range(members)]
    return [
        torch.stack([torch.from_numpy(getattr(draws, field)) for draws in every]).to(task.device)
        for field in ("order_N", "offset_N2", "flip_N")
    ]


def _augmented(task: Task, dataset: Dataset) -> Case:
    """Epochs of `dataset`: what an engine's data side does, draws included."""
    epochs, table = itertools.count(), dataset.table_C256.to(task.dtype)

    def batches() -> Iterable[Any]:
        order_N, offset_N2, flip_N = (drawn[0] for drawn in _draws(task, 1, next(epochs)))
        drawn = zip(
            dataset.chunks(order_N, task.batch), offset_N2.split(task.batch), flip_N.split(task.batch), strict=True
        )
        for (images_DHWC, at_N), offset, flip in drawn:
            yield augment(images_DHWC, at_N, offset, flip, table, task.config.augment.padding)

    return _exhaust(task, batches)


def _streamed(task: Task, data: str) -> Case:
    dataset = open_splits(DataConfig(data, streaming="streamed"), task.device)[0]
    return _augmented(task, dataset.part(torch.arange(task.images, device=task.device) % len(dataset)))


def _many(task: Task, data: str) -> Case:
    epochs, table = itertools.count(), task.dataset.table_C256.to(task.dtype)
    images_NHWC, padding = task.dataset.images_NHWC, task.config.augment.padding

    def run() -> None:
        order_MS, offset_MS2, flip_MS = _draws(task, MANY, next(epochs))
        first = torch.zeros(1, dtype=torch.int64, device=task.device)
        for _ in range(task.steps):
            augment_many(images_NHWC, order_MS, offset_MS2, flip_MS, table, padding, first, task.batch)
            first += task.batch

    return Case(run, MANY * task.images, static_memory=True)


CASES: dict[str, tuple[str, Callable[[Task, str], Case]]] = {
    "augment": (RESIDENT, lambda task, data: _augmented(task, task.dataset)),
    "augment-many": (f"{RESIDENT}, {MANY} networks", _many),
    "streamed": ("fastwi streamed", _streamed),
    "torch-compiled": ("torch, compiled", lambda task, data: _exhaust(task, stock_batches(task, 1))),
    "torch-eager": ("torch, eager", lambda task, data: _exhaust(task, stock_batches(task, 1, False))),
    "ffcv": ("FFCV Loader", functools.partial(_loader, loaders.ffcv)),
    "dataloader": ("DataLoader, torchvision", functools.partial(_loader, loaders.dataloader)),
    "airbench": ("airbench CifarLoader", functools.partial(_loader, loaders.airbench)),
}
"""By their names among --baselines: name in tables, builder (task, dataset directory)."""


@benchmark(batches=8, rounds=3)
def main(
    report: Report, data: str = "data/cifar10", device: str = "auto", baselines: tuple[str, ...] = (*CASES, AGAIN),
    batch: int = 128, batches: int = 64, rounds: int = 9, workers: int = 2,
) -> None:  # fmt: skip
    """One table."""
    task = make_task(data, batches, batch, str(report.device), workers)
    bytes_each = task.image_HWC.numel() * (1 + task.dtype.itemsize)
    cases = {
        shown: functools.partial(build, task, data) for name, (shown, build) in CASES.items() if name in baselines
    }
    report.time(
        f"Augmented batches of {batch}, {task.images:,} images, {bytes_each:,} bytes each", "images", cases, rounds,
        reference=[RESIDENT], again=RESIDENT if AGAIN in baselines else "", each={"GB": bytes_each / GIGA},
        floors=[copy_floor(task.device, bytes_each)],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
