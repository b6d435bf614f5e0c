"""`model.weights`: a run or a sweep that starts from given weights, named by their content."""

import json
import shutil
from pathlib import Path

import polars
import pytest
import torch
from safetensors.torch import load_file
from small_networks import trained

import fastwi
from fastwi.config.read import config_from_mapping
from fastwi.config.schema import Config
from fastwi.config.sweep import Axis, SweepSpec
from fastwi.config.write import config_hash
from fastwi.data.card import read_card
from fastwi.engine.choose import build_network
from fastwi.errors import CheckpointError
from fastwi.experiment.inputs import Inputs
from fastwi.experiment.planner import plan_sweep
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.sweep import main as sweep
from fastwi.train import main as train

WIDTH = 0.25


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def network(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model("resnet20", 10, WIDTH)


def saved(path: Path, seed: int) -> Path:
    fastwi.save_state_dict(network(seed).state_dict(), path)
    return path


def config_of(data: Path, weights: Path | str, **model) -> Config:
    return config_from_mapping(
        {
            "data": {"path": str(data)},
            "model": {"name": "resnet20", "width": WIDTH, "weights": str(weights), **model},
        }
    )


def identity(data: Path, weights: Path | str) -> str:
    config = config_of(data, weights)
    return config_hash(config, Inputs.of(read_card(data), config).digest)


def keys(data: Path, *weights: Path | str) -> list[set[str]]:
    """The states of a sweep over k, one set for each of `weights`."""
    found = []
    for each in weights:
        planned = plan_sweep(SweepSpec(config_of(data, each), (Axis("experiment.k", (1, 2)),)))
        found.append(set(planned.tree.keys))
    return found


def test_the_parent_starts_there(seed, digits_directory, tmp_path):
    expected = trained(network(0), seed)
    fastwi.save_state_dict(torch.nn.DataParallel(expected).state_dict(), tmp_path / "x.pt")
    Population.from_modules([expected]).save(tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        found = build_network(config_of(digits_directory, name), 10, root=tmp_path).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())
    with pytest.raises(CheckpointError, match=r"x\.pt: 'conv\.weight' is"):
        build_network(config_of(digits_directory, tmp_path / "x.pt", width=0.5), 10)


def test_content_decides_and_not_the_path(digits_directory, tmp_path):
    same = [saved(tmp_path / name, 1) for name in ("a.pt", "b.safetensors")]
    Population.from_modules([network(1)]).save(tmp_path / "c.safetensors")
    same.append(tmp_path / "c.safetensors")
    other = saved(tmp_path / "d.pt", 2)
    assert len({identity(digits_directory, path) for path in same}) == 1
    assert len({identity(digits_directory, path) for path in (same[0], other, "")}) == 3
    first, *rest = keys(digits_directory, *same)
    assert all(each == first for each in rest)
    drawn, others = keys(digits_directory, "", other)
    assert len(first) == len(others) == len(drawn)
    assert not (first & others) | (first & drawn) | (others & drawn)
    before = identity(digits_directory, same[0])
    saved(same[0], 2)
    assert identity(digits_directory, same[0]) == identity(digits_directory, other) != before


def arguments(data: Path, directory: Path, weights: Path, *more: str) -> list[str]:
    pairs = {
        "data.path": data, "data.train_images": 100, "data.test_images": 50, "model.width": WIDTH,
        "model.weights": weights, "optimizer.batch_size": 50, "experiment.k": 1, "experiment.s": 1,
        "experiment.after": 0, "engine.device": "cpu", "engine.precision": "fp32", "engine.backend": "eager",
        "engine.threads": 1,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in pairs.items()] + list(more)


def test_a_run_and_a_sweep_from_weights(digits_directory, tmp_path, capsys):
    """Weights that an initialisation would draw give that initialisation's run; the sweep has the same numbers."""
    fastwi.save_state_dict(build_network(config_of(digits_directory, ""), 10).state_dict(), tmp_path / "x.pt")
    runs = {}
    for name, weights in (("given", tmp_path / "x.pt"), ("drawn", "")):
        to = (f"--run.directory={tmp_path}", f"--run.name={name}")
        assert train(arguments(digits_directory, tmp_path, weights, *to)) == 0
        runs[name] = (tmp_path / name / "metrics.jsonl").read_bytes()
    assert runs["given"] == runs["drawn"]
    parents = [load_file(tmp_path / name / "checkpoints" / "parent.safetensors") for name in runs]
    assert all(torch.equal(parents[0][key], parents[1][key]) for key in parents[0])

    other = saved(tmp_path / "other.pt", 5)
    to = (f"--run.directory={tmp_path}", "--run.name=given")
    capsys.readouterr()
    assert train(arguments(digits_directory, tmp_path, other, *to)) == 2
    assert "another configuration or dataset" in capsys.readouterr().err
    shutil.move(tmp_path / "x.pt", tmp_path / "moved.pt")
    assert train(arguments(digits_directory, tmp_path, tmp_path / "moved.pt", *to)) == 0

    swept = arguments(digits_directory, tmp_path, tmp_path / "moved.pt", f"--sweep.store={tmp_path / 'store'}",
                      f"--sweep.directory={tmp_path}", "--sweep.name=swept")  # fmt: skip
    assert sweep(swept) == 0
    frame = polars.read_parquet(tmp_path / "swept" / "results.parquet")
    losses = frame.filter(network="parent", metric="test_loss")["value"].to_list()
    rows = [json.loads(line) for line in runs["given"].splitlines()]
    assert losses == [row["test_loss"] for row in rows if row["network"] == "parent"] != []


def test_weights_that_cannot_be_used(digits_directory, tmp_path, capsys):
    torch.save(network(0), tmp_path / "module.pt")
    fastwi.save_state_dict(build_model("resnet20", 10, 0.5).state_dict(), tmp_path / "wide.pt")
    for weights, said in [
        (tmp_path / "none.pt", "none.pt: cannot be read"),
        (tmp_path / "module.pt", "save network.state_dict() instead"),
        (tmp_path / "wide.pt", "'conv.weight' is torch.float32 (8, 3, 3, 3) in the state dict"),
    ]:
        to = (f"--run.directory={tmp_path / 'runs'}", "--dry-run")
        for command, where in ((train, to), (sweep, (f"--sweep.store={tmp_path / 'store'}", "--dry-run"))):
            assert command(arguments(digits_directory, tmp_path, weights, *where)) == 2
            shown = capsys.readouterr()
            (line,) = [line for line in shown.err.splitlines() if line.startswith("fastwi: error")]
            assert said in line
    assert not (tmp_path / "runs").exists()
