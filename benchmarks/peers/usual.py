"""The usual script: DataLoader workers, torchvision transforms, float32, eager. One network."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.runner import Case
from benchmarks.task import Task


def _collate(transform: Callable[[Any], Tensor], batch: Sequence[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([transform(image) for image, _ in batch]), torch.tensor([label for _, label in batch])


def data_loader(task: Task) -> Any:
    """Batches of (x float32 [N, C, H, W], labels int64 [N]) on the CPU, by `task.workers` processes that stay.

    Images are PIL's and pass through torchvision's transforms, as in a script on torchvision.datasets.CIFAR10.
    """
    from PIL import Image
    from torchvision import transforms

    images = [Image.fromarray(image.numpy()) for image in task.dataset.images_NHWC.cpu()]
    steps = [
        transforms.RandomCrop(task.image_HWC[:2], padding=task.config.augment.padding),
        transforms.RandomHorizontalFlip(task.config.augment.flip),
        transforms.ToTensor(),
        transforms.Normalize(task.mean, task.std),
    ]
    dataset: Any = list(zip(images, task.dataset.labels_N.tolist(), strict=True))
    return torch.utils.data.DataLoader(
        dataset, task.batch, shuffle=True, drop_last=True,
        num_workers=task.workers, persistent_workers=task.workers > 0, pin_memory=task.device.type == "cuda",
        collate_fn=functools.partial(_collate, transforms.Compose(steps)),
    )  # fmt: skip


def close_loader(loader: Any) -> None:
    """End the workers now, not when the interpreter gets to it."""
    if loader._iterator is not None and loader.num_workers:
        loader._iterator._shutdown_workers()


def usual(task: Task, members: int) -> Case:
    """`members` is 1: a script that trains M networks is started M times."""
    network = task.network().to(task.device)
    optimizer = task.optimizer(network.parameters(), fused=False)
    loader = data_loader(task)

    def epoch() -> None:
        for batch in loader:
            x_NCHW, labels_N = (tensor.to(task.device, non_blocking=True) for tensor in batch)
            optimizer.zero_grad()
            functional.cross_entropy(network(x_NCHW), labels_N).backward()
            optimizer.step()

    return Case(epoch, task.images, close=lambda: close_loader(loader))
