"""Does jobs: gathers the states that they start from, trains or measures, hands over the states that come out.

A worker holds datasets, compiled networks and resident states, and no record of what is done; it runs in the
scheduler's own process or in one of its own on any machine that sees the store's files.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise
from fastwi.engine.base import Engine, Scores
from fastwi.engine.schedule import learning_rate
from fastwi.experiment.inputs import Inputs, InputsKey
from fastwi.experiment.resident import ResidentStates, trained_name
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import Measurement, StateFile
from fastwi.experiment.tree import OWN, Average, Epoch, Initial, Probe, Treatment
from fastwi.population import Population

_GATHERED = 16
"""Networks made at once to be measured: with fewer each takes longer, more of them leave the processor's cache."""


class Report(Protocol):
    """What hears of a job while it is done."""

    def images(self, trained: int, evaluated: int) -> None:
        """Images passed through networks since the last call."""

    def measured(self, measurements: Sequence[Measurement]) -> None:
        """Tasks of the job are done."""


@dataclass(frozen=True, eq=False)
class Job:
    """Tasks alike, and all that is needed to do them.

    `chains`: for each network to be trained its epochs, as many of each; or `probes`. `states`: the initial networks
    and averages that they start from or are made of; `files`: the stored states; `write`: keys of the states that are
    to be handed over; `inputs`: what the datasets and networks were when the tasks were named. After
    `seconds` it ends where it is. `tasks`: their numbers.
    """

    chains: tuple[tuple[Epoch, ...], ...]
    probes: tuple[Probe, ...]
    states: Mapping[str, Initial | Average]
    files: Mapping[str, StateFile]
    write: frozenset[str]
    inputs: Mapping[InputsKey, Inputs]
    seconds: float
    tasks: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a job: a measurement a task that was done, and states to be written, or written already."""

    measurements: tuple[Measurement, ...]
    states: tuple[tuple[str, Population], ...]
    files: tuple[StateFile, ...] = ()


class Worker:
    """Does jobs on one device."""

    def __init__(self, store: Path, root: Path, memory_bytes: float) -> None:
        """`root`: of a relative `data.path` or `model.weights`. `memory_bytes`: of resident states."""
        self.resources = Resources(root)
        self.resident = ResidentStates(store, self.resources, memory_bytes)

    def run(self, job: Job, report: Report) -> Outcome:
        """Do the tasks of `job`: all of them, or as many as its time allows.

        Raises DamagedState where a stored state is damaged or gone, and UserError where a dataset, a network's
        source or its weights are not those that the tasks are named by.
        """
        self.resources.expect(job.inputs)
        return self._train(job, report) if job.chains else self._probe(job, report)

    def _train(self, job: Job, report: Report) -> Outcome:
        begun, going = time.perf_counter(), job.chains
        config = going[0][0].config
        train, test = self.resources.splits(config)
        engine = self.resources.tried_engine(config)
        per_epoch, length = engine.iterations(train), len(going[0])
        population = self.resident.gather(
            [chain[0].before for chain in going], config, job.states, job.files, trains=True
        )
        measurements: list[Measurement] = []
        states: list[tuple[str, Population]] = []
        for i in range(length):
            since, epochs = time.perf_counter(), [chain[i] for chain in going]
            number, config = epochs[0].epoch - 1, epochs[0].config
            engine = engine.with_settings(config.optimizer, config.schedule, config.augment)
            noises = [Noise(epoch.noise) for epoch in epochs]
            if i + 1 < length:
                engine.draw_ahead(noises, number + 1, train)
            losses = engine.train_epoch(population, train, noises, number, lambda n: report.images(n, 0))
            scores = score(engine, population, test, report)
            rate = learning_rate(number * per_epoch, per_epoch, config.optimizer, config.schedule)
            now = time.perf_counter()
            rows = [
                Measurement(
                    epoch.key, OWN, epoch.epoch, losses[m], rate, float(scores.loss_M[m]),
                    float(scores.accuracy_M[m]), (now - since) / len(epochs),
                )
                for m, epoch in enumerate(epochs)
            ]  # fmt: skip
            well = [m for m, row in enumerate(rows) if not row.diverged]
            ends = not well or i + 1 == length or now - begun >= job.seconds
            on_the_way = bool(well) and ends and i + 1 < length  # out of time
            names = [epoch.key if epoch.key in job.write or on_the_way else None for epoch in epochs]
            if any(names):
                kept = population if ends else population.clone_rows(range(population.members))
                self.resident.hold(kept, names)
                states += [(name, kept.select(slice(m, m + 1))) for m, name in enumerate(names) if name is not None]
            measurements += rows
            report.measured(rows)
            if ends:
                break
            if len(well) < len(going):
                population, going = population.clone_rows(well), tuple(going[m] for m in well)
        return Outcome(tuple(measurements), tuple(states))

    def _probe(self, job: Job, report: Report) -> Outcome:
        begun, probes_of = time.perf_counter(), defaultdict[str, list[Probe]](list)
        for probe in job.probes:
            probes_of[probe.state].append(probe)
        keys = sorted(probes_of, key=lambda key: key not in job.states)  # averages first
        config = job.probes[0].config
        splits, engines = self.resources.splits(config), dict[Treatment, Engine]()
        at_once = self.resources.engine(config).members_at_once
        gathered = max(1, _GATHERED // at_once) * at_once
        rows = self.resident.at_hand(keys, job.states)
        measurements: list[Measurement] = []
        for first in range(0, len(keys), at_once):
            since, part = time.perf_counter(), keys[first : first + at_once]
            if first % gathered == 0:
                together = keys[first : first + gathered]
                portion = self.resident.gather_to_measure(together, config, job.states, job.files, rows)
            population = portion[first % gathered :][: len(part)]
            found: list[tuple[Probe, float, float]] = []
            treatments = dict.fromkeys(probe.treatment for key in part for probe in probes_of[key])
            # Own statistics last: a network may count in its buffers while it is tested, and the others are copies.
            for treatment in sorted(treatments, key=lambda treatment: treatment.name == OWN):
                probes = [probe for key in part for probe in probes_of[key] if probe.treatment == treatment]
                places = [part.index(probe.state) for probe in probes]
                members = population if len(places) == len(part) else population.clone_rows(places)
                if treatment not in engines:
                    engines[treatment] = self.resources.engine(probes[0].config)
                scores = self._measure(members, probes, engines[treatment], splits, job, report)
                found += zip(probes, map(float, scores.loss_M), map(float, scores.accuracy_M), strict=True)
            seconds = (time.perf_counter() - since) / len(found)
            made = [
                Measurement(*probe.key, probe.treatment.epoch, None, None, loss, accuracy, seconds)
                for probe, loss, accuracy in found
            ]
            measurements += made
            report.measured(made)
            if time.perf_counter() - begun >= job.seconds:
                break
        return Outcome(tuple(measurements), ())

    def _measure(
        self,
        population: Population,
        probes: Sequence[Probe],
        engine: Engine,
        splits: tuple[Dataset, Dataset],
        job: Job,
        report: Report,
    ) -> Scores:
        """Scores of the members under the treatment of batch-norm statistics that `probes`, one a member, share."""
        treatment, (train, test) = probes[0].treatment, splits
        if treatment.name != OWN:
            noises = [Noise(treatment.noise)] * len(probes)
            population = engine.recompute_statistics(
                population, train, noises, treatment.epoch, treatment.images, lambda n: report.images(0, n)
            )
            # Averages are trained on with these very statistics.
            names = [trained_name(probe.state, job.states) for probe in probes]
            self.resident.hold(population, [None if n == p.state else n for n, p in zip(names, probes, strict=True)])
        return score(engine, population, test, report)


def score(engine: Engine, population: Population, test: Dataset, report: Report) -> Scores:
    """Loss and accuracy of every member on the test images.

    A member with a weight or batch-norm statistic that is not finite has diverged, and its loss is NaN whatever came
    out: a ReLU, or a variance that is infinite, can hide it.
    """
    scores = engine.evaluate(population, test, lambda n: report.images(0, n))
    return Scores(np.where(population.finite_M(), scores.loss_M, np.nan), scores.accuracy_M)
