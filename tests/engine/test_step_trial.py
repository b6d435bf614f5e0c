"""What fails in the run's precision is refused before anything is stored, in one line that names the layer."""

import json
from pathlib import Path

import networks_of_mixed_dtypes
import pytest
import torch

from fastwi.engine.graph import GraphEngine
from fastwi.sweep import main as sweep
from fastwi.train import main as train


def run(network: str, data: Path, directory: Path, precision: str, *more: str) -> int:
    return train(
        [
            f"--data.path={data}", "--data.train_images=60", "--data.test_images=30",
            f"--model.name={network if network.islower() else f'{networks_of_mixed_dtypes.__file__}:{network}'}",
            "--optimizer.batch_size=30", "--optimizer.learning_rate=0.01",
            "--engine.device=cpu", f"--engine.precision={precision}", "--engine.backend=eager", "--engine.threads=1",
            "--experiment.k=1", "--experiment.s=1", "--experiment.after=1",
            f"--run.directory={directory}", "--run.name=r", *more,
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("network", "more", "named"),
    [
        ("MixesItself", ["--dry-run"], ["bfloat16", "layer mixed:", "engine.precision fp32"]),
        ("MixesItself", [], ["bfloat16", "layer mixed:", "engine.precision fp32"]),
        ("MixesMeasured", [], ["bfloat16", "in its forward", "engine.precision fp32"]),
        ("PositionProduct", ["--engine.name=stacked"], ["bfloat16", "engine.name stacked", "engine.name loop"]),
        ("Checkpointed", [], ["torch.utils.checkpoint", "give compile"]),
    ],
)
def test_refused_in_one_line_before_anything_is_stored(digits_directory, tmp_path, capsys, network, more, named):
    assert run(network, digits_directory, tmp_path, "bf16", *more) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    for each in ("model.name", *named):
        assert each in line
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_sweep_refuses_it_too(digits_directory, tmp_path, capsys, more):
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    given = {
        "data": {"path": str(digits_directory), "train_images": 60, "test_images": 30},
        "model": {"name": f"{networks_of_mixed_dtypes.__file__}:MixesItself"}, "optimizer": {"batch_size": 30},
        "engine": {"device": "cpu", "precision": "bf16", "backend": "eager", "threads": 1},
        "experiment": {"s": 1, "after": 0}, "axes": {"experiment.k": [1]},
        "sweep": {"store": str(out / "store"), "directory": str(out / "sweeps")},
    }  # fmt: skip
    grid.write_text(json.dumps(given))  # YAML reads it
    assert sweep(["--config", str(grid), *more]) == 2
    printed, err = capsys.readouterr()
    (line,) = err.splitlines()
    for each in ("model.name", "bfloat16", "layer mixed:", "engine.precision fp32"):
        assert each in line
    assert printed == ""
    assert not out.exists()


@pytest.mark.parametrize(
    ("network", "precision", "engine"),
    [
        ("MixesItself", "fp32", "auto"), ("PositionBuffer", "bf16", "auto"), ("PositionBuffer", "bf16", "stacked"),
        ("PositionProduct", "bf16", "auto"),
    ],
)  # fmt: skip
def test_what_can_be_run_is_not_refused(digits_directory, tmp_path, network, precision, engine):
    # The schedule counts from iterations that the trial lacks.
    more = ["--schedule.at_average=restart", f"--engine.name={engine}"]
    assert run(network, digits_directory, tmp_path, precision, "--dry-run", *more) == 0
    assert run(network, digits_directory, tmp_path, precision, *more) == 0


@pytest.mark.parametrize("network", ["PositionBuffer", "convnet"])
def test_auto_goes_on_with_loop_where_its_choice_for_a_gpu_fails(
    digits_directory, tmp_path, capsys, monkeypatch, network
):
    """The choice is made as on a GPU, and the engine is built on this machine."""
    tried: list[str] = []

    def fails(self, *_):
        tried.append(self.name)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("fastwi.engine.choose.resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("fastwi.engine.choose.entry_key", lambda *_: "a GPU that nothing was measured on")
    monkeypatch.setattr(GraphEngine, "_train", fails)
    assert run(network, digits_directory, tmp_path, "fp32") == 0
    assert tried == ["graph"]
    assert "loop, eager on cpu" in capsys.readouterr().err
    if network != "convnet":  # of its own; it is tried by whatever engine
        assert run(network, digits_directory, tmp_path / "named", "fp32", "--engine.name=graph") == 2
        assert "give engine.name loop" in capsys.readouterr().err
