"""What fails in the run's precision is refused before anything is stored, in one line that names the layer."""

from pathlib import Path

import networks_of_mixed_dtypes
import pytest
import torch

from fastwi.sweep import main as sweep
from fastwi.train import main as train

FILE = networks_of_mixed_dtypes.__file__


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings(network: str, data: Path, precision: str, engine: str = "loop") -> dict[str, object]:
    return {
        "data": {"path": str(data), "train_images": 60, "test_images": 30}, "model": {"name": f"{FILE}:{network}"},
        "optimizer": {"batch_size": 30, "learning_rate": 0.01},
        "engine": {"name": engine, "device": "cpu", "precision": precision, "backend": "eager", "threads": 1},
    }  # fmt: skip


def run(network: str, data: Path, directory: Path, precision: str, *more: str, engine: str = "loop") -> int:
    given = settings(network, data, precision, engine) | {
        "experiment": {"k": 1, "s": 1, "after": 0}, "run": {"directory": str(directory), "name": "r"},
    }  # fmt: skip
    pairs = [f"--{section}.{key}={value}" for section, keys in given.items() for key, value in keys.items()]
    return train([*pairs, *more])


def grid(network: str, data: Path, directory: Path, precision: str, *more: str) -> int:
    given = settings(network, data, precision) | {
        "experiment": {"s": 1, "after": 0}, "axes": {"experiment.k": [1]},
        "sweep": {"store": str(directory / "store"), "directory": str(directory / "sweeps")},
    }  # fmt: skip
    directory.mkdir(exist_ok=True)
    (directory.parent / "grid.yaml").write_text(repr(given))  # YAML reads it
    return sweep(["--config", str(directory.parent / "grid.yaml"), *more])


@pytest.mark.parametrize("command", [run, grid])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_refused_in_one_line_before_anything_is_stored(digits_directory, tmp_path, capsys, command, more):
    (tmp_path / "out").mkdir()
    assert command("MixesItself", digits_directory, tmp_path / "out", "bf16", *more) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    for named in ("model.name", "bfloat16", "layer mixed:", "engine.precision fp32"):
        assert named in line
    assert out == ""
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", [run, grid])
def test_the_line_is_right(digits_directory, tmp_path, command):
    assert command("MixesItself", digits_directory, tmp_path / "out", "fp32") == 0


@pytest.mark.parametrize("command", [run, grid])
def test_mixed_dtypes_are_no_reason_to_refuse(digits_directory, tmp_path, command):
    assert command("PositionBuffer", digits_directory, tmp_path / "out", "bf16", "--dry-run") == 0
    assert command("PositionBuffer", digits_directory, tmp_path / "out", "bf16") == 0


def test_an_engine_that_cannot_run_it_is_named(digits_directory, tmp_path, capsys):
    assert run("PositionBuffer", digits_directory, tmp_path / "out", "bf16", engine="stacked") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "engine.name stacked" in line
    assert "engine.name loop" in line
    assert not (tmp_path / "out").exists()
