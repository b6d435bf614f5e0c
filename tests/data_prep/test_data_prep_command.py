"""The command line: what it prints where, its exit codes, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest
from prepared import check_prepared, digits, image_files, two_splits, write_zip

import data_prep
import data_prep.progress
from data_prep import DATASETS
from data_prep.__main__ import main
from data_prep.dataset import Split


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_help_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\n"
        "from data_prep.__main__ import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'PIL', 'sklearn', 'ffcv'} & sys.modules.keys()\n"
    )
    ended = run("-c", program, "folder", "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(f"\n    {dataset}" in ended.stdout for dataset in DATASETS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("fastwi ")


def test_a_run_as_a_module(tmp_path: Path) -> None:
    ended = run("-m", "data_prep", "digits", "--out", str(tmp_path), "--writer", "raw")
    assert ended.returncode == 0
    assert ended.stdout == f"{tmp_path}: digits, 1,437 train + 360 test images of 16 x 16, 10 classes\n"
    lines = [line for line in ended.stderr.splitlines() if not line.endswith(" left")]
    assert lines == ["write train.beton: 1,437 of 1,437 images", "write test.beton: 360 of 360 images"]
    card = check_prepared(tmp_path, digits().train, digits().test)
    assert (card.name, card.classes) == ("digits", tuple("0123456789"))
    assert "8 x 8" in card.source


def test_options_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "s.zip", two_splits()[2])
    out = tmp_path / "out"
    options = ["--out", str(out), "--source", str(source), "--size", "8", "--name", "mine", "--writer", "raw"]
    assert main(["folder", *options]) == 0
    assert capsys.readouterr().out == f"{out}: mine, 30 train + 20 test images of 8 x 8, 10 classes\n"


def test_names_and_sizes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Height before width; digits have the name that is asked for."""
    train, test = (Split(each.images_NHWC[:, :12], each.labels_N) for each in two_splits()[:2])
    source = write_zip(tmp_path / "s.zip", image_files("train", train) | image_files("test", test))
    for name, *options in (("folder", "--source", str(source)), ("digits",)):
        assert main([name, "--out", str(tmp_path / name), "--name", "mine", "--writer", "raw", *options]) == 0
    flat, square = capsys.readouterr().out.splitlines()
    assert flat == f"{tmp_path / 'folder'}: mine, 30 train + 20 test images of 12 x 16, 10 classes"
    assert square.startswith(f"{tmp_path / 'digits'}: mine, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "python -m data_prep --help"),
        ("digits", "--out"),
        ("digits --ou x", "--out"),
        ("mnist --out x", "mnist: no such dataset"),
        ("digits --out x --source y", "digits: come with scikit-learn"),
        ("digits --out x --writer pickle", "writer pickle: choose one of auto, ffcv, raw"),
        ("digits --out x --size 8", "digits: size"),
        ("cifar10 --out x --with-valid", "cifar10: size"),
        ("digits --out x --background white", "digits: size"),
        ("digits --out x --keep-size", "digits: size"),
        ("digits --out x --write-mode smart", "digits: size"),
        ("folder --out x", "--source"),
        ("folder --out x --source y --write-mode png", "write-mode png: choose one of raw, smart, jpeg"),
        ("folder --out x --source y --size big", "'big'"),
        ("folder --out x --source y --size 0", "size 0: "),
        ("folder --out x --source y --size 4097", "size 4097: "),
        ("folder --out x --source y --size 8 --write-mode smart", "size resizes what"),
        ("folder --out x --source y --size 8 --keep-size", "size resizes what"),
        ("folder --out x --source y --writer ffcv --keep-size", "writer ffcv is for raw images"),
        ("folder --out nowhere --source none", "none: does not exist"),
    ],
)
def test_bad_use_is_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastwi: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    report = data_prep.progress.shown_progress()
    report("write", 0, 100)
    for done in range(1, 101):
        now[0] += 0.3
        report("write", done, 100)
    shown = [line.strip() for line in capsys.readouterr().err.replace("\r", "\n").splitlines()]
    assert shown[-1] == "write: 100 of 100 images"
    assert "write: 68 of 100 images, 0:00:10 left" in shown  # 32 images of 0.3 s
    assert len(shown) == (100 if terminal else 3)
