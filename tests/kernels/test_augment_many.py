"""Augmentation of many networks: the Triton kernel and the CPU's against one image at a time, to the bit."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastwi.kernels import augment as augment_module
from fastwi.kernels import augment_many as augment_many_module
from fastwi.kernels.augment import augment, augment_reference
from fastwi.kernels.augment_many import augment_many, augment_many_reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [  # H, W, C, padding; the last two take several blocks an image
    (1, 1, 1, 0), (1, 1, 3, 2), (7, 5, 3, 2), (4, 11, 1, 3), (9, 3, 2, 5), (16, 16, 3, 4), (33, 31, 3, 4),
    (41, 50, 1, 1),
]  # fmt: skip


@pytest.fixture(params=["cpu kernel", "torch", "triton"])
def device(request, monkeypatch):
    """The device to test on, with dispatch sent down one of the three paths."""
    if request.param == "triton":
        pytest.importorskip("triton")
        for module in (augment_module, augment_many_module):
            monkeypatch.setattr(module, "has_triton", lambda device: True)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if request.param == "torch":
        monkeypatch.setattr(augment_module, "library", lambda: None)
    elif augment_module.library() is None:
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

    def many(self, first: Tensor | None, count: int, **outputs: Tensor | None) -> Tensor:
        return augment_many(
            self.images_DHWC, self.order_MS, self.offset_MS2, self.flip_MS, self.table_C256, self.padding,
            first, count, **outputs,
        )  # fmt: skip

    def one(self, m: int, i: int) -> Tensor:
        """Draw i of member m, [H, W, C]: pad the intensities, cut out, mirror, look up."""
        H, W, C = self.images_DHWC.shape[1:]
        p = self.padding
        image_HWC = self.images_DHWC[self.order_MS[m, i]]
        if self.offset_MS2 is not None:
            top, left = self.offset_MS2[m, i].tolist()
            image_HWC = functional.pad(image_HWC, (0, 0, p, p, p, p))[top : top + H, left : left + W]
        if self.flip_MS is not None and self.flip_MS[m, i]:
            image_HWC = image_HWC.flip(1)
        return torch.stack([self.table_C256[c][image_HWC[:, :, c].long()] for c in range(C)], dim=2)

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


def at(first: int, device: torch.device) -> Tensor:
    return torch.tensor([first], device=device)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_one_image_at_a_time(seed, device, size):
    task = draw(seed, device, size, DTYPES[seed % 3])
    found = task.many(at(2, device), 5)
    assert found.dtype == task.table_C256.dtype
    assert found.is_contiguous()
    assert torch.equal(found, task.expected(2, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [None, 0, 3])
def test_without_offsets_or_flips(seed, device, dtype, first):
    whole = draw(seed, device, dtype=dtype)
    for offset in (whole.offset_MS2, None):
        for flip in (whole.flip_MS, None):
            task = Task(whole.images_DHWC, whole.order_MS, offset, flip, whole.table_C256, whole.padding)
            found = task.many(None if first is None else at(first, device), 4)
            assert torch.equal(found, task.expected(first or 0, 4))


def test_reference_equals_one_image_at_a_time(seed):
    task = draw(seed, torch.device("cpu"), dtype=torch.float32)
    for first in (None, at(4, torch.device("cpu"))):
        found = augment_many_reference(
            task.images_DHWC, task.order_MS, task.offset_MS2, task.flip_MS, task.table_C256, task.padding, first, 5
        )
        assert torch.equal(found, task.expected(0 if first is None else 4, 5))


def test_reference_reads_no_value_on_the_host():
    """Tensors on the meta device have none: .item() and its like raise."""
    task = draw(0, torch.device("meta"))
    found = augment_many_reference(
        task.images_DHWC, task.order_MS, task.offset_MS2, task.flip_MS, task.table_C256, task.padding,
        torch.zeros(1, dtype=torch.int64, device="meta"), 4,
    )  # fmt: skip
    assert found.shape == (3, 4, 7, 5, 3)


def test_walks_through_an_epoch_into_one_buffer(seed, device):
    task = draw(seed, device, draws=12)
    first, out = at(0, device), torch.empty(3, 4, 7, 5, 3, dtype=torch.bfloat16, device=device)
    for step in range(3):
        assert task.many(first, 4, out_MNHWC=out) is out
        assert torch.equal(out, task.expected(4 * step, 4))
        assert first.tolist() == [4 * step]
        first += 4


def test_labels_of_the_images_taken(seed, device):
    task = draw(seed, device, (33, 31, 3, 4))
    labels_D = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).to(device)
    for first in (None, at(4, device)):
        start = 0 if first is None else 4
        labels_MN = torch.full((3, 5), -1, device=device)
        found = task.many(first, 5, labels_D=labels_D, labels_MN=labels_MN)
        assert torch.equal(labels_MN, labels_D[task.order_MS[:, start : start + 5]])
        assert torch.equal(found, task.expected(start, 5))


def test_a_member_is_the_same_alone_and_under_augment(seed, device):
    task = draw(seed, device, dtype=torch.float32)
    together = task.many(at(1, device), 6)
    for m in range(3):
        row, draws = slice(m, m + 1), slice(1, 7)
        assert task.offset_MS2 is not None
        assert task.flip_MS is not None
        own = Task(
            task.images_DHWC,
            task.order_MS[row],
            task.offset_MS2[row],
            task.flip_MS[row],
            task.table_C256,
            task.padding,
        )
        assert torch.equal(own.many(at(1, device), 6)[0], together[m])
        one = (task.order_MS[m, draws], task.offset_MS2[m, draws], task.flip_MS[m, draws])
        for call in (augment, augment_reference):
            x_NCHW = call(task.images_DHWC, *one, task.table_C256, task.padding)
            assert x_NCHW.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(x_NCHW.permute(0, 2, 3, 1), together[m])


def test_augment_without_offsets_and_flips(seed, device):
    task = draw(seed, device, (16, 16, 3, 4))
    found = augment(task.images_DHWC, task.order_MS[0], None, None, task.table_C256, 4)
    assert torch.equal(found, augment_reference(task.images_DHWC, task.order_MS[0], None, None, task.table_C256, 4))


def test_any_strides(seed, device):
    task = draw(seed, device)
    assert task.offset_MS2 is not None
    assert task.flip_MS is not None
    expected = task.expected(2, 3)
    wide_MS = torch.stack([task.order_MS, task.order_MS + 1], dim=2)[:, :, 0]
    wide_MS2 = torch.stack([task.offset_MS2, -task.offset_MS2], dim=3)[..., 0]
    wide_flip_MS = task.flip_MS.T.contiguous().T
    table_C256 = task.table_C256.T.contiguous().T
    images_DHWC = task.images_DHWC.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    for images in (task.images_DHWC, images_DHWC):
        strided = Task(images, wide_MS, wide_MS2, wide_flip_MS, table_C256, task.padding)
        assert torch.equal(strided.many(at(2, device), 3), expected)


def test_no_images_and_one_member(seed, device):
    task = draw(seed, device, members=1)
    assert task.many(None, 0).shape == (1, 0, 7, 5, 3)
    assert torch.equal(task.many(None, 1), task.expected(0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 10}, "count is 10; it needs to be 0 to 9"),
        ({"order_MS": torch.zeros(3, 9, dtype=torch.int32)}, "order_MS is torch.int32"),
        ({"offset_MS2": torch.zeros(3, 8, 2, dtype=torch.int64)}, r"offset_MS2 is torch.int64 \(3, 8, 2\)"),
        ({"flip_MS": torch.zeros(3, 9, dtype=torch.int64)}, "flip_MS is torch.int64"),
        ({"table_C256": torch.zeros(1, 256)}, r"table_C256 is torch.float32 \(1, 256\)"),
        ({"first": torch.zeros(3, dtype=torch.int64)}, r"first is torch.int64 \(3,\)"),
        ({"out_MNHWC": torch.zeros(3, 4, 7, 5, 3)}, "out_MNHWC is torch.float32"),
        ({"out_MNHWC": torch.zeros(3, 4, 3, 7, 5, dtype=torch.bfloat16).permute(0, 1, 3, 4, 2)}, "contiguous"),
        ({"labels_D": torch.zeros(6, dtype=torch.int64)}, "needed together"),
    ],
)
def test_refuses(change, message):
    task = draw(1, torch.device("cpu"))
    arguments = {**vars(task), "first": None, "count": 4, **change}
    with pytest.raises(ValueError, match=message):
        augment_many(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_graph_walks_through_an_epoch(seed):
    device = torch.device("cuda")
    task, first = draw(seed, device, (32, 32, 3, 4), draws=12), at(0, device)
    task.many(first, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = task.many(first, 4)
        first.add_(4)
    for step in range(3):
        graph.replay()
        assert torch.equal(out, task.expected(4 * step, 4))


SCRIPT = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastwi.kernels.augment_triton import MOST_VALUES, WARPS, augment_kernel

longs = dict.fromkeys(("order_MS", "offset_MS2", "first", "labels_D", "labels_MN"), "*i64")
signature = dict(images_DHWC="*u8", flip_MS="*u8", table_C256="*bf16", out_MNHWC="*bf16", S="i32", N="i32", **longs)
constants = dict(H=32, W=32, C=3, PADDING=4, BLOCK=MOST_VALUES)
signature |= dict.fromkeys(constants, "constexpr")
for absent in ((), ("offset_MS2", "flip_MS", "first", "labels_D", "labels_MN")):
    types = {name: "constexpr" if name in absent else signature[name] for name in augment_kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind[0] == "*"}
    source = ASTSource(augment_kernel, types, constants | dict.fromkeys(absent), aligned)
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    print(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""


def test_compiles_for_a_gpu_with_16_byte_stores(tmp_path):
    """Which the interpreter can't show. Eight bf16 values a thread; with all optional arguments, and with none."""
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"st\.global\.v4\.b32", done.stdout)) == 2
    assert not re.findall(r"st\.global\.(b16|b32|v2)", done.stdout)
