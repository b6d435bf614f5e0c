"""The `ray` executor: long-lived Ray actors do a sweep's jobs, on this machine or on a cluster's.

Each actor gets the tree once, and keeps its datasets, compiled networks and resident states; a job goes to the free
actor that made most of the states that it starts from. Actors write states through the store's directory, which every
machine must see under the same path, before their outcome is reported; the sweep's process alone writes the index.
Where `RAY_ADDRESS` names a cluster it is used, else Ray starts on this machine. Ray decides on which nodes and (parts
of) GPUs actors run. An actor that dies is replaced by a new one, which begins its job again.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastwi.config.sweep import SweepOptions
from fastwi.errors import UserError
from fastwi.experiment.scheduler import Executor
from fastwi.experiment.store import Measurement, write_states
from fastwi.experiment.tree import Tree
from fastwi.experiment.worker import Job, Outcome, Report, Worker

_DEATHS = 3  # actors that one job may take with it before it counts as failed


class RayExecutor(Executor):
    """Hands jobs to actors, one at a time each."""

    def __init__(self, tree: Tree, options: SweepOptions) -> None:
        """Start as many actors as the options say, or with workers: 0 as the cluster's GPUs allow, or else one.

        Raises UserError where Ray is not installed or the cluster lacks what is asked for.
        """
        try:
            import ray
        except ImportError:
            raise UserError("sweep.executor: Ray is missing; pip install 'fastwi[ray]', or take local") from None
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        have = ray.cluster_resources()
        gpus, cpus = have.get("GPU", 0.0), have.get("CPU", 1)
        share = options.gpus_per_worker if gpus else 0.0
        if share > gpus:
            raise UserError(f"sweep.gpus_per_worker: {share:g}, but the cluster has {gpus:g} GPUs; give less")
        count = options.workers or (int(gpus / share) if share else 1)
        if count > cpus or count * share > gpus:
            raise UserError(
                f"sweep.workers: {count} with a CPU and {share:g} GPUs each, but the cluster has "
                f"{cpus:g} CPUs and {gpus:g} GPUs; give fewer"
            )
        # Ray gives an actor as many threads as CPUs. It is not asked to restart actors: calls to one that is
        # restarting fail at once, while calls to a new one wait for it.
        self._actor = ray.remote(_Actor).options(num_cpus=int(cpus) // count, num_gpus=share)
        self.tree, self.jobs = tree, count
        options = dataclasses.replace(options, store=str(Path(options.store).resolve()))
        self._place = ray.put(tree), options, Path.cwd()
        self._idle: list[Any] = [self._actor.remote(*self._place) for _ in range(count)]
        self._running: dict[Any, tuple[Any, Job, Report, int]] = {}  # with how many actors have died of the job
        self._homes: dict[str, Any] = {}  # the actor that made a state

    def submit(self, job: Job, report: Report) -> None:
        """Give `job` to an idle actor."""
        homes = Counter(map(self._homes.get, job.files))
        actor = max(self._idle, key=homes.__getitem__)
        self._idle.remove(actor)
        self._running[actor.run.remote(job)] = actor, job, report, 0

    def wait(self) -> tuple[Job, Outcome | Exception]:
        """The next job to end. One whose actor died is begun again, up to a few times."""
        while True:
            (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
            actor, job, report, deaths = self._running.pop(ready)
            try:
                result: Outcome | Exception = self._ray.get(ready)
            except self._ray.exceptions.RayActorError as death:
                actor, result = self._actor.remote(*self._place), death
                if deaths + 1 < _DEATHS:
                    self._running[actor.run.remote(job)] = actor, job, report, deaths + 1
                    continue
            self._idle.append(actor)
            if isinstance(result, Outcome):
                self._homes |= dict.fromkeys((file.key for file in result.files), actor)
                report.measured(result.tasks, result.measurements)
            return job, result

    def holds(self, node: int) -> bool:
        """No: a job may go to another actor than the one that made it."""
        return False

    def forget(self, nodes: Iterable[int]) -> None:
        """Actors let states go as they need the memory."""
        for node in nodes:
            self._homes.pop(self.tree.keys[node], None)

    def close(self) -> None:
        """Let the actors go."""
        for actor in (*self._idle, *(actor for actor, *_ in self._running.values())):
            self._ray.kill(actor)


class _Actor:
    """A worker in a process of its own. As its own report it does nothing: the outcome has all measurements."""

    def __init__(self, tree: Tree, options: SweepOptions, directory: Path) -> None:
        """`directory`: of relative paths, where this machine has it."""
        with suppress(OSError):
            os.chdir(directory)
        self._store = options.store
        self._worker = Worker(tree, options)

    def run(self, job: Job) -> Outcome | Exception:
        """The outcome, its states on the disk, or the exception that it met: Ray would wrap one that is raised."""
        try:
            outcome = self._worker.run(job, self)
            return dataclasses.replace(outcome, states=[], files=write_states(self._store, outcome.states))
        except UserError as error:
            return error
        except Exception as error:  # its class need not survive the way (torch.compile's hold frames); its words do
            return RuntimeError(f"{type(error).__name__}: {error}")

    def images(self, trained: int, evaluated: int) -> None: ...

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None: ...
