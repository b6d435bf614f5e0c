"""What --dry-run shows of a run or a sweep: its trajectories, what is left of them, the time and the disk."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastwi.config.schema import Config
from fastwi.config.sweep import KEEP
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine
from fastwi.engine.recorded import RECORD_AT
from fastwi.experiment.places import PointStates
from fastwi.experiment.planner import PlannedSweep
from fastwi.experiment.resources import Resources
from fastwi.experiment.todo import left_of
from fastwi.population import Population
from fastwi.report.progress import clock, cost_of, trained_epochs, trained_images
from fastwi.report.summary import Summary, count_of, value_text
from fastwi.sealed import MANIFEST

_STEPS = RECORD_AT // 2 - 2  # so that none of those timed is recorded: that takes as long as four
_TEST_IMAGES = 2000
_MOST_NAMED = 12


def engine_text(engine: Engine, planned: PlannedSweep) -> str:
    """What a run or a sweep is computed by, in words."""
    resolved, auto = engine.resolved, planned.auto
    text = f"{engine.name}, {resolved.backend} on {resolved.device}, {str(resolved.dtype).removeprefix('torch.')}"
    if auto:
        text += f" (engine.precision: auto is {auto.precision}: {auto.reason})"
    if resolved.backend == "compile":
        text += "; the first steps compile, which can take minutes"
    return text


def plan(planned: PlannedSweep, resources: Resources, directory: Path, yaml: str) -> Summary:
    """The tree, what it saves, and time and disk, measured on a few steps of its own. `yaml`: the configuration."""
    tree, points, keep = planned.tree, planned.points, planned.spec.options.keep
    left, lines = left_of(planned), tree_lines(planned)
    epochs, naive = trained_epochs(tree, tree.epoch_nodes()), naive_epochs(planned.places)
    nodes_left, probes_left = tree.count(left)
    epochs_left = trained_epochs(tree, left[:nodes_left])
    images = sum(trained_images(planned, epoch) for epoch in left[:nodes_left])
    seconds, sizes = _seconds(planned, left, resources), kept_bytes(planned, resources)
    rounds = [each for place in planned.places for each in place.rounds]
    ends = {node for each in rounds for node in (*each.end_nodes, *(node for node, _ in each.alone))}
    starts = [(probe, tree.start_of(probe)) for probe in left[nodes_left:]]
    later = [probe for probe, node in starts if tree.is_epoch(node) and node not in ends]
    every = [probe for probe in later if not tree.treatment_of(probe).moving]  # those are for optimizer.ema_decay
    share = sum(cost_of(planned, task) for task in every) / max(1e-9, sum(cost_of(planned, task) for task in left))
    values = {
        "directory": str(directory),
        "config": asdict(points[0].config),
        "points": len(points),
        "epochs": epochs,
        "naive_epochs": naive,
        "epochs_left": epochs_left,
        "networks_to_measure": probes_left,
        "recomputed_every_epoch": len(every),
        "images_to_train": images,
        "seconds": seconds,
        "bytes": sizes[keep],
        "bytes_by_keep": sizes,
        "tree": lines,
    }
    disk = (f"{name} {size / 2**20:,.0f} MiB" + " (chosen)" * (name == keep) for name, size in sizes.items())
    alone = f", {naive:,} if each point were run alone: {naive / max(1, epochs):.1f} times as many"
    shown = [
        f"{directory}: {'goes on' if (directory / MANIFEST).exists() else 'new'}",
        engine_text(resources.engine(points[0].config), planned),
        *lines,
        f"{count_of(len(points), 'point')}; {count_of(epochs, 'epoch')} in the tree{alone * (naive > epochs)}",
        f"left: {count_of(epochs_left, 'epoch')}, {count_of(images, 'image')} to train, "
        f"{count_of(probes_left, 'network')} to measure: about {clock(seconds)} on one such device",
        *[f"of these for experiment.measure: {count_of(len(every), 'network')}, about {share:.0%} of the time"]
        * bool(every),
        f"states in the store at the end, by sweep.keep: {', '.join(disk)}",
    ]
    return Summary(values, [*(f"# {line}" for line in shown), yaml])


def naive_epochs(places: Iterable[PointStates]) -> int | float:
    """Epochs that would be trained if every point were run alone."""
    total: int | float = 0
    for place in places:
        further = sum(place.further([place.tree.keys[node] for node in (place.after_node, *place.last_nodes)]))
        total += place.tree.time(place.parent_node) + len(place.ends) * (place.end - place.k) + further
    return round(total, 2)


def tree_lines(planned: PlannedSweep) -> list[str]:
    """The tree in words, a line a kind of trajectory."""
    tree = planned.tree
    # Trajectories by their last node and the iterations done before their first.
    kinds = defaultdict[str, set[tuple[int, int]]](set)
    for place in planned.places:
        kinds["parents"].add((place.parent_node, 0))
        for each in place.rounds:
            lasts = place.last_nodes if each is place.rounds[-1] else each.end_nodes
            kinds["children"].update((last, each.first) for last in (*each.end_nodes, *lasts))
        kinds["averages"].add((place.after_node, tree.iterations[place.average_node]))
    lines = []
    for name, trajectories in kinds.items():
        paths = [path for last, first in trajectories if (path := tree.path(last, first))]
        count = len({(tree.before[path[0]], tree.noises[path[0]]) for path in paths})
        nodes = {node for path in paths for node in path}
        kept = list(map(value_text, sorted({tree.time(node) for node in nodes & tree.stops})))
        if len(kept) > _MOST_NAMED:
            kept[8:-1] = ["..."]
        where = f", kept at epochs {', '.join(kept)}" if kept else ""
        lines.append(
            f"{name}: {count_of(count, 'trajectory')}, {count_of(trained_epochs(tree, nodes), 'epoch')}{where}"
        )
    return lines


def kept_bytes(planned: PlannedSweep, resources: Resources) -> dict[str, int]:
    """What the states take in the store at the end, by choice of sweep.keep."""
    tree = planned.tree
    networks = {alike: node for node, alike in enumerate(tree.alike)}
    row_bytes = {alike: resources.layout(tree.configs[node]).row_bytes for alike, node in networks.items()}
    found = {}
    for keep in KEEP:
        counts = Counter(tree.alike[node] for node in planned.kept(keep))
        found[keep] = sum(count * row_bytes[alike] for alike, count in counts.items())
    return found


def _seconds(planned: PlannedSweep, left: Sequence[int], resources: Resources) -> float:
    tree = planned.tree
    tasks_of = defaultdict[int, list[int]](list)  # by the configuration's identity: hashing one takes long
    for task in left:
        tasks_of[id(tree.config_of(task))].append(task)
    costs = defaultdict[Any, float](float)  # in trained images, by what decides the speed
    examples: dict[Any, Config] = {}
    for tasks in tasks_of.values():
        config = tree.config_of(tasks[0])
        speed = _speed(config)
        examples.setdefault(speed, config)
        costs[speed] += sum(cost_of(planned, task) for task in tasks)
    seconds = 0.0
    for speed, config in examples.items():
        engine, network = resources.tried_engine(config), resources.network(config)
        trained_per_s, start_s = _measure(engine, network, *resources.splits(config), config.optimizer.ema_decay > 0)
        seconds += costs[speed] / trained_per_s + start_s
    return seconds


def _speed(config: Config) -> tuple[object, ...]:
    """What decides how long a step takes. Not how many images there are, nor rates, which are numbers alone."""
    data, optimizer = replace(config.data, train_images=0, test_images=0, last_batch="drop"), config.optimizer
    steps = optimizer.batch_size, optimizer.momentum > 0, optimizer.nesterov, optimizer.ema_decay > 0
    return config.model, config.engine, data, config.augment.padding > 0, config.augment.flip > 0, steps


def _measure(engine: Engine, network: nn.Module, train: Dataset, test: Dataset, moving: bool) -> tuple[float, float]:
    """Images trained a second, and the seconds that compilation takes: a few steps, after as many to warm up.

    moving: with a moving average of the weights.
    """
    population = Population.from_modules([network], engine.device, moving)
    # At least whole batches: a kept last one is of fewer images.
    batch = max(engine.config.optimizer.batch_size, len(train) // engine.iterations(train))
    few_train = _spread(train, _STEPS * batch)
    few_test = _spread(test, _TEST_IMAGES)
    rates, seconds = [], []
    for _ in range(2):  # the first round compiles and fills caches
        begun = time.perf_counter()
        engine.train_epoch(population, few_train, [Noise(0)], 0)
        rates.append(len(few_train) / (time.perf_counter() - begun))
        engine.evaluate(population.plain, few_test)
        seconds.append(time.perf_counter() - begun)
    return rates[-1], max(0.0, seconds[0] - seconds[1])


def _spread(dataset: Dataset, images: int) -> Dataset:
    """`images` images from all over the dataset: it may be sorted by class, and one class is learnt at once."""
    chosen = torch.linspace(0, len(dataset) - 1, min(images, len(dataset)), device=dataset.labels_N.device).long()
    return dataset.part(chosen)
