"""Open a split as the configuration says: resident on the device, or streamed from the disk."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from fastwi.beton.digests import read_digests
from fastwi.config.schema import DataConfig
from fastwi.data.batches import Dataset, whole_images
from fastwi.data.card import SPLITS, Card, digests_path, read_card
from fastwi.data.decode import decoder
from fastwi.data.identity import target_size
from fastwi.data.resident import ResidentDataset, chosen_images, normalisation_table, open_beton, resident_split
from fastwi.data.streamed import StreamedDataset
from fastwi.errors import UserError

SHARE = 0.5
"""Of the free memory, for both the host and the device: a raw split that takes more is streamed (streaming: auto)."""


def open_splits(data: DataConfig, device: torch.device) -> tuple[Dataset, Dataset, Card]:
    """`open_split` of training and test images of the dataset at `data.path`, and its card."""
    directory = Path(data.path)
    card = read_card(directory)  # once, or a dataset that is replaced meanwhile would be mixed
    train, test = (open_split(directory, split, card, data, device) for split in SPLITS)
    return train, test, card


def open_split(directory: Path, split: str, card: Card, data: DataConfig, device: torch.device) -> Dataset:
    """`split` ("train" or "test") of the dataset in `directory`, whose card is read already, for `device`.

    Resident or streamed (`data.streaming`), the images are the same to the bit.
    Raises UserError where the beton is missing, damaged or disagrees with the card, or the decoder is missing.
    """
    images: int = getattr(data, f"{split}_images")
    beton = open_beton(directory, split, card)
    height, width = target_size(card, data)
    raw = beton.all_raw and beton.one_size is not None
    plain = raw and beton.one_size == (height, width)
    size = len(beton) * height * width * 3
    resident = data.streaming == "resident" or (data.streaming == "auto" and raw and fits_memory(size, device))
    try:
        if resident and plain:
            return resident_split(beton, split, card, device, images)
        # Labels are compared here, each image when it is read: the whole of a resident set is compared with the card.
        beton.hold_to(read_digests(digests_path(directory, split), card.digests_sha256[split]))
        kept_N = chosen_images(beton, images)
        streamed = StreamedDataset(
            beton=beton,
            file_N=kept_N,
            labels_N=torch.from_numpy(beton.labels_N[kept_N]).to(device),
            table_C256=normalisation_table(card.mean, card.std).to(device),
            classes=len(card.classes),
            image_shape=(height, width, 3),
            decode=decoder(data.decoder),
        )
        if not resident:
            return streamed
        return ResidentDataset(whole_images(streamed), streamed.labels_N, streamed.table_C256, streamed.classes)
    except (MemoryError, RuntimeError) as error:  # torch has an error of its own on each device
        raise UserError(f"{beton.path}: does not fit memory ({error}); set data.streaming: streamed") from error


def fits_memory(size: int, device: torch.device) -> bool:
    """Whether `size` bytes of pixels are at most `SHARE` of the free memory, on the host and on the device."""
    free = free_host_bytes()
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return size <= SHARE * free


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory that can be taken without swapping, as Linux estimates it, within the limits of control groups."""
    free = [1 << 62, *_control_group_limits(root)]
    with contextlib.suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    return min(free)


def _control_group_limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's control groups and of all groups around them, of both versions of them."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            mount, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            group = root / "sys/fs/cgroup" / mount / path.lstrip("/")
            for each in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # no such file, as in a container; or "max"
                    yield int((each / name).read_text())
