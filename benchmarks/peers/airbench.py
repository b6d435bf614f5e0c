"""airbench's CifarLoader (PyPI `airbench`) in front of the best stock loop's step. One network.

The loader augments a whole epoch at once, in float16, before the first batch. It crops from reflected borders and
knows CIFAR-10's mean and deviation only; neither changes what it costs. It runs on a CPU too.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.peers.stock import compiled_step
from benchmarks.runner import Case, Unavailable
from benchmarks.task import Batches, Task


class AirbenchBatches:
    """Batches of (x [N, C, H, W] in the task's dtype, channels-last; labels int64 [N]) of the task's images."""

    def __init__(self, task: Task) -> None:
        benchmark = torch.backends.cudnn.benchmark
        try:
            from airbench import CifarLoader  # type: ignore[import-not-found, import-untyped]
        except ImportError:
            raise Unavailable("airbench is not installed (pip install airbench)") from None
        finally:
            torch.backends.cudnn.benchmark = benchmark  # importing airbench turns it on
        self._dtype = task.dtype
        with tempfile.TemporaryDirectory() as folder:
            # The file that it would make of torchvision's CIFAR-10, after a download.
            images, labels = task.dataset.images_NHWC.cpu(), task.dataset.labels_N.cpu()
            torch.save({"images": images, "labels": labels, "classes": []}, Path(folder) / "train.pt")
            augmentation = {"flip": True, "translate": task.config.augment.padding}
            self._loader = CifarLoader(folder, True, task.batch, augmentation, gpu=task.device)

    def epoch(self) -> Batches:
        """One epoch."""
        for x_NCHW, labels_N in self._loader:
            yield x_NCHW.to(self._dtype, memory_format=torch.channels_last), labels_N


def airbench(task: Task, members: int) -> Case:
    """`members` is 1."""
    batches, step = AirbenchBatches(task), compiled_step(task)
    return Case(lambda: step.epoch(batches.epoch()), task.images)
