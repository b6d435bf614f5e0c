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


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


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
        ended = run("-c", program, *arguments)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(("usage: python -m data_prep", "fastwi "))
    assert all(f"\n    {dataset}" in run("-m", "data_prep", "--help").stdout for dataset in DATASETS)


def test_a_run_as_a_module(tmp_path: Path) -> None:
    ended = run("-m", "data_prep", "digits", "--out", str(tmp_path), "--writer", "raw")
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
        ([], "python -m data_prep --help"),
        (["mnist", "--out", "x"], "mnist: no such dataset"),
        (["digits"], "--out"),
        (["digits", "--out", "x", "--source", "y"], "source"),
        (["cifar10", "--out", "x", "--with-valid"], "with-valid"),
        (["digits", "--out", "x", "--writer", "pickle"], "'pickle'"),
        (["folder", "--out", "x"], "--source"),
        (["folder", "--out", "x", "--source", "y", "--size", "big"], "'big'"),
        (["digits", "--ou", "x"], "--out"),
        (["folder", "--out", "nowhere", "--source", "none"], "none: does not exist"),
    ],
)
def test_bad_use_is_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastwi: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ("mnist", {}, "mnist: no such dataset; choose one of cifar10"),
        ("digits", {"source": "x"}, "digits: .*source"),
        ("digits", {"size": 8}, "digits: .* are for folder and cinic10"),
        ("digits", {"with_valid": True}, "digits: .* are for folder and cinic10"),
        ("digits", {"background": "white"}, "digits: .* are for folder and cinic10"),
        ("digits", {"keep_size": True}, "digits: .* are for folder and cinic10"),
        ("digits", {"write_mode": "smart"}, "digits: .* are for folder and cinic10"),
        ("folder", {}, "--source"),
        ("folder", {"source": "x", "write_mode": "png"}, "write-mode png"),
        ("folder", {"source": "x", "size": 8, "write_mode": "smart"}, "size resizes what"),
        ("folder", {"source": "x", "size": 8, "keep_size": True}, "size resizes what"),
        ("folder", {"source": "x", "writer": "ffcv", "keep_size": True}, "writer ffcv is for raw images"),
        *[("folder", {"source": "x", "size": size}, f"size {size}: ") for size in (0, -1, 4097)],
        ("digits", {"writer": "pickle"}, "writer pickle"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(
    tmp_path: Path, dataset: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        prepare(dataset, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_lines_of_progress_are_few(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    report = data_prep.progress.shown_progress()
    for done in range(1, 101):
        now[0] += 0.3
        report("write", done, 100)
    assert capsys.readouterr().err.splitlines() == [f"write: {done} of 100 images" for done in (34, 68, 100)]


def test_a_terminal_gets_a_line_that_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    report = data_prep.progress.shown_progress()
    for done in range(1, 5):
        now[0] += 0.15
        report("write", done, 4)
    assert capsys.readouterr().err == "write: 2 of 4 images\rwrite: 4 of 4 images\n"
