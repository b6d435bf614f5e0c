"""`python -m benchmarks.loading`: images/s of producing augmented batches on the device, fastwi beside its peers.

augment          fastwi's resident images: gather, crop, flip and normalise by its kernel; AGAIN is the same once more
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

import argparse
import functools
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.machine import GIGA, CopyTask, describe_machine
from benchmarks.options import names, parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.peers.airbench import AirbenchBatches
from benchmarks.peers.ffcv import FFCVBatches
from benchmarks.peers.usual import close_loader, data_loader
from benchmarks.task import Contestant, StockBatches, Task, Unavailable, make_task
from benchmarks.timing import Timing, interleave
from fastwi.beton.format import JPEG, RAW
from fastwi.beton.image_digests import ImageDigests, image_digest
from fastwi.beton.stored_writer import StoredImage, write_stored_stream
from fastwi.beton.stream import StoredBeton
from fastwi.cli import run_command
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.data.streamed import StreamedDataset, open_decoder
from fastwi.engine import allocator
from fastwi.kernels.augment import augment, augment_many

Builder = Callable[[Task], Contestant]
AGAIN = "again"
MANY = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--contestants", type=names, help=f"some of {', '.join(CONTESTANTS)} (default: all)")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch (default: 128)")
    parser.add_argument("--batches", type=int, default=64, help="batches a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--workers", type=int, default=2, help="workers of DataLoader and FFCV (default: 2)")
    parser.add_argument("--out", type=Path, help="directory for loading-DEVICE.json and .png")
    options = parse(parser, arguments, {"batches": 8, "rounds": 3})
    chosen = options.contestants or tuple(CONTESTANTS)
    unknown = [name for name in chosen if name not in CONTESTANTS]
    if unknown or min(options.batch, options.batches, options.rounds) < 1:
        parser.error(f"--contestants: unknown: {unknown}" if unknown else "counts must be at least 1")
    task = make_task(options.data, options.device, options.batch, options.batches, options.workers)
    contestants, problems = build(task, chosen)
    copy = CopyTask.of(task.device)
    runs = {name: contestant.run for name, contestant in contestants.items()}
    prepare: dict[str, Callable[[], object]] = {
        name: allocator.keep_freed_memory if contestant.static_memory else allocator.restore_defaults
        for name, contestant in contestants.items()
    }
    try:
        timings = interleave(runs | {"copy": copy.run}, options.rounds, task.device, prepare, warmups=1)
    finally:
        for contestant in contestants.values():
            contestant.close()
    bandwidth = copy.bandwidth_gbps(timings.pop("copy"))
    report(task, contestants, problems, timings, bandwidth, options.out)
    return 1 if any(problem.startswith("failed") for problem in problems.values()) else 0


def build(task: Task, chosen: Sequence[str]) -> tuple[dict[str, Contestant], dict[str, str]]:
    """The chosen contestants, each run once, by their names in tables; and why the others cannot run here."""
    contestants: dict[str, Contestant] = {}
    problems: dict[str, str] = {}
    for key in chosen:
        name, builder = CONTESTANTS[key]
        try:
            contestant = builder(task)
            contestant.run()
            contestants[name] = contestant
        except Unavailable as problem:
            problems[name] = str(problem)
        except Exception as problem:  # one contestant's failure must not cost the others' figures
            problems[name] = f"failed: {type(problem).__name__}: {problem}".splitlines()[0]
    return contestants, problems


def _exhaust(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


def _augmented(task: Task, dataset: Dataset, epochs: Iterator[int]) -> None:
    """One epoch of `dataset`: what an engine's data side does, draws included."""
    kind, epoch = task.config.augment, next(epochs)
    draws = Noise(0).draws(epoch, task.images, kind.padding, kind.flip)
    order, offset, flip = (
        torch.from_numpy(a).to(task.device) for a in (draws.order_N, draws.offset_N2, draws.flip_N)
    )
    table = dataset.table_C256.to(task.dtype)
    first = 0
    for images_DHWC, at_N in dataset.chunks(order, task.batch):
        part = slice(first, first + len(at_N))
        augment(images_DHWC, at_N, offset[part], flip[part], table, kind.padding)
        first += len(at_N)


def _resident(task: Task) -> Contestant:
    epochs = iter(range(2**40))
    return Contestant(lambda: _augmented(task, task.dataset, epochs), task.images, static_memory=True)


def _streamed(task: Task, jpeg: bool, checked: bool) -> Contestant:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "train.beton"
    images_NHWC, labels_N = task.dataset.images_NHWC.cpu().numpy(), task.dataset.labels_N.cpu().numpy()
    height, width, channels = images_NHWC.shape[1:]
    data = [_encoded(image_HWC) if jpeg else image_HWC.tobytes() for image_HWC in images_NHWC]
    images = [StoredImage(JPEG if jpeg else RAW, height, width, each) for each in data]
    with path.open("wb") as stream:
        write_stored_stream(stream, images, labels_N, max(map(len, data)))
    beton = StoredBeton(path)
    if checked:
        named = zip(images, labels_N.tolist(), strict=True)
        digests = (image_digest(each.mode, height, width, label, each.data) for each, label in named)
        beton.hold_to(ImageDigests.of(digests, labels_N))
    dataset = StreamedDataset(
        open_decoder(beton, "auto"), np.arange(len(images)), task.dataset.labels_N, task.dataset.table_C256,
        task.dataset.classes, (height, width, channels),
    )  # fmt: skip
    epochs = iter(range(2**40))

    def close() -> None:
        beton.close()
        folder.cleanup()

    return Contestant(lambda: _augmented(task, dataset, epochs), task.images, static_memory=True, close=close)


def _encoded(image_HWC: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _many(task: Task) -> Contestant:
    kind, steps = task.config.augment, task.steps
    table, epochs = task.dataset.table_C256.to(task.dtype), iter(range(2**40))

    def epoch() -> None:
        number = next(epochs)
        draws = [Noise(m).draws(number, task.images, kind.padding, kind.flip) for m in range(MANY)]
        order_MS, offset_MS2, flip_MS = (
            torch.stack([torch.from_numpy(getattr(draw, field)) for draw in draws]).to(task.device)
            for field in ("order_N", "offset_N2", "flip_N")
        )
        first = torch.zeros(1, dtype=torch.int64, device=task.device)
        for _ in range(steps):
            augment_many(
                task.dataset.images_NHWC, order_MS, offset_MS2, flip_MS, table, kind.padding, first, task.batch
            )
            first += task.batch

    return Contestant(epoch, MANY * steps * task.batch, static_memory=True)


def _torch(task: Task, compiled: bool) -> Contestant:
    batches = StockBatches(task, 1, compiled)
    return Contestant(lambda: _exhaust(batches.epoch()), task.images, static_memory=True)


def _ffcv(task: Task) -> Contestant:
    batches = FFCVBatches(task)
    return Contestant(lambda: _exhaust(batches.epoch()), task.images, close=batches.close)


def _airbench(task: Task) -> Contestant:
    batches = AirbenchBatches(task)
    return Contestant(lambda: _exhaust(batches.epoch()), task.images, static_memory=True)


def _dataloader(task: Task) -> Contestant:
    loader = data_loader(task)

    def to_device(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(task.device, non_blocking=True) for tensor in batch)

    return Contestant(lambda: _exhaust(map(to_device, loader)), task.images, close=lambda: close_loader(loader))


CONTESTANTS: dict[str, tuple[str, Builder]] = {
    "augment": ("fastwi resident", _resident),
    AGAIN: ("fastwi resident, again", _resident),
    "augment-many": (f"fastwi resident, {MANY} networks", _many),
    "streamed": ("fastwi streamed, raw beton", functools.partial(_streamed, jpeg=False, checked=True)),
    "streamed-unchecked": (
        "fastwi streamed, raw beton, unchecked",
        functools.partial(_streamed, jpeg=False, checked=False),
    ),
    "streamed-jpeg": ("fastwi streamed, JPEGs", functools.partial(_streamed, jpeg=True, checked=True)),
    "streamed-jpeg-unchecked": (
        "fastwi streamed, JPEGs, unchecked",
        functools.partial(_streamed, jpeg=True, checked=False),
    ),
    "torch-compiled": ("torch, compiled", functools.partial(_torch, compiled=True)),
    "torch-eager": ("torch, eager", functools.partial(_torch, compiled=False)),
    "ffcv": ("FFCV Loader", _ffcv),
    "dataloader": ("DataLoader, torchvision", _dataloader),
    "airbench": ("airbench CifarLoader", _airbench),
}


def report(
    task: Task, contestants: dict[str, Contestant], problems: dict[str, str], timings: dict[str, Timing],
    bandwidth: float, out: Path | None,
) -> None:  # fmt: skip
    """Print the table; write JSON and a picture into `out` where it is given."""
    machine = describe_machine(task.device)
    moved = task.dataset.images_NHWC[0].numel() * (1 + torch.empty((), dtype=task.dtype).element_size())
    floor = bandwidth * GIGA / moved
    speed = {name: contestants[name].images / timing.median_s for name, timing in timings.items()}
    ours = speed.get(CONTESTANTS["augment"][0])
    rows, bars, measurements = [], {}, []
    for name, timing in timings.items():
        low, high = (contestants[name].images / seconds for seconds in reversed(timing.quartiles_s))
        ratio = ours / speed[name] if ours else None
        bars[name] = (speed[name], low, high)
        rows.append(
            (name, f"{speed[name]:,.0f}", f"{low:,.0f} - {high:,.0f}", f"{ratio:.2f} x" if ratio else "-",
             f"{100 * speed[name] / floor:.1f}")
        )  # fmt: skip
        measurements.append(
            {"contestant": name, "images_per_s_median": speed[name], "images_per_s_quartiles": [low, high],
             "fastwi_ratio": ratio, "of_memory_floor_%": 100 * speed[name] / floor,
             "images_a_round": contestants[name].images, "seconds": list(timing.seconds)}
        )  # fmt: skip
    measurements += [{"contestant": name, "not_measured": problem} for name, problem in problems.items()]
    print_machine(machine)
    columns = ("contestant", "images/s, median", "quartiles", "fastwi resident is", "% of memory floor")
    rounds = len(next(iter(timings.values())).seconds) if timings else 0
    title = (
        f"Augmented batches of {task.batch}, {rounds} interleaved rounds of {task.images:,} images; "
        f"memory floor {floor:,.0f} images/s ({bandwidth:.1f} GB/s, {moved:,} bytes an image)"
    )
    print_table(title, columns, rows)
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    if out:
        settings = {
            "batch": task.batch, "workers": task.workers, "dtype": str(task.dtype).removeprefix("torch."),
            "copy_GB_per_s": bandwidth, "bytes_an_image": moved, "memory_floor_images_per_s": floor,
        }  # fmt: skip
        stem = out / f"loading-{task.device.type}"
        write_results(f"{stem}.json", "loading", machine, settings, measurements)
        plot_bars(f"{stem}.png", title, "images/s", bars, (f"copy, {bandwidth:.0f} GB/s", floor))


if __name__ == "__main__":
    sys.exit(main())
