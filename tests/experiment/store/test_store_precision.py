"""A run, and all sweeps of a store, go on in the precision that they were begun in, on any machine."""

import dataclasses
import threading
from pathlib import Path

import pytest
from listeners import stopping

from fastwi.config.read import read_sweep_request
from fastwi.config.schema import Config, DataConfig, ExperimentConfig, SeedConfig
from fastwi.engine.precision import Choice, noted_precision
from fastwi.errors import UserError
from fastwi.experiment.planner import plan_run, plan_sweep
from fastwi.experiment.store import Store
from fastwi.experiment.store.precision import note_precision
from fastwi.sealed import write_sealed
from fastwi.sweep import main as sweep
from fastwi.train import main as train

ARGUMENTS = [
    "--data.train_images=100", "--data.test_images=50", "--optimizer.batch_size=50", "--model.width=0.25",
    "--experiment.s=1", "--experiment.after=0", "--experiment.recompute_images=50", "--engine.device=cpu",
    "--engine.threads=1", "--engine.backend=eager",
]  # fmt: skip
HERE_AND_THERE = pytest.mark.parametrize(("here", "there"), [("fp32", "bf16"), ("bf16", "fp32")])


def machine(monkeypatch, precision: str) -> None:
    """A machine on which auto is `precision`."""
    monkeypatch.setattr("fastwi.engine.device.auto_precision", lambda _: Choice(precision, "it was measured"))


def measurements(store: Path) -> dict:
    with Store.open(store, create=False) as opened:
        return opened.measurements()


@HERE_AND_THERE
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    digits_directory, tmp_path, monkeypatch, capfd, here, there
):
    argv = [*ARGUMENTS, f"--data.path={digits_directory}", "--experiment.k=1", "--run.name=r"]
    two = [*argv, f"--run.directory={tmp_path / 'two'}"]
    assert train([*argv, f"--run.directory={tmp_path / 'whole'}", f"--engine.precision={here}"]) == 0
    machine(monkeypatch, here)
    with monkeypatch.context() as cut:
        cut.setattr("fastwi.report.progress.TreeProgress", stopping(2))
        assert train(two) == 130
    assert [m.epoch for m in measurements(tmp_path / "two" / "r" / "store").values()] == [1]  # the parent's
    machine(monkeypatch, there)
    capfd.readouterr()
    assert train([*two, "--dry-run"]) == 0
    shown = capfd.readouterr().out
    assert {"fp32": "float32", "bf16": "bfloat16"}[here] in shown
    assert "the store was begun in it" in shown
    assert train(two) == 0
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
    assert (again.points[0].config, again.auto) == (named, None)
    shared = {planned.tree.keys[node] for node in planned.tree.path(planned.places[0].clone_node, 0)}
    assert shared <= set(again.tree.keys)
    assert again.places[0].average != planned.places[0].average


def sweep_arguments(directory: Path, data: Path) -> list[str]:
    places = (f"--data.path={data}", f"--sweep.store={directory}/store", f"--sweep.directory={directory}/sweeps")
    return [*ARGUMENTS, *places, "--axes.experiment.k=[1]"]


@HERE_AND_THERE
def test_a_store_goes_on_in_the_precision_that_it_was_begun_in(
    digits_directory, tmp_path, monkeypatch, capfd, here, there
):
    argv = sweep_arguments(tmp_path, digits_directory)
    more = [*argv[:-1], "--axes.experiment.k=[1, 2]"]
    machine(monkeypatch, here)
    assert sweep(argv) == 0
    assert f"engine.precision: auto is {here}: it was measured" in capfd.readouterr().err
    before = measurements(tmp_path / "store")
    machine(monkeypatch, there)
    assert sweep([*argv, "--dry-run"]) == 0
    assert "left: 0 epochs" in capfd.readouterr().out
    assert sweep(more) == 0
    assert f"engine.precision: auto is {here}: the store was begun in it" in capfd.readouterr().err
    both = measurements(tmp_path / "store")
    monkeypatch.undo()
    explicit = plan_sweep(read_sweep_request([*more, f"--engine.precision={here}"]).spec)
    assert both.keys() == set(explicit.tree.measurement_keys())  # as if the precision had been named
    assert before.keys() < both.keys()


@pytest.mark.parametrize("base", ["auto", "fp32"])
def test_auto_on_an_axis_is_what_it_is_on_the_machine(digits_directory, tmp_path, monkeypatch, base):
    """Whatever the axis replaces."""
    machine(monkeypatch, "bf16")
    (tmp_path / "base.yaml").write_text(f"engine: {{precision: {base}}}")
    argv = [*sweep_arguments(tmp_path, digits_directory), f"--config={tmp_path / 'base.yaml'}"]
    spec = read_sweep_request([*argv, "--axes.engine.precision=[fp32, auto]"]).spec
    planned = plan_sweep(spec)
    assert [point.config.engine.precision for point in planned.points] == ["fp32", "bf16"]
    assert planned.auto == Choice("bf16", "it was measured")
    machine(monkeypatch, "fp32")
    assert set(planned.contents()) ^ set(plan_sweep(spec).contents())  # so that no report mixes them


def test_a_damaged_note_of_it_is_refused(digits_directory, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    for text in ("", "{", "[]", '{"auto": "fp32"}', '{"auto": "fp32", "sha256": "0"}'):
        (tmp_path / "store" / "precision.json").write_text(text)
        assert sweep([*sweep_arguments(tmp_path, digits_directory), "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "precision.json" in line


def test_a_store_that_another_process_has_just_begun_in_another_precision_is_refused(tmp_path):
    note_precision(tmp_path, Choice("fp32", ""))
    note_precision(tmp_path, Choice("fp32", ""))
    with pytest.raises(UserError, match="another precision"):
        note_precision(tmp_path, Choice("bf16", ""))


def test_of_two_processes_that_begin_a_store_at_once_one_is_refused(tmp_path, monkeypatch):
    """The other one comes when the first has seen that nothing is noted."""
    refused = []

    def begin(precision: str) -> None:
        try:
            note_precision(tmp_path, Choice(precision, ""))
        except UserError:
            refused.append(precision)

    other = threading.Thread(target=begin, args=["fp32"])

    def write(path, about):
        monkeypatch.undo()
        other.start()
        other.join(0.3)  # it waits for the first
        write_sealed(path, about)

    monkeypatch.setattr("fastwi.experiment.store.precision.write_sealed", write)
    begin("bf16")
    other.join()
    assert (noted_precision(tmp_path), refused) == ("bf16", ["fp32"])
