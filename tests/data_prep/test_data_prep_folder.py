"""Image folders and zips of them: what is read, in which order, and what is refused."""

import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prepared import check_prepared, image_files, png, some_digits, two_splits, write_folder, write_zip

from data_prep import prepare
from data_prep.dataset import Split
from fastwi.errors import UserError

REAL_ZIP = Path(__file__).parents[3] / "shared" / "data" / "cifar10_jpeg.zip"


def refusal(tmp_path: Path, source: Path, **options: object) -> str:
    """What prepare says about `source`; it must leave nothing behind."""
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        prepare("folder", out, source, writer="raw", **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "mine/"])
@pytest.mark.parametrize("kind", ["folder", "stored", "deflated"])
def test_folders_and_zips(tmp_path: Path, prefix: str, kind: str) -> None:
    train, test, files = two_splits()
    files = {prefix + path: content for path, content in reversed(files.items())}  # the order must not matter
    source = tmp_path / "source.zip"
    if kind == "folder":
        write_folder(source, files)
    else:
        write_zip(source, files, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    prepare("folder", tmp_path / "out", source, writer="raw")
    card = check_prepared(tmp_path / "out", train, test)
    assert card.classes == tuple(f"class{label}" for label in range(10))
    assert card.name == (prefix.rstrip("/") or "source")
    assert card.source == "image folder source.zip"


def test_hidden_files_and_strangers_beside_the_splits_do_no_harm(tmp_path: Path) -> None:
    train, test, files = two_splits()
    files |= {
        "README.md": b"x",
        "__MACOSX/train/class0/._0.png": b"x",
        "train/.DS_Store": b"x",
        "train/class0/.DS_Store": b"x",
        "train/class0/Thumbs.db": b"x",
        "train/labels.csv": b"x",
        "valid/class0/bad.png": b"not looked at",
        "notes/a.txt": b"x",
    }
    prepare("folder", tmp_path / "a", write_folder(tmp_path / "s", files), writer="raw")
    check_prepared(tmp_path / "a", train, test)
    prepare("folder", tmp_path / "b", write_zip(tmp_path / "s.zip", files), writer="raw")
    check_prepared(tmp_path / "b", train, test)


def test_valid_is_added_behind_train(tmp_path: Path) -> None:
    train, test, files = two_splits()
    valid = some_digits(1, skip=20)
    source = write_zip(tmp_path / "cinic.zip", files | image_files("valid", valid))
    both = Split(
        np.concatenate([train.images_NHWC, valid.images_NHWC]),
        np.concatenate([train.labels_N, valid.labels_N]),
    )
    prepare("cinic10", tmp_path / "out", source, with_valid=True, writer="raw")
    card = check_prepared(tmp_path / "out", both, test)
    assert card.name == "cinic10"
    assert card.source == "image folder cinic.zip, valid added to train"
    prepare("cinic10", tmp_path / "out", source, writer="raw")
    check_prepared(tmp_path / "out", train, test)


def test_mixed_sizes_are_refused_and_size_mends_them(tmp_path: Path) -> None:
    train, _, files = two_splits()
    files["train/class3/0009.png"] = png(train.images_NHWC[9][:12])
    source = write_zip(tmp_path / "a.zip", files)
    message = refusal(tmp_path, source)
    assert message.startswith(f"{source}: train/class3/0009.png has 12 x 16 pixels")
    assert "--size N" in message
    prepare("folder", tmp_path / "resized", source, size=8, writer="raw")
    from fastwi.beton import read_beton
    from fastwi.data.card import read_card

    card = read_card(tmp_path / "resized")
    assert card.image_shape == (8, 8, 3)
    assert card.source.endswith("resized to 8 x 8")
    small = read_beton(tmp_path / "resized" / "train.beton").images_NHWC
    # Each digit is made of 2 x 2 squares; halved, it is close to its 8 x 8 original.
    assert np.abs(small[0].astype(int) - train.images_NHWC[0, ::2, ::2]).mean() < 40
    assert np.corrcoef(small[0].reshape(-1), train.images_NHWC[0, ::2, ::2].reshape(-1))[0, 1] > 0.9


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    write_zip(tmp_path / "empty.zip", {})
    whole = write_zip(tmp_path / "cut.zip", two_splits()[2])
    whole.write_bytes(whole.read_bytes()[:-500])
    for name, said in {
        "none": "does not exist",
        "text.zip": "not a zip archive",
        "cut.zip": "not a zip archive",
        "empty": "holds no train/ folder; lay it out as [prefix/]train/",
        "empty.zip": "holds no train/ folder; lay it out as [prefix/]train/",
    }.items():
        assert refusal(tmp_path, tmp_path / name).startswith(f"{tmp_path / name}: {said}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test/": None}, "holds no test/ folder"),
        ({"a/": "train/"}, "holds no a/test/ folder"),
        ({"train/class9/": None}, "test/, but not train/, has class class9"),
        ({"test/class4/": None}, "only train/, not test/, has class class4"),
        ({"train/class0/a.webp": b"x"}, "train/class0/a.webp: neither .png nor .jpg"),
        ({"train/a.png": b"x"}, "train/a.png: lies in no class folder"),
        ({"train/class0/more/a.png": b"x"}, "train/class0/more/ lies too deep"),
        ({"train/class0/0000.png": b""}, "train/class0/0000.png: neither a PNG nor a JPEG image"),
        ({"train/class5/0016.png": b"GIF89a" + bytes(99)}, "train/class5/0016.png: neither a PNG nor a JPEG"),
        ({"test/class9/0019.png": "cut"}, "test/class9/0019.png: damaged image ("),
        ({"test/class9/0019.png": "grey16"}, "test/class9/0019.png: has 16 bits a channel"),
        ({"a/": ""}, "holds a/train and b/train"),
        ({"test/class0/0000.png": "small"}, "test/class0/0000.png has 14 x 16 pixels, the first training image"),
        ({"train/class10/": b""}, "train/class10/ holds no images"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_layouts_and_images_that_are_refused(tmp_path: Path, kind: str, change: dict[str, object], said: str) -> None:
    _, test, files = two_splits()
    [(place, value)] = change.items()
    if value is None:
        files = {path: content for path, content in files.items() if not path.startswith(place)}
    elif value == "train/":
        files = {place + path: content for path, content in files.items() if path.startswith("train/")}
    elif value == "":
        files = {prefix + path: content for prefix in ("a/", "b/") for path, content in files.items()}
    elif value == "cut":
        files[place] = files[place][:-40]
    elif value == "grey16":
        files[place] = png(np.full((16, 16), 40_000, np.uint16))
    elif value == "small":
        files[place] = png(test.images_NHWC[0, 2:])
    elif not place.endswith("/"):
        assert isinstance(value, bytes)
        files[place] = value
    if kind == "folder":
        source = write_folder(tmp_path / "s", files)
        if value == b"" and place.endswith("/"):
            (source / place).mkdir()
    else:
        source = write_zip(tmp_path / "s.zip", files | ({place: b""} if place.endswith("/") and value == b"" else {}))
    message = refusal(tmp_path, source)
    assert message.startswith(f"{source}: ")
    assert said in message


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../train/class0/x.png", "does not lie within"),
        ("train/../x.png", "does not lie within"),
        ("/train/class0/x.png", "does not lie within"),
        ("train//x.png", "does not lie within"),
        ("train\\..\\..\\a.png", "does not lie within"),
        ("train/class0/0000.png", "occurs twice"),
        ("train\\class0\\0000.png", "occurs twice"),
    ],
)
def test_zip_entries_that_are_refused(tmp_path: Path, name: str, said: str) -> None:
    source = write_zip(tmp_path / "s.zip", two_splits()[2])
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(name, b"x")
    assert refusal(tmp_path, source).startswith(f"{source}: entry {name!r} {said}")


def test_a_class_whose_name_is_not_unicode(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "s", two_splits()[2])
    for split in ("train", "test"):
        os.rename(source / split / "class9", os.fsencode(source / split) + b"/class\xff")
    assert "classes.9" in refusal(tmp_path, source)


def test_a_zip_that_is_damaged_inside(tmp_path: Path) -> None:
    _train, _test, files = two_splits()
    source = write_zip(tmp_path / "s.zip", files)
    data = bytearray(source.read_bytes())
    data[data.index(files["train/class2/0006.png"]) + 60] ^= 255
    source.write_bytes(data)
    assert "train/class2/0006.png: cannot be read (Bad CRC-32" in refusal(tmp_path, source)


def test_an_entry_that_claims_to_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _train, _test, files = two_splits()
    files["train/class1/0003.png"] += bytes(10_000)
    monkeypatch.setattr("data_prep.trees.MAX_FILE_BYTES", 9_999)
    size = len(files["train/class1/0003.png"])
    said = f"train/class1/0003.png: has {size} bytes, too many for an image; remove it"
    assert said in refusal(tmp_path, write_zip(tmp_path / "s.zip", files, zipfile.ZIP_DEFLATED))
    assert said in refusal(tmp_path, write_folder(tmp_path / "s", files))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    _train, _test, files = two_splits()
    source = write_folder(tmp_path / "s", files)
    os.mkfifo(source / "train" / "class0" / "pipe.png")
    assert "train/class0/pipe.png: cannot be read (not a regular file)" in refusal(tmp_path, source)


@pytest.mark.skipif(not REAL_ZIP.exists(), reason="needs the real images beside the repository")
def test_real_jpegs(tmp_path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(REAL_ZIP) as archive:
        names = [n for n in archive.namelist() if n.endswith(("/0000.jpg", "/0500.jpg"))]
        write_zip(tmp_path / "some.zip", {name: archive.read(name) for name in names})
        decoded = {}
        for name in names:
            with archive.open(name) as stream, Image.open(stream) as image:
                decoded[name] = np.asarray(image)
    assert len(names) == 40
    splits = []
    for part in ("train", "test"):
        chosen = sorted(name for name in names if f"/{part}/" in name)
        splits.append(Split(np.stack([decoded[name] for name in chosen]), np.repeat(np.arange(10), 2)))
    prepare("folder", tmp_path / "out", tmp_path / "some.zip", writer="raw")
    card = check_prepared(tmp_path / "out", *splits)
    assert card.name == "cifar10"
    assert card.classes[:3] == ("airplane", "automobile", "bird")
    assert card.image_shape == (32, 32, 3)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_that_cannot_be_unpacked_within_bounds(tmp_path: Path, compression: int) -> None:
    _train, _test, files = two_splits()
    assert "compressed in an unusual way" in refusal(tmp_path, write_zip(tmp_path / "s.zip", files, compression))


def test_a_zip_entry_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    _train, _test, files = two_splits()
    bomb = max(files)
    source = write_zip(tmp_path / "s.zip", files | {bomb: bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    data = bytearray(source.read_bytes())
    place = data.find(b"PK\1\2", data.find(bomb.encode()) + 1)
    while data[place + 46 : place + 46 + len(bomb)] != bomb.encode():
        place = data.find(b"PK\1\2", place + 4)
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")  # its size, in the archive's directory
    source.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"{bomb}: " in refusal(tmp_path, source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17  # KiB: less than half of it
