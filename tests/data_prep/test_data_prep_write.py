"""Both writers, and what a write that fails or is stopped leaves behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import card_values, check_prepared, snapshot, some_digits

import data_prep
import data_prep.write
from data_prep import prepare
from data_prep.dataset import ImageSet, Split
from data_prep.progress import silent
from data_prep.write import channel_statistics, output_directory, write_dataset
from fastwi.errors import UserError

has_ffcv = importlib.util.find_spec("ffcv") is not None
needs_ffcv = [pytest.mark.ffcv, pytest.mark.skipif(not has_ffcv, reason="FFCV is not installed")]
both_writers = pytest.mark.parametrize("writer", ["raw", pytest.param("ffcv", marks=needs_ffcv)])


def small_dataset() -> ImageSet:
    classes = tuple(f"class{label}" for label in range(10))
    return ImageSet("small", classes, some_digits(3), some_digits(2, skip=10), "made for a test")


def test_statistics_of_one_intensity_are_exact() -> None:
    counts_CV = np.zeros((3, 256), np.int64)
    counts_CV[:, 255] = 16
    assert channel_statistics(counts_CV) == ((1, 1, 1), (0, 0, 0))


@pytest.mark.ffcv
@pytest.mark.skipif(not has_ffcv, reason="FFCV is not installed")
def test_both_writers_write_the_same_files(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    for writer in ("ffcv", "raw"):
        (tmp_path / writer).mkdir()
        write_dataset(small_dataset(), tmp_path / writer, writer, silent)
    assert torch.get_num_threads() == 2
    cards = [card_values(tmp_path / writer) for writer in ("ffcv", "raw")]
    files = [snapshot(tmp_path / writer) for writer in ("ffcv", "raw")]
    assert [card.pop("writer") for card in cards] == ["ffcv 1.0.2", f"fastwi {data_prep.write.__version__}"]
    for each in (*cards, *files):
        each.pop("card_sha256", None)
        each.pop("card.json", None)
    assert cards[0] == cards[1]
    assert files[0] == files[1]


@both_writers
def test_earlier_files_are_replaced(tmp_path: Path, writer: str) -> None:
    seen: list[tuple[str, int, int]] = []
    first = small_dataset()
    write_dataset(first, tmp_path, writer, lambda *said: seen.append(said))
    assert seen == [("write train.beton", 30, 30), ("write test.beton", 20, 20)]
    check_prepared(tmp_path, first.train, first.test)
    second = ImageSet("small", first.classes, first.test, first.train, "the other way round")
    write_dataset(second, tmp_path, writer, silent)
    check_prepared(tmp_path, first.test, first.train)


@pytest.mark.parametrize("found", [None, object()])
def test_an_ffcv_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setitem(sys.modules, "data_prep.ffcv_writer", None)
    write_dataset(small_dataset(), tmp_path, "auto", silent)
    assert card_values(tmp_path)["writer"].startswith("fastwi ")
    with pytest.raises(UserError, match=r"ffcv: cannot be imported .*fastwi\.doctor.*--writer raw"):
        write_dataset(small_dataset(), tmp_path, "ffcv", silent)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_bytes_lost_on_the_way_to_the_disk_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    write_dataset(small_dataset(), tmp_path, "raw", silent)
    before = snapshot(tmp_path)

    def lossy(path: Path, images: Iterator[object], *_: object) -> None:
        assert len(list(images)) == 30
        whole = before["train.beton"]
        changed = whole[:-24] if damage == "cut" else whole[: 1 << 21] + b"\7" + whole[(1 << 21) + 1 :]
        path.write_bytes(changed)

    monkeypatch.setattr(data_prep.write, "write_stored", lossy)
    with pytest.raises(UserError, match=r"train\.beton: does not read back as it was written; check the disk"):
        write_dataset(small_dataset(), tmp_path, "raw", silent)
    assert snapshot(tmp_path) == before


def test_no_old_card_stands_beside_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the images were replaced and before the new card was written."""
    first = small_dataset()
    write_dataset(first, tmp_path, "raw", silent)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data_prep.write, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(ImageSet("small", first.classes, first.test, first.train, "swapped"), tmp_path, "raw", silent)
    assert sorted(snapshot(tmp_path)) == ["test.beton", "test.digests", "train.beton", "train.digests"]


def test_a_class_without_test_images_is_counted(tmp_path: Path) -> None:
    good = small_dataset()
    test = Split(good.test.images_NHWC[:2], good.test.labels_N[:2])
    card = write_dataset(ImageSet("small", good.classes, good.train, test, "x"), tmp_path, "raw", silent)
    assert card.class_counts["test"] == (2, *[0] * 9)


def run_python(program: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The command, standing still once the test split is being written: the training split is complete by then.
STANDS_STILL = """
import sys, time
import data_prep.__main__ as command

def report(stage, done, total):
    if stage == "write test.beton":
        print("writing", flush=True)
        time.sleep(600)

command.shown_progress = lambda: report
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("writer", "number", "code", "said"),
    [
        ("raw", signal.SIGTERM, 143, "fastwi: terminated\n"),
        ("raw", signal.SIGKILL, -9, ""),
        pytest.param("ffcv", signal.SIGINT, 130, "fastwi: interrupted\n", marks=needs_ffcv),
    ],
)
def test_a_stopped_write_leaves_the_earlier_dataset(
    tmp_path: Path, writer: str, number: int, code: int, said: str
) -> None:
    write_dataset(small_dataset(), tmp_path, "raw", silent)
    before = snapshot(tmp_path)
    with run_python(STANDS_STILL, "digits", "--out", str(tmp_path), "--writer", writer) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "writing\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=300)
    assert (running.returncode, err) == (code, said)
    after = snapshot(tmp_path)
    left = after.keys() - before.keys()
    if number == signal.SIGKILL:  # nothing can tidy up after that; what is left is hidden
        assert len(left) == 3  # both betons, and the digests of the first
        assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    else:
        assert not left
    assert {name: after[name] for name in before} == before


@both_writers
def test_a_full_disk_is_one_line(tmp_path: Path, writer: str) -> None:
    """A limit on the size of files stops the write as a full disk does: in the midst of the training split."""
    program = (
        "import resource, sys\n"
        "from data_prep.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    write_dataset(small_dataset(), tmp_path, "raw", silent)
    before = snapshot(tmp_path)
    shared = Path("/dev/shm")
    earlier = set(shared.glob("psm_*"))
    with run_python(program, "digits", "--out", str(tmp_path), "--writer", writer) as running:
        out, err = running.communicate(timeout=300)
    assert (running.returncode, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("fastwi: ")]
    assert errors == [f"fastwi: error: {tmp_path / 'train.beton'}: cannot be written (File too large)"]
    assert "Traceback" not in err
    assert snapshot(tmp_path) == before
    for _ in range(200):  # a test in another process may have some too, for a while
        if set(shared.glob("psm_*")) <= earlier:
            break
        time.sleep(0.1)
    assert set(shared.glob("psm_*")) <= earlier


def fail_within(directory: Path, content: str) -> None:
    with output_directory(directory):
        if content:
            (directory / content).touch()
        raise UserError("no images")


def test_directories(tmp_path: Path) -> None:
    """One that was made for nothing is removed; one that was there, or in which something is, stays."""
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot be made .*; choose another --out"):
            prepare("digits", out)
    (tmp_path / "old").mkdir()
    for name, content in (("a/new", ""), ("old", ""), ("filled", "download")):
        with pytest.raises(UserError, match="no images"):
            fail_within(tmp_path / name, content)
    assert not (tmp_path / "a" / "new").exists()
    assert (tmp_path / "old").exists()
    assert os.listdir(tmp_path / "filled") == ["download"]
