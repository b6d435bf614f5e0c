"""Damaged .beton files and cards. What is accepted is compared with a second, plain reading of the bytes."""

import contextlib
import dataclasses
import functools
import io
import json
import random
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_prep.dataset import Split
from data_prep.digits import load_digits
from data_prep.write import write_dataset
from fastwi.beton import StoredBeton, StoredImage, content_sha256, write_stored
from fastwi.beton.format import JPEG, RAW, page_size_for
from fastwi.config.schema import DataConfig
from fastwi.data.batches import whole_images
from fastwi.data.card import read_card, with_checksum
from fastwi.data.decode import decode_jpeg
from fastwi.data.split import open_split
from hostile.mutate import damaged, damaged_text, damaged_value
from hostile.target import Finding, accepted, odd_file, refused

_HEADER, _FIELD, _RECORD, _ALLOCATION = 24, 1041, 24, 24  # bytes
_VARIANTS = ((12, 16, 16, 4096), (1, 16, 16, 1024), (3, 8, 5, 128), (40, 4, 4, 64))  # images, height, width, page


class Betons:
    """`StoredBeton` and `open_split` on files of real digits, and what streams them."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        digits = load_digits("digits")
        _write_several(directory / f"{len(_VARIANTS)}.beton", digits.train)
        for number, (images, height, width, page) in enumerate(_VARIANTS):
            part = Split(digits.train.images_NHWC[:images, :height, :width], digits.train.labels_N[:images])
            _write(directory / f"{number}.beton", part, page)
        train, test = (Split(split.images_NHWC[:40], split.labels_N[:40]) for split in (digits.train, digits.test))
        (directory / "set").mkdir()
        small = dataclasses.replace(digits, train=train, test=test)
        write_dataset(small, directory / "set", "raw", lambda *_: None)
        for name in ("train", "test"):  # the writer's pages of 2 MiB are mostly zeros
            path = directory / "set" / f"{name}.beton"
            _write(path, _read(path), 4096)

    def __init__(self, corpus: Path) -> None:
        self._files = [(corpus / f"{number}.beton").read_bytes() for number in range(len(_VARIANTS) + 1)]
        self._train = (corpus / "set" / "train.beton").read_bytes()
        self._digests = (corpus / "set" / "train.digests").read_bytes()
        self._card = (corpus / "set" / "card.json").read_text()

    def attempt(self, draw: random.Random, work: Path) -> bool:
        if draw.random() < 0.15:
            return self._directory(draw, work)
        path = work / "a.beton"
        if draw.random() < 0.01:
            odd_file(draw, path, work.parent.parent / "outside")
        else:
            data = draw.choice(self._files)
            path.write_bytes(damaged(draw, data, _places(data), self._files))
        if draw.random() < 0.4:
            return _streamed(path)
        beton = accepted(lambda: _read(path))
        if beton is not None:
            _compare(path.read_bytes(), beton)
        return beton is not None

    def _directory(self, draw: random.Random, work: Path) -> bool:
        """A dataset directory whose card, beton or image digests, or all of them, are damaged; resident or streamed."""
        what = draw.randrange(4)
        text = _damaged_card(draw, self._card) if what in (0, 2) else self._card
        (work / "card.json").write_bytes(text.encode(errors="surrogatepass"))
        data = damaged(draw, self._train, _places(self._train), self._files) if what in (1, 2) else self._train
        (work / "train.beton").write_bytes(data)
        digests = damaged(draw, self._digests, [(0, 8), (8, 16)], self._files) if what > 1 else self._digests
        (work / "train.digests").write_bytes(digests)
        images = draw.choice((0, 0, 7, 40, 41))
        if draw.random() < 0.5:
            return _streamed_set(work, images)
        kept = DataConfig(str(work), train_images=images, streaming="resident")
        if refused(lambda: open_split(work, "train", read_card(work), kept, torch.device("cpu"))):
            return False
        card, beton = read_card(work), _read(work / "train.beton")
        if card.sha256["train"] != content_sha256(beton.images_NHWC, beton.labels_N):
            raise Finding("a dataset was accepted that is not what its card says")
        if card.image_shape != beton.images_NHWC.shape[1:]:
            raise Finding(f"images of {beton.images_NHWC.shape[1:]} were accepted under a card of {card.image_shape}")
        return True


def _streamed_set(work: Path, images: int) -> bool:
    data = DataConfig(str(work), train_images=images, streaming="streamed")

    def stream() -> str:
        dataset = open_split(work, "train", read_card(work), data, torch.device("cpu"))
        return content_sha256(whole_images(dataset).numpy(), dataset.labels_N.numpy())

    sha256 = accepted(stream)
    if sha256 is not None and not images and read_card(work).sha256["train"] != sha256:
        raise Finding("a streamed dataset was accepted that is not what its card says")
    return sha256 is not None


def _write(path: Path, split: Split, page_size: int) -> None:
    write_stored(path, (image for image, _ in split.stored()), split.labels_N, page_size)


def _read(path: Path) -> Split:
    with contextlib.closing(StoredBeton(path)) as beton:
        return Split(beton.read_raw(), beton.labels_N)


def _write_several(path: Path, split: Split) -> None:
    """Raw images and JPEGs of several sizes in one file."""
    images = []
    for place in range(8):
        image_HWC = split.images_NHWC[place, : 16 - place]
        pixels = image_HWC.tobytes()
        if place % 2:
            buffer = io.BytesIO()
            Image.fromarray(image_HWC).save(buffer, "JPEG")
            pixels = buffer.getvalue()
        images.append(StoredImage(JPEG if place % 2 else RAW, 16 - place, 16, pixels))
    write_stored(path, images, split.labels_N[:8], page_size_for(2048))


def _streamed(path: Path) -> bool:
    """Open a file as streaming does, and decode every image that it will give."""
    beton, whole = accepted(lambda: StoredBeton(path)), True
    if beton is None:
        return False
    for n in range(len(beton)):
        height, width = beton.size(n)
        data = beton.read(n)
        if beton.modes_N[n] == JPEG:
            decoded = accepted(functools.partial(decode_jpeg, data, height, width))
            if decoded is None:
                whole = False
            elif decoded.shape != (height, width, 3) or decoded.dtype != np.uint8:
                raise Finding(f"image {n} was decoded to {decoded.dtype}{decoded.shape}")
        elif len(data) != height * width * 3:
            raise Finding(f"image {n} has {len(data)} bytes for {height} x {width} pixels")
    beton.close()
    return whole


def _places(data: bytes) -> list[tuple[int, int]]:
    """Where the numbers are: of the header, the types of fields, the records, the allocation table."""
    samples, table = struct.unpack_from("<QQ", data, 8)
    places = [(0, 2), (2, 2), (4, 4), (8, 8), (16, 8), (_HEADER, 1), (_HEADER + _FIELD, 1)] * 3
    for sample in range(samples):
        start = _HEADER + 2 * _FIELD + sample * _RECORD
        places += [(start, 1), (start + 1, 2), (start + 3, 2), (start + 5, 8)]
        places += [(table + sample * _ALLOCATION + 8 * part, 8) for part in range(3)]
    return places


def _compare(data: bytes, beton: Split) -> None:
    """Read the records one by one, as the format says, and compare."""
    _, fields, _, samples, _ = struct.unpack_from("<HHIQQ", data)
    if fields != 2:
        return  # FFCV's other fields; their sizes are the reader's knowledge
    image_first = data[_HEADER] == 2
    start = _HEADER + fields * _FIELD
    for sample in range(samples):
        record = start + sample * _RECORD
        mode, width, height, place = struct.unpack_from("<BHHQ", data, record + (0 if image_first else 8))
        (label,) = struct.unpack_from("<q", data, record + (16 if image_first else 0))
        size = width * height * 3
        pixels = data[place : place + size]
        if mode != 1 or len(pixels) != size or beton.images_NHWC[sample].tobytes() != pixels:
            raise Finding(f"image {sample} is not the file's")
        if beton.images_NHWC.shape[1:3] != (height, width) or beton.labels_N[sample] != label:
            raise Finding(f"size or label of image {sample} is not the file's")
    if len(beton.images_NHWC) != samples or beton.labels_N.dtype != np.int64:
        raise Finding("another number of images")


def _damaged_card(draw: random.Random, text: str) -> str:
    if draw.random() < 0.5:
        return damaged_text(draw, text, ("[]", "{}", "-1", '"x"', "1e999", "NaN", "true", ","))
    value = damaged_value(draw, json.loads(text))
    # Mostly with a right checksum: what is behind it is to be met too.
    return json.dumps(with_checksum(value) if isinstance(value, dict) and draw.random() < 0.8 else value)
