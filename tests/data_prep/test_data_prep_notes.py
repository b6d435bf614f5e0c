"""What is done to images, or found in a set, and reported: in the card's source, and as one warning each."""

from pathlib import Path

import numpy as np
import pytest
from encoded import encoded, exif, picture
from prepared import image_files, png, refusal, some_digits, two_splits, write_zip

from data_prep import prepare
from data_prep.__main__ import main
from fastwi.beton import StoredBeton
from fastwi.beton.format import JPEG, RAW
from fastwi.data.card import read_card
from fastwi.data.decode import decode_jpeg


def warned(tmp_path: Path, files: dict[str, bytes], **options: object) -> list[str]:
    """What `prepare` warns of; the set is in tmp_path/out."""
    lines: list[str] = []
    source = write_zip(tmp_path / "s.zip", files)
    prepare("folder", tmp_path / "out", source, warn=lines.append, **options)
    assert all(line.startswith(f"{source}: ") for line in lines)
    return [line for line in lines if "simplejpeg" not in line]


@pytest.mark.parametrize("write_mode", ["raw", "smart", "jpeg"])
def test_turned_jpegs_are_upright_in_every_kind_of_set(tmp_path: Path, write_mode: str) -> None:
    """A beton's JPEGs are decoded without a look at EXIF: one that has an orientation is never stored as it is."""
    _, _, files = two_splits()
    upright, turned = encoded(picture(), "JPEG"), encoded(picture(), "JPEG", exif=exif(6))
    files |= {"train/class0/0000.jpg": upright, "train/class0/0001.JPG": turned}
    assert warned(tmp_path, files, write_mode=write_mode) == []
    assert read_card(tmp_path / "out").source.endswith(", 1 turned as EXIF says")
    expected_HWC = decode_jpeg(turned, 16, 16)[::-1].transpose(1, 0, 2)
    beton = StoredBeton(tmp_path / "out" / "train.beton")
    names = sorted(path for path in files if path.startswith("train/"))
    first, second = names.index("train/class0/0000.jpg"), names.index("train/class0/0001.JPG")
    assert beton.modes_N[first] == (RAW if write_mode == "raw" else JPEG)
    assert beton.modes_N[second] == (JPEG if write_mode == "jpeg" else RAW)
    if write_mode != "raw":
        assert beton.read(first) == upright
    if write_mode == "jpeg":
        assert exif(6)[:6] not in beton.read(second)
    else:
        assert beton.read(second) == expected_HWC.tobytes()


@pytest.mark.parametrize("write_mode", ["raw", "smart"])
def test_transparency_is_refused_or_said_in_the_card(tmp_path: Path, write_mode: str) -> None:
    _, _, files = two_splits()
    image = picture().convert("RGBA")
    image.putalpha(0)
    files["train/class3/0009.png"] = encoded(image)
    source = write_zip(tmp_path / "a.zip", files)
    message = refusal(tmp_path, source, write_mode=write_mode)
    assert "train/class3/0009.png" in message
    assert "--background" in message
    assert "paper" in refusal(tmp_path, source, background="paper")
    assert warned(tmp_path, files, write_mode=write_mode, background="white") == []
    assert read_card(tmp_path / "out").source.endswith(", 1 with transparency laid on white")
    assert StoredBeton(tmp_path / "out" / "train.beton").read(9) == bytes([255]) * 16 * 16 * 3


def test_inks_profiles_and_leaks_are_counted_once(tmp_path: Path) -> None:
    _, _, files = two_splits()
    inked = picture().convert("CMYK")
    files |= {f"train/class{n}/cmyk.jpg": encoded(inked, "JPEG", quality=90 - n) for n in range(4)}
    files["test/class3/profile.png"] = encoded(picture(), icc_profile=b"an odd profile")
    files["test/class1/again.png"] = files["train/class2/0006.png"]
    files["train/class2/again.png"] = files["train/class2/0006.png"]  # twice in one split is no leak
    inks, profile, leak = warned(tmp_path, files)
    assert ": 4 images of CMYK" in inks
    assert "train/class0/cmyk.jpg" in inks
    assert ": 1 image with a colour profile" in profile
    assert "test/class3/profile.png" in profile
    assert ": 1 image of the test split" in leak
    assert "test/class1/again.png" in leak
    assert read_card(tmp_path / "out").source.endswith(", 4 from CMYK by a plain formula")


def test_a_leak_is_found_where_one_of_the_files_becomes_a_jpeg(tmp_path: Path) -> None:
    _, _, files = two_splits()
    files["train/class0/camera.jpg"] = encoded(picture(), "JPEG")
    files["test/class0/converted.png"] = png(decode_jpeg(files["train/class0/camera.jpg"], 16, 16))
    for write_mode in ("raw", "smart", "jpeg"):
        [leak] = warned(tmp_path, files, write_mode=write_mode)
        assert "test/class0/converted.png" in leak


def test_the_same_bytes_in_another_shape_are_no_leak(tmp_path: Path) -> None:
    _, _, files = two_splits()
    for part, shape in (("train", (8, 18, 3)), ("test", (12, 12, 3))):
        files[f"{part}/class0/black.png"] = png(np.zeros(shape, np.uint8))
    assert warned(tmp_path, files, keep_size=True) == []


def test_warnings_reach_the_terminal_and_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = some_digits(3), some_digits(1)  # the first of each class, which are training images too
    source = write_zip(tmp_path / "s.zip", image_files("train", train) | image_files("test", test))
    assert main(["folder", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith(f"fastwi: warning: {source}: 10 images of the test split")
    with pytest.warns(UserWarning, match="10 images of the test split") as caught:
        prepare("folder", tmp_path / "out", source)
    assert caught[0].filename == __file__
