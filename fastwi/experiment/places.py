"""Where the results of a point are found in the tree of its sweep."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastwi.config.sweep import RECOMPUTED
from fastwi.config.time import epochs_of
from fastwi.experiment.tree import MeasurementKey, Treatment, Tree


@dataclass(frozen=True, slots=True)
class Round:
    """Children from their starts, at iteration `first`, to their ends, and the average, measured by `treatments`.

    alone: the parent that is trained on for as many epochs, and for as many as all children together, where it is,
    and how each is measured.
    """

    first: int
    start_nodes: tuple[int, ...]
    end_nodes: tuple[int, ...]
    average_node: int
    treatments: Mapping[str, Treatment]
    alone: tuple[tuple[int, Mapping[str, Treatment]], ...] = ()


@dataclass(frozen=True, slots=True)
class OverTime:
    """An average over time of a network's states up to an epoch. `name`: lawa, swa, ema; or ema_iteration, which is
    in the network's own state. `network`: whose.

    child: from 0; -1 for others. round: from 0; that of the child.
    """

    name: str
    network: str
    child: int
    round: int
    node: int
    treatments: Mapping[str, Treatment]


@dataclass(frozen=True, slots=True)
class PointStates:
    """Where a point's results are found in the tree: its last nodes, and by them the keys of all its states.

    `clone_node`, `parent_node`: the parent after k epochs, and its last. `rounds`: at least one; what is not of them
    is of the last. `last_nodes`: the children's last. `after_node`: the average's last. `recomputed`: by epoch the
    treatment under which all networks are measured beside their own; empty: they are not.
    """

    tree: Tree = field(repr=False)
    clone_node: int
    parent_node: int
    rounds: tuple[Round, ...]
    last_nodes: tuple[int, ...]
    after_node: int
    recomputed: Mapping[int, Treatment]
    over_time: tuple[OverTime, ...] = ()

    @property
    def k(self) -> int | float:
        """Epochs that the parent trained before cloning; an int where they are whole."""
        return self.tree.time(self.clone_node)

    @property
    def s(self) -> int | float:
        """Epochs that each child trained before averaging, likewise."""
        return epochs_of(self.s_iterations, self.tree.per_epoch[self.average_node])

    @property
    def k_iterations(self) -> int:
        """Training steps of the parent before cloning."""
        return self.tree.iterations[self.clone_node]

    @property
    def s_iterations(self) -> int:
        """Training steps of each child before averaging."""
        return self.tree.iterations[self.average_node] - self.rounds[-1].first

    @property
    def end(self) -> int | float:
        """Epochs done at interpolation, likewise."""
        return self.tree.time(self.average_node)

    def time(self, state: str) -> int | float:
        """Epochs done at a state, likewise."""
        return self.tree.time(self.tree.nodes[state])

    def further(self, states: Sequence[str]) -> list[int | float]:
        """Epochs done at each of `states` since the interpolation, likewise."""
        tree, end = self.tree, self.tree.iterations[self.average_node]
        nodes = [tree.nodes[state] for state in states]
        return [epochs_of(tree.iterations[node] - end, tree.per_epoch[node]) for node in nodes]

    @property
    def end_nodes(self) -> tuple[int, ...]:
        """The children at interpolation."""
        return self.rounds[-1].end_nodes

    @property
    def average_node(self) -> int:
        """The average of the children."""
        return self.rounds[-1].average_node

    @property
    def treatments(self) -> Mapping[str, Treatment]:
        """Those measured at interpolation, by name, own first."""
        return self.rounds[-1].treatments

    @property
    def clone(self) -> str:
        """The parent where it was cloned."""
        return self.tree.keys[self.clone_node]

    @property
    def parent(self) -> tuple[str, ...]:
        """The parent after epochs 1 to k."""
        return self._path(self.clone_node, 0)

    @property
    def alone(self) -> tuple[str, ...]:
        """The parent after the epochs that it is trained on alone."""
        return self._path(self.parent_node, self.tree.iterations[self.clone_node])

    @property
    def children(self) -> tuple[tuple[str, ...], ...]:
        """Each child after epochs k + 1 to k + s of all rounds, and on where children are trained on."""
        return tuple(map(operator.add, self.children_to_end, self.children_on))

    @property
    def children_to_end(self) -> tuple[tuple[str, ...], ...]:
        """Each child after epochs k + 1 to k + s of all rounds."""
        rounds = [self.children_in(each) for each in self.rounds]
        return tuple(tuple(itertools.chain(*parts)) for parts in zip(*rounds, strict=True))

    @property
    def children_on(self) -> tuple[tuple[str, ...], ...]:
        """Each child after the epochs past interpolation."""
        end = self.tree.iterations[self.average_node]
        return tuple(self._path(last, end) for last in self.last_nodes)

    def children_in(self, one: Round) -> list[tuple[str, ...]]:
        """Each child after each epoch of a round."""
        return [self._path(end, one.first) for end in one.end_nodes]

    @property
    def ends(self) -> tuple[str, ...]:
        """The children at interpolation."""
        return tuple(self.tree.keys[end] for end in self.end_nodes)

    @property
    def average(self) -> str:
        """The average of the children."""
        return self.tree.keys[self.average_node]

    @property
    def after(self) -> tuple[str, ...]:
        """The average after the epochs past interpolation."""
        return self._path(self.after_node, self.tree.iterations[self.average_node])

    def filed(self, state: str, treatment: str) -> MeasurementKey:
        """What a measurement of a state is filed under; `treatment`: a name, or RECOMPUTED for that of its epoch."""
        if treatment == RECOMPUTED:
            treatment = self.recomputed[self.tree.epochs[self.tree.nodes[state]]].name
        return state, treatment

    def _path(self, last: int, first: int) -> tuple[str, ...]:
        return tuple(self.tree.keys[node] for node in self.tree.path(last, first))
