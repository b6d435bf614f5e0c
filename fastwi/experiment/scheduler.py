"""Carries out a tree: claims what is ready, gives it to an executor as jobs, and has the outcomes written.

Any number of processes may carry out the same tree, or trees that share epochs, on one store: epochs are claimed
before they are trained, and a process that dies loses its claims. What is done is never done again.
"""

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastwi.config.sweep import SweepOptions
from fastwi.errors import UserError
from fastwi.experiment.ready import ROWS_A_NETWORK, ReadyQueue
from fastwi.experiment.store import DamagedState, Owner, Store, StoredState
from fastwi.experiment.todo import stopped_states, unfinished
from fastwi.experiment.tree import MeasurementKey
from fastwi.experiment.worker import Job, Outcome, Report, Worker
from fastwi.experiment.writer import Writer

_POLL_S = 0.5  # how often another process's work is looked at while there is nothing to do but wait for it


class Executor:
    """Does jobs of one tree: in this process, one at a time, when they are waited for."""

    jobs = 1  # at once

    def __init__(self, worker: Worker) -> None:
        self.tree, self._worker = worker.tree, worker
        self._waiting: list[tuple[Job, Report]] = []

    def submit(self, job: Job, report: Report) -> None:
        """Begin `job`, best where its states are at hand. `report` is called meanwhile, or with its outcome."""
        self._waiting.append((job, report))

    def wait(self) -> tuple[Job, Outcome | Exception]:
        """A job that ended, and its outcome, or the exception that it met. Ctrl-C and SIGTERM pass."""
        job, report = self._waiting.pop()
        try:
            return job, self._worker.run(job, report)
        except Exception as error:
            return job, error

    def holds(self, node: int) -> bool:
        """Whether a state is at hand without its file."""
        return (node, False) in self._worker.resident

    def forget(self, nodes: Iterable[int]) -> None:
        """Nothing needs the states `nodes` any more: let their memory go."""
        self._worker.resident.forget(nodes)


class Listener(Report, Protocol):
    """Receives progress. The experiment itself prints nothing."""

    def planned(self, left: Sequence[int]) -> None:
        """The tasks that are left, ascending. Called again where another plan is necessary."""

    def warned(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Limits:
    """Networks trained together, and probed together; seconds of training between two checkpoints.

    rows: of networks that a job may hold, as far as it is of several tasks.
    """

    members: int
    probes: int
    checkpoint_seconds: float
    rows: float = math.inf


def limits_of(options: SweepOptions, state_bytes: int, members_at_once: int) -> Limits:
    """The limits of a sweep whose networks take `state_bytes`; its engine is fastest with `members_at_once`.

    Half of the memory is for the populations of a job: the rows of its networks, and what averages are made of. The
    other half is for resident states.
    """
    rows = options.memory_GiB * 2**30 / 2 / state_bytes
    members = max(1, min(options.population or members_at_once, int(rows / ROWS_A_NETWORK)))
    probes = max(1, int(rows / (ROWS_A_NETWORK + 2)))  # most are of averages of two
    return Limits(members, probes, options.checkpoint_seconds, rows)


def carry_out(store: Store, executor: Executor, listener: Listener, limits: Limits) -> dict[MeasurementKey, str]:
    """Do all of the executor's tree that is not done. Returns once everything is measured or has failed.

    Returns the tasks that could not be done, with the reason. Raises UserError where the store cannot be written.
    """
    failed: dict[MeasurementKey, str] = {}
    store.keep(executor.tree.keys[node] for node in executor.tree.stops)
    with store.owner() as owner, Writer(store, listener.warned) as writer:
        while not _Pass(store, owner, writer, executor, listener, limits, failed).to_the_end():
            pass
    return failed


@dataclass
class _Pass:
    """One pass over what is left. It ends early where a state is damaged or gone, or another process is done.

    `failed`: of all passes. `outdated`: another plan is necessary. `running`: jobs. `kept`: states that other sweeps
    keep, of those that training passed through.
    """

    store: Store
    owner: Owner
    writer: Writer
    executor: Executor
    listener: Listener
    limits: Limits
    failed: dict[MeasurementKey, str]
    claimed: set[int] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    running: int = 0
    outdated: bool = False

    def __post_init__(self) -> None:
        self.tree = tree = self.executor.tree
        left = self._plan()
        self.listener.planned(left)
        self.queue = ReadyQueue(tree, left)
        if self.failed:
            self._remove([task for task in left if tree.measurement_key(task) in self.failed])
        # What an earlier process, killed since, continued from.
        self._drop([node for node in map(tree.nodes.__getitem__, self.stored) if not self.queue.needed(node)])

    def _plan(self) -> Sequence[int]:
        """What is left. Notes what is measured, and the states that are stored, or given to the writer later."""
        tree = self.tree
        names, epochs = tree.measurement_keys(), [tree.keys[node] for node in tree.epoch_nodes()]
        while True:
            measured, stored, claimed = self.store.look(names, epochs)
            self.measured, self.stored = set(measured), set(stored)
            claimed.update(self.failed)  # nor do these need the states that they start from
            left = unfinished(tree, measured.keys(), stored, stopped_states(tree, measured.values()), claimed)
            # States that are there, or will be stored, are pinned, so that no other process drops them: not those
            # that training passes through, and not those of others' tasks.
            mine = [task for task in left if not claimed or tree.measurement_key(task) not in claimed]
            users = Counter(node for task in mine for node in tree.needs(task))
            users.update(node for task in mine if task >= len(tree) for node in tree.needs(task))
            there = [tree.keys[node] for node in users if tree.keys[node] in stored]
            self.owner.pin([*there, *(tree.keys[node] for node, count in users.items() if count > 1)])
            if len(self.store.states(there)) == len(there):
                return left

    def to_the_end(self) -> bool:
        """Whether all is done; False where another plan is necessary."""
        blocked: list[list[int]] = []  # chains that are ready, and claimed by another process
        while len(self.queue) or self.running:
            while self.running < self.executor.jobs and not self.outdated:
                shares = self.executor.jobs - self.running
                tasks = self.queue.take(self.limits.members, self.limits.probes, shares, self.limits.rows)
                if not tasks:
                    break
                mine, others = self._claim(tasks)
                blocked += others
                files = self._files(mine)
                if files is None:
                    self.outdated = True  # the process that was at these tasks is gone
                elif mine:
                    self.executor.submit(self._job(mine, files), self.listener)
                    self.running += 1
            if self.running:
                self._settle(*self.executor.wait())
                self.running -= 1
            elif self.outdated or self._news(blocked):
                break
            else:
                time.sleep(_POLL_S)
        self.writer.flush()
        self._release(self.claimed)
        return not len(self.queue)

    def _claim(self, tasks: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """The chains of `tasks` that are claimed now, as wholes, and those of which another process has a part."""
        tree = self.tree
        chains = [self.queue.chain(task) if task < len(tree) else [task] for task in tasks]
        groups = [list(map(tree.measurement_key, chain)) for chain in chains]
        wanted = {tree.measurement_key(task): task for chain in chains for task in chain if task not in self.claimed}
        if wanted:
            again = [name for name in wanted if name in self.measured]
            self.claimed.update(wanted[name] for name in self.owner.claim(list(wanted), again, groups))
        others = [chain for chain in chains if not self.claimed.issuperset(chain)]
        self._release(task for chain in others for task in chain)
        return [chain for chain in chains if chain not in others], others

    def _release(self, tasks: Iterable[int]) -> None:
        held = self.claimed.intersection(tasks)
        self.claimed -= held
        if held:
            self.owner.release([self.tree.measurement_key(task) for task in held])

    def _news(self, blocked: Sequence[Sequence[int]]) -> bool:
        """Whether other processes are done with one of the chains, or have let it go."""
        _, _, claimed = self.store.look((), ())
        return any(claimed.isdisjoint(map(self.tree.measurement_key, chain)) for chain in blocked)

    def _files(self, chains: list[list[int]]) -> dict[str, StoredState] | None:
        """The files of the states that `chains` start from and the executor lacks; None where one is not there."""
        needs = {node for chain in chains for node in self.tree.needs(chain[0])}
        keys = {self.tree.keys[node] for node in needs if not self.executor.holds(node)}
        files = self.store.state_files(keys) if keys else {}
        if len(files) < len(keys):
            self.writer.flush()
            files = self.store.state_files(keys)
        return files if len(files) == len(keys) else None

    def _job(self, chains: list[list[int]], files: Mapping[str, StoredState]) -> Job:
        """The job of tasks alike. Chains are cut where the first of them ends, or the settings of one change."""
        tree = self.tree
        if chains[0][0] < len(tree):
            alike = [len({tree.alike[node] for node in column}) == 1 for column in zip(*chains, strict=False)]
            chains = [chain[: [*alike, False].index(False)] for chain in chains]
        nodes = [node for chain in chains for node in chain if node < len(tree)]
        # States that another sweep on this store keeps are written too, or it would have to train them again.
        passed = [tree.keys[node] for node in nodes if node not in tree.stops]
        self.kept |= self.store.kept(passed) if passed else set()
        write = [node for node in nodes if node in tree.stops or tree.keys[node] in self.kept]
        write += [chain[-1] for chain in chains if chain[-1] < len(tree) and self.queue.needed(chain[-1])]
        return Job(tuple(map(tuple, chains)), files, frozenset(write), self.limits.checkpoint_seconds)

    def _settle(self, job: Job, outcome: Outcome | Exception) -> None:
        """Have an outcome written; or do what a job's failure asks for."""
        if isinstance(outcome, Outcome):
            self._put(job, outcome)
        elif isinstance(outcome, DamagedState):
            self.writer.flush()
            if self.store.states([outcome.key]):  # else another process has dropped it
                self.store.mark_damaged(outcome.key)
                self.executor.forget([self.tree.nodes[outcome.key]])
                self.listener.warned(f"{outcome}; it is trained again")
            self._release(job.tasks)
            self.outdated = True
        elif isinstance(outcome, UserError):
            raise outcome
        else:
            reason = f"{type(outcome).__name__}: {outcome}".splitlines()[0]
            lost = self._remove(job.tasks)
            self.failed.update({self.tree.measurement_key(task): reason for task in lost})
            self.listener.warned(f"{len(job.tasks)} tasks failed, and {len(lost)} cannot be done: {reason}")

    def _put(self, job: Job, outcome: Outcome) -> None:
        tree, queue = self.tree, self.queue
        self.claimed.difference_update(outcome.tasks)
        states = {*(key for key, _ in outcome.states), *(file.key for file in outcome.files)}
        self.stored |= states
        self.writer.put(outcome, [m.key for m in outcome.measurements])
        idle = queue.done(outcome.tasks)
        made = {tree.nodes[key] for key in states} - tree.stops  # all that need them may be given up by now
        self._drop([*idle, *(node for node in made if not queue.needed(node))])
        queue.put(task for task in job.tasks if task >= len(tree))  # those that are left
        diverged = [m for m in outcome.measurements if m.diverged]
        for m in diverged:
            self.listener.warned(m.divergence())
        if diverged:  # let go what would come of them; all others go on
            self._remove((), stopped_states(tree, diverged))

    def _remove(self, tasks: Collection[int], without: Collection[int] = ()) -> list[int]:
        """Give up `tasks`, and what needs them or the states `without`; returns all that are given up."""
        gone, idle = self.queue.remove(tasks, without)
        self._release(gone)
        self._drop(idle)
        return gone

    def _drop(self, idle: Sequence[int]) -> None:
        """Let go of states that nothing needs any more; from the store those that do not stay there."""
        self.executor.forget(idle)
        keys = {self.tree.keys[node] for node in idle if node not in self.tree.stops}
        self.writer.drop(keys & self.stored - self.kept)  # what is dropped is not written any more
