"""A user's network that is edited between two commands: no result of one version is taken for the other's."""

import json
from pathlib import Path

import pytest
from commands import refused, rows_of

from fastwi.analyze import main as analyze
from fastwi.experiment.store import Store
from fastwi.models.source import source_digest
from fastwi.report.__main__ import main as report
from fastwi.report.progress import Progress
from fastwi.sweep import main as sweep
from fastwi.train import main as train

NET = """
from torch import nn
from h1_block import WIDTH

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3, classes)
    def forward(self, x):
        return WIDTH * self.linear(x.mean((2, 3)))
"""
SWEEP = """
data: {{path: {data}, train_images: 60, test_images: 30}}
augment: {{padding: 0, flip: 0.0}}
model: {{name: "net.py:Net"}}
optimizer: {{batch_size: 20, learning_rate: 0.05}}
schedule: {{drop_epochs: []}}
experiment: {{k: 1, s: 1, after: 0, recompute_images: 20}}
engine: {{device: cpu, precision: fp32, backend: eager, threads: 1}}
axes: {{experiment.s: [1]}}
sweep: {{store: store, directory: sweeps, children: 2, measure: [own]}}
analysis: {{alphas: 3, pairs: 1}}
"""


@pytest.fixture
def folder(tmp_path: Path, digits_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    text = SWEEP.format(data=digits_directory)
    (tmp_path / "grid.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(text.partition("axes:")[0] + "run: {directory: runs}\n")
    edit(tmp_path, 1)
    return tmp_path


def edit(folder: Path, width: int) -> str:
    """Edit what the network imports; returns its digest."""
    (folder / "h1_block.py").write_text(f"WIDTH = {width}\n")
    return source_digest("net.py:Net")


def run(*more: str) -> int:
    return train(["--config", "run.yaml", *more])


def losses(directory: Path) -> list[float]:
    return [row["test_loss"] for row in rows_of(directory)]


def test_a_run_of_an_edited_network_is_another_run(folder, capsys):
    assert run() == 0
    edit(folder, 2)
    capsys.readouterr()
    assert run() == 0
    assert "already finished" not in capsys.readouterr().err
    first, second = (losses(path) for path in (folder / "runs").iterdir())
    assert len(first) == len(second)
    assert not set(first) & set(second)
    edit(folder, 1)
    assert run() == 0
    assert "already finished" in capsys.readouterr().err


def test_a_directory_with_another_networks_run_is_refused_by_name(folder, capsys):
    assert run("--run.name=r") == 0
    kept = losses(folder / "runs/r")
    first, second = source_digest("net.py:Net"), edit(folder, 2)
    said = refused(train, capsys, ["--config", "run.yaml", "--run.name=r"])
    assert all(word in said for word in ("net.py:Net", "h1_block", first[:12], second[:12], "run.name"))
    assert losses(folder / "runs/r") == kept


def test_a_sweep_and_its_analyses(folder, capsys, monkeypatch):
    config = ["--config", "grid.yaml"]
    first = source_digest("net.py:Net")
    assert sweep(config) == 0
    with Store.open("store", create=False) as store:
        measured = set(store.measurements())
    assert analyze(["connectivity", *config]) == 0
    about = json.loads(Path("sweeps/grid/manifest.json").read_text())["networks"]["net.py:Net"]
    assert about["digest"] == first
    assert set(about["made_of"]) == {"net.py", "h1_block", "package torch"}

    second = edit(folder, 2)
    for argv in (["connectivity", *config], ["connectivity", *config, "--dry-run"]):
        said = refused(analyze, capsys, argv)
        for word in ("net.py:Net", "h1_block", first[:12], second[:12]):
            assert word in said

    assert sweep(config) == 0
    with Store.open("store", create=False) as store:
        both = set(store.measurements())
    assert len(both) == 2 * len(measured)
    said = refused(report, capsys, ["sweeps/grid"])  # its study is of the first network
    assert "analyses/connectivity" in said
    assert "fastwi.analyze connectivity" in said

    # What was measured before an edit is written, as the second network's.
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "show", lambda self, done, total: edit(folder, 1) if done == total else None)
        assert analyze(["connectivity", *config]) == 0
    about = json.loads(Path("sweeps/grid/analyses/connectivity/manifest.json").read_text())["networks"]
    assert about["net.py:Net"]["digest"] == second == edit(folder, 2)
    assert report(["sweeps/grid"]) == 0
    edit(folder, 1)
    assert analyze(["connectivity", *config]) == 2
