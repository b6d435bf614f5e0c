"""The ready queue: what of a tree can be done now, gathered with what is alike, and who needs which state."""

import math
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from fastwi.experiment.tree import Tree

LONGEST_CHAIN = 64  # epochs; other processes wait for whole chains
WORTH_A_JOB = 16  # probes that are made without waiting for more, or as many as a population has members

ROWS_A_NETWORK = 3
"""Of memory, in a job: a network's own row, its gradient, and a copy of it at the start."""

_Group = tuple[int, int, object]  # the epoch, 0 for probes or 1 for epochs, and what is alike


class ReadyQueue:
    """The tasks left of a tree. A task is ready once every state that it starts from is made.

    Ready tasks are in groups of which one population can do any.
    """

    def __init__(self, tree: Tree, tasks: Sequence[int]) -> None:
        self._tree, self._count = tree, len(tasks)
        self._left = np.zeros(tree.probes().stop, bool)
        self._left[tasks] = True
        self._groups: dict[_Group, deque[int]] = {}  # in the order in which they last gained a task
        starts, waiting = array("i"), array("i")
        for task in tasks:
            needs = tree.needs(task)
            starts.extend(needs)
            waiting.extend([task] * len(needs))
        # The tasks that start from a node, or from an average of it, as one stretch of a column.
        from_N, tasks_N = np.array(starts, np.int32), np.array(waiting, np.int32)
        order = np.argsort(from_N, kind="stable")
        self._waiting, self._first = tasks_N[order], np.searchsorted(from_N[order], np.arange(len(tree) + 1))
        # By task: the states that are not made yet.
        self._missing = np.bincount(tasks_N[self._left[from_N]], minlength=len(self._left))
        self.put(task for task in tasks if not self._missing[task])

    def __len__(self) -> int:
        """Tasks that are neither done nor given up."""
        return self._count

    def take(self, members: int, probes: int, shares: int = 1, rows: float = math.inf) -> list[int]:
        """Ready tasks alike: up to `members` epochs or `probes` probes; a fair part where `shares` workers wait.

        As many of them, at least one, as take up to `rows` of memory with the networks that averages are made of.

        Of a group that is worth a job the one that was added to last: its states are likely to be at hand, and may be
        let go then. Where there is none, of the earliest epoch, so that the others gather.
        """
        if not self._groups:
            return []
        worth = min(probes, max(members, WORTH_A_JOB)), members
        full = (group for group in reversed(self._groups) if len(self._groups[group]) >= worth[group[1]])
        group = next(full, None) or min(self._groups, key=lambda group: group[:2])
        queue = self._groups[group]
        count = min(members if group[1] else probes, -(-len(queue) // max(1, shares)))
        taken, made_of = list[int](), set[int]()
        while len(taken) < count:
            average = self._tree.averages.get(self._tree.start_of(queue[0]))
            made_of.update(average.nodes if average else ())
            if taken and ROWS_A_NETWORK * (len(taken) + 1) + len(made_of) > rows:
                break
            taken.append(queue.popleft())
        if not queue:
            del self._groups[group]
        return taken

    def put(self, tasks: Iterable[int]) -> None:
        """Make `tasks` ready (again), those that are left."""
        for task in tasks:
            if self._left[task]:
                group = self._group(task)
                queue = self._groups.pop(group, None) or deque()
                queue.append(task)
                self._groups[group] = queue

    def chain(self, epoch: int) -> list[int]:
        """`epoch` and those after it that can be trained without a look aside: up to where a trajectory branches."""
        chain = [epoch]
        while len(chain) < LONGEST_CHAIN:
            following = self.waiting(chain[-1])
            if len(following) != 1 or following[0] >= len(self._tree) or self._tree.before[following[0]] != chain[-1]:
                break
            chain.append(following[0])
        return chain

    def waiting(self, node: int) -> list[int]:
        """The tasks left that start from a state, or from an average of it."""
        tasks = self._waiting[self._first[node] : self._first[node + 1]]
        found: list[int] = tasks[self._left[tasks]].tolist()
        return found

    def needed(self, node: int) -> bool:
        """Whether some task that is left starts from a state, or from an average of it."""
        return bool(self.waiting(node))

    def done(self, tasks: Sequence[int]) -> list[int]:
        """Take `tasks` off the queue, and make ready what waited for them; returns the states not needed any more."""
        idle = self._cross_out(tasks)
        for task in tasks:
            for waiting in self.waiting(task) if task < len(self._tree) else ():
                self._missing[waiting] -= 1
                if not self._missing[waiting]:
                    self.put([waiting])
        return idle

    def remove(self, tasks: Collection[int], without: Iterable[int] = ()) -> tuple[list[int], list[int]]:
        """Take `tasks` off the queue, what needs their states, and what needs the states `without` (nodes).

        Returns the tasks that were left, and the states that are not needed any more.
        """
        tree = self._tree
        gone: dict[int, None] = dict.fromkeys(task for task in tasks if self._left[task])
        lost = [*without, *(task for task in gone if task < len(tree))]
        for node in lost:  # which grows
            average = node in tree.averages  # which is measured all the same
            for task in (task for source in tree.sources(node) for task in self.waiting(source)):
                if task not in gone and (not average or (task < len(tree) and tree.before[task] == node)):
                    gone[task] = None
                    lost += [task] if task < len(tree) else []
        idle = self._cross_out(list(gone))
        left = {group: deque(filter(self._left.__getitem__, queue)) for group, queue in self._groups.items()}
        self._groups = {group: queue for group, queue in left.items() if queue}
        return list(gone), idle

    def _cross_out(self, tasks: Sequence[int]) -> list[int]:
        """Returns the states that are not needed any more."""
        self._count -= int(self._left[tasks].sum())
        self._left[tasks] = False
        starts = dict.fromkeys(node for task in tasks for node in self._tree.needs(task))
        return [node for node in starts if not self.needed(node)]

    def _group(self, task: int) -> _Group:
        """Equal for tasks that one population can do."""
        tree = self._tree
        if task < len(tree):
            return tree.epochs[task], 1, tree.alike[task]
        config = tree.probe_configs[task - len(tree)]
        batch = config.optimizer.batch_size if config.engine.name == "auto" else 0  # which may decide the engine
        rows = config.model, config.data, config.engine, batch, config.optimizer.ema_decay > 0
        return tree.epochs[tree.start_of(task)], 0, rows
