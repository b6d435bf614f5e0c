"""Augmentation: the kernels and the reference against torchvision's own transforms on the same draws, to the bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from fastwi.kernels import augment as module
from fastwi.kernels import gpu
from fastwi.kernels.augment import augment, augment_many

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [  # H, W, C, padding; the last two take several blocks an image
    (1, 1, 1, 0), (1, 1, 3, 2), (7, 5, 3, 2), (4, 11, 1, 3), (9, 3, 2, 5), (16, 16, 3, 4), (33, 31, 3, 4),
    (41, 50, 1, 1),
]  # fmt: skip


@pytest.fixture(params=["cpu kernel", "torch", "triton"])
def device(request, monkeypatch):
    """The device to test on, with dispatch sent down one of the three paths."""
    monkeypatch.setattr(gpu, "has_triton", lambda device: request.param == "triton")
    if request.param == "triton":
        pytest.importorskip("triton")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if request.param == "torch":
        monkeypatch.setattr(module, "library", lambda: None)
    elif module.library() is None:
        pytest.skip("no C++ compiler with OpenMP")
    return torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What `augment_many` takes, but for the place in the epoch."""

    images_DHWC: Tensor
    order_MS: Tensor
    offset_MS2: Tensor | None
    flip_MS: Tensor | None
    table_C256: Tensor
    padding: int

    def many(self, first: int | None, count: int) -> Tensor:
        place = None if first is None else torch.tensor([first], device=self.order_MS.device)
        return augment_many(**vars(self), first=place, count=count)

    def one(self, m: int, i: int) -> Tensor:
        """Draw i of member m by RandomCrop(padding=p), RandomHorizontalFlip and a look-up, [H, W, C]."""
        H, W, C = self.images_DHWC.shape[1:]
        image_CHW = self.images_DHWC[self.order_MS[m, i]].permute(2, 0, 1)
        if self.offset_MS2 is not None:
            top, left = self.offset_MS2[m, i].tolist()
            image_CHW = tv.crop(tv.pad(image_CHW, [self.padding], fill=0), top, left, H, W)
        if self.flip_MS is not None and self.flip_MS[m, i]:
            image_CHW = tv.hflip(image_CHW)
        return torch.stack([self.table_C256[c][image_CHW[c].long()] for c in range(C)], dim=2)

    def expected(self, first: int, count: int) -> Tensor:
        """[M, N, H, W, C], image by image."""
        rows = [[self.one(m, i) for i in range(first, first + count)] for m in range(len(self.order_MS))]
        return torch.stack([torch.stack(row) for row in rows])


def draw(
    seed: int,
    device: torch.device,
    size: tuple[int, int, int, int] = (7, 5, 3, 2),
    dtype: torch.dtype = torch.bfloat16,
    members: int = 3,
    draws: int = 9,
) -> Task:
    """Random images, draws and table. Draws 2 to 5 are at the ends of what offsets can be."""
    H, W, C, padding = size
    generator = torch.Generator().manual_seed(seed)
    offset_MS2 = torch.randint(0, 2 * padding + 1, (members, draws, 2), generator=generator)
    offset_MS2[:, 2:6] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]) * 2 * padding
    return Task(
        images_DHWC=torch.randint(0, 256, (6, H, W, C), dtype=torch.uint8, generator=generator).to(device),
        order_MS=torch.randint(0, 6, (members, draws), generator=generator).to(device),
        offset_MS2=offset_MS2.to(device),
        flip_MS=(torch.rand(members, draws, generator=generator) < 0.5).to(device),
        table_C256=torch.randn(C, 256, generator=generator).to(device, dtype),
        padding=padding,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torchvision(seed, device, size):
    task = draw(seed, device, size, DTYPES[seed % 3])
    found = task.many(2, 5)
    assert found.dtype == task.table_C256.dtype
    assert found.is_contiguous()
    assert torch.equal(found, task.expected(2, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [None, 0, 3])
def test_without_offsets_or_flips(seed, device, dtype, first):
    whole = draw(seed, device, dtype=dtype)
    for offset in (whole.offset_MS2, None):
        for flip in (whole.flip_MS, None):
            task = replace(whole, offset_MS2=offset, flip_MS=flip)
            assert torch.equal(task.many(first, 4), task.expected(first or 0, 4))


def test_one_network(seed, device):
    task = draw(seed, device, (9, 12, 3, 4), torch.float32, members=1)
    found = augment(
        task.images_DHWC, task.order_MS[0], task.offset_MS2[0], task.flip_MS[0], task.table_C256, 4
    )  # fmt: skip
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, task.expected(0, 9)[0].permute(0, 3, 1, 2))


def test_strides_threads_and_sizes(seed, device):
    task = draw(seed, device)
    expected = task.expected(2, 3)
    strided = replace(
        task,
        order_MS=task.order_MS.T.contiguous().T,
        offset_MS2=torch.stack([task.offset_MS2, -task.offset_MS2], dim=3)[..., 0],
        flip_MS=task.flip_MS.T.contiguous().T,
        table_C256=task.table_C256.T.contiguous().T,
    )
    images_DHWC = task.images_DHWC.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(strided.many(2, 3), expected)
        assert torch.equal(replace(strided, images_DHWC=images_DHWC).many(2, 3), expected)
    assert task.many(None, 0).shape == (3, 0, 7, 5, 3)


def test_reads_no_value_on_the_host():
    """Tensors on the meta device have none: .item() and its like raise."""
    assert draw(0, torch.device("meta")).many(0, 4).shape == (3, 4, 7, 5, 3)
