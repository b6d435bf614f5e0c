"""The ready queue: what of a tree can be done now, gathered with what is alike, and who needs which state."""

from array import array
from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from fastwi.experiment.tree import Tree

LONGEST_CHAIN = 64
"""Epochs. Other processes wait for whole chains."""

WORTH_A_JOB = 16
"""Probes that are made without waiting for more, or as many as a population has members."""

_Group = tuple[int, int, object]  # the epoch, 0 for probes or 1 for epochs, and what is alike


class ReadyQueue:
    """The tasks left of a tree, those that are ready in groups of which one population can do any.

    A task is ready once every state that it starts from is made, of those that are left to be made.
    """

    def __init__(self, tree: Tree, tasks: Sequence[int]) -> None:
        self._tree = tree
        self._left = bytearray(tree.probes().stop)
        self._users = array("i", bytes(4 * len(tree)))  # by node: tasks left that start from it
        self._missing = array("i", bytes(4 * len(self._left)))  # by task: states that are not made yet
        self._groups: dict[_Group, deque[int]] = {}  # in the order in which they last gained a task
        for task in tasks:
            self._left[task] = 1
        sources, waiting = array("i"), array("i")
        for task in tasks:
            for source in tree.needs(task):
                sources.append(source)
                waiting.append(task)
                self._users[source] += 1
                self._missing[task] += self._left[source]
        # The tasks that start from a node, or from an average of it, as one stretch of a column.
        order = np.argsort(np.asarray(sources, np.int32), kind="stable")
        self._waiting = np.asarray(waiting, np.int32)[order]
        self._first = np.searchsorted(np.asarray(sources, np.int32)[order], np.arange(len(tree) + 1))
        self._count = len(tasks)
        self.put(task for task in tasks if not self._missing[task])

    def __len__(self) -> int:
        """Tasks that are neither done nor given up."""
        return self._count

    def take(self, members: int, probes: int, shares: int = 1) -> list[int]:
        """Ready tasks alike: up to `members` epochs or `probes` probes; a fair part where `shares` workers wait.

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
        taken = [queue.popleft() for _ in range(count)]
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
        return [
            task for task in self._waiting[self._first[node] : self._first[node + 1]].tolist() if self._left[task]
        ]

    def needed(self, node: int) -> bool:
        """Whether some task that is left starts from a state."""
        return self._users[node] > 0

    def done(self, tasks: Sequence[int]) -> list[int]:
        """Take `tasks` off the queue, and make ready what waited for them; returns the states not needed any more."""
        idle = self._cross_out(tasks)
        for task in tasks:
            if task < len(self._tree):
                for waiting in self.waiting(task):
                    self._missing[waiting] -= 1
                    if not self._missing[waiting]:
                        self.put([waiting])
        return idle

    def remove(self, tasks: Collection[int], without: Iterable[int] = ()) -> tuple[list[int], list[int]]:
        """Take `tasks` off the queue, what needs their states, and what needs the states `without` (nodes).

        Returns the tasks that were left, and the states that are not needed any more.
        """
        gone: dict[int, None] = dict.fromkeys(task for task in tasks if self._left[task])
        lost = [*without, *(task for task in gone if task < len(self._tree))]
        while lost:
            node = lost.pop()
            made = node in self._tree.averages  # which is measured all the same
            for source in self._tree.sources(node):
                for task in self.waiting(source):
                    if task not in gone and (
                        not made or (task < len(self._tree) and self._tree.before[task] == node)
                    ):
                        gone[task] = None
                        lost += [task] if task < len(self._tree) else []
        idle = self._cross_out(list(gone))
        for group, queue in list(self._groups.items()):
            kept = deque(task for task in queue if self._left[task])
            self._groups[group] = kept
            if not kept:
                del self._groups[group]
        return list(gone), idle

    def _cross_out(self, tasks: Sequence[int]) -> list[int]:
        idle = []
        for task in tasks:
            if self._left[task]:
                self._left[task] = 0
                self._count -= 1
                for node in self._tree.needs(task):
                    self._users[node] -= 1
                    if not self._users[node]:
                        idle.append(node)
        return idle

    def _group(self, task: int) -> _Group:
        """Equal for tasks that one population can do."""
        tree = self._tree
        if task < len(tree):
            return tree.epochs[task], 1, tree.alike[task]
        config = tree.probe_configs[task - len(tree)]
        return tree.epochs[tree.start_of(task)], 0, (config.model, config.data, config.engine)
