"""What is left of a tree, given what is measured, stored and diverged. Everything is linear in the tree's size."""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastwi.experiment.tree import OWN, MeasurementKey, Tree

if TYPE_CHECKING:
    from fastwi.experiment.planner import PlannedSweep
    from fastwi.experiment.store import Measurement


def unfinished(
    tree: Tree,
    measured: Collection[MeasurementKey],
    stored: Collection[str],
    diverged: Collection[int] = (),
    claimed: Collection[MeasurementKey] = (),
) -> Sequence[int]:
    """The tasks of `tree` that are left, ascending, given what is measured and stored.

    An epoch is left where it was never measured, or where its state is gone and needed: by what is left, or because
    it stays in the store (`stops`). What comes of the states `diverged` (nodes) is not left. Tasks `claimed` by
    others are left, but do not need the states they start from.
    """
    lost, left, needed = lost_with(tree, diverged), array("i"), bytearray(len(tree))
    for node in tree.stops:
        needed[node] = True
    for task in reversed(range(tree.probes().stop)):  # later ones first: they say which states they need
        start = tree.start_of(task)
        if start < 0:  # no task: an initial network, or an average
            for child in tree.averages[task].nodes if needed[task] and task in tree.averages else ():
                needed[child] = True
            continue
        name = tree.measurement_key(task)
        again = task < len(tree) and needed[task] and tree.keys[task] not in stored
        if (again or name not in measured) and not (lost and is_lost(tree, lost, task)):
            left.append(task)
            needed[start] |= name not in claimed
    left.reverse()
    return left


def left_of(planned: "PlannedSweep") -> Sequence[int]:
    """The tasks that the sweep's store lacks, ascending; all where there is no store yet."""
    from fastwi.experiment.store import Store

    tree, directory = planned.tree, Path(planned.spec.options.store)
    if not (directory / "store.json").exists():
        return unfinished(tree, (), ())
    with Store.open(directory, create=False) as store:
        measured, stored, _ = store.look(tree.measurement_keys(), map(tree.keys.__getitem__, tree.epoch_nodes()))
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
        if tree.before[node] in lost or (node in tree.averages and not lost.isdisjoint(tree.averages[node].nodes)):
            lost.add(node)
    return lost


def is_lost(tree: Tree, lost: Collection[int], task: int) -> bool:
    """Whether a task is about what is made of the states `lost`.

    What diverged has measurements of its own: an epoch the one that it ends with, an average all.
    """
    start = tree.start_of(task)
    children = tree.averages[start].nodes if task >= len(tree) and start in tree.averages else (start,)
    return any(node in lost for node in children)


def without_lost(tree: Tree, measured: "Mapping[MeasurementKey, Measurement]") -> "dict[MeasurementKey, Measurement]":
    """The measurements that count: an average may have been trained on before it was found to have diverged."""
    gone = lost_measurements(tree, measured)
    return {key: m for key, m in measured.items() if key not in gone}


def lost_measurements(tree: Tree, measured: "Mapping[MeasurementKey, Measurement]") -> set[MeasurementKey]:
    """What the measurements of all that comes of diverged networks are, or would be, filed under."""
    lost = lost_with(tree, stopped_states(tree, measured.values()))
    return {tree.measurement_key(task) for task in tree.tasks() if is_lost(tree, lost, task)} if lost else set()
