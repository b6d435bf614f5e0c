"""The command line: what it prints where, its exit codes, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest
from prepared import check_prepared, digits, two_splits, write_zip

import data_prep
import data_prep.progress
from data_prep import DATASETS, prepare
from data_prep.__main__ import main
from fastwi.errors import UserError

ROOT = Path(data_prep.__file__).parents[1]


def test_help_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\n"
        "from data_prep.__main__ import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'PIL', 'sklearn', 'ffcv'} & sys.modules.keys()\n"
    )
    for arguments in (["--help"], ["folder", "--help"], ["--version"]):
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(("usage: python -m data_prep", "fastwi "))


def test_help_names_every_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n    {dataset}" in out for dataset in DATASETS)


def test_a_run_as_a_module(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "data_prep", "digits", "--out", str(tmp_path), "--writer", "raw"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0
    assert ended.stdout == f"{tmp_path}: digits, 1,437 train + 360 test images of 16 x 16, 10 classes\n"
    assert ended.stderr == ("write train.beton: 1,437 of 1,437 images\nwrite test.beton: 360 of 360 images\n")
    check_prepared(tmp_path, digits().train, digits().test)


def test_options_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_zip(tmp_path / "s.zip", two_splits()[2])
    out = tmp_path / "out"
    options = ["--out", str(out), "--source", str(source), "--size", "8", "--name", "mine", "--writer", "raw"]
    assert main(["folder", *options]) == 0
    assert capsys.readouterr().out == f"{out}: mine, 30 train + 20 test images of 8 x 8, 10 classes\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: DATASET; see python -m data_prep --help"),
        (["mnist", "--out", "x"], "argument DATASET: invalid choice: 'mnist'"),
        (["digits"], "the following arguments are required: --out; see python -m data_prep digits --help"),
        (["digits", "--out", "x", "--source", "y"], "unrecognized arguments: --source y"),
        (["cifar10", "--out", "x", "--with-valid"], "unrecognized arguments: --with-valid"),
        (["folder", "--out", "x"], "the following arguments are required: --source"),
        (
            ["folder", "--out", "x", "--source", "y", "--size", "big"],
            "argument --size: invalid int value: 'big'",
        ),
        (["digits", "--out", "x", "--writer", "pickle"], "argument --writer: invalid choice: 'pickle'"),
        (["digits", "--ou", "x"], "the following arguments are required: --out"),
    ],
)
def test_bad_use_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastwi: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_bad_input_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["folder", "--out", str(tmp_path), "--source", str(tmp_path / "none")]) == 2
    assert capsys.readouterr() == (
        "",
        f"fastwi: error: {tmp_path / 'none'}: does not exist; give an image folder or a zip of one\n",
    )


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mnist: no such dataset; choose one of cifar10"):
        prepare("mnist", tmp_path / "out")
    for options in (
        {"size": 8}, {"with_valid": True}, {"background": "white"}, {"keep_size": True}, {"write_mode": "smart"},
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"digits: .*background are for folder and cinic10"):
            prepare("digits", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_lines_of_progress_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with data_prep.progress.shown_progress() as report:
        for done in range(1, 101):
            now[0] += 0.3
            report("read train", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "read train: 34 of 100 images",
        "read train: 68 of 100 images",
        "read train: 100 of 100 images",
    ]


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with data_prep.progress.shown_progress() as report:
        report("read train", 30, 60)
        report("read train", 60, 60)
        report("write train.beton", 60, 60)
    out, err = capsys.readouterr()
    assert out == ""
    assert "read train" in err
    assert "60/60" in err
    assert "write train.beton" in err
