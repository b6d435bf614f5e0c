"""What of a tree can be done now: a queue of ready tasks, given out with those alike, and who needs which state."""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable

from fastwi.experiment.planner import Todo
from fastwi.experiment.tree import Probe, Task, Tree, measurement_key


class Agenda:
    """The tasks left of a tree, in dependency order.

    A task is ready once every state that it starts from is stored. Earlier epochs come first, so that tasks alike
    gather and can be trained as one population.
    """

    def __init__(self, tree: Tree, todo: Todo, stored: Collection[str]) -> None:
        self._tree = tree
        self._left: set[Task] = set(todo.tasks)
        self._blocked: dict[str, list[Task]] = defaultdict(list)  # by the state that is not there yet
        self._missing: dict[Task, int] = {}
        self._users: dict[str, int] = defaultdict(int)
        self._ready: dict[tuple[object, ...], deque[Task]] = {}
        produced = {epoch.key for epoch in todo.epochs}
        for task in todo.tasks:
            needs = tree.needs(task)
            needs = needs if len(needs) == 1 else tuple(set(needs))
            for key in needs:
                self._users[key] += 1
            absent = [key for key in needs if key in produced or key not in stored]
            self._missing[task] = len(absent)
            for key in absent:
                self._blocked[key].append(task)
            if not absent:
                self.put_back([task])

    def __len__(self) -> int:
        """Tasks that are neither done nor given up."""
        return len(self._left)

    def take(self, limit: int, shares: int = 1) -> list[Task]:
        """Up to `limit` ready tasks alike, the earliest; a fair part of them where `shares` workers wait for some."""
        if not self._ready:
            return []
        group = min(self._ready, key=lambda key: (key[0], not isinstance(self._ready[key][0], Probe)))
        queue = self._ready[group]
        count = min(limit, -(-len(queue) // max(1, shares)))
        taken = [queue.popleft() for _ in range(count)]
        if not queue:
            del self._ready[group]
        return taken

    def put_back(self, tasks: Iterable[Task]) -> None:
        """Make `tasks` ready (again), those that are still on the list."""
        for task in tasks:
            if task not in self._left:
                continue
            self._ready.setdefault(_group(task), deque()).append(task)

    def done(self, task: Task) -> list[str]:
        """Take `task` off the list, and free what waited for it. Returns the states that no task needs any more."""
        self._left.discard(task)
        for waiting in self._blocked.pop(measurement_key(task)[0], []) if not isinstance(task, Probe) else []:
            self._missing[waiting] -= 1
            if not self._missing[waiting]:
                self.put_back([waiting])
        idle = []
        for key in set(self._tree.needs(task)):
            self._users[key] -= 1
            if not self._users[key]:
                idle.append(key)
        return idle

    def needed(self, key: str) -> bool:
        """Whether some task on the list starts from the stored state `key`."""
        return self._users.get(key, 0) > 0

    def remove(self, unwanted: Callable[[Task], bool]) -> list[Task]:
        """Take all `unwanted` tasks off the list, which no other tasks may wait for; returns them."""
        gone = [task for task in self._left if unwanted(task)]
        self._left.difference_update(gone)
        for group, queue in list(self._ready.items()):
            kept = deque(task for task in queue if task in self._left)
            self._ready[group] = kept
            if not kept:
                del self._ready[group]
        for task in gone:
            for key in set(self._tree.needs(task)):
                self._users[key] -= 1
        return gone


def _group(task: Task) -> tuple[object, ...]:
    """Equal for tasks that one population can do; the first entry is the epoch."""
    if isinstance(task, Probe):
        return task.epoch, task.treatment, task.config.model, task.config.data, task.config.engine
    return task.epoch, task.alike
