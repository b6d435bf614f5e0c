"""Does jobs: gathers the states that they start from, trains or measures, hands over the states that come out.

A worker holds a tree, datasets, compiled networks and resident states, and no record of what is done; it runs in the
scheduler's own process or in one of its own on any machine that sees the store's files.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fastwi.config.schema import Config
from fastwi.config.sweep import SweepOptions
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine
from fastwi.engine.schedule import learning_rate
from fastwi.experiment.resident import ResidentStates
from fastwi.experiment.resources import Resources, Splits
from fastwi.experiment.store import Measurement, StoredState
from fastwi.experiment.tree import OWN, Tree
from fastwi.population import Population

Tested = tuple[float, float]  # loss and accuracy
_GATHERED = 64
"""Networks made at once to be measured: with fewer each takes longer."""


class Report(Protocol):
    """Receives the progress of a job."""

    def images(self, trained: int, evaluated: int) -> None:
        """Images passed through networks since the last call."""

    def measured(self, tasks: Sequence[int], measurements: Sequence[Measurement]) -> None:
        """Tasks of the job are done."""


@dataclass(frozen=True, eq=False)
class Job:
    """Tasks alike, by their numbers in the tree, and what is needed to do them.

    `chains`: for each network its epochs, one after another and as many for each; or one probe each. `files`: stored
    states that they start from, by key. `write`: nodes whose states are handed over. After `seconds` it ends.
    """

    chains: tuple[tuple[int, ...], ...]
    files: Mapping[str, StoredState]
    write: frozenset[int]
    seconds: float

    @property
    def tasks(self) -> list[int]:
        """All of them."""
        return [task for chain in self.chains for task in chain]


@dataclass(eq=False)
class Outcome:
    """The tasks that were done, their measurements, and states: of one member each, by key; or as written files."""

    tasks: list[int]
    measurements: list[Measurement]
    states: list[tuple[str, Population]] = field(default_factory=list)
    files: list[StoredState] = field(default_factory=list)


class Worker:
    """Does jobs of one tree on one device."""

    def __init__(self, tree: Tree, options: SweepOptions) -> None:
        """Half of the memory is for resident states."""
        self.tree = tree
        self.resources = Resources(tree, options.population)
        self.resident = ResidentStates(tree, Path(options.store), self.resources, options.memory_GiB * 2**30 / 2)

    def run(self, job: Job, report: Report) -> Outcome:
        """Do the tasks of `job`: all of them, or as many as its time allows.

        Raises DamagedState where a stored state is damaged or gone, and UserError where inputs are not as planned.
        """
        return self._train(job, report) if job.chains[0][0] < len(self.tree) else self._probe(job, report)

    def _train(self, job: Job, report: Report) -> Outcome:
        tree, going, begun = self.tree, job.chains, time.perf_counter()
        config, length = tree.configs[going[0][0]], len(going[0])
        train, test = self.resources.splits(config)
        engine = self.resources.tried_engine(config)
        per_epoch = engine.iterations(train)
        population = self.resident.gather([tree.before[first] for first, *_ in going], job.files, trains=True)
        outcome = Outcome([], [])
        for i in range(length):
            since, nodes = time.perf_counter(), [chain[i] for chain in going]
            first, last = (tree.iterations[node] for node in (tree.before[nodes[0]], nodes[0]))
            (number, step), config = divmod(first, per_epoch), tree.configs[nodes[0]]
            engine = engine.with_config(config)
            for m in (m for m, node in enumerate(nodes) if node in tree.resets):
                population.momentum_MP[m].zero_()
            noises = [Noise(tree.noises[node]) for node in nodes]
            if i + 1 < length:
                engine.draw_ahead(noises, last // per_epoch, train)
            steps = range(step, step + last - first)
            losses = engine.train_epoch(population, train, noises, number, lambda n: report.images(n, 0), steps)
            scores = score(engine, population, test, report)
            rate = learning_rate(first, per_epoch, config.optimizer, config.schedule)
            now = time.perf_counter()
            seconds = (now - since) / len(nodes)
            rows = [
                Measurement(tree.keys[node], OWN, tree.epochs[node], loss, rate, *tested, seconds)
                for node, loss, tested in zip(nodes, losses, scores, strict=True)
            ]
            well = [m for m, row in enumerate(rows) if not row.diverged]
            ends = not well or i + 1 == length or now - begun >= job.seconds
            on_the_way = bool(well) and ends and i + 1 < length  # out of time
            written = [node in job.write or on_the_way for node in nodes]
            if any(written):
                kept = population if ends else population.clone_rows(range(population.members))
                self.resident.put(kept, [(node, False) if written[m] else None for m, node in enumerate(nodes)])
                outcome.states += [(tree.keys[node], kept[m]) for m, node in enumerate(nodes) if written[m]]
            outcome.tasks += nodes
            outcome.measurements += rows
            report.measured(nodes, rows)
            if ends:
                break
            if len(well) < len(going):
                population, going = population.clone_rows(well), tuple(going[m] for m in well)
        return outcome

    def _probe(self, job: Job, report: Report) -> Outcome:
        tree, begun = self.tree, time.perf_counter()
        probes_of = defaultdict[int, list[int]](list)
        configs: dict[str, Config] = {}  # by treatment
        for task in job.tasks:
            probes_of[tree.start_of(task)].append(task)
            configs.setdefault(tree.treatment_of(task).name, tree.config_of(task))
        splits = self.resources.splits(next(iter(configs.values())))
        engines = {name: self.resources.engine(config) for name, config in configs.items()}
        nodes = sorted(probes_of, key=tree.is_epoch)  # averages first
        at_once = next(iter(engines.values())).members_at_once
        gathered = max(1, _GATHERED // at_once) * at_once
        portions = self.resident.portions(nodes, job.files, gathered)
        outcome = Outcome([], [])
        for first in range(0, len(nodes), at_once):
            since, part, at = time.perf_counter(), nodes[first : first + at_once], first % gathered
            if not at:
                portion = next(portions)
            population = portion[at : at + len(part)]
            alike = defaultdict[str, list[int]](list)  # probes, by treatment
            for node in part:
                for task in probes_of[node]:
                    alike[tree.treatment_of(task).name].append(task)
            found: dict[int, Tested] = {}
            # Own statistics last: a network may count in its buffers while it is tested, and the others are copies.
            for name in sorted(alike, key=lambda name: name == OWN):
                measured = [tree.start_of(task) for task in alike[name]]
                members = population if measured == part else population.clone_rows(list(map(part.index, measured)))
                scores = self._measure(members, alike[name], engines[name], splits, report)
                found |= zip(alike[name], scores, strict=True)
            seconds, epoch = (time.perf_counter() - since) / len(found), tree.epochs[nodes[0]]
            made = [
                Measurement(*tree.measurement_key(task), epoch, None, None, *tested, seconds)
                for task, tested in found.items()
            ]
            outcome.tasks += found
            outcome.measurements += made
            report.measured(list(found), made)
            if time.perf_counter() - begun >= job.seconds:
                break
        return outcome

    def _measure(
        self, population: Population, probes: Sequence[int], engine: Engine, splits: Splits, report: Report
    ) -> list[Tested]:
        """What `score` finds of members under the treatment of batch-norm statistics that their `probes` share."""
        treatment, (train, test) = self.tree.treatment_of(probes[0]), splits
        if treatment.moving:
            population = population.of_moving()
        if not treatment.own:
            noises = [Noise(treatment.noise)] * len(probes)
            population = engine.recompute_statistics(
                population, train, noises, treatment.epoch, treatment.images, lambda n: report.images(0, n)
            )
            # Averages are trained on with these very statistics; those that end here were made without momentum.
            names = map(self.resident.trained_name, map(self.tree.start_of, probes))
            going_on = [n if n[1] and n[0] in self.tree.trained else None for n in names]
            self.resident.put(population, going_on)
        return score(engine, population, test, report)


def score(engine: Engine, population: Population, test: Dataset, report: Report) -> list[Tested]:
    """Mean loss (nats) and accuracy (%) of every member on the test images.

    The loss of a member with a weight or statistic that is not finite is NaN: a ReLU may hide that it diverged.
    """
    scores = engine.evaluate(population, test, lambda n: report.images(0, n))
    losses = np.where(population.finite_M(), scores.loss_M, np.nan)
    return list(zip(losses.tolist(), scores.accuracy_M.tolist(), strict=True))
