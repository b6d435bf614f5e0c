"""Hostile sources for `python -m data_prep`: folders, zip archives, images, CIFAR's pickles, SVHN's .mat files."""

import contextlib
import hashlib
import io
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from torchvision.datasets import CIFAR10, SVHN

from data_prep.__main__ import main
from data_prep.digits import load_digits
from fastwi.beton import StoredBeton, content_sha256
from fastwi.data.card import read_card
from hostile.checkpoints import Malicious
from hostile.mutate import TEXTS, damaged, number
from hostile.target import Finding, command, odd_file

_NAMES = (
    "../../outside/escaped.png", "/outside.png", "..", "train/../../x.png", "train/0/../../../x.png", "C:\\x.png", "\\\\host\\x.png",
    "train/0/" + "x" * 300 + ".png", "train//0/a.png", "train/0/a\n.png", "train/0/\x1b[2J.png", "train/new\nline/a.png", "./train/0/a.png",
    "train/0/\u202egnp.a.png", "train/0", "train", "train/0/", "/", "", "train/0/deep/a.png", "train/0/a.txt", "a/b/train/0/a.png",
    "other/train/0/a.png", "__MACOSX/x.png", "train/.hidden/a.png", "train/0/é.png", "test/9/a.png", "con.png", "train/0/a\0b.png",
)  # fmt: skip
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
_MATS = ("train_32x32.mat", "test_32x32.mat")
_PYTHON, _ARCHIVE = CIFAR10.base_folder, CIFAR10.filename


class Sources:
    """The command itself, in a directory of its own."""

    @staticmethod
    def make_corpus(directory: Path) -> None:
        digits = load_digits("digits")
        images_NHWC, labels_N = digits.train.images_NHWC, digits.train.labels_N
        for split in ("train", "test"):
            for label in range(2):
                folder = directory / "folder" / split / str(label)
                folder.mkdir(parents=True)
                for place, image_HWC in enumerate(images_NHWC[labels_N == label][: 2 if split == "train" else 1]):
                    Image.fromarray(image_HWC).save(folder / f"{place}.{'jpg' if place else 'png'}")
        (directory / "cifar").mkdir()
        large_NHWC = images_NHWC[:12].repeat(2, axis=1).repeat(2, axis=2)
        for place, name in enumerate(_BATCHES[:-1]):
            data = large_NHWC[2 * place : 2 * place + 2].transpose(0, 3, 1, 2).reshape(-1, 3072).copy()
            batch = {"data": data, "labels": labels_N[2 * place : 2 * place + 2].tolist(), "batch_label": name}
            (directory / "cifar" / name).write_bytes(pickle.dumps(batch, 2))
        meta = {"label_names": [str(label) for label in range(10)]}
        (directory / "cifar" / _BATCHES[-1]).write_bytes(pickle.dumps(meta, 2))
        columns = {"X": large_NHWC.transpose(1, 2, 3, 0), "y": labels_N[:12, None].astype(np.uint8)}
        for name in _MATS:
            scipy.io.savemat(directory / name, columns)

    def __init__(self, corpus: Path) -> None:
        self._folder = corpus / "folder"
        self._images = {path.relative_to(self._folder).as_posix(): path.read_bytes()
                        for path in sorted(self._folder.rglob("*.[pj]*"))}  # fmt: skip
        self._batches = {name: (corpus / "cifar" / name).read_bytes() for name in _BATCHES}
        self._mats = {name: (corpus / name).read_bytes() for name in _MATS}

    def attempt(self, draw: random.Random, work: Path) -> bool:
        makers = {"zip": self._zip, "tree": self._tree, "cifar10": self._cifar, "svhn": self._svhn}
        (kind,) = draw.choices(list(makers), (35, 40, 18, 7))
        source, out = makers[kind](draw, work), work / "out"
        dataset = "folder" if kind in ("zip", "tree") else kind
        argv = [dataset, f"--source={source}", f"--out={out}", "--writer=raw"]
        if dataset == "folder" and draw.random() < 0.3:
            side = draw.choice((1, 8, 16, 16, 0, -1, 10**9, "x", 4096 if draw.random() < 0.05 else 64))
            argv.append(f"--size={side}")
        if draw.random() < 0.1:
            argv.append(f"--name={draw.choice(TEXTS)}")
        code, _ = command(main, argv)
        if (work / "EXECUTED").exists():
            raise Finding("a pickle was executed")
        left = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        if code != 0 and left:
            raise Finding(f"refused, and yet {left} were written")
        if code == 0:
            resized = any(word.startswith("--size=") for word in argv)
            self._check_written(out, left, source if dataset == "folder" and not resized else None)
        return code == 0

    def _check_written(self, out: Path, left: list[str], source: Path | None) -> None:
        """The directory holds a dataset, and nothing else; that of the folder or archive `source`."""
        if left != ["card.json", "test.beton", "test.digests", "train.beton", "train.digests"]:
            raise Finding(f"wrote {left}")
        card = read_card(out)
        for split in ("train", "test"):
            beton = StoredBeton(out / f"{split}.beton")
            images_NHWC = beton.read_raw()
            if content_sha256(images_NHWC, beton.labels_N) != card.sha256[split]:
                raise Finding(f"{split}.beton is not what the card says")
            if not 0 <= beton.labels_N.min() <= beton.labels_N.max() < len(card.classes):
                raise Finding(f"{split}.beton has labels beyond the classes")
            labelled = zip(beton.labels_N, images_NHWC, strict=True)
            written = Counter((card.classes[label], image_HWC.tobytes()) for label, image_HWC in labelled)
            if source is not None and written != Counter(_labelled_pixels(source, split)):
                raise Finding(f"{split}.beton has other images than its source")

    def _zip(self, draw: random.Random, work: Path) -> Path:
        path, members = work / draw.choice(("source.zip", "source")), dict(self._images)
        if draw.random() < 0.5:
            name = draw.choice(list(members))
            members[name] = _image(draw, members[name])
        if draw.random() < 0.3:
            members = {f"prefix/{name}": data for name, data in members.items()}
        hostile = [draw.choice(_NAMES) for _ in range(draw.choice((0, 0, 1, 1, 3)))]
        methods = [zipfile.ZIP_STORED, *[zipfile.ZIP_DEFLATED] * 3, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
        lies = draw.random() < 0.1
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
            warnings.simplefilter("ignore")  # a name that occurs twice is what is wanted
            for name in [*members, *hostile]:
                info = zipfile.ZipInfo("placeholder")
                info.filename = name  # as it is: the constructor would cut at NUL
                (info.compress_type,) = draw.choices(methods, (2, 2, 2, 2, 1, 1))
                if draw.random() < 0.03:
                    info.external_attr = 0o120777 << 16  # a symbolic link
                data = members.get(name, b"../../outside/canary.txt")
                archive.writestr(info, data if draw.random() < 0.99 else bytes(draw.choice((10**6, 40 * 10**6))))
                if lies and draw.random() < 0.5:  # the directory at the end says another unpacked size
                    info.file_size = draw.choice((0, 1, 100, 2**28, 2**28 + 1, 2**31 - 1, 2**31))
        if draw.random() < 0.5:
            data = path.read_bytes()
            path.write_bytes(damaged(draw, data, _zip_numbers(data), list(self._images.values())))
        return path

    def _tree(self, draw: random.Random, work: Path) -> Path:
        source = Path(shutil.copytree(self._folder, work / "source"))
        outside = work.parent.parent / "outside"
        for _ in range(draw.choice((1, 1, 2))):
            files = sorted(path for path in source.rglob("*.[pj]*") if path.is_file() and not path.is_symlink())
            if not files:
                break
            path, kind = draw.choice(files), draw.random()
            if kind < 0.75:
                path.write_bytes(_image(draw, path.read_bytes()))
            elif kind < 0.85:
                odd_file(draw, path, outside)
            elif kind < 0.95:
                name = draw.choice(_NAMES).replace("..", "dots").replace("\0", "").strip("/") or "x"
                with contextlib.suppress(OSError):  # too long a name, or a file stands where a folder would
                    (source / name).parent.mkdir(parents=True, exist_ok=True)
                    (source / name).write_bytes(path.read_bytes())
                if draw.random() < 0.2:
                    with open(os.fsencode(path.parent) + b"/\xff\xfe.png", "wb") as stream:
                        stream.write(path.read_bytes())
            else:
                shutil.rmtree(path.parent)
                if draw.random() < 0.5:
                    path.parent.symlink_to(draw.choice((outside, source, "..", path.parent.name)))
        return source

    def _cifar(self, draw: random.Random, work: Path) -> Path:
        """Damaged or malicious batches, or an archive; checksums are those of the whole ones: none may be unpickled."""
        files, source = dict(self._batches), work / "source"
        sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
        CIFAR10.train_list = [[name, sums[name]] for name in _BATCHES[:5]]
        CIFAR10.test_list = [["test_batch", sums["test_batch"]]]
        CIFAR10.meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
        for name in draw.sample(_BATCHES, draw.choice((0, 1, 1, 1, 2))):
            files[name] = _batch(draw, work, files[name], list(self._batches.values()))
        if draw.random() < 0.5:
            (source / _PYTHON).mkdir(parents=True)
            for name, data in files.items():
                (source / _PYTHON / name).write_bytes(data)
            if draw.random() < 0.1:
                odd_file(draw, source / _PYTHON / draw.choice(_BATCHES), work.parent.parent / "outside")
            return source
        source.mkdir()
        buffer, whole = io.BytesIO(), files == self._batches
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"{_PYTHON}/{name}")
                info.size = len(data)
                if draw.random() < 0.05:
                    info.type = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
                    info.linkname = draw.choice(("../../../outside/canary.txt", "/etc/passwd", name))
                    whole = False
                tar.addfile(info, io.BytesIO(data))
            if draw.random() < 0.3:
                whole = False
                info = tarfile.TarInfo(draw.choice(("../../../outside/escaped", "/tmp/escaped", "x")))
                info.size = 3
                tar.addfile(info, io.BytesIO(b"bad"))
        data = buffer.getvalue()
        CIFAR10.tgz_md5 = hashlib.md5(data).hexdigest() if whole else "0" * 32
        (source / _ARCHIVE).write_bytes(damaged(draw, data) if draw.random() < 0.4 else data)
        return draw.choice((source / _ARCHIVE, source))

    def _svhn(self, draw: random.Random, work: Path) -> Path:
        """Damaged files; their checksums are those of the whole ones, so that none of them may be looked into."""
        source = work / "source"
        source.mkdir()
        whole = draw.random() < 0.1
        SVHN.split_list = {
            name.partition("_")[0]: ["none", name, hashlib.md5(data).hexdigest()] for name, data in self._mats.items()
        }
        for name, data in self._mats.items():
            (source / name).write_bytes(data if whole else damaged(draw, data))
        if draw.random() < 0.05:
            odd_file(draw, source / _MATS[0], work.parent.parent / "outside")
        return source


def _labelled_pixels(source: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """The class of each image of a folder or archive that is used, and its pixels as Pillow shows them."""
    for name, data in _files(source):
        folder, label, file = name.split("/")
        if folder == split and not label.startswith(".") and not file.startswith("."):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield label, Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file that lies as deep as images do."""
    if source.is_dir():
        for path in source.glob("*/*/*"):
            if path.is_file():
                yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix("prefix/")
            if name.count("/") == 2:
                yield name, archive.read(info)


def _batch(draw: random.Random, work: Path, data: bytes, others: list[bytes]) -> bytes:
    """A CIFAR batch that is damaged, or a pickle that runs a program."""
    if draw.random() < 0.6:
        return damaged(draw, data, (), others)
    malicious = Malicious(work / "EXECUTED")
    return pickle.dumps(draw.choice((malicious, {"data": malicious, "labels": [1]})), draw.randrange(6))


def _image(draw: random.Random, data: bytes) -> bytes:
    kind = draw.random()
    if kind < 0.55:
        return damaged(draw, data, [(16, 4), (20, 4), (24, 1), (25, 1), (26, 1)])
    if kind < 0.8:
        return _png(draw)
    if kind < 0.9:
        mode = draw.choice(("1", "L", "LA", "P", "RGBA", "RGB", "I", "I;16", "CMYK"))
        image = Image.new(mode, draw.choice(((1, 1), (16, 16), (16, 15), (2000, 1))))
        buffer = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # a mode that the format cannot hold
            image.save(buffer, draw.choice(("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")))
        return buffer.getvalue()
    return draw.choice((b"", b"%!PS-Adobe\n", b"GIF89a", b"<svg/>", b"\xff\xd8\xff" * 100, b"\x89PNG\r\n\x1a\n"))


def _png(draw: random.Random) -> bytes:
    """A PNG of right checksums whose header lies, or whose pixels unpack to far more than they are."""
    sides = [draw.choice((16, 16, 0, 1, 5000, 30_000, 2**31 - 1, number(draw, 4))) for _ in range(2)]
    depth, colour, interlaced = (draw.choice(few) for few in ((8, 8, 1, 16, 3), (2, 2, 0, 3, 6, 7), (0, 0, 1)))
    header = struct.pack(">IIBBBBB", *sides, depth, colour, 0, 0, interlaced)
    pixels = bytes(draw.choice((0, 16 * 49, 10**6, 50 * 10**6 if draw.random() < 0.1 else 10**5)))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b"")]
    if draw.random() < 0.6:
        extra = draw.choice(b"tEXt zTXt iCCP PLTE tRNS acTL fcTL eXIf gAMA pHYs IDAT \0\0\0\0".split(b" "))
        bomb, tiff = b"k\0\0" + zlib.compress(bytes(10**6)), b"MM\0*" + draw.randbytes(30)
        chunks.insert(draw.randrange(4), (extra, draw.choice((b"", b"\0" * 7, bomb, draw.randbytes(40), tiff))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _zip_numbers(data: bytes) -> list[tuple[int, int]]:
    """The numbers of local headers, the central directory and its end."""
    places = []
    for magic, parts in (
        (b"PK\3\4", ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
        (b"PK\1\2", ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4))),
        (b"PK\5\6", ((4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
    ):
        for found in re.finditer(magic, data):
            places += [(found.start() + offset, size) for offset, size in parts]
    return places
