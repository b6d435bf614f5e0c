"""States on the device: resident rows, and others read, drawn or averaged when a job asks for them."""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fastwi.data.noise import Noise
from fastwi.engine.device import resolve_device
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import StoredState, read_states
from fastwi.experiment.tree import Tree
from fastwi.population import Layout, Population

Row = tuple[Population, int]
Files = Mapping[str, StoredState]
Name = tuple[int, bool]
Rows = dict[Name, Row]


class StateCache:
    """Rows by name, within a bound of memory; the least recently used go first.

    Rows are never written to: who trains one copies it. The rows of a population share its memory and go together.
    """

    def __init__(self, most_bytes: float) -> None:
        self._most, self._bytes = most_bytes, 0
        self._rows: dict[Hashable, Row] = {}
        self._names: OrderedDict[Population, set[Hashable]] = OrderedDict()  # in the order of their last use

    def __contains__(self, name: Hashable) -> bool:
        return name in self._rows

    def get(self, name: Hashable) -> Row | None:
        """The row called `name`, where it is there."""
        row = self._rows.get(name)
        if row is not None:
            self._names.move_to_end(row[0])
        return row

    def put(self, population: Population, names: Sequence[Hashable | None]) -> None:
        """Hold the rows of `population` under `names`; those without one are not looked for."""
        rows = {name: (population, m) for m, name in enumerate(names) if name is not None}
        self.drop(rows)
        if rows:
            self._rows |= rows
            self._names[population] = set(rows)
            self._bytes += population.members * population.layout.row_bytes
        while self._bytes > self._most and len(self._names) > 1:
            self.drop(list(next(iter(self._names.values()))))

    def drop(self, names: Iterable[Hashable]) -> None:
        """Let rows go, and the memory of populations of which none is left."""
        for name in names:
            row = self._rows.pop(name, None)
            if row is not None:
                population, left = row[0], self._names[row[0]]
                left.discard(name)
                if not left:
                    del self._names[population]
                    self._bytes -= population.members * population.layout.row_bytes


class ResidentStates(StateCache):
    """The states of a tree that a worker has at hand, within a bound of memory, and a way to those that it has not.

    They are named by (node, whether batch-norm statistics are recomputed): averages may be trained on with either.
    """

    def __init__(self, tree: Tree, store: Path, resources: Resources, most_bytes: float) -> None:
        super().__init__(most_bytes)
        self._tree, self._store, self._resources = tree, store, resources
        self._held: dict[str, Population] = {}

    def forget(self, nodes: Iterable[int]) -> None:
        """Let the memory of states go."""
        self.drop([(node, recomputed) for node in nodes for recomputed in (False, True)])

    def trained_name(self, node: int) -> Name:
        """The name of a state as training starts from it."""
        average = node in self._tree.averages
        return node, average and self._tree.configs[node].experiment.batch_norm == "recompute"

    def gather(self, nodes: Sequence[int], files: Files, trains: bool) -> Population:
        """The states `nodes`, of one network, as the members of one population in fresh memory.

        `files`: the stored ones, by key. `trains`: averages have the statistics that they are trained on with, else
        their children's, averaged. Raises DamagedState for a state whose file is damaged or gone.
        """
        names = [self.trained_name(node) if trains else (node, False) for node in nodes]
        rows = self._at_hand(names)
        self._bring(names, files, rows)
        return Population.gather([rows[name] for name in names])

    def portions(self, nodes: Sequence[int], files: Files, size: int) -> Iterator[Population]:
        """As `gather`, up to `size` at a time, in memory that is used again.

        Averages that end here, and stored states that one portion alone needs, are not kept.
        """
        tree, rows = self._tree, self._at_hand([(node, False) for node in nodes])
        parts = [nodes[first : first + size] for first in range(0, len(nodes), size)]
        uses = Counter(name for part in parts for name in {*((node, False) for node in part), *self._children(part)})
        for part in parts:
            end_here = all(node in tree.averages and node not in tree.trained for node in part)
            names = self._children(part) if end_here else [(node, False) for node in part]
            passing = [name for name in names if tree.is_epoch(name[0]) and uses[name] == 1 and name not in rows]
            if passing:
                read = self._read([node for node, _ in passing], files, again=True)
                rows |= {name: (read, m) for m, name in enumerate(passing)}
            self._bring(names, files, rows)
            like = rows[names[0]][0]
            made = self._scratch("made", like.layout, len(part), like.device)
            if end_here:
                yield self._average(part, rows, made)
            else:
                yield Population.gather([rows[name] for name in names], made)
            for name in passing:
                del rows[name]

    def _scratch(self, what: str, layout: Layout, members: int, device: torch.device) -> Population:
        """Memory that is used again by the next call."""
        held = self._held.get(what)
        if held is None or len(held) < members or held.layout != layout:
            held = self._held[what] = Population.zeros(layout, members, device)
        return held[:members]

    def _read(self, nodes: Sequence[int], files: Files, again: bool = False) -> Population:
        """Stored states; `again`: in memory that the next call uses again."""
        config = self._tree.configs[nodes[0]]
        layout, device = self._resources.layout(config), resolve_device(config.engine.device)
        into = self._scratch("read", layout, len(nodes), torch.device("cpu")) if again else None
        return read_states(self._store, [files[self._tree.keys[node]] for node in nodes], layout, device, into)

    def _at_hand(self, names: Sequence[Name]) -> Rows:
        """The resident rows of `names`, and of what averages among them are made of.

        They need not have files yet: what is gathered meanwhile must not push them out.
        """
        every = (*names, *self._children([node for node, _ in names]))
        return {name: row for name in every if (row := self.get(name)) is not None}

    def _bring(self, names: Iterable[Name], files: Files, rows: Rows) -> None:
        """Add to `rows` those of `names` that are not there; they are resident from then on."""
        tree = self._tree
        alike = defaultdict[tuple[object, ...], list[Name]](list)  # made in one go
        for node, recomputed in (name for name in dict.fromkeys(names) if name not in rows):
            experiment, noise = tree.configs[node].experiment, tree.configs[node].seeds.statistics_noise
            how = recomputed and (tree.epochs[node], noise, experiment.recompute_images)
            moving = tree.configs[node].optimizer.ema_decay > 0
            alike[node in tree.averages, tree.is_epoch(node), moving, how].append((node, recomputed))
        for _, made in sorted(alike.items(), key=lambda item: bool(item[0][0])):  # averages of the others last
            nodes = [node for node, _ in made]
            population = self._made(nodes, made[0][1], files, rows)
            self.put(population, made)
            rows |= {name: (population, m) for m, name in enumerate(made)}

    def _made(self, nodes: Sequence[int], recomputed: bool, files: Files, rows: Rows) -> Population:
        """States of one kind, read, drawn or averaged."""
        tree, resources, config = self._tree, self._resources, self._tree.configs[nodes[0]]
        if tree.is_epoch(nodes[0]):
            return self._read(nodes, files)
        if nodes[0] not in tree.averages:
            networks = [resources.network(tree.configs[node]) for node in nodes]
            moving = config.optimizer.ema_decay > 0
            return Population.from_modules(networks, resolve_device(config.engine.device), moving)
        self._bring(self._children(nodes), files, rows)
        averages = self._average(nodes, rows)
        if not recomputed:
            return averages
        noises = [Noise(config.seeds.statistics_noise)] * len(nodes)
        train, _ = resources.splits(config)
        images = config.experiment.recompute_images
        return resources.engine(config).recompute_statistics(averages, train, noises, tree.epochs[nodes[0]], images)

    def _average(self, nodes: Sequence[int], rows: Rows, into: Population | None = None) -> Population:
        """Averages; those made in the memory `into` have no momentum of their own."""
        averages = [self._tree.averages[node] for node in nodes]
        members_of_L = [[rows[child, False] for child in average.nodes] for average in averages]
        momentum = [average.momentum for average in averages] if into is None else None
        return Population.averages(
            members_of_L, [a.weights for a in averages], momentum, into, [a.statistics for a in averages]
        )

    def _children(self, nodes: Iterable[int]) -> list[Name]:
        """What the averages among `nodes` are made of."""
        averages = [self._tree.averages[node].nodes for node in nodes if node in self._tree.averages]
        return list(dict.fromkeys((child, False) for children in averages for child in children))
