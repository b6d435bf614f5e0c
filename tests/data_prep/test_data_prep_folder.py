"""Image folders and zips of them: what is read, in which order, and what is refused."""

import os
import stat
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from prepared import check_prepared, image_files, png, refusal, some_digits, two_splits, write_folder, write_zip
from stored_samples import read_beton

from data_prep import prepare
from data_prep.dataset import Split
from fastwi.data.card import read_card


@pytest.mark.parametrize(
    ("kind", "name"),
    [("folder", "{path}"), ("folder", "mine/{path}"), ("deflated", "{path}")]
    + [("stored", name) for name in ("{path}", "mine/{path}", "./{path}", "mine/././{path}", "windows")],
)
def test_folders_and_zips(tmp_path: Path, kind: str, name: str) -> None:
    """Programs write the names in a zip in several ways."""
    train, test, files = two_splits()
    windows = {path.replace("/", "\\"): content for path, content in files.items()}
    named = {name.format(path=path): content for path, content in reversed(files.items())}
    packed = windows if name == "windows" else named  # the order must not matter
    source = tmp_path / "source.zip"
    if kind == "folder":
        write_folder(source, packed)
    else:
        write_zip(source, packed, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    prepare("folder", tmp_path / "out", source, writer="raw")
    card = check_prepared(tmp_path / "out", train, test)
    assert card.classes == tuple(f"class{label}" for label in range(10))
    own = "source.zip" if kind == "folder" else "source"
    assert card.name == ("mine" if "mine" in name else own)
    assert card.source == "image folder source.zip"


def test_a_source_by_a_relative_path_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_folder(tmp_path / "pets 1.5 \u00e9", two_splits()[2])
    for place, path in ((source, "."), (source / "train", "..")):
        monkeypatch.chdir(place)
        prepare("folder", tmp_path / "out", path, writer="raw")
        card = read_card(tmp_path / "out")
        assert (card.name, card.source) == (source.name, f"image folder {source.name}")


@pytest.mark.parametrize("place", ["train/caf\udce9/", "caf\udce9"])
def test_names_that_are_not_utf_8_are_refused_before_images_are_read(tmp_path: Path, place: str) -> None:
    """Of a class, and of the source."""
    files = two_splits()[2]
    files["train/class0/0000.png"] = b"damaged"
    if place.startswith("train/"):
        files = renamed(files, "class1", "caf\udce9")
        source = write_folder(tmp_path / "s", files)
    else:
        source = write_folder(tmp_path / place, files)
    message = refusal(tmp_path, source)
    assert "caf\\udce9" in message
    assert "UTF-8" in message


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_hidden_files_and_strangers_beside_the_splits_do_no_harm(tmp_path: Path, kind: str) -> None:
    train, test, files = two_splits()
    for path in ("README.md", "notes/a.txt", "valid/class0/bad.png", ".git/a.png", "train/labels.csv"):
        files[path] = b"not looked at"
    for path in ("__MACOSX/train/class0/._0.png", "train/.DS_Store", "train/class0/Thumbs.db", "train/.gitkeep"):
        files[path] = b"left by programs, and not reported"
    for path in ("train/class0/.kept.png", "test/.cache/a.png"):
        files[path] = b"hidden, and reported"
    source = tmp_path / "s"
    write_folder(source, files) if kind == "folder" else write_zip(source, files)
    lines: list[str] = []
    prepare("folder", tmp_path / "a", source, writer="raw", warn=lines.append)
    check_prepared(tmp_path / "a", train, test)
    [line] = lines
    assert line.startswith(f"{source}: hidden ")
    assert line.endswith(": 2 (such as test/.cache/)")


def test_valid_is_added_behind_train(tmp_path: Path) -> None:
    train, test, files = two_splits()
    valid = some_digits(1, skip=20)
    source = write_zip(tmp_path / "cinic.zip", files | image_files("valid", valid))
    prepare("cinic10", tmp_path / "out", source, with_valid=True, writer="raw")
    images_NHWC = np.concatenate([train.images_NHWC, valid.images_NHWC])
    both = Split(images_NHWC, np.concatenate([train.labels_N, valid.labels_N]))
    card = check_prepared(tmp_path / "out", both, test)
    assert card.name == "cinic10"
    assert card.source == "image folder cinic.zip, valid added to train"
    prepare("cinic10", tmp_path / "out", source, name="mine", writer="raw")
    assert check_prepared(tmp_path / "out", train, test).name == "mine"
    # Labels are places in the order of train's classes.
    others = renamed(image_files("valid", valid), "class4", "a", "valid")
    message = refusal(tmp_path, write_zip(tmp_path / "others.zip", files | others), with_valid=True)
    assert "valid/, but not train/, has class a" in message


def test_mixed_sizes_are_refused_and_size_fixes_them(tmp_path: Path) -> None:
    train, _, files = two_splits()
    files["train/class3/0009.png"] = png(train.images_NHWC[9][:12])
    source = write_zip(tmp_path / "a.zip", files)
    message = refusal(tmp_path, source)
    assert message.startswith(f"{source}: train/class3/0009.png has 12 x 16 pixels")
    assert "--size N" in message
    prepare("folder", tmp_path / "resized", source, size=8, writer="raw")
    card = read_card(tmp_path / "resized")
    assert card.image_shape == (8, 8, 3)
    assert card.source.endswith("resized to 8 x 8")
    small = read_beton(tmp_path / "resized" / "train.beton").images_NHWC
    # Each digit is made of 2 x 2 squares; halved, it is close to its 8 x 8 original.
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


DIGIT = png(some_digits(1).images_NHWC[0])
SMALL, DEEP = png(np.zeros((14, 16, 3), np.uint8)), png(np.full((16, 16), 40_000, np.uint16))


def without(files: dict[str, bytes], part: str) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.startswith(part)}


@pytest.mark.parametrize(
    ("removed", "added", "said"),
    [
        ("test/", {}, "holds no test/ folder"),
        ("train/class9/", {}, "test/, but not train/, has class class9"),
        ("test/class4/", {}, "only train/, not test/, has class class4"),
        ("", {"train/class0/a.webp": b"x"}, "train/class0/a.webp: neither .png nor .jpg"),
        ("", {"train/a.png": b"x"}, "train/a.png: lies in no class folder"),
        ("", {"train/class0/more/a.png": b"x"}, "train/class0/more/ lies too deep"),
        ("", {"train/class0/0000.png": b""}, "train/class0/0000.png: neither a PNG nor a JPEG image"),
        ("", {"train/class5/0016.png": b"GIF89a" + bytes(99)}, "train/class5/0016.png: neither a PNG nor a JPEG"),
        ("", {"test/class9/0019.png": DIGIT[:-40]}, "test/class9/0019.png: damaged"),
        ("", {"test/class9/0019.png": DEEP}, "0019.png: has 16 bits a channel"),
        ("", {"test/class0/0000.png": SMALL}, "test/class0/0000.png has 14 x 16 pixels, the first"),
        ("", {"train/class10/.kept": b""}, "train/class10/ holds no images"),
        ("t", {"a/train/class0/a.png": b""}, "holds no a/test/ folder"),
        ("t", {"a/train/class0/a.png": b"", "b/train/class0/a.png": b""}, "holds a/train and b/train"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_layouts_and_images_that_are_refused(
    tmp_path: Path, kind: str, removed: str, added: dict[str, bytes], said: str
) -> None:
    files = two_splits()[2]
    files = (without(files, removed) if removed else files) | added
    source = write_folder(tmp_path / "s", files) if kind == "folder" else write_zip(tmp_path / "s.zip", files)
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


def test_a_zip_whose_names_are_not_the_utf_8_that_it_says(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "s.zip", renamed(two_splits()[2], "class1", "caf\u00e9"))
    source.write_bytes(source.read_bytes().replace("\u00e9".encode(), b"\xe9\xff"))
    assert refusal(tmp_path, source).startswith(f"{source}: not a zip archive that can be read ")


class MacEntry(zipfile.ZipInfo):
    """An entry as macOS packs it: its name in UTF-8, without the flag that says so."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits


def test_names_in_a_zip_of_macos_are_those_of_the_folder(tmp_path: Path) -> None:
    """Read as cp437, they are not only odd: they sort in another order, so that labels differ from the folder's."""
    _, _, files = two_splits()
    for label, name in enumerate(("Dog", "caf\u00e9", "caf\u00e9s", "\u03b2", "\u732b")):
        files = renamed(files, f"class{label}", name)
    folder, packed = write_folder(tmp_path / "s", files), tmp_path / "s.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in files.items():
            archive.writestr(MacEntry(path), content)
    with zipfile.ZipFile(packed) as archive:
        assert "\u732b" not in "".join(archive.namelist())
    cards = [read_card(prepare("folder", tmp_path / source.name[1:], source)) for source in (folder, packed)]
    assert cards[0].classes == cards[1].classes
    assert cards[0].sha256 == cards[1].sha256
    # In the zips of DOS and of Windows the same names are in cp437.
    dos = write_zip(tmp_path / "dos.zip", renamed(two_splits()[2], "class1", "caf+"))
    dos.write_bytes(dos.read_bytes().replace(b"caf+", "caf\u00e9".encode("cp437")))
    assert "caf\u00e9" in read_card(prepare("folder", tmp_path / "dos", dos)).classes


def test_links_in_a_zip_are_refused_and_on_disk_followed(tmp_path: Path) -> None:
    train, test, files = two_splits()
    source = write_zip(tmp_path / "s.zip", files)
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("train/class0/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "0000.png")
    assert "train/class0/link.png: is a link" in refusal(tmp_path, source)
    folder = write_folder(tmp_path / "f", files)
    os.rename(folder / "train/class0", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "train/class0")
    prepare("folder", tmp_path / "out", folder)
    check_prepared(tmp_path / "out", train, test)


def renamed(files: dict[str, bytes], old: str, new: str, split: str = "t") -> dict[str, bytes]:
    """The files with a class renamed, in all splits whose names begin so."""
    return {
        path.replace(f"/{old}/", f"/{new}/") if path.startswith(split) else path: content
        for path, content in files.items()
    }


def test_names_of_classes_that_look_the_same(tmp_path: Path) -> None:
    files = two_splits()[2]
    composed, spread = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    twice = renamed(renamed(files, "class1", composed), "class2", spread)
    assert "twice" in refusal(tmp_path, write_zip(tmp_path / "a.zip", twice))
    apart = renamed(renamed(files, "class1", composed, "train"), "class1", spread, "test")
    assert "in Unicode" in refusal(tmp_path, write_zip(tmp_path / "a.zip", apart))
    lines: list[str] = []
    cased = write_zip(tmp_path / "a.zip", renamed(renamed(files, "class1", "A"), "class2", "a "))
    prepare("folder", tmp_path / "out", cased, warn=lines.append)
    assert ["'A' and 'a '" in line for line in lines] == [True]
    assert {"A", "a "} < set(read_card(tmp_path / "out").classes)
    begun = write_zip(tmp_path / "b.zip", renamed(renamed(files, "class1", "cat"), "class2", "cat-big"))
    classes = read_card(prepare("folder", tmp_path / "begun", begun)).classes
    assert list(classes) == sorted(classes)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    files = two_splits()[2]
    source = write_folder(tmp_path / "s", files)
    os.mkfifo(source / "train" / "class0" / "pipe.png")
    assert "train/class0/pipe.png: cannot be read (not a regular file)" in refusal(tmp_path, source)
    damaged = write_zip(tmp_path / "s.zip", files)
    data = bytearray(damaged.read_bytes())
    data[data.index(files["train/class2/0006.png"]) + 60] ^= 255
    damaged.write_bytes(data)
    assert "train/class2/0006.png: cannot be read (Bad CRC-32" in refusal(tmp_path, damaged)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # cannot be unpacked within bounds
        assert "unusual way" in refusal(tmp_path, write_zip(tmp_path / "s.zip", files, compression))


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = two_splits()[2]
    files["train/class1/0003.png"] += bytes(10_000)
    monkeypatch.setattr("data_prep.trees.MAX_FILE_BYTES", 9_999)
    size = len(files["train/class1/0003.png"])
    said = f"train/class1/0003.png: has {size} bytes, too many for an image; remove it"
    assert said in refusal(tmp_path, write_zip(tmp_path / "s.zip", files, zipfile.ZIP_DEFLATED))
    assert said in refusal(tmp_path, write_folder(tmp_path / "s", files))


def test_a_zip_entry_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    files = two_splits()[2]
    bomb = max(files)
    source = write_zip(tmp_path / "s.zip", files | {bomb: bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    data = bytearray(source.read_bytes())
    place = data.rindex(bomb.encode()) - 46  # its record in the archive's directory
    data[place + 24 : place + 28] = (100).to_bytes(4, "little")
    source.write_bytes(data)
    tracemalloc.start()
    try:
        assert f"{bomb}: " in refusal(tmp_path, source)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
