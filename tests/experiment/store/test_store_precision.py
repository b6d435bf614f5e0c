"""A run, and all sweeps of a store, go on in the precision that they were begun in, on any machine."""

import dataclasses
from pathlib import Path

import pytest
from listeners import stopping

from fastwi.config.read import read_sweep_request
from fastwi.config.schema import Config, DataConfig, ExperimentConfig, SeedConfig
from fastwi.engine.precision import Choice
from fastwi.experiment.planner import plan_run, plan_sweep
from fastwi.experiment.store import Store
from fastwi.sweep import main as sweep
from fastwi.train import main as train

RUN = {
    "data.train_images": 100, "data.test_images": 50, "run.name": "r", "optimizer.batch_size": 50,
    "model.width": 0.25, "experiment.k": 1, "experiment.s": 1, "experiment.after": 0, "engine.device": "cpu",
    "engine.threads": 1, "engine.backend": "eager",
}  # fmt: skip
SWEEP = """
data: {{path: {data}, train_images: 100, test_images: 50}}
optimizer: {{batch_size: 50}}
model: {{width: 0.25}}
experiment: {{s: 1, after: 0, recompute_images: 50}}
engine: {{device: cpu, threads: 1, backend: eager}}
axes: {{experiment.k: [1]}}
sweep: {{store: {here}/store, directory: {here}/sweeps}}
"""


def machine(monkeypatch, precision: str) -> None:
    """A machine on which auto is `precision`."""
    monkeypatch.setattr("fastwi.engine.device.auto_precision", lambda _: Choice(precision, "it was measured"))


def run(directory: Path, data: Path, *more: str) -> int:
    pairs = {**RUN, "data.path": data, "run.directory": directory}
    return train([f"--{key}={value}" for key, value in pairs.items()] + list(more))


@pytest.mark.parametrize(("here", "there", "dtype"), [("fp32", "bf16", "float32"), ("bf16", "fp32", "bfloat16")])
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    digits_directory, tmp_path, monkeypatch, capfd, here, there, dtype
):
    assert run(tmp_path / "whole", digits_directory, f"--engine.precision={here}") == 0
    machine(monkeypatch, here)
    with monkeypatch.context() as cut:
        cut.setattr("fastwi.report.progress.TreeProgress", stopping(2))
        assert run(tmp_path / "two", digits_directory) == 130
    with Store.open(tmp_path / "two" / "r" / "store", create=False) as store:
        assert [m.epoch for m in store.measurements().values()] == [1]  # the parent's
    machine(monkeypatch, there)
    capfd.readouterr()
    assert run(tmp_path / "two", digits_directory, "--dry-run") == 0
    assert f"{dtype} (engine.precision: auto is" in (out := capfd.readouterr().out)
    assert "the store was begun in it" in out
    assert run(tmp_path / "two", digits_directory) == 0
    rows = [(tmp_path / name / "r" / "metrics.jsonl").read_text() for name in ("whole", "two")]
    assert rows[0] == rows[1]


def test_a_run_is_planned_as_a_sweep_of_one_point(digits_directory, tmp_path, monkeypatch):
    machine(monkeypatch, "bf16")
    config = Config(
        data=DataConfig(path=str(digits_directory)), experiment=ExperimentConfig(k=1, s=2, children=3),
        seeds=SeedConfig(init=7, parent_noise=8),
    )  # fmt: skip
    planned = plan_run(config, tmp_path / "store")
    (point,) = planned.points
    seeds = dataclasses.replace(config.seeds, child_noise=(1, 2, 3))
    engine = dataclasses.replace(config.engine, precision="bf16")
    assert point.config == dataclasses.replace(config, seeds=seeds, engine=engine)
    assert (point.parent, planned.spec.options.store) == (7, str(tmp_path / "store"))
    assert planned.auto == Choice("bf16", "it was measured")
    named = dataclasses.replace(config, seeds=dataclasses.replace(seeds, child_noise=(9, 4, 2)), engine=engine)
    again = plan_run(named, tmp_path / "store")
    assert again.points[0].config == named
    assert again.auto is None
    shared = {planned.tree.keys[node] for node in planned.tree.path(planned.places[0].clone_node, 0)}
    assert shared <= set(again.tree.keys)
    assert again.places[0].average != planned.places[0].average


def sweep_file(directory: Path, data: Path) -> list[str]:
    path = directory / "grid.yaml"
    path.write_text(SWEEP.format(data=data, here=directory))
    return ["--config", str(path)]


@pytest.mark.parametrize(("here", "there"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_store_goes_on_in_the_precision_that_it_was_begun_in(
    digits_directory, tmp_path, monkeypatch, capfd, here, there
):
    argv = sweep_file(tmp_path, digits_directory)
    machine(monkeypatch, here)
    assert sweep(argv) == 0
    assert f"engine.precision: auto is {here}: it was measured" in capfd.readouterr().err
    with Store.open(tmp_path / "store", create=False) as store:
        before = store.measurements()
    machine(monkeypatch, there)
    assert sweep([*argv, "--dry-run"]) == 0
    assert "left: 0 epochs" in capfd.readouterr().out
    assert sweep([*argv, "--axes.experiment.k", "[1, 2]"]) == 0
    assert f"engine.precision: auto is {here}: the store was begun in it" in capfd.readouterr().err
    with Store.open(tmp_path / "store", create=False) as store:
        both = store.measurements()
    monkeypatch.undo()
    named = [*argv, "--engine.precision", here, "--axes.experiment.k", "[1, 2]"]
    explicit = plan_sweep(read_sweep_request(named).spec)
    assert both.keys() == set(explicit.tree.measurement_keys())  # as if the precision had been named
    assert before.keys() < both.keys()


def test_a_damaged_note_of_it_is_refused(digits_directory, tmp_path, capsys):
    argv = sweep_file(tmp_path, digits_directory)
    (tmp_path / "store").mkdir()
    for text in ("", "{", "[]", '{"auto": "fp32"}', '{"auto": "fp32", "sha256": "0"}'):
        (tmp_path / "store" / "precision.json").write_text(text)
        assert sweep([*argv, "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "precision.json" in line
