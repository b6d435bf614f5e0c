"""What is done to images, or found in a set, and reported: in the card's source, and as one warning each."""

import io
import os
import stat
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from encoded import encoded, exif, picture
from PIL import Image
from prepared import check_prepared, image_files, some_digits, two_splits, write_folder, write_zip

from data_prep import prepare
from data_prep.__main__ import main
from fastwi.beton import StoredBeton, read_beton
from fastwi.beton.format import JPEG, RAW
from fastwi.data.card import read_card
from fastwi.errors import UserError


def warned(tmp_path: Path, files: dict[str, bytes], **options: object) -> list[str]:
    """What `prepare` warns of; the set is in tmp_path/out."""
    lines: list[str] = []
    source = write_zip(tmp_path / "s.zip", files)
    prepare("folder", tmp_path / "out", source, writer="auto", warn=lines.append, **options)
    assert all(line.startswith(f"{source}: ") for line in lines)
    return [line for line in lines if "simplejpeg" not in line]


def refused(tmp_path: Path, source: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        prepare("folder", tmp_path / "out", source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("write_mode", ["raw", "smart", "jpeg"])
def test_turned_jpegs_are_upright_in_every_kind_of_set(tmp_path: Path, write_mode: str) -> None:
    """A beton's JPEGs are decoded without a look at EXIF: one that has an orientation is never stored as it is."""
    _, _, files = two_splits()
    upright, turned = encoded(picture(), "JPEG"), encoded(picture(), "JPEG", exif=exif(6))
    files |= {"train/class0/0000.jpg": upright, "train/class0/0001.JPG": turned}
    assert warned(tmp_path, files, write_mode=write_mode) == []
    assert read_card(tmp_path / "out").source.endswith(", 1 turned as EXIF says")
    with Image.open(io.BytesIO(turned)) as image:
        expected_HWC = np.asarray(image)[::-1].transpose(1, 0, 2)
    if write_mode == "raw":
        np.testing.assert_array_equal(read_beton(tmp_path / "out" / "train.beton").images_NHWC[2], expected_HWC)
        return
    beton = StoredBeton(tmp_path / "out" / "train.beton")
    names = sorted(path for path in files if path.startswith("train/"))
    first, second = names.index("train/class0/0000.jpg"), names.index("train/class0/0001.JPG")
    assert beton.modes_N[first] == JPEG
    assert beton.read(first) == upright
    assert beton.modes_N[second] == (RAW if write_mode == "smart" else JPEG)
    if write_mode == "smart":
        assert beton.read(second) == expected_HWC.tobytes()
    else:
        assert exif(6)[:6] not in beton.read(second)


@pytest.mark.parametrize("write_mode", ["raw", "smart"])
def test_transparency_is_refused_or_said_in_the_card(tmp_path: Path, write_mode: str) -> None:
    _, _, files = two_splits()
    image = picture().convert("RGBA")
    image.putalpha(0)
    files["train/class3/0009.png"] = encoded(image)
    message = refused(tmp_path, write_zip(tmp_path / "a.zip", files), write_mode=write_mode)
    assert "train/class3/0009.png" in message
    assert "--background" in message
    assert warned(tmp_path, files, write_mode=write_mode, background="white") == []
    assert read_card(tmp_path / "out").source.endswith(", 1 with transparency laid on white")
    beton = StoredBeton(tmp_path / "out" / "train.beton")
    assert beton.read(9) == bytes([255]) * 16 * 16 * 3
    message = refused(tmp_path, write_zip(tmp_path / "a.zip", files), background="paper")
    assert "paper" in message


def test_inks_profiles_and_leaks_are_counted_once(tmp_path: Path) -> None:
    _, _, files = two_splits()
    inked = picture().convert("CMYK")
    files |= {f"train/class{n}/cmyk.jpg": encoded(inked, "JPEG", quality=90 - n) for n in range(4)}
    files["test/class3/profile.png"] = encoded(picture(), icc_profile=b"an odd profile")
    files["test/class1/again.png"] = files["train/class2/0006.png"]
    lines = warned(tmp_path, files)
    assert len(lines) == 3
    [inks] = [line for line in lines if "CMYK" in line]
    [profile] = [line for line in lines if "profile.png" in line]
    [leak] = [line for line in lines if "again.png" in line]
    assert ": 4 images" in inks
    assert "train/class0/cmyk.jpg" in inks
    assert ": 1 image " in profile
    assert ": 1 image " in leak
    assert read_card(tmp_path / "out").source.endswith(", 4 from CMYK by a plain formula")


def test_hidden_images_and_classes_are_reported(tmp_path: Path) -> None:
    train, test, files = two_splits()
    files |= {"train/class0/.kept.png": b"x", "test/.cache/a.png": b"x", "train/class0/._0000.png": b"x"}
    files |= {"train/.gitkeep": b"", ".git/a.png": b"", "train/class0/.DS_Store": b""}
    [line] = warned(tmp_path, files)
    check_prepared(tmp_path / "out", train, test)
    assert "hidden" in line
    assert ": 2 (such as test/.cache/)" in line
    lines: list[str] = []
    prepare("folder", tmp_path / "b", write_folder(tmp_path / "f", files), warn=lines.append)
    check_prepared(tmp_path / "b", train, test)
    assert [each.replace("/f: ", "/s.zip: ") for each in lines] == [line]


@pytest.mark.parametrize("written", ["{path}", "./{path}", "mine/././{path}", "windows"])
def test_names_in_a_zip_however_its_program_writes_them(tmp_path: Path, written: str) -> None:
    train, test, files = two_splits()
    packed = {
        (path.replace("/", "\\") if written == "windows" else written.format(path=path)): content
        for path, content in files.items()
    }
    source = write_zip(tmp_path / "s.zip", packed)
    prepare("folder", tmp_path / "out", source)
    check_prepared(tmp_path / "out", train, test)


def test_links_in_a_zip_are_refused_and_on_disk_followed(tmp_path: Path) -> None:
    train, test, files = two_splits()
    source = write_zip(tmp_path / "s.zip", files)
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("train/class0/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "0000.png")
    message = refused(tmp_path, source)
    assert "train/class0/link.png" in message
    assert "link" in message
    folder = write_folder(tmp_path / "f", files)
    os.rename(folder / "train/class0", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "train/class0")
    prepare("folder", tmp_path / "out", folder)
    check_prepared(tmp_path / "out", train, test)


def renamed(files: dict[str, bytes], old: str, new: str, splits: tuple[str, ...]) -> dict[str, bytes]:
    return {
        path.replace(f"/{old}/", f"/{new}/") if path.startswith(splits) else path: data
        for path, data in files.items()
    }


def test_names_of_classes_that_look_the_same(tmp_path: Path) -> None:
    _, _, files = two_splits()
    composed, spread = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    twice = renamed(renamed(files, "class1", composed, ("t",)), "class2", spread, ("t",))
    assert "twice" in refused(tmp_path, write_zip(tmp_path / "a.zip", twice))
    apart = renamed(renamed(files, "class1", composed, ("train",)), "class1", spread, ("test",))
    message = refused(tmp_path, write_zip(tmp_path / "a.zip", apart))
    assert "Unicode" in message
    cased = renamed(renamed(files, "class1", "A", ("t",)), "class2", "a ", ("t",))
    [line] = warned(tmp_path, cased)
    assert "'A' and 'a '" in line
    assert {"A", "a "} < set(read_card(tmp_path / "out").classes)


def test_warnings_reach_the_terminal_and_the_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = some_digits(3), some_digits(1)  # the first of each class, which are training images too
    source = write_zip(tmp_path / "s.zip", image_files("train", train) | image_files("test", test))
    assert main(["folder", "--source", str(source), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"fastwi: warning: {source}: 10 images of the test split")
    with pytest.warns(UserWarning, match="10 images of the test split") as caught:
        prepare("folder", tmp_path / "out", source)
    assert caught[0].filename == __file__
