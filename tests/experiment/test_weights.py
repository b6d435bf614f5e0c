"""`model.weights`: a run or a sweep that starts from given weights, named by their content."""

import json
import shutil
from pathlib import Path

import polars
import pytest
import torch
from mappings import config_from_mapping
from safetensors.torch import load_file
from small_networks import trained

import fastwi
from fastwi.config.schema import Config
from fastwi.engine.choose import build_network
from fastwi.errors import CheckpointError
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.sweep import main as sweep
from fastwi.train import main as train

WIDTH = 0.25


def network(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model("resnet20", 10, WIDTH)


def saved(path: Path, seed: int) -> Path:
    fastwi.save_state_dict(network(seed).state_dict(), path)
    return path


def config_of(data: Path, weights: Path | str, width: float = WIDTH) -> Config:
    model = {"name": "resnet20", "width": width, "weights": str(weights)}
    return config_from_mapping({"data": {"path": str(data)}, "model": model})


def test_the_parent_starts_there(seed, digits_directory, tmp_path, monkeypatch):
    expected = trained(network(0), seed)
    fastwi.save_state_dict(torch.nn.DataParallel(expected).state_dict(), tmp_path / "x.pt")
    Population.from_modules([expected]).save(tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    for name in ("x.pt", "x.safetensors"):
        found = build_network(config_of(digits_directory, name), 10).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())
    with pytest.raises(CheckpointError, match=r"x\.pt: 'conv\.weight' is"):
        build_network(config_of(digits_directory, tmp_path / "x.pt", width=0.5), 10)


def arguments(data: Path, weights: Path | str, *more: str) -> list[str]:
    pairs = {
        "data.path": data, "data.train_images": 100, "data.test_images": 50, "model.width": WIDTH,
        "model.weights": weights, "optimizer.batch_size": 50, "experiment.k": 1, "experiment.s": 1,
        "experiment.after": 0, "engine.device": "cpu", "engine.precision": "fp32", "engine.backend": "eager",
        "engine.threads": 1,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in pairs.items()] + list(more)


def test_a_run_and_a_sweep_from_weights(digits_directory, tmp_path, capsys):
    """Weights that an initialisation would draw give that initialisation's run; the sweep has the same numbers."""
    given, data, here = tmp_path / "x.pt", digits_directory, f"--run.directory={tmp_path}"
    fastwi.save_state_dict(build_network(config_of(data, ""), 10).state_dict(), given)
    for name, weights in (("given", given), ("drawn", "")):
        assert train(arguments(data, weights, here, f"--run.name={name}")) == 0
    runs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("given", "drawn")]
    assert runs[0] == runs[1]
    parents = [load_file(tmp_path / name / "checkpoints" / "parent.safetensors") for name in ("given", "drawn")]
    assert all(torch.equal(parents[0][key], parents[1][key]) for key in parents[0])
    capsys.readouterr()
    assert train(arguments(data, saved(tmp_path / "other.pt", 5), here, "--run.name=given")) == 2
    assert "another configuration or dataset" in capsys.readouterr().err
    moved = shutil.move(given, tmp_path / "moved.pt")
    assert train(arguments(data, moved, here, "--run.name=given")) == 0
    to = (f"--sweep.store={tmp_path / 'store'}", f"--sweep.directory={tmp_path}", "--sweep.name=swept")
    assert sweep(arguments(data, moved, *to)) == 0
    frame = polars.read_parquet(tmp_path / "swept" / "results.parquet")
    losses = frame.filter(network="parent", metric="test_loss")["value"].to_list()
    rows = [json.loads(line) for line in runs[0].splitlines()]
    assert losses == [row["test_loss"] for row in rows if row["network"] == "parent"] != []


def test_weights_that_cannot_be_used(digits_directory, tmp_path, capsys):
    torch.save(network(0), tmp_path / "module.pt")
    fastwi.save_state_dict(build_model("resnet20", 10, 0.5).state_dict(), tmp_path / "wide.pt")
    for name, words in (
        ("none", "none.pt: "),
        ("module", "state_dict()"),
        ("wide", "'conv.weight' is torch.float32"),
    ):
        for command, option in ((train, f"--run.directory={tmp_path}/runs"), (sweep, f"--sweep.store={tmp_path}/s")):
            assert command(arguments(digits_directory, tmp_path / f"{name}.pt", option, "--dry-run")) == 2
            shown = capsys.readouterr().err.splitlines()
            (line,) = [line for line in shown if line.startswith("fastwi: error")]
            assert words in line
    assert not (tmp_path / "runs").exists()
