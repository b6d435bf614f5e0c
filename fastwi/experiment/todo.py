"""What is left of a tree, given what is measured, stored and diverged. Everything is linear in the tree's size."""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.experiment.tree import OWN, MeasurementKey, Tree

if TYPE_CHECKING:
    from fastwi.experiment.planner import PlannedSweep
    from fastwi.experiment.store import Measurement


@dataclass(frozen=True)
class Todo:
    """What is left: epochs to train (nodes) and probes to make (tasks), in an order in which they can be done."""

    epochs: Sequence[int]
    probes: Sequence[int]

    @property
    def tasks(self) -> Sequence[int]:
        """All of it."""
        return array("i", [*self.epochs, *self.probes])


def unfinished(
    tree: Tree,
    measured: Collection[MeasurementKey],
    stored: Collection[str],
    diverged: Collection[int] = (),
    claimed: Collection[MeasurementKey] = (),
) -> Todo:
    """What is left of `tree`, given the measurements that are there and the states that are stored.

    An epoch is left where it was never measured, or where something that is left needs its state and that is gone.
    What comes of the states `diverged` (nodes) is not left: there is nothing to learn from it. Other processes are at
    the tasks `claimed`: these are left, but whether the states that they start from are there is no matter.
    """
    lost = lost_with(tree, diverged)
    needed = bytearray(len(tree))
    probes = array("i")
    for task in range(len(tree), tree.tasks()):
        (key, treatment), node = tree.measurement_key(task), tree.start_of(task)
        if (key, treatment) not in measured and not (lost and is_lost(tree, lost, node, treatment == OWN)):
            probes.append(task)
            needed[node] |= (key, treatment) not in claimed
    epochs = array("i")
    for node in reversed(range(len(tree))):  # later states first: they say which earlier ones they need
        before, key = tree.before[node], tree.keys[node]
        if before < 0:
            for child in tree.averages[node][0] if needed[node] and node in tree.averages else ():
                needed[child] = True
        elif before not in lost and ((key, OWN) not in measured or (needed[node] and key not in stored)):
            epochs.append(node)
            needed[before] |= (key, OWN) not in claimed
    epochs.reverse()
    return Todo(epochs, probes)


def left_of(planned: "PlannedSweep") -> Todo:
    """What the sweep's store lacks; all where there is no store yet."""
    from fastwi.experiment.store import Store

    tree, directory = planned.tree, Path(planned.spec.options.store)
    if not (directory / "store.json").exists():
        return unfinished(tree, (), ())
    with Store.open(directory, create=False) as store:
        measured = store.measurements(tree.measurement_keys())
        stored = store.states(tree.keys[node] for node in tree.epoch_nodes())
    return unfinished(tree, measured.keys(), stored, stopped_states(tree, measured.values()))


def stopped_states(tree: Tree, measurements: "Iterable[Measurement]") -> list[int]:
    """The states of `tree` (nodes) of which nothing is made, because they diverged.

    An average is judged with the batch-norm statistics that it would be trained on with. Other measurements beside
    an epoch's own (of an initial network, or with recomputed statistics) stop nothing.
    """

    def stops(node: int, own: bool) -> bool:
        if node in tree.averages:
            return own == (tree.configs[node].experiment.batch_norm == "average")
        return tree.is_epoch(node) and own

    diverged = ((tree.nodes[m.state], m.treatment == OWN) for m in measurements if m.diverged)
    return [node for node, own in diverged if stops(node, own)]


def lost_with(tree: Tree, nodes: Collection[int]) -> set[int]:
    """The states `nodes` of `tree` and all that are made of them."""
    lost = set(nodes)
    for node in range(min(lost) + 1, len(tree)) if lost else ():
        if tree.before[node] in lost or (node in tree.averages and not lost.isdisjoint(tree.averages[node][0])):
            lost.add(node)
    return lost


def is_lost(tree: Tree, lost: Collection[int], node: int, own: bool) -> bool:
    """Whether a measurement is of a network made of one of the states `lost`, or of such an epoch made otherwise.

    What diverged has measurements of its own: an epoch the one that it ends with, an average all.
    """
    if node in tree.averages:
        return any(child in lost for child in tree.averages[node][0])
    return tree.is_epoch(node) and (tree.before[node] in lost or (not own and node in lost))


def without_lost(tree: Tree, measured: "Mapping[MeasurementKey, Measurement]") -> "dict[MeasurementKey, Measurement]":
    """The measurements that count: an average may have been trained on before it was found to have diverged."""
    lost = lost_with(tree, stopped_states(tree, measured.values()))
    return {key: m for key, m in measured.items() if not is_lost(tree, lost, tree.nodes[key[0]], key[1] == OWN)}
