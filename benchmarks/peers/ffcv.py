"""FFCV's Loader and augmentations in front of the best stock loop's step. One network, on a CPU.

FFCV's ToDevice and NormalizeImage need cupy, so images are normalised by torch, and a GPU is left out.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.stock import compiled_step
from benchmarks.runner import Case, Unavailable
from benchmarks.task import Batches, Task
from fastwi.beton import write_beton


class FFCVBatches:
    """Batches from a beton of the task's images: (x [N, C, H, W] in its dtype, channels-last; labels int64 [N]).

    An epoch must be taken to its end: a Loader that is left early leaks threads and aborts at exit.
    """

    def __init__(self, task: Task) -> None:
        if task.device.type != "cpu":
            raise Unavailable("FFCV's own transforms to a GPU need cupy")
        self._threads = torch.get_num_threads()
        try:
            from ffcv import transforms
            from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
            from ffcv.loader import Loader, OrderOption
        except ImportError:
            raise Unavailable("FFCV is not installed") from None
        finally:
            torch.set_num_threads(self._threads)  # its import sets one thread, its Loader as many as workers
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "train.beton"
        write_beton(path, task.dataset.images_NHWC.numpy(), task.dataset.labels_N.numpy())
        augment = task.config.augment
        image = [
            SimpleRGBImageDecoder(), transforms.RandomHorizontalFlip(augment.flip),
            transforms.RandomTranslate(augment.padding, (0, 0, 0)), transforms.ToTensor(), transforms.ToTorchImage(),
        ]  # fmt: skip
        label = [IntDecoder(), transforms.ToTensor(), transforms.Squeeze()]
        self._loader = Loader(
            str(path), batch_size=task.batch, num_workers=max(1, task.workers), order=OrderOption.RANDOM,
            drop_last=True, os_cache=True, pipelines={"image": image, "label": label},
        )  # fmt: skip
        torch.set_num_threads(self._threads)
        self._normalise = normaliser(task)
        self.close = self._folder.cleanup

    def epoch(self) -> Batches:
        """One epoch."""
        iterator = iter(self._loader)
        torch.set_num_threads(self._threads)
        for x_NCHW, labels_N in iterator:
            yield self._normalise(x_NCHW), labels_N


def normaliser(task: Task) -> Callable[[Tensor], Tensor]:
    """uint8 [N, C, H, W] to (v / 255 - mean) / std in the task's dtype and channels-last order, compiled."""
    scale_C11 = torch.tensor(task.std).mul(255)[:, None, None]
    shift_C11 = (torch.tensor(task.mean) / torch.tensor(task.std))[:, None, None]

    @torch.compile(dynamic=False)
    def normalise(x_NCHW: Tensor) -> Tensor:
        return (x_NCHW / scale_C11 - shift_C11).to(task.dtype).contiguous(memory_format=torch.channels_last)

    return normalise


def ffcv(task: Task, members: int) -> Case:
    """`members` is 1."""
    batches, step = FFCVBatches(task), compiled_step(task)
    return Case(lambda: step.epoch(batches.epoch()), task.images, close=batches.close)
