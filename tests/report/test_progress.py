"""The progress of a sweep in lines: what is left, also where other processes take part."""

from collections.abc import Sequence

import pytest
from drawn_measurements import drawn, inputs_of, spec_of

from fastwi.experiment.planner import PlannedSweep, plan_sweep
from fastwi.report.progress import Progress, TreeProgress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def do(progress: TreeProgress, planned: PlannedSweep, tasks: Sequence[int], seed: int) -> None:
    measurements = drawn(planned.tree, seed)
    progress.images(100, 50)
    progress.measured(tasks, [measurements[planned.tree.measurement_key(task)] for task in tasks])


def test_what_other_processes_do_shows_as_less_that_is_left(capsys: pytest.CaptureFixture[str], seed: int) -> None:
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
        progress.planned([])
    assert lines(capsys) == ["other processes did the rest"]


def test_what_is_finished_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    with TreeProgress(plan_sweep(spec_of({}), inputs_of=inputs_of)) as progress:
        progress.planned([])
    (line,) = lines(capsys)
    assert line.startswith("already finished")


def test_time_left_is_estimated_once_something_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work") as progress:
        for done in (1.0, 10.0):
            progress.show(done, 1000.0, every=True)
    first, second = lines(capsys)
    assert first.startswith("work: 0 %")
    assert "left" not in first
    assert second.startswith("work: 1 %")
    assert "left]" in second
