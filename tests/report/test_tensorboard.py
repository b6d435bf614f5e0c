"""`run.tensorboard`: one point a measurement, the same as metrics.jsonl, however often a run was stopped."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from commands import refused, rows_of
from listeners import stopping

from fastwi.train import main

pytest.importorskip("tensorboard")


def arguments(data: Path, runs: Path, *more: str, after: str = "1") -> list[str]:
    pairs = {
        "data.path": data, "data.train_images": 100, "data.test_images": 50, "model.width": 0.25,
        "run.directory": runs, "run.name": "r", "optimizer.batch_size": 50, "experiment.k": 1, "experiment.s": 1,
        "experiment.after": after, "engine.device": "cpu", "engine.precision": "fp32", "engine.backend": "eager",
        "engine.threads": 1,
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in pairs.items()] + list(more)


def points(directory: Path) -> Counter:
    """(scalar, epoch, value in float32) of every event in the directory's files, one count each."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = Counter()
    for path in (directory / "tensorboard").iterdir():
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag, event.step, value.simple_value] += 1
    return found


def expected(directory: Path, step: str = "epoch") -> Counter:
    scalars = set()
    for row in rows_of(directory):
        network = " ".join([row["network"], *([row["over_time"]] if "over_time" in row else [])])
        scalars |= {
            (f"{column}/{network}/{row['batch_norm']}", row[step], float(torch.tensor(row[column])))
            for column in row.keys() & {"train_loss", "learning_rate", "test_loss", "test_accuracy_%"}
        }
    return Counter(scalars)


def test_off_by_default(digits_directory, tmp_path):
    """An average over time is a network of its own; with times within epochs the step is the iteration."""
    argv = arguments(digits_directory, tmp_path, "--optimizer.ema_decay=0.9", after="1it")
    assert main(argv) == 0
    assert not (tmp_path / "r" / "tensorboard").exists()
    # Turned on for a run that is finished: nothing is trained, and all is there.
    assert main([*argv, "--run.tensorboard=true"]) == 0
    found = points(tmp_path / "r")
    assert found == expected(tmp_path / "r", "iteration")
    assert "test_loss/parent ema_iteration/own" in {tag for tag, _, _ in found}


@pytest.mark.parametrize(("stop", "shown"), [(1, False), (2, True), (3, False)])
def test_a_run_that_is_stopped(digits_directory, tmp_path, monkeypatch, stop, shown):
    """Before or after its points were written, and these before the store had them: each is there once in the end."""
    argv = arguments(digits_directory, tmp_path, "--run.tensorboard=true")
    with monkeypatch.context() as patched:
        patched.setattr("fastwi.report.run_directory._ROWS_EVERY_S", -1.0)
        patched.setattr("fastwi.report.progress.TreeProgress", stopping(stop, shown))
        assert main(argv) == 130
    assert bool(points(tmp_path / "r")) == (shown or stop > 1)
    assert main(argv) == 0
    found = points(tmp_path / "r")
    assert found == expected(tmp_path / "r")
    # Four columns of each epoch trained, two of a test at interpolation; there the children's own are their last.
    assert len(found) == 4 * (1 + 2 + 1) + 2 * (3 * 2 - 2)
    assert "test_accuracy_%/child 1/recomputed" in {tag for tag, _, _ in found}
    assert len(list((tmp_path / "r" / "tensorboard").iterdir())) == 1


def test_without_the_package(digits_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastwi.report.run_directory.find_spec", lambda name: None)
    said = refused(main, capsys, arguments(digits_directory, tmp_path, "--run.tensorboard=true"))
    assert "run.tensorboard: tensorboard is not installed" in said
    assert list(tmp_path.iterdir()) == []
