"""Open a split as the configuration says: resident on the device, or streamed from the disk."""

from pathlib import Path

import numpy as np
import torch

from fastwi.beton.image_digests import ImageDigests
from fastwi.beton.stream import StoredBeton
from fastwi.config.schema import DataConfig
from fastwi.data.batches import Dataset, whole_images
from fastwi.data.card import SPLITS, Card, beton_path, digests_path, read_card
from fastwi.data.identity import target_size
from fastwi.data.resident import ResidentDataset, check_split, chosen_images, load_split, normalisation_table
from fastwi.data.streamed import StreamedDataset, open_decoder
from fastwi.errors import UserError

SHARE = 0.5
"""Of the free memory, for both the host and the device: a raw split that takes more is streamed (streaming: auto)."""


def open_splits(data: DataConfig, device: torch.device, root: str | Path = "") -> tuple[Dataset, Dataset, Card]:
    """Training and test images of the dataset at `data.path` (`open_split`), and the card that both are held to."""
    card = read_card(Path(root) / data.path)
    train, test = (_open_under(card, data, split, device, root) for split in SPLITS)
    return train, test, card


def open_split(data: DataConfig, split: str, device: torch.device, root: str | Path = "") -> tuple[Dataset, Card]:
    """`split` ("train" or "test") of the dataset at `data.path`, relative to `root`, for `device`, and its card.

    Resident or streamed (`data.streaming`), the images are the same to the bit. A set of JPEGs, or of images of
    several sizes, is decoded when it is opened if it is asked to be resident.

    Raises:
        UserError: the card or the beton is missing, damaged, or they disagree; the decoder is not there.
    """
    card = read_card(Path(root) / data.path)
    return _open_under(card, data, split, device, root), card


def _open_under(card: Card, data: DataConfig, split: str, device: torch.device, root: str | Path) -> Dataset:
    """`open_split` where the card is read already: once a dataset, or one that is replaced would be mixed."""
    directory = Path(root) / data.path
    path = beton_path(directory, split)
    images: int = getattr(data, f"{split}_images")
    beton = StoredBeton(path)
    check_split(path, beton.labels_N, card, split)
    _check_sizes(beton, card)
    height, width = target_size(card, data)
    plain = beton.all_raw and beton.one_size == (height, width)
    if plain and (data.streaming == "resident" or (data.streaming == "auto" and fits_memory(beton, device))):
        beton.close()
        return load_split(directory, split, device, images, card)[0]
    # Labels here, each image when it is read: the whole of a resident set is held to the card in `load_split`.
    beton.hold_to(ImageDigests.read(digests_path(directory, split), card.digests_sha256[split]))
    kept_N = np.arange(len(beton))
    if images:
        kept_N = chosen_images(path, beton.labels_N, split, images)
    streamed = StreamedDataset(
        decoder=open_decoder(beton, data.decoder),
        file_N=kept_N,
        labels_N=torch.from_numpy(beton.labels_N[kept_N]).to(device),
        table_C256=normalisation_table(card.mean, card.std).to(device),
        classes=len(card.classes),
        image_shape=(height, width, 3),
    )
    return streamed if data.streaming != "resident" else _resident(streamed, path)


def fits_memory(beton: StoredBeton, device: torch.device) -> bool:
    """Whether all pixels of raw images take at most `SHARE` of the free memory, on the host and on the device."""
    needed = int(beton.sizes_N.sum())
    free = free_host_bytes()
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return needed <= SHARE * free


def free_host_bytes() -> int:
    """Memory that can be taken without swapping, as Linux estimates it, within the limit of the control group."""
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return free if limit == "max" else min(free, int(limit))
    except OSError:
        return free


def _check_sizes(beton: StoredBeton, card: Card) -> None:
    """The card says whether sizes vary; where it says one, it says which."""
    if card.sizes == "one" and beton.one_size != card.image_shape[:2]:
        height, width = card.image_shape[:2]
        odd = np.flatnonzero((beton.heights_N != height) | (beton.widths_N != width))[0]
        found = " x ".join(str(side) for side in beton.size(int(odd)))
        raise UserError(
            f"{beton.path}: image {odd} is {found}, but card.json says {height} x {width}; "
            "write the dataset again with python -m data_prep"
        )
    if card.encoding == "raw" and not beton.all_raw:
        raise UserError(f"{beton.path}: holds JPEGs, but card.json says raw; write the dataset again")


def _resident(streamed: StreamedDataset, path: Path) -> ResidentDataset:
    """All images decoded once."""
    try:
        images_NHWC = whole_images(streamed)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        gib = len(streamed) * np.prod(streamed.image_shape, dtype=np.int64) / 2**30
        raise UserError(f"{path}: {gib:.1f} GiB of pixels do not fit memory; set data.streaming: streamed") from error
    return ResidentDataset(images_NHWC, streamed.labels_N, streamed.table_C256, streamed.classes)
