"""Scripts that train one network (`members` is 1): the usual one, and the best stock loop with any data side.

The best stock loop has resident data, bf16 autocast, channels-last order, torch.compile and fused SGD.
"""

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.runner import Case, Run
from benchmarks.task import Batches, Task
from data_prep.dataset import Split
from fastwi.beton import write_stored
from fastwi.beton.format import page_size_for
from fastwi.errors import UserError


@functools.lru_cache(maxsize=2)
def compiled_step(task: Task, graphs: bool) -> Callable[[Iterable[tuple[Tensor, Tensor]]], None]:
    """Trains through batches. It is compiled once for all cases of a task that differ in their data side only.

    graphs: by torch.compile's CUDA graphs.
    """
    network = task.network().to(task.device).to(memory_format=torch.channels_last)
    optimizer = task.optimizer(network.parameters())

    def loss_of(x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
        with task.autocast():
            return functional.cross_entropy(network(x_NCHW), labels_N)

    loss = task.compiled(loss_of, **({"triton.cudagraphs": True} if graphs else {}))

    def epoch(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for x_NCHW, labels_N in batches:
            torch.compiler.cudagraph_mark_step_begin()
            optimizer.zero_grad()
            loss(x_NCHW, labels_N).backward()
            optimizer.step()

    return epoch


def stock(task: Task, members: int, graphs: bool = False, static_memory: bool = False) -> Case:
    """On a CPU with glibc's own allocator settings, or with those that fastwi makes: no merit of its code."""
    if static_memory and task.device.type != "cpu":
        raise UserError("allocator settings matter on a CPU only")
    if graphs and task.device.type != "cuda":
        raise UserError("CUDA graphs need a GPU")
    epoch = compiled_step(task, graphs)
    return task.case(lambda x_MNCHW, labels_MN: epoch([(x_MNCHW[0], labels_MN[0])]), 1, static_memory)


def ffcv(task: Task, members: int) -> Case:
    """The same step behind FFCV's Loader."""
    batches, close = ffcv_batches(task)
    epoch = compiled_step(task, False)
    return Case(lambda: epoch(batches()), task.images, close=close)


def ffcv_batches(task: Task) -> tuple[Callable[[], Batches], Run]:
    """FFCV's Loader and augmentations on a CPU: a call that yields one epoch's batches, and its end.

    Batches are (x [N, C, H, W] in the task's dtype and channels-last order, labels int64 [N]). Images are normalised
    by torch: NormalizeImage needs cupy.

    An epoch must be taken to its end: FFCV's Loader, left early, leaks threads and aborts at exit.
    """
    if task.device.type != "cpu":
        raise UserError("FFCV's own transforms to a GPU need cupy")
    threads = torch.get_num_threads()
    try:
        from ffcv import loader, transforms
        from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    except ImportError:
        raise UserError("FFCV is not installed") from None
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "train.beton"
    split = Split(task.dataset.images_NHWC.numpy(), task.dataset.labels_N.numpy())
    images = (image for image, _ in split.stored())
    write_stored(path, images, split.labels_N, page_size_for(split.images_NHWC[0].nbytes))
    augment = task.config.augment
    image = [
        SimpleRGBImageDecoder(), transforms.RandomHorizontalFlip(augment.flip),
        transforms.RandomTranslate(augment.padding, (0, 0, 0)), transforms.ToTensor(), transforms.ToTorchImage(),
    ]  # fmt: skip
    label = [IntDecoder(), transforms.ToTensor(), transforms.Squeeze()]
    batches = loader.Loader(
        str(path), batch_size=task.batch, num_workers=max(1, task.workers), order=loader.OrderOption.RANDOM,
        drop_last=True, os_cache=True, pipelines={"image": image, "label": label},
    )  # fmt: skip
    normalise = torch.compile(functools.partial(normalised, task), dynamic=False)

    def epoch() -> Batches:
        iterator = iter(batches)
        torch.set_num_threads(threads)
        for x_NCHW, labels_N in iterator:
            yield normalise(x_NCHW), labels_N

    torch.set_num_threads(threads)  # FFCV's import sets one thread, its Loader as many as workers
    return epoch, folder.cleanup


def normalised(task: Task, x_NCHW: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to (v / 255 - mean) / std in the task's dtype and channels-last order."""
    mean_C11, std_C11 = (torch.tensor(of)[:, None, None] for of in (task.mean, task.std))
    x_NCHW = x_NCHW / (255 * std_C11) - mean_C11 / std_C11
    return x_NCHW.to(task.dtype).contiguous(memory_format=torch.channels_last)


def usual(task: Task, members: int) -> Case:
    """DataLoader workers that stay, torchvision's transforms on PIL images as on its CIFAR10, float32, eager."""
    from PIL import Image
    from torchvision import transforms

    steps = [
        transforms.RandomCrop(task.dataset.images_NHWC.shape[1:3], padding=task.config.augment.padding),
        transforms.RandomHorizontalFlip(task.config.augment.flip),
        transforms.ToTensor(),
        transforms.Normalize(task.mean, task.std),
    ]
    images = [Image.fromarray(image.numpy()) for image in task.dataset.images_NHWC.cpu()]
    dataset: Any = list(zip(images, task.dataset.labels_N.tolist(), strict=True))
    loader: Any = torch.utils.data.DataLoader(
        dataset, task.batch, shuffle=True, drop_last=True, num_workers=task.workers,
        persistent_workers=task.workers > 0, pin_memory=task.device.type == "cuda",
        collate_fn=functools.partial(_collate, transforms.Compose(steps)),
    )  # fmt: skip
    network = task.network().to(task.device)
    optimizer = task.optimizer(network.parameters(), fused=False)

    def epoch() -> None:
        for batch in loader:
            x_NCHW, labels_N = (tensor.to(task.device, non_blocking=True) for tensor in batch)
            optimizer.zero_grad()
            functional.cross_entropy(network(x_NCHW), labels_N).backward()
            optimizer.step()

    def close() -> None:  # now, and not when the interpreter gets to it
        if loader._iterator is not None and task.workers:
            loader._iterator._shutdown_workers()

    return Case(epoch, task.images, close=close)


def _collate(transform: Callable[[Any], Tensor], batch: Sequence[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([transform(image) for image, _ in batch]), torch.tensor([label for _, label in batch])
