"""Folders whose JPEGs or sizes are kept: what is stored, what the card says, what is refused; nothing half done."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import png, write_folder, write_zip
from stored_samples import jpeg_of, smooth_image

from data_prep import prepare
from data_prep.__main__ import main
from fastwi.beton import StoredBeton, read_beton
from fastwi.beton.format import JPEG, RAW
from fastwi.config.schema import DataConfig
from fastwi.data.batches import whole_images
from fastwi.data.card import read_card
from fastwi.data.decode import decode_jpeg
from fastwi.data.resident import load_split
from fastwi.data.split import open_split
from fastwi.errors import UserError

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
        resident, _ = load_split(tmp_path / "raw", split, CPU)
        assert torch.equal(whole_images(streamed), resident.images_NHWC)
        assert torch.equal(streamed.labels_N, resident.labels_N)
        assert torch.equal(streamed.table_C256, resident.table_C256)


def test_all_as_jpeg(tmp_path: Path, seed: int) -> None:
    files = files_of(seed, sizes=True)
    source = write_folder(tmp_path / "s", files)
    prepare("folder", tmp_path / "out", source, write_mode="jpeg", keep_size=True, name="mine")
    card = read_card(tmp_path / "out")
    assert (card.name, card.encoding, card.sizes) == ("mine", "jpeg", "various")
    assert card.source == "image folder s, as JPEG, quality 95, sizes kept"
    beton = StoredBeton(tmp_path / "out" / "train.beton")
    assert (beton.modes_N == JPEG).all()
    pixels = []
    for n, data in enumerate(in_order(files, "train")):
        if data.startswith(b"\xff\xd8"):
            assert beton.read(n) == data
        pixels.append(decode_jpeg(beton.read(n), *beton.size(n)).reshape(-1, 3) / 255)
    # The statistics are of what is stored, not of what it was made from.
    np.testing.assert_allclose(card.mean, np.concatenate(pixels).mean(0), rtol=1e-9)
    np.testing.assert_allclose(card.std, np.concatenate(pixels).std(0), rtol=1e-9)
    assert card.image_shape == (*beton.size(0), 3)


def test_sizes_kept_raw(tmp_path: Path, seed: int) -> None:
    source = write_zip(tmp_path / "s.zip", files_of(seed, sizes=True))
    prepare("folder", tmp_path / "out", source, keep_size=True)
    card = read_card(tmp_path / "out")
    assert (card.encoding, card.sizes) == ("raw", "various")
    beton = StoredBeton(tmp_path / "out" / "test.beton")
    assert beton.all_raw
    assert beton.one_size is None
    dataset = open_split(tmp_path / "out", "test", card, DataConfig(image_size=10), CPU)
    assert whole_images(dataset).shape == (8, 10, 10, 3)


def test_one_size_kept_raw_is_the_plain_set(tmp_path: Path, seed: int) -> None:
    source = write_zip(tmp_path / "s.zip", files_of(seed, sizes=False))
    prepare("folder", tmp_path / "kept", source, keep_size=True)
    prepare("folder", tmp_path / "plain", source, writer="raw")
    kept, plain = (json.loads((tmp_path / name / "card.json").read_text()) for name in ("kept", "plain"))
    assert kept.pop("source") == "image folder s.zip, sizes kept"
    assert plain.pop("source") == "image folder s.zip"
    assert kept.pop("card_sha256") != plain.pop("card_sha256")
    assert kept == plain
    assert (tmp_path / "kept" / "train.beton").read_bytes() == (tmp_path / "plain" / "train.beton").read_bytes()
    assert len(read_beton(tmp_path / "kept" / "test.beton").labels_N) == 8


def test_odd_images_end_the_write(tmp_path: Path, seed: int) -> None:
    files = files_of(seed, sizes=False)
    cut = files["train/class1/02.jpg"][:-20]
    other = jpeg_of(smooth_image(np.random.default_rng(seed), 9, 12))
    for data, said in ((cut, "damaged image"), (other, "--keep-size")):
        source = write_zip(tmp_path / "s.zip", files | {"train/class1/02.jpg": data})
        with pytest.raises(UserError, match=rf"s\.zip: train/class1/02\.jpg.*{said}") as caught:
            prepare("folder", tmp_path / "out", source, write_mode="smart")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


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
    assert read_card(tmp_path / "out").class_counts == {"train": (3,), "test": (3,)}
    assert [line.split(": ", 1)[1].split(" of")[0] for line in lines] == ["3 images"]


def test_the_command(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "s.zip", files_of(seed, sizes=True))
    out = tmp_path / "out"
    arguments = ["folder", "--source", str(source), "--out", str(out), "--write-mode", "smart", "--keep-size"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: s, 24 train + 8 test images of several sizes (mixed), 2 classes\n"
    for stage in ("write train.beton: 24 of 24", "write test.beton: 8 of 8"):
        assert f"{stage} images" in said.err
