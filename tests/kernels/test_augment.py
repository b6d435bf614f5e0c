"""Augmentation: the kernel, the torch reference and torchvision's own transforms, on the same draws."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from fastwi.data.resident import load_split, normalisation_table
from fastwi.kernels.augment import augment, augment_reference
from fastwi.kernels.cpu import library

needs_kernels = pytest.mark.skipif(library() is None, reason="no C++ compiler with OpenMP")
MEAN, STD = (0.49, 0.25, 0.75), (0.2, 0.1, 0.3)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def draw(seed: int, D: int, H: int, W: int, padding: int, N: int = 40) -> Inputs:
    """Images, order, offsets and flips. The order repeats images and leaves some out."""
    generator = torch.Generator().manual_seed(seed)
    images_DHWC = torch.randint(0, 256, (D, H, W, 3), dtype=torch.uint8, generator=generator)
    order_N = torch.randint(0, D, (N,), generator=generator)
    offset_N2 = torch.randint(0, 2 * padding + 1, (N, 2), generator=generator)
    offset_N2[:4] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]) * 2 * padding  # all four corners
    return images_DHWC, order_N, offset_N2, torch.rand(N, generator=generator) < 0.5


def by_torchvision(inputs: Inputs, mean: tuple[float, ...], std: tuple[float, ...], padding: int) -> Tensor:
    """RandomCrop(padding=p), RandomHorizontalFlip, ToTensor, Normalize with these draws, in float64."""
    images_DHWC, order_N, offset_N2, flip_N = inputs
    _, H, W, _ = images_DHWC.shape
    done = []
    for image, (top, left), flip in zip(images_DHWC[order_N], offset_N2.tolist(), flip_N.tolist(), strict=True):
        x_CHW = tv.crop(tv.pad(image.permute(2, 0, 1), [padding], fill=0), top, left, H, W)
        x_CHW = tv.hflip(x_CHW) if flip else x_CHW
        done.append(tv.normalize(x_CHW.double() / 255, list(mean), list(std)))
    return torch.stack(done)


@pytest.mark.parametrize("call", [augment, augment_reference])
@pytest.mark.parametrize(("D", "H", "W", "padding"), [(9, 16, 16, 4), (5, 32, 32, 4), (7, 5, 11, 2), (3, 13, 4, 7)])
def test_equals_torchvision(seed, call, D, H, W, padding):
    inputs = draw(seed, D, H, W, padding)
    found = call(*inputs, normalisation_table(MEAN, STD), padding)
    assert found.shape == (40, 3, H, W)
    torch.testing.assert_close(found.double(), by_torchvision(inputs, MEAN, STD, padding), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("call", [augment, augment_reference])
def test_equals_torchvision_on_digits(seed, digits_directory, call):
    dataset, card = load_split(digits_directory, "train", torch.device("cpu"), 60)
    _, order_N, offset_N2, flip_N = draw(seed, 60, 16, 16, 4, N=100)
    inputs = (dataset.images_NHWC, order_N, offset_N2, flip_N)
    found = call(*inputs, dataset.table_C256, 4)
    expected = by_torchvision(inputs, tuple(card.mean), tuple(card.std), 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("H", "W", "padding"), [(16, 16, 4), (7, 12, 3), (1, 1, 1), (9, 3, 0)])
def test_kernel_equals_reference_to_the_bit(seed, dtype, H, W, padding):
    images, order, offset, flip = draw(seed, 11, H, W, padding)
    table = normalisation_table(MEAN, STD).to(dtype)
    for one_offset in (offset, None):
        for one_flip in (flip, None):
            found = augment(images, order, one_offset, one_flip, table, padding)
            expected = augment_reference(images, order, one_offset, one_flip, table, padding)
            assert found.dtype == dtype
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("call", [augment, augment_reference])
def test_nothing_drawn_is_normalisation_alone(seed, call):
    images, order, _, _ = draw(seed, 6, 8, 10, 1)
    table = normalisation_table(MEAN, STD)
    found = call(images, order, None, None, table, 0)
    plain = (images[order].double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found.double(), plain.permute(0, 3, 1, 2), rtol=1e-6, atol=1e-6)
    centred = call(images, order, torch.full((len(order), 2), 4), None, table, 4)  # offset = padding
    assert torch.equal(centred, found)


@needs_kernels
def test_any_strides_and_any_number_of_threads(seed):
    images, order, offset, flip = draw(seed, 8, 6, 9, 2)
    table = normalisation_table(MEAN, STD)
    expected = augment_reference(images, order, offset, flip, table, 2)
    doubled = torch.stack([offset, -offset], dim=2)[:, :, 0]
    strided = images.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert not doubled.is_contiguous()
    assert not strided.is_contiguous()
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(augment(images, order, doubled, flip, table, 2), expected)
            assert torch.equal(augment(strided, order, offset, flip, table, 2), expected)
    finally:
        torch.set_num_threads(threads)
