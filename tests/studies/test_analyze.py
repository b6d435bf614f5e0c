"""`python -m fastwi.analyze`: what it writes and prints, what it refuses, and that it leaves the store alone."""

import json
import shutil
import subprocess
import sys

import polars
import pytest
from commands import refused
from PIL import Image
from studied import ON_ANY_SWEEP, sweep_file

from fastwi.analyze import main
from fastwi.experiment.store import Store
from fastwi.report.estimates import SAME
from fastwi.report.study import Study
from fastwi.studies import all_studies, connectivity

QUICK = [
    "--analysis.alphas", "2", "--analysis.treatments", "averaged", "--analysis.cells", "1,1",
    "--analysis.curvature_vectors", "2", "--analysis.curvature_probes", "1",
]  # fmt: skip
QUESTIONS = {name: study.question for name, study in all_studies().items()}


@pytest.fixture(scope="module")
def config(digits_directory, tmp_path_factory) -> list[str]:
    """Of a finished sweep. Tests must not change its store."""
    return ["--config", str(sweep_file(digits_directory, tmp_path_factory))]


@pytest.mark.parametrize("name", ON_ANY_SWEEP)
def test_every_file_of_a_study(config, name, tmp_path, capsys):
    study = all_studies()[name]
    assert main([name, *config, *QUICK, "--analysis.directory", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    directory = tmp_path / "analyses" / name
    assert shown["directory"] == str(directory)
    assert f"{name}: 100 %" in said.err
    files = {f"{frame}.{kind}" for frame in study.columns for kind in ("parquet", "csv")}
    files |= {"summary.md", "manifest.json", "figure.png", "figure.pdf", "figure.svg"}
    assert {path.name for path in directory.iterdir()} == files
    with Image.open(directory / "figure.png") as image:
        assert image.width >= 500
        assert len(image.convert("RGB").getcolors(2**24) or ()) > 50
    assert (directory / "figure.pdf").read_bytes().startswith(b"%PDF")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["study"], manifest["dataset"]["name"]) == (name, "digits")
    assert manifest["options"]["cells"] == ["1,1"]
    assert "commit" in manifest
    decided = manifest["deciding"]
    assert (decided["experiment.k"], decided["optimizer.learning_rate"]) == (["1", "2"], ["0.05"])
    assert not {"data.path", "experiment.measure", "engine.threads", "seeds.init"} & set(decided)
    for frame, columns in study.columns.items():
        found = polars.read_parquet(directory / f"{frame}.parquet")
        assert found.height == manifest["rows"][frame] == shown["rows"][frame]
        assert found.schema == {key: column.type for key, column in columns.items()}
        assert found.equals(polars.read_csv(directory / f"{frame}.csv", schema=found.schema), null_equal=True)
        described = json.loads(polars.read_parquet_metadata(directory / f"{frame}.parquet")["fastwi.columns"])
        assert {key: (about["unit"], about["help"]) for key, about in described.items()} == {
            key: column[:2] for key, column in columns.items()
        }
    summary = (directory / "summary.md").read_text()
    assert study.question[1:] in summary
    assert "resnet20 on digits" in summary
    # Only options that matter to this study are listed.
    listed = {line.partition(":")[0].removeprefix("- ") for line in summary.splitlines() if line.startswith("- ")}
    assert listed == set(manifest["options"]) == set(study.options)


def test_files_keep_the_rows_that_tables_leave_out(config, tmp_path, monkeypatch):
    """Without batch norm recomputed statistics repeat the others."""
    measure = Study.measure

    def repeated(*given: object) -> dict[str, polars.DataFrame]:
        again = polars.lit("recomputed").alias("batch_norm")
        frames = measure(*given)
        return {name: polars.concat([frame, frame.with_columns(again)]) for name, frame in frames.items()}

    monkeypatch.setattr(Study, "measure", repeated)
    assert main(["connectivity", *config, *QUICK, "--analysis.directory", str(tmp_path)]) == 0
    directory = tmp_path / "analyses" / "connectivity"
    assert SAME in (directory / "summary.md").read_text()
    for name in all_studies()["connectivity"].columns:
        for found in (polars.read_parquet(directory / f"{name}.parquet"), polars.read_csv(directory / f"{name}.csv")):
            assert set(found["batch_norm"]) == {"averaged", "recomputed"}


def test_tables_go_to_stdout_and_files_beside_the_sweep(config, tmp_path, capsys):
    argv = ["connectivity", *config, "--sweep.directory", str(tmp_path), *QUICK]
    assert main(argv) == 0
    assert "Error barrier" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "analyses" / "connectivity" / "summary.md").exists()


def test_nothing_is_trained_and_missing_states_are_refused(config, tmp_path, capsys):
    store = tmp_path / "store"
    shutil.copytree(sweep_store(config), store)
    argv = ["blocks", *config, "--sweep.store", str(store), "--analysis.directory", str(tmp_path)]
    with Store.open(store, create=False) as opened:
        attempts = opened.attempts()
    line = refused(main, capsys, [*argv, "--axes.experiment.s", "[1, 7]"])
    assert line.endswith("lacks 8 states, the first at epoch 8; run the sweep")
    for path in (store / "states").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert ".safetensors" in refused(main, capsys, argv)
    with Store.open(store, create=False) as opened:
        assert opened.attempts() == attempts
    assert not (tmp_path / "analyses").exists()


def sweep_store(config: list[str]) -> str:
    return config[1].replace("sweep.yaml", "store")


def test_refusals(config, tmp_path, capsys):
    assert "did you mean connectivity?" in refused(main, capsys, ["conectivity", *config])
    assert "analysis.alphas: 1 " in refused(main, capsys, ["plane", *config, "--analysis.alphas", "1"])
    assert "connectivity" in refused(main, capsys, config)
    assert "no store" in refused(main, capsys, ["plane", *config, "--sweep.store", str(tmp_path / "none")]).lower()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("place", ["file", "file/deeper", "link", "analyses"])
def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_measured(
    config, tmp_path, capsys, monkeypatch, place
):
    monkeypatch.setattr(Study, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    if place == "analyses":
        place = "."
        (tmp_path / "analyses").write_text("")
    said = refused(main, capsys, ["connectivity", *config, "--analysis.directory", str(tmp_path / place)])
    assert str(tmp_path / place) in said


def test_a_study_that_fails_leaves_no_manifest(config, tmp_path, capsys, monkeypatch):
    argv = ["connectivity", *config, *QUICK, "--analysis.directory", str(tmp_path)]
    assert main(argv) == 0
    directory = tmp_path / "analyses" / "connectivity"
    assert (directory / "manifest.json").exists()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(connectivity, "set_title", broken)
    assert main(argv) == 1
    assert "no ink" in capsys.readouterr().err
    assert not (directory / "manifest.json").exists()
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


def test_dry_run_and_print_config(config, tmp_path, capsys):
    argv = ["plane", *config, "--analysis.directory", str(tmp_path / "new")]
    assert main([*argv, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["points"], shown["points_with_states"]) == (8, 8)
    assert shown["directory"] == str(tmp_path / "new" / "analyses" / "plane")
    assert main([*argv, "--axes.experiment.s", "[1, 9]", "--dry-run"]) == 0
    assert "states of 4 of 8 points" in capsys.readouterr().out
    assert main([*argv, "--print-config"]) == 0
    assert "analysis:  # " in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_the_list_and_the_help_need_no_torch(capsys):
    assert main(["--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == QUESTIONS
    code = "import sys; from fastwi.analyze import main; main(['--list']); main(['--help'])"
    code += "; sys.exit(int('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, question in QUESTIONS.items():
        assert f"  {name}" in done.stdout
        assert done.stdout.count(question) == 2
