"""`python -m fastwi.analyze`: what it writes and prints, what it refuses, and that it leaves the store alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import torch
from finished_sweeps import contents, trained

from fastwi.analyze import main
from fastwi.experiment.store import Store
from fastwi.studies import all_studies, connectivity

STUDIES = {name: study.question for name, study in all_studies().items()}

QUICK = ["--analysis.alphas", "2", "--analysis.treatments", "averaged", "--analysis.cells", "1,1"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sweep_file(digits_directory, tmp_path_factory) -> Path:
    """Of a finished sweep. Tests must not change its store."""
    return trained(tmp_path_factory.mktemp("analyze"), digits_directory)


def refused(capsys, argv: list[str]) -> str:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("fastwi: error: ")
    return line


@pytest.mark.parametrize(
    ("name", "frames"),
    [("connectivity", {"line", "barrier"}), ("blocks", {"blocks"}), ("plane", {"plane", "points"})],
)
def test_every_file_of_a_study(sweep_file, name, frames, capsys):
    store = sweep_file.parent / "store"
    before = contents(store)
    argv = [name, "--config", str(sweep_file), *QUICK, "--json"]
    assert main(argv) == 0
    assert contents(store) == before
    said = capsys.readouterr()
    shown = json.loads(said.out)
    directory = sweep_file.parent / "sweeps" / "grid" / "analyses" / name
    assert shown["directory"] == str(directory)
    assert f"{name}: 100 %" in said.err
    assert "left" in said.err
    files = {f"{frame}.{kind}" for frame in frames for kind in ("parquet", "csv")}
    files |= {"summary.md", "manifest.json", "figure.png", "figure.pdf", "figure.svg"}
    assert {path.name for path in directory.iterdir()} == files
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["study"] == name
    assert manifest["options"]["cells"] == ["1,1"]
    assert manifest["dataset"]["name"] == "digits"
    assert "commit" in manifest
    for frame in frames:
        found = polars.read_parquet(directory / f"{frame}.parquet")
        assert found.height == manifest["rows"][frame] == shown["rows"][frame] > 0
        assert found.equals(polars.read_csv(directory / f"{frame}.csv", schema=found.schema), null_equal=True)
        described = json.loads(polars.read_parquet_metadata(directory / f"{frame}.parquet")["fastwi.columns"])
        assert set(described) == set(found.columns)
        assert described["test_loss_nats" if "test_loss_nats" in described else "barrier_loss_nats"]["unit"] == "nats"
    summary = (directory / "summary.md").read_text()
    assert summary.startswith(f"# grid: {name}\n")
    assert "resnet20 on digits" in summary
    said = {line.partition(":")[0].removeprefix("- ") for line in summary.splitlines() if line.startswith("- ")}
    assert said == set(manifest["options"]) == set(all_studies()[name].options)
    assert "| k | s |" in summary


def test_tables_go_to_stdout_and_files_where_asked(sweep_file, tmp_path, capsys):
    argv = ["connectivity", "--config", str(sweep_file), *QUICK, "--analysis.directory", str(tmp_path)]
    assert main([*argv, "--analysis.pairs", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Error barrier" in shown
    assert str(tmp_path) in shown.replace("\n", "")
    assert (tmp_path / "analyses" / "connectivity" / "summary.md").exists()
    barrier = polars.read_parquet(tmp_path / "analyses" / "connectivity" / "barrier.parquet")
    assert sorted(barrier.select("parent_seed", "pair").unique().rows()) == [(0, 0), (0, 1), (3, 0), (3, 1)]


def test_nothing_is_trained_and_missing_states_are_refused(sweep_file, tmp_path, capsys):
    shutil.copytree(sweep_file.parent / "store", tmp_path / "store")
    argv = ["blocks", "--config", str(sweep_file), "--sweep.store", str(tmp_path / "store")]
    argv += ["--analysis.directory", str(tmp_path)]
    with Store.open(tmp_path / "store", create=False) as store:
        attempts = store.attempts()
    line = refused(capsys, [*argv, "--axes.experiment.s", "[1, 7]"])
    assert line.endswith("lacks 4 states, the first at epoch 8; run the sweep")
    for path in (tmp_path / "store" / "states").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert ".safetensors" in refused(capsys, argv)
    with Store.open(tmp_path / "store", create=False) as store:
        assert store.attempts() == attempts
    assert not (tmp_path / "analyses").exists()


def test_refusals(sweep_file, tmp_path, capsys):
    config = ["--config", str(sweep_file)]
    assert "unknown study; did you mean connectivity?" in refused(capsys, ["conectivity", *config])
    assert "--analysis.alphas: 1 is out of range" in refused(capsys, ["plane", *config, "--analysis.alphas", "1"])
    assert "the study's name is missing" in refused(capsys, config)
    assert "no store" in refused(capsys, ["plane", *config, "--sweep.store", str(tmp_path / "none")]).lower()
    assert not (tmp_path / "none").exists()


def test_a_study_that_fails_leaves_no_manifest(sweep_file, tmp_path, capsys, monkeypatch):
    argv = ["connectivity", "--config", str(sweep_file), *QUICK, "--analysis.directory", str(tmp_path)]
    assert main(argv) == 0
    directory = tmp_path / "analyses" / "connectivity"
    assert (directory / "manifest.json").exists()

    def broken(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(connectivity, "save_figure", broken)
    assert main(argv) == 1
    assert "no ink" in capsys.readouterr().err
    assert not (directory / "manifest.json").exists()
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


def test_list(capsys):
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(STUDIES)
    assert main(["--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STUDIES


def test_dry_run_and_print_config(sweep_file, tmp_path, capsys):
    argv = ["plane", "--config", str(sweep_file), "--analysis.directory", str(tmp_path / "new")]
    assert main([*argv, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["points"], shown["points_with_states"]) == (8, 8)
    assert shown["directory"] == str(tmp_path / "new" / "analyses" / "plane")
    assert main([*argv, "--axes.experiment.s", "[1, 9]", "--dry-run"]) == 0
    assert "8 points, of 4 the children's states" in capsys.readouterr().out
    assert main([*argv, "--print-config"]) == 0
    assert "analysis:  # " in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_help_imports_no_torch():
    code = "import sys; from fastwi.analyze import main; main(['--help']); sys.exit(int('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in STUDIES:
        assert f"  {name}" in done.stdout
