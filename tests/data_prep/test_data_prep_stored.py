"""Folders whose JPEGs or sizes are kept: what is stored, what the card says, what is refused; nothing half done."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prepared import card_values, png, snapshot, write_zip
from stored_samples import jpeg_of, smooth_image

from data_prep import prepare
from data_prep.__main__ import main
from fastwi.beton import StoredBeton
from fastwi.beton.format import JPEG, RAW
from fastwi.config.schema import DataConfig
from fastwi.data.batches import whole_images
from fastwi.data.card import read_card
from fastwi.data.decode import decode_jpeg
from fastwi.data.split import open_split
from fastwi.data.streamed import StreamedDataset

needs_ffcv = [
    pytest.mark.ffcv,
    pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="FFCV is not installed"),
]
CPU = torch.device("cpu")


def files_of(seed: int, sizes: bool) -> dict[str, bytes]:
    """24 training and 8 test images of 2 classes, JPEGs and PNGs in turn; 12 x 12 pixels unless `sizes` vary."""
    generator = np.random.default_rng(seed)
    files = {}
    for number in range(32):
        height, width = (int(side) for side in generator.integers(5, 30, 2)) if sizes else (12, 12)
        image_HWC = smooth_image(generator, height, width)
        name = f"{'train' if number < 24 else 'test'}/class{number % 4 // 2}/{number:02}"
        if number % 2:
            files[f"{name}.png"] = png(image_HWC)
        else:
            files[f"{name}.jpg"] = jpeg_of(image_HWC, quality=80)
    return files


def in_order(files: dict[str, bytes], split: str) -> list[bytes]:
    return [files[path] for path in sorted(files) if path.startswith(f"{split}/")]


def test_nothing_is_lost_and_training_sees_what_a_raw_set_holds(tmp_path: Path, seed: int) -> None:
    files = files_of(seed, sizes=False)
    source = write_zip(tmp_path / "s.zip", files)
    prepare("folder", tmp_path / "smart", source, write_mode="smart")
    prepare("folder", tmp_path / "raw", source, writer="raw")
    smart, raw = read_card(tmp_path / "smart"), read_card(tmp_path / "raw")
    assert (smart.encoding, smart.sizes, smart.image_shape) == ("mixed", "one", (12, 12, 3))
    assert smart.source == "image folder s.zip, JPEG files as they are"
    assert (smart.classes, smart.counts, smart.class_counts) == (raw.classes, raw.counts, raw.class_counts)
    assert (smart.mean, smart.std) == (raw.mean, raw.std)
    for split in ("train", "test"):
        beton = StoredBeton(tmp_path / "smart" / f"{split}.beton")
        for n, data in enumerate(in_order(files, split)):
            assert beton.modes_N[n] == (JPEG if data.startswith(b"\xff\xd8") else RAW)
            assert beton.modes_N[n] == RAW or beton.read(n) == data
        assert smart.sha256[split] == beton.sha256()
        streamed = open_split(tmp_path / "smart", split, smart, DataConfig(), CPU)
        resident = open_split(tmp_path / "raw", split, raw, DataConfig(), CPU)
        assert torch.equal(whole_images(streamed), resident.images_NHWC)
        assert torch.equal(streamed.labels_N, resident.labels_N)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_with_jpegs_in_one_split_alone_is_mixed(tmp_path: Path, seed: int, split: str) -> None:
    files = files_of(seed, sizes=False).items()
    some = {path: data for path, data in files if path.endswith(".jpg") == path.startswith(split)}
    prepare("folder", tmp_path / "out", write_zip(tmp_path / "s.zip", some), write_mode="smart")
    card = read_card(tmp_path / "out")
    assert card.encoding == "mixed"
    for name, count in (("train", 12), ("test", 4)):
        assert whole_images(open_split(tmp_path / "out", name, card, DataConfig(), CPU)).shape == (count, 12, 12, 3)


@pytest.mark.parametrize(
    ("mode", "encoding", "said"),
    [
        ("raw", "raw", "sizes kept"),
        ("smart", "mixed", "JPEG files as they are, sizes kept"),
        ("jpeg", "jpeg", "as JPEG, quality 95, sizes kept"),
    ],
)
def test_sizes_kept(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str], mode: str, encoding: str, said: str
) -> None:
    files = files_of(seed, sizes=True)
    source, out = write_zip(tmp_path / "s.zip", files), tmp_path / "out"
    options = ["--write-mode", mode, "--keep-size", "--name", "mine"]
    assert main(["folder", "--source", str(source), "--out", str(out), *options]) == 0
    kind = "" if mode == "raw" else f" ({encoding})"
    printed = capsys.readouterr().out
    assert printed == f"{out}: mine, 24 train + 8 test images of several sizes{kind}, 2 classes\n"
    card, beton = read_card(out), StoredBeton(out / "train.beton")
    assert (card.encoding, card.sizes, card.source) == (encoding, "various", f"image folder s.zip, {said}")
    assert card.image_shape == (*beton.size(0), 3)
    pixels = []
    for n, data in enumerate(in_order(files, "train")):
        stored = beton.read(n)
        assert beton.modes_N[n] == RAW or mode == "jpeg" or stored == data
        if mode == "jpeg" and data.startswith(b"\x89PNG"):
            assert stored == jpeg_of(np.asarray(Image.open(io.BytesIO(data))), quality=95)
        decoded = decode_jpeg(stored, *beton.size(n)) if beton.modes_N[n] == JPEG else np.frombuffer(stored, np.uint8)
        pixels.append(decoded.reshape(-1, 3) / 255)
    # The statistics are of what is stored, not of what it was made from.
    np.testing.assert_allclose(card.mean, np.concatenate(pixels).mean(0), rtol=1e-9)
    np.testing.assert_allclose(card.std, np.concatenate(pixels).std(0), rtol=1e-9)
    dataset = open_split(out, "test", card, DataConfig(image_size=10), CPU)
    assert type(dataset) is StreamedDataset  # where all is raw too
    assert whole_images(dataset).shape == (8, 10, 10, 3)


def test_one_size_kept_raw_is_the_plain_set(tmp_path: Path, seed: int) -> None:
    """Test images of another size make a set of several."""
    files = files_of(seed, sizes=False)
    other = {path: png(np.zeros((14, 14, 3), np.uint8)) for path in files if path.startswith("test/")}
    prepare("folder", tmp_path / "other", write_zip(tmp_path / "other.zip", files | other), keep_size=True)
    assert read_card(tmp_path / "other").sizes == "various"
    source = write_zip(tmp_path / "s.zip", files)
    prepare("folder", tmp_path / "kept", source, keep_size=True)
    prepare("folder", tmp_path / "plain", source, writer="raw")
    kept, plain = card_values(tmp_path / "kept"), card_values(tmp_path / "plain")
    assert {name for name in plain if kept[name] != plain[name]} == {"source", "card_sha256"}
    files = [snapshot(tmp_path / name) for name in ("kept", "plain")]
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {"card.json"}


@pytest.mark.parametrize("writer", ["raw", pytest.param("ffcv", marks=needs_ffcv)])
def test_pages_grow_with_the_largest_image(tmp_path: Path, seed: int, writer: str) -> None:
    """The split is read again from its start, and what is said of it is counted once."""
    generator = np.random.default_rng(seed)
    images = [smooth_image(generator, 12, 12), smooth_image(generator, 1000, 900), smooth_image(generator, 12, 12)]
    images = images if writer == "raw" else [smooth_image(generator, 900, 900)] * 3
    files = {f"{split}/a/{n}.png": png(each) for n, each in enumerate(images) for split in ("train", "test")}
    lines: list[str] = []
    source = write_zip(tmp_path / "s.zip", files)
    prepare("folder", tmp_path / "out", source, keep_size=writer == "raw", writer=writer, warn=lines.append)
    beton = StoredBeton(tmp_path / "out" / "train.beton")
    assert [beton.read(n) for n in range(3)] == [image.tobytes() for image in images]
    card = read_card(tmp_path / "out")
    assert card.class_counts == {"train": (3,), "test": (3,)}
    pixels = np.concatenate([image.reshape(-1, 3) / 255 for image in images])
    np.testing.assert_allclose((card.mean, card.std), (pixels.mean(0), pixels.std(0)), rtol=1e-9)
    assert [line.split(": ", 1)[1].split(" of")[0] for line in lines] == ["3 images"]
