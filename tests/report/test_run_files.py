"""A run's directory: which run may go on there, and that what it was begun as stays noted."""

from pathlib import Path

import pytest

from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.errors import CheckpointError, UserError
from fastwi.report.run_files import RunDirectory
from fastwi.sealed import read_sealed, write_sealed
from fastwi.train import main


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("sealed", [True, False])
def test_a_run_of_an_earlier_fastwi_is_refused_in_one_line(tmp_path, digits_directory, capsys, sealed):
    """Begun or finished, whole or damaged, and of whatever configuration; nothing of it is touched."""
    directory = tmp_path / "r"
    directory.mkdir()
    write_sealed(directory / "progress.json", {"step": 3, "state": "state-3.safetensors", "precision": "float32"})
    (directory / "state-3.safetensors").write_bytes(b"a state")
    if sealed:
        write_sealed(directory / "manifest.json", {"identity": "0123456789ab"})
    else:
        (directory / "manifest.json").write_text("{")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"r: holds a run of an earlier fastwi.*give another run\.name"):
        RunDirectory(directory).check("0123456789ab", Config())
    argv = [f"--data.path={digits_directory}", f"--run.directory={tmp_path}", "--run.name=r", "--engine.device=cpu"]
    for more in ([], ["--dry-run"]):
        assert main([*argv, *more]) == 2
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert f"{directory}: holds a run of an earlier fastwi" in line
        assert said.out == ""
    assert contents(tmp_path) == before


def test_a_directory_is_of_the_run_that_it_was_begun_as(tmp_path):
    paths, config = RunDirectory(tmp_path / "r"), config_from_mapping({"experiment": {"k": 3}})
    paths.check("first", config)  # there is none yet
    with paths.begun({"identity": "first"}, config):
        before = contents(tmp_path)
        second = paths.begun({"identity": "second"}, Config())
        with pytest.raises(UserError, match="another process trains this run"), second:
            pass
    with paths.begun({"identity": "second"}, Config()):  # it goes on
        pass
    assert contents(tmp_path) == before
    assert read_sealed(paths.manifest, "") == {"identity": "first"}
    paths.check("first", config)
    with pytest.raises(CheckpointError, match="another configuration or dataset"):
        paths.check("second", config)
    paths.manifest.write_bytes(paths.manifest.read_bytes().replace(b"first", b"fisrt"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: is damaged"):
        paths.check("first", config)
