"""States on the device: resident rows, and others read, drawn or averaged when a job asks for them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fastwi.data.noise import Noise
from fastwi.engine.device import resolve_device
from fastwi.experiment.cache import Row, StateCache
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import StoredState, read_states
from fastwi.experiment.tree import Tree
from fastwi.population import Population

Files = Mapping[str, StoredState]
Name = tuple[int, bool]
Rows = dict[Name, Row]


class ResidentStates(StateCache):
    """The states of a tree that a worker has at hand, within a bound of memory, and a way to those that it has not.

    They are named by (node, whether batch-norm statistics are recomputed): an average may be trained on with other
    statistics than those of its children, averaged.
    """

    def __init__(self, tree: Tree, store: Path, resources: Resources, most_bytes: float) -> None:
        """`store`: its directory, for the states that are not resident."""
        super().__init__(most_bytes)
        self._tree, self._store, self._resources = tree, store, resources
        self._scratch: Population | None = None

    def forget(self, nodes: Iterable[int]) -> None:
        """Let the memory of states go."""
        self.drop([(node, recomputed) for node in nodes for recomputed in (False, True)])

    def trained_name(self, node: int) -> Name:
        """What a state is called as training starts from it: how it is averaged is its configuration's business."""
        average = node in self._tree.averages
        return node, average and self._tree.configs[node].experiment.batch_norm == "recompute"

    def gather(self, nodes: Sequence[int], files: Files, trains: bool) -> Population:
        """The states `nodes`, of one network, as the members of one population in fresh memory.

        `files`: the stored ones, by key. Averages have the batch-norm statistics of their further training
        (`trains`), or their children's, averaged. Raises DamagedState for a state whose file is damaged or gone.
        """
        names = [self.trained_name(node) if trains else (node, False) for node in nodes]
        rows = self._at_hand(names)
        self._bring(names, files, rows)
        return Population.gather([rows[name] for name in names])

    def portions(self, nodes: Sequence[int], files: Files, size: int) -> Iterator[Population]:
        """As `gather`, up to `size` at a time, in memory that is used again; averages that end here are not kept."""
        tree, rows = self._tree, self._at_hand([(node, False) for node in nodes])
        for first in range(0, len(nodes), size):
            part = nodes[first : first + size]
            end_here = all(node in tree.averages and not tree.configs[node].experiment.after for node in part)
            names = self._children(part) if end_here else [(node, False) for node in part]
            self._bring(names, files, rows)
            like = rows[names[0]][0]
            if self._scratch is None or len(self._scratch) < len(part) or self._scratch.layout != like.layout:
                self._scratch = Population.zeros(like.layout, len(part), like.device)
            scratch = self._scratch[: len(part)]
            if end_here:
                yield self._average(part, rows, momentum=None, into=scratch)
            else:
                yield Population.gather([rows[name] for name in names], scratch)

    def _at_hand(self, names: Sequence[Name]) -> Rows:
        """The rows of `names`, and of what averages among them are made of, that are resident.

        Whoever brings others meanwhile may push them out, and they need not have files yet: hold on to them.
        """
        every = (*names, *self._children([node for node, _ in names]))
        return {name: row for name in every if (row := self.get(name)) is not None}

    def _bring(self, names: Iterable[Name], files: Files, rows: Rows) -> None:
        """Add to `rows` those of `names` that are not there; they are resident from then on."""
        tree = self._tree
        alike = defaultdict[tuple[bool, object], list[Name]](list)  # made in one go
        for node, recomputed in dict.fromkeys(names):
            if (node, recomputed) in rows:
                continue
            kind: tuple[bool, object] = (False, tree.is_epoch(node))
            if node in tree.averages:
                config, how = tree.configs[node], None
                if recomputed:
                    how = tree.epochs[node], config.seeds.statistics_noise, config.experiment.recompute_images
                kind = True, (config.experiment.momentum, how)
            alike[kind].append((node, recomputed))
        for _, made in sorted(alike.items(), key=lambda item: item[0][0]):  # averages of the others last
            nodes = [node for node, _ in made]
            population = self._made(nodes, made[0][1], files, rows)
            self.put(population, made)
            rows |= {name: (population, m) for m, name in enumerate(made)}

    def _made(self, nodes: Sequence[int], recomputed: bool, files: Files, rows: Rows) -> Population:
        """States of one kind, read, drawn or averaged."""
        tree, resources, config = self._tree, self._resources, self._tree.configs[nodes[0]]
        device = resolve_device(config.engine.device)
        if tree.is_epoch(nodes[0]):
            return read_states(self._store, [files[tree.keys[n]] for n in nodes], resources.layout(config), device)
        if nodes[0] not in tree.averages:
            return Population.from_modules([resources.network(tree.configs[node]) for node in nodes], device)
        self._bring(self._children(nodes), files, rows)
        averages = self._average(nodes, rows, config.experiment.momentum)
        if not recomputed:
            return averages
        noises = [Noise(config.seeds.statistics_noise)] * len(nodes)
        train, _ = resources.splits(config)
        images = config.experiment.recompute_images
        return resources.engine(config).recompute_statistics(averages, train, noises, tree.epochs[nodes[0]], images)

    def _average(
        self, nodes: Sequence[int], rows: Rows, momentum: str | None, into: Population | None = None
    ) -> Population:
        averages = [self._tree.averages[node] for node in nodes]
        members_of_L = [[rows[child, False] for child in children] for children, _ in averages]
        return Population.averages(members_of_L, [weights for _, weights in averages], momentum, into)

    def _children(self, nodes: Iterable[int]) -> list[Name]:
        """What the averages among `nodes` are made of."""
        averages = [self._tree.averages[node][0] for node in nodes if node in self._tree.averages]
        return list(dict.fromkeys((child, False) for children in averages for child in children))
