"""A planned sweep in words: its trajectories, and the disk that its states take."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastwi.config.sweep import KEEP
from fastwi.experiment.planner import PlannedSweep, kept_states
from fastwi.experiment.points import Point

if TYPE_CHECKING:
    from fastwi.experiment.resources import Resources

_MOST_NAMED = 12


def naive_epochs(points: Iterable[Point]) -> int:
    """Epochs that would be trained if every point were run alone."""
    total = 0
    for point in points:
        e = point.config.experiment
        total += e.k + e.children * e.s + e.after * (1 + e.children * e.continue_children)
    return total


def tree_lines(planned: PlannedSweep) -> list[str]:
    """The tree in words, a line a kind of trajectory."""
    tree = planned.tree
    # Trajectories by their last node and the epochs done before their first.
    kinds: dict[str, set[tuple[int, int]]] = {"parents": set(), "children": set(), "averages": set()}
    for place in planned.places:
        kinds["parents"].add((place.clone_node, 0))
        kinds["children"].update((last, tree.epochs[place.clone_node]) for last in place.last_nodes)
        kinds["averages"].add((place.after_node, tree.epochs[place.average_node]))
    lines = []
    for name, trajectories in kinds.items():
        paths = [path for last, first in trajectories if (path := tree.path(last, first))]
        count = len({(tree.before[path[0]], tree.noises[path[0]]) for path in paths})
        nodes = {node for path in paths for node in path}
        kept = sorted({tree.epochs[node] for node in nodes & tree.stops})
        where = f", kept at epochs {_listed(kept)}" if kept else ""
        lines.append(f"{name}: {count:,} trajectories, {len(nodes):,} epochs{where}")
    return lines


def kept_bytes(planned: PlannedSweep, resources: "Resources") -> dict[str, int]:
    """What the sweep's states take in the store at its end, by choice of sweep.keep."""
    tree = planned.tree
    network = {alike: node for node, alike in enumerate(tree.alike)}
    found = {}
    for keep in KEEP:
        counts = Counter(tree.alike[node] for node in kept_states(tree, planned.places, keep))
        sizes = (count * resources.state_bytes(tree.configs[network[alike]]) for alike, count in counts.items())
        found[keep] = sum(sizes)
    return found


def kept_line(sizes: dict[str, int], chosen: str) -> str:
    """The same in words; `chosen` is the sweep's own choice."""
    told = (f"{keep} {size / 2**20:,.0f} MiB" + " (chosen)" * (keep == chosen) for keep, size in sizes.items())
    return "states in the store at the end, by sweep.keep: " + ", ".join(told)


def _listed(numbers: list[int]) -> str:
    if len(numbers) <= _MOST_NAMED:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[:8]))} ... {numbers[-1]}"
