"""The progress of a sweep in lines: what is left, also where other processes take part."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from drawn_measurements import drawn, inputs_of, spec_of

from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.report import plan
from fastwi.report.progress import Progress, TreeProgress, clock, cost_of


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def do(progress: TreeProgress, planned: PlannedSweep, tasks: Sequence[int], seed: int) -> None:
    measurements = drawn(planned.tree, seed)
    progress.images(100, 50)
    progress.measured(tasks, [measurements[planned.tree.measurement_key(task)] for task in tasks])


def test_what_other_processes_do_shows_as_less_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    clock_s = itertools.count(0.0, 60.0)
    monkeypatch.setattr("fastwi.report.progress.time", SimpleNamespace(monotonic=clock_s.__next__))
    planned = plan_sweep(spec_of({"experiment.k": (1, 2)}), inputs_of=inputs_of)
    tasks = planned.tree.tasks()
    with TreeProgress(planned) as progress:
        progress.planned(tasks)
        assert lines(capsys) == []  # only with the first images: networks are built before
        do(progress, planned, tasks[:2], seed)
        first, line = lines(capsys)
        epochs = len(list(planned.tree.epoch_nodes()))
        assert first == f"{epochs} epochs to train, {len(tasks) - epochs} networks to measure"
        assert line.startswith(f"networks measured: 2 of {len(tasks)}, ")
        progress.planned(tasks[4:])
        do(progress, planned, tasks[4:], seed)
        first, line = lines(capsys)
        assert first.startswith(f"{epochs - 4} epochs to train")
        assert line.startswith(f"networks measured: {len(tasks) - 2} of {len(tasks) - 2}, ")
        assert line.endswith(", 0:00 left]")
        progress.planned([])
    assert lines(capsys) == ["other processes did the rest"]


def test_what_is_finished_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    with TreeProgress(plan_sweep(spec_of({}), inputs_of=inputs_of)) as progress:
        progress.planned([])
    (line,) = lines(capsys)
    assert line.startswith("already finished")


def test_time_left_is_estimated_once_something_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastwi.report.progress.time", SimpleNamespace(monotonic=iter((100.0, 112.0, 130.0)).__next__)
    )
    with Progress("work") as progress:
        for done in (1.0, 10.0):
            progress.show(done, 1000.0, every=True)
    first, second = lines(capsys)
    assert first == "work: 0 %  [0:12 spent]"
    assert second == "work: 1 %  [0:30 spent, 49:30 left]"  # 990 of which 10 took 30 s
    assert [clock(seconds) for seconds in (59.6, 754, 3723)] == ["1:00", "12:34", "1:02:03"]


def test_the_time_that_a_plan_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each speed: what is to be done over the speed, and what begins it once."""
    axes = {"optimizer.batch_size": (25, 50), "optimizer.learning_rate": (0.1, 0.05)}  # a rate changes no speed
    planned = plan_sweep(spec_of(axes), inputs_of=inputs_of)
    tree = planned.tree
    tasks = tree.tasks()
    measured = {25: (4.0, 7.0), 50: (8.0, 3.0)}
    monkeypatch.setattr(plan, "_measure", lambda config, *given: measured[config.optimizer.batch_size])
    resources = SimpleNamespace(
        tried_engine=lambda config: config, network=lambda config: None, splits=lambda config: (None, None)
    )
    costs = dict.fromkeys(measured, 0.0)
    for task in tasks:
        # An image that is evaluated counts as a quarter of one that is trained. Epochs are tested on 50 images.
        images = 100 if task < len(tree) else 0.25 * tree.treatment_of(task).images
        assert cost_of(planned, task) == images + 0.25 * 50
        costs[tree.config_of(task).optimizer.batch_size] += images + 0.25 * 50
    assert min(costs.values()) > 0
    seconds = plan._seconds(planned, tasks, resources)
    assert seconds == pytest.approx(costs[25] / 4 + 7 + costs[50] / 8 + 3)


def test_the_bytes_that_a_plan_shows_are_those_of_each_network() -> None:
    resources = SimpleNamespace(layout=lambda config: SimpleNamespace(row_bytes=round(400 * config.model.width)))

    def kept(*widths: float) -> dict[str, int]:
        planned = plan_sweep(spec_of({"model.width": widths}), inputs_of=inputs_of)
        return plan.kept_bytes(planned, resources)

    small, large = kept(0.25), kept(0.5)
    assert 0 < small["ends"] < small["all"]
    assert large == {keep: 2 * size for keep, size in small.items()}
    assert kept(0.25, 0.5) == kept(0.5, 0.25) == {keep: 3 * size for keep, size in small.items()}


def test_the_tree_that_a_plan_shows() -> None:
    """A trajectory is counted once, however many of its epochs points end at."""
    planned = plan_sweep(spec_of({"experiment.k": (1, 2), "experiment.s": (1, 2)}, children=4), inputs_of=inputs_of)
    assert plan.tree_lines(planned) == [
        "parents: 1 trajectory, 2 epochs, kept at epochs 1, 2",
        "children: 8 trajectories, 16 epochs, kept at epochs 2, 3, 4",
        "averages: 8 trajectories, 16 epochs, kept at epochs 4, 5, 6",
    ]
