"""What an actor answers must survive the way to the sweep's process, whatever exception the job met."""

import pickle

import pytest

from fastwi.config.sweep import SweepOptions
from fastwi.errors import CheckpointError, UserError
from fastwi.experiment.distributed import _Actor
from fastwi.experiment.store import DamagedState
from fastwi.experiment.tree import Tree


class Unpicklable(Exception):
    """As those of torch.compile, which hold a frame."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.held = lambda: None


@pytest.mark.parametrize(
    ("met", "words"),
    [
        (Unpicklable("of no", "use"), "RuntimeError: Unpicklable: of no use"),
        (UserError("data: gone"), "UserError: data: gone"),
        (CheckpointError("a: foreign"), "CheckpointError: a: foreign"),
        (DamagedState("a: damaged", "key"), "DamagedState: a: damaged"),
    ],
)
def test_answers_survive_the_way(tmp_path, monkeypatch, met, words):
    def run(_job, _report):
        raise met

    actor = _Actor(Tree(), SweepOptions(store=str(tmp_path)), tmp_path)
    monkeypatch.setattr(actor._worker, "run", run)
    answer = pickle.loads(pickle.dumps(actor.run(None)))
    assert f"{type(answer).__name__}: {answer}" == words
    assert getattr(answer, "key", None) == getattr(met, "key", None)
