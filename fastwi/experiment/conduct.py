"""Carries a tree out: claims what can be done, hands it to an executor, files what comes back.

Any number of processes may carry out the same tree, or trees that share epochs, on one store: an epoch is claimed
before it is trained, and whoever dies loses its claims. What is done is never done again.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastwi.errors import UserError
from fastwi.experiment.agenda import Agenda
from fastwi.experiment.plan import contents_key
from fastwi.experiment.planner import Todo, is_lost, lost_with, stopped_states, unfinished
from fastwi.experiment.store import DamagedState, Measurement, Owner, Store
from fastwi.experiment.tree import OWN, Average, Epoch, Initial, MeasurementKey, Task, Tree, measurement_key, start_of
from fastwi.experiment.worker import Job, Outcome

_POLL_S = 0.5  # how often another process's work is looked at while there is nothing to do but wait for it


class Executor(Protocol):
    """Does jobs, one or several at a time."""

    def free(self) -> int:
        """Jobs that could be submitted now."""

    def submit(self, job: Job) -> None:
        """Begin `job`."""

    def busy(self) -> bool:
        """Whether a job was submitted that `wait` has not returned."""

    def wait(self) -> tuple[Job, Outcome | Exception]:
        """A job that ended, and what came of it. The executor retries jobs whose worker died, within reason."""


class Listener(Protocol):
    """What hears of a sweep's progress. The experiment itself prints nothing."""

    def planned(self, todo: Todo) -> None:
        """What is left; called again where it grows because a state was damaged."""

    def done(self, tasks: list[Task], measurements: list[Measurement], elsewhere: bool) -> None:
        """Tasks are done and filed; `elsewhere`: by another process."""

    def told(self, message: str) -> None:
        """Something that the user should know."""


@dataclass
class Conducted:
    """What one process did: epochs trained and probes made by it, tasks that could not be done (with the reason)."""

    trained: int = 0
    probed: int = 0
    failed: dict[MeasurementKey, str] = field(default_factory=dict)


def conduct(tree: Tree, store: Store, executor: Executor, listener: Listener, members: int) -> Conducted:
    """Do all of `tree` that is not done, with populations of up to `members` networks.

    Returns once everything is measured or has failed. Raises UserError where the store cannot be written.
    """
    conducted = Conducted()
    with store.owner() as owner:
        while True:
            run = _Run(tree, store, owner, executor, listener, members, conducted)
            listener.planned(run.todo)
            if run.to_the_end():
                return conducted


class _Run:
    """One pass over what is left. A damaged state ends it; the next one plans for what that state made necessary."""

    def __init__(
        self,
        tree: Tree,
        store: Store,
        owner: Owner,
        executor: Executor,
        listener: Listener,
        members: int,
        conducted: Conducted,
    ) -> None:
        self._tree, self._store, self._owner = tree, store, owner
        self._executor, self._listener, self._members, self._conducted = executor, listener, members, conducted
        store.keep(tree.stops)
        self._wanted = {epoch.key for epoch in tree.epochs()}
        self._names = tree.measurement_keys()
        self.todo, self._measured, stored = self._plan()
        self._agenda = Agenda(tree, self.todo, stored)
        self._let_go([task for task in self.todo.tasks if measurement_key(task) in conducted.failed])
        self._damaged = False

    def _plan(self) -> tuple[Todo, set[MeasurementKey], set[str]]:
        """What is left, what is measured, and the states that are stored.

        States are pinned before they are counted on, so that no other process drops them.
        """
        pinned: Todo | None = None
        while True:
            todo, measured, stored = self._left()
            if todo == pinned:
                return todo, measured, stored
            self._owner.pin({key for task in todo.tasks for key in self._tree.needs(task)})
            pinned = todo

    def _left(self) -> tuple[Todo, set[MeasurementKey], set[str]]:
        measured = self._store.measurements(self._names)
        diverged = stopped_states(self._tree, measured.values())
        for m in measured.values():
            if m.diverged:
                self._conducted.failed[m.key] = _divergence(m)
        stored = self._store.states(self._wanted)
        return unfinished(self._tree, measured.keys(), stored, diverged), set(measured), stored

    def to_the_end(self) -> bool:
        """Whether all is done; False where a damaged state makes another plan necessary."""
        blocked: list[Task] = []  # ready, and claimed by another process
        while len(self._agenda) or self._executor.busy():
            while self._executor.free() and not self._damaged:
                tasks = self._agenda.take(self._members, self._executor.free())
                if not tasks:
                    break
                names = [measurement_key(task) for task in tasks]
                claimed = set(self._owner.claim(names, again=[name for name in names if name in self._measured]))
                blocked += [task for task in tasks if measurement_key(task) not in claimed]
                mine = [task for task in tasks if measurement_key(task) in claimed]
                if mine:
                    self._executor.submit(self._job(mine))
            if self._executor.busy():
                self._file(*self._executor.wait())
            elif self._damaged:
                break
            elif not self._others(blocked):
                time.sleep(_POLL_S)
        self._drop([key for key in self._wanted if not self._agenda.needed(key)])
        return not self._damaged

    def _others(self, blocked: list[Task]) -> bool:
        """Look what other processes did of `blocked`, and put the rest back; whether anything is ready now."""
        measured = self._store.measurements([measurement_key(task) for task in blocked])
        stored = self._store.states([task.key for task in blocked if isinstance(task, Epoch)])
        done: list[Task] = []
        rest: list[Task] = []
        for task in blocked:
            name = measurement_key(task)
            whole = name in measured and (not isinstance(task, Epoch) or self._stored_enough(task, stored))
            (done if whole else rest).append(task)
        self._drop([key for task in done for key in self._agenda.done(task)])
        if done:
            self._listener.done(done, [measured[measurement_key(task)] for task in done], True)
        # Those that are measured and lack a state that is needed must be claimed again.
        self._measured.update(measurement_key(task) for task in rest if measurement_key(task) in measured)
        self._agenda.put_back(rest)
        blocked.clear()
        return bool(done)

    def _stored_enough(self, epoch: Epoch, stored: set[str]) -> bool:
        return epoch.key in stored or not self._agenda.needed(epoch.key)

    def _job(self, tasks: list[Task]) -> Job:
        states: dict[str, Initial | Average] = {}
        needs: set[str] = set()
        for task in tasks:
            needs.update(self._tree.needs(task))
            states |= self._tree.made_of(start_of(task))
        files = {key: self._store.state_file(key) for key in needs}
        write = frozenset(
            task.key
            for task in tasks
            if isinstance(task, Epoch) and (task.key in self._tree.stops or self._agenda.needed(task.key))
        )
        keys = {contents_key(each.config) for each in (*tasks, *states.values())}
        contents = {key: self._tree.contents[key] for key in keys}
        return Job(tuple(tasks), states, files, write, contents)

    def _file(self, job: Job, outcome: Outcome | Exception) -> None:
        names = [measurement_key(task) for task in job.tasks]
        if isinstance(outcome, Outcome):
            differ = self._store.commit(outcome.measurements, outcome.states, names)
            if differ:
                self._listener.told(
                    f"{len(differ)} measurements differ from those of an earlier training of the same epoch (another "
                    "machine, version or number of threads); the earlier ones are kept"
                )
            epochs = sum(isinstance(task, Epoch) for task in job.tasks)
            self._conducted.trained += epochs
            self._conducted.probed += len(job.tasks) - epochs
            self._drop([key for task in job.tasks for key in self._agenda.done(task)])
            self._listener.done(list(job.tasks), list(outcome.measurements), False)
            self._stop_diverged(outcome.measurements)
            return
        self._owner.release(names)
        if isinstance(outcome, DamagedState):
            self._store.mark_damaged(outcome.key)
            self._listener.told(f"{outcome}; it is trained again")
            self._damaged = True
        elif isinstance(outcome, UserError):
            raise outcome
        else:
            reason = f"{type(outcome).__name__}: {outcome}".splitlines()[0]
            lost = self._let_go(job.tasks)
            self._conducted.failed.update({measurement_key(task): reason for task in lost})
            self._listener.told(f"{len(job.tasks)} tasks failed, and {len(lost)} cannot be done: {reason}")

    def _stop_diverged(self, measurements: Iterable[Measurement]) -> None:
        """Let go what would come of networks that diverged. All others go on."""
        diverged = [m for m in measurements if m.diverged]
        for m in diverged:
            self._conducted.failed[m.key] = _divergence(m)
            self._listener.told(_divergence(m))
        if diverged:
            lost = lost_with(self._tree, stopped_states(self._tree, diverged))
            self._remove(lambda task: is_lost(self._tree, lost, measurement_key(task)))

    def _let_go(self, tasks: Sequence[Task]) -> list[Task]:
        """Take off the agenda what of `tasks` is on it and all that cannot be done without them; returns that."""
        if not tasks:
            return []
        chosen = set(tasks)
        lost = lost_with(self._tree, [task.key for task in tasks if isinstance(task, Epoch)])
        return self._remove(lambda task: task in chosen or is_lost(self._tree, lost, measurement_key(task)))

    def _remove(self, unwanted: Callable[[Task], bool]) -> list[Task]:
        """Take all `unwanted` tasks off the agenda, and drop the states that only they needed; returns them."""
        gone = self._agenda.remove(unwanted)
        needs = {key for task in gone for key in self._tree.needs(task)}
        self._drop([key for key in needs if not self._agenda.needed(key)])
        return gone

    def _drop(self, idle: list[str]) -> None:
        self._store.drop_states([key for key in idle if key not in self._tree.stops])


def _divergence(measurement: Measurement) -> str:
    trained = measurement.learning_rate is not None
    if trained and not math.isfinite(measurement.train_loss or 0.0):
        loss = f"training loss is {measurement.train_loss}"
    else:
        treatment = "" if measurement.treatment == OWN else " with recomputed batch-norm statistics"
        loss = f"test loss{treatment} is {measurement.test_loss}"
    rate = f", at learning rate {measurement.learning_rate:g}" if trained else ""
    where = f"in epoch {measurement.epoch}{rate}"
    so = "nothing is made of it" if trained else "no gain is taken of it"
    return f"the network {measurement.state} diverged: its {loss} {where}; {so}"


class LocalExecutor:
    """Does jobs in this process, one at a time, when they are waited for."""

    def __init__(self, run: Callable[[Job], Outcome]) -> None:
        self._run = run
        self._job: Job | None = None

    def free(self) -> int:
        """One, unless a job waits."""
        return int(self._job is None)

    def submit(self, job: Job) -> None:
        """Keep `job` for `wait`."""
        self._job = job

    def busy(self) -> bool:
        """Whether a job waits."""
        return self._job is not None

    def wait(self) -> tuple[Job, Outcome | Exception]:
        """Do the job. Exceptions are returned; Ctrl-C and SIGTERM pass."""
        job, self._job = self._job, None
        assert job is not None
        try:
            return job, self._run(job)
        except Exception as error:
            return job, error
