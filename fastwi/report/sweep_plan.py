"""A planned sweep in words: its trajectories, what is left of them, and the time and the disk that they take."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from fastwi.config.schema import Config
from fastwi.config.sweep import KEEP
from fastwi.config.sweeppoints import Point
from fastwi.config.sweepwrite import sweep_to_yaml
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.todo import left_of
from fastwi.report.progress import auto_line, clock, cost_of
from fastwi.report.rates import measure_rates
from fastwi.report.summary import Summary

_MOST_NAMED = 12


def sweep_plan(planned: PlannedSweep, resources: Resources) -> Summary:
    """The tree, what it saves, and time and disk, measured on a few steps of this very sweep."""
    left, tree = left_of(planned), tree_lines(planned)
    (epochs, _), naive = planned.tree.count(planned.tree.tasks()), naive_epochs(planned.points)
    (epochs_left, probes_left), keep = planned.tree.count(left), planned.spec.options.keep
    seconds = _seconds(planned, left, resources)
    sizes = kept_bytes(planned, resources)
    values = {
        "points": len(planned.points), "epochs": epochs, "naive_epochs": naive, "epochs_left": epochs_left,
        "networks_to_measure": probes_left, "seconds": seconds, "bytes": sizes[keep], "bytes_by_keep": sizes,
        "tree": tree,
    }  # fmt: skip
    lines = [
        *tree,
        *([auto_line(planned)] if planned.auto else []),
        f"{len(planned.points):,} points; {epochs:,} epochs in the tree, {naive:,} if each point were run alone: "
        f"{naive / max(1, epochs):.1f} times as many",
        f"left: {epochs_left:,} epochs to train, {probes_left:,} networks to measure: about "
        f"{clock(seconds)} on one such device",
        kept_line(sizes, keep),
    ]
    return Summary(values, [sweep_to_yaml(planned.spec), *(f"# {line}" for line in lines)])


def _seconds(planned: PlannedSweep, left: Sequence[int], resources: Resources) -> float:
    costs: dict[tuple[object, ...], float] = defaultdict(float)  # in trained images, by what decides the speed
    examples: dict[tuple[object, ...], Config] = {}
    last: Config | None = None
    kind: tuple[object, ...] = ()
    for task in left:
        config = planned.tree.config_of(task)
        if config is not last:
            last, kind = config, (config.model, config.engine, config.optimizer.batch_size, config.data.path)
            examples.setdefault(kind, config)
        costs[kind] += cost_of(planned, task)
    seconds = 0.0
    for kind, config in examples.items():
        engine, network = resources.tried_engine(config), resources.network(config)
        seconds += costs[kind] / measure_rates(engine, network, *resources.splits(config)).trained_per_s
    return seconds


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


def kept_bytes(planned: PlannedSweep, resources: Resources) -> dict[str, int]:
    """What the sweep's states take in the store at its end, by choice of sweep.keep."""
    tree = planned.tree
    network = {alike: node for node, alike in enumerate(tree.alike)}
    found = {}
    for keep in KEEP:
        counts = Counter(tree.alike[node] for node in planned.kept(keep))
        sizes = (count * resources.layout(tree.configs[network[alike]]).row_bytes for alike, count in counts.items())
        found[keep] = sum(sizes)
    return found


def kept_line(sizes: dict[str, int], chosen: str) -> str:
    """The same in words; `chosen` is the sweep's own choice."""
    shown = (f"{keep} {size / 2**20:,.0f} MiB" + " (chosen)" * (keep == chosen) for keep, size in sizes.items())
    return "states in the store at the end, by sweep.keep: " + ", ".join(shown)


def _listed(numbers: list[int]) -> str:
    if len(numbers) <= _MOST_NAMED:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[:8]))} ... {numbers[-1]}"
