"""The usual script: DataLoader workers, torchvision transforms, float32, eager. One network."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.task import Contestant, Task


class ImagesAsPIL(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as PIL, through torchvision's transforms: what a script on torchvision.datasets.CIFAR10 does."""

    def __init__(self, task: Task) -> None:
        from PIL import Image
        from torchvision import transforms

        self._images = [Image.fromarray(image.numpy()) for image in task.dataset.images_NHWC.cpu()]
        self._labels = task.dataset.labels_N.tolist()
        steps = [
            transforms.RandomCrop(task.dataset.images_NHWC.shape[1:3], padding=task.config.augment.padding),
            transforms.RandomHorizontalFlip(task.config.augment.flip),
            transforms.ToTensor(),
            transforms.Normalize(task.mean, task.std),
        ]
        self._transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def data_loader(task: Task) -> "torch.utils.data.DataLoader[tuple[Tensor, int]]":
    """Batches of (x float32 [N, C, H, W], labels int64 [N]) on the CPU, by `task.workers` processes that stay."""
    return torch.utils.data.DataLoader(
        ImagesAsPIL(task), task.batch, shuffle=True, drop_last=True, num_workers=task.workers,
        persistent_workers=task.workers > 0, pin_memory=task.device.type == "cuda",
    )  # fmt: skip


def close_loader(loader: Any) -> None:
    """End the workers now, not when the interpreter gets to it."""
    if loader._iterator is not None and loader.num_workers:
        loader._iterator._shutdown_workers()


def usual(task: Task, members: int) -> Contestant:
    """`members` is 1: a script that trains M networks is started M times."""
    network = task.network().to(task.device)
    kind = task.config.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(), lr=kind.learning_rate, momentum=kind.momentum, weight_decay=kind.weight_decay
    )
    loader = data_loader(task)

    def epoch() -> None:
        for x_NCHW, labels_N in loader:
            x_NCHW = x_NCHW.to(task.device, non_blocking=True)
            labels_N = labels_N.to(task.device, non_blocking=True)
            optimizer.zero_grad()
            functional.cross_entropy(network(x_NCHW), labels_N).backward()
            optimizer.step()

    return Contestant(epoch, task.images, close=lambda: close_loader(loader))
