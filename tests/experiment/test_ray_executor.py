"""The Ray executor's own decisions, on a made-up cluster: how many actors, and what comes of those that die."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from listeners import Silent

from fastwi.config.sweep import SweepOptions
from fastwi.errors import UserError
from fastwi.experiment.distributed import RayExecutor
from fastwi.experiment.store import Measurement
from fastwi.experiment.tree import Tree
from fastwi.experiment.worker import Job, Outcome

JOB = Job(((0,),), {}, frozenset(), 1.0)


class Died(Exception):
    """As Ray's RayActorError."""


class Actor:
    """Number `number` of those that were started, with what it was `asked` to have."""

    def __init__(self, number: int, asked: dict[str, float]) -> None:
        self.asked = asked
        self.run = SimpleNamespace(remote=lambda job: number)  # a call is known by its actor


class Cluster:
    """In place of `ray`: `actors` that were started, of which the first `mortal` die of the job that they get."""

    def __init__(self, cpus: int, gpus: int, mortal: int = 0) -> None:
        self.actors: list[Actor] = []
        self._have, self._mortal = {"CPU": float(cpus), "GPU": float(gpus)}, mortal
        self.exceptions = SimpleNamespace(RayActorError=Died)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self._have

    def put(self, value: object) -> object:
        return value

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **asked: SimpleNamespace(remote=lambda *_: self._start(asked)))

    def wait(self, calls: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: Any) -> Outcome:
        if call < self._mortal:
            raise Died
        return Outcome([0], [Measurement("key", "own", 1, 0.5, 0.1, 0.5, 50.0, 1.0)])

    def kill(self, actor: Actor) -> None:
        self.actors.remove(actor)

    def _start(self, asked: dict[str, float]) -> Actor:
        self.actors.append(Actor(len(self.actors), asked))
        return self.actors[-1]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Makes the executor of a cluster and of options."""

    def make(cluster: Cluster, **options: Any) -> RayExecutor:
        monkeypatch.setitem(sys.modules, "ray", cluster)
        return RayExecutor(Tree(), SweepOptions(store=str(tmp_path), **options))

    return make


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_job_of_which_three_actors_died_has_failed(executor: Any, deaths: int) -> None:
    cluster, listener = Cluster(4, 0, deaths), Silent()
    made = executor(cluster)
    made.submit(JOB, listener)
    job, found = made.wait()
    assert job is JOB
    assert isinstance(found, Died if deaths == 3 else Outcome)
    assert listener.here == ({} if deaths == 3 else {0: 1})
    assert len(cluster.actors) == 1 + deaths
    made.submit(JOB, listener)  # by the one that took the place of the last that died
    assert isinstance(made.wait()[1], Outcome)
    made.close()
    assert len(cluster.actors) == deaths


@pytest.mark.parametrize(
    ("cpus", "gpus", "options", "count", "each"),
    [
        (4, 0, {}, 1, (4, 0.0)),
        (4, 0, {"workers": 3}, 3, (1, 0.0)),
        (8, 2, {}, 2, (4, 1.0)),
        (8, 2, {"gpus_per_worker": 0.5}, 4, (2, 0.5)),
        (8, 2, {"gpus_per_worker": 2.0}, 1, (8, 2.0)),
        (8, 2, {"workers": 1}, 1, (8, 1.0)),
        (8, 2, {"gpus_per_worker": 0.0}, 1, (8, 0.0)),
    ],
)
def test_as_many_actors_as_the_cluster_has_room_for(
    executor: Any, cpus: int, gpus: int, options: dict[str, Any], count: int, each: tuple[int, float]
) -> None:
    cluster = Cluster(cpus, gpus)
    assert executor(cluster, **options).jobs == count
    assert [tuple(actor.asked.values()) for actor in cluster.actors] == [each] * count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpus_per_worker": 2.5}, r"sweep\.gpus_per_worker: 2\.5, .* 2 GPUs"),
        ({"workers": 3}, r"sweep\.workers: 3 .* 2 GPUs"),  # though one of them would fit
        ({"workers": 5, "gpus_per_worker": 0.1}, r"sweep\.workers: 5 .* 4 CPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused(executor: Any, options: dict[str, Any], words: str) -> None:
    cluster = Cluster(4, 2)
    with pytest.raises(UserError, match=words):
        executor(cluster, **options)
    assert not cluster.actors
