"""Does tasks: loads or makes the states that they start from, trains or measures, writes the states that come out.

A worker holds datasets and compiled networks, and no record of what is done; it runs in the sweep's own process or
in one of its own on any machine that sees the store's files.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fastwi.config.schema import Config
from fastwi.data.batches import Dataset
from fastwi.data.card import Card
from fastwi.data.identity import data_contents
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, require_resident
from fastwi.data.split import open_splits
from fastwi.engine.base import Engine
from fastwi.engine.choose import build_engine
from fastwi.engine.device import resolve_device
from fastwi.engine.schedule import learning_rate
from fastwi.engine.trial import try_training
from fastwi.experiment.plan import check_contents, contents_key, network_contents
from fastwi.experiment.protocol import average_of, network_for, test_scores
from fastwi.experiment.store import Measurement, StateFile, read_state, write_state
from fastwi.experiment.tree import OWN, Average, Contents, Epoch, Initial, Probe, Task, measurement_key
from fastwi.population import Layout, Population

Report = Callable[[int, int], None]  # images trained, images passed forward, since the last call


@dataclass(frozen=True, eq=False)
class Job:
    """Tasks alike, and all that is needed to do them.

    `states`: the initial networks and averages that they start from or are made of; `files`: the stored states;
    `write`: keys of the states that come out and are to be stored; `contents`: what the datasets and networks were
    when the tasks were named (`fastwi.experiment.plan.result_digest`).
    """

    tasks: tuple[Task, ...]
    states: Mapping[str, Initial | Average]
    files: Mapping[str, StateFile]
    write: frozenset[str]
    contents: Contents


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a measurement a task, and the files written."""

    measurements: tuple[Measurement, ...]
    states: tuple[StateFile, ...]


class Worker:
    """Does jobs on one device."""

    def __init__(self, store: Path, root: Path) -> None:
        """`root` is what a relative `data.path` or `model.weights` is relative to."""
        self._store, self._root = store, root
        self._contents: Contents = {}
        self._splits: dict[tuple[object, ...], tuple[Dataset, Dataset, Card]] = {}
        self._engines: dict[tuple[object, ...], Engine] = {}
        self._layouts: dict[tuple[object, ...], Layout] = {}
        self._tried: set[tuple[object, ...]] = set()

    def expect(self, contents: Contents) -> None:
        """Refuse, from now on, every dataset and network that is not what `contents` says."""
        self._contents.update(contents)

    def run(self, job: Job, report: Report | None = None) -> Outcome:
        """Do all tasks of `job`.

        Raises DamagedState where a stored state is damaged or gone, and UserError where files cannot be written, or
        a dataset, a network's source or its weights are not those that the tasks are named by.
        """
        self.expect(job.contents)
        tell = report or (lambda _trained, _evaluated: None)
        first = job.tasks[0]
        epochs = [task for task in job.tasks if isinstance(task, Epoch)]
        probes = [task for task in job.tasks if isinstance(task, Probe)]
        begun = time.perf_counter()
        if isinstance(first, Epoch):
            return self._train(epochs, job, tell, begun)
        return self._probe(probes, job, tell, begun)

    def _train(self, epochs: list[Epoch], job: Job, tell: Report, begun: float) -> Outcome:
        config = epochs[0].config
        train, test = self.splits(config)
        engine = self.tried_engine(config)
        population = Population.stack([self.state(epoch.before, config, job, True) for epoch in epochs])
        number = epochs[0].epoch - 1
        noises = [Noise(epoch.noise) for epoch in epochs]
        losses = engine.train_epoch(population, train, noises, number, lambda n: tell(n, 0))
        scores = test_scores(engine, population, test, lambda n: tell(0, n))
        per_epoch = engine.iterations(train)
        rate = learning_rate(number * per_epoch, per_epoch, config.optimizer, config.schedule)
        files = tuple(
            write_state(self._store, epoch.key, population.select(slice(m, m + 1)))
            for m, epoch in enumerate(epochs)
            if epoch.key in job.write
        )
        seconds = (time.perf_counter() - begun) / len(epochs)
        rows = tuple(
            Measurement(
                epoch.key, OWN, epoch.epoch, losses[m], rate, float(scores.loss_M[m]), float(scores.accuracy_M[m]),
                seconds,
            )
            for m, epoch in enumerate(epochs)
        )  # fmt: skip
        return Outcome(rows, files)

    def _probe(self, probes: list[Probe], job: Job, tell: Report, begun: float) -> Outcome:
        first, config = probes[0], probes[0].config
        train, test = self.splits(config)
        engine = self.engine(config)
        population = Population.stack([self.state(probe.state, config, job, False) for probe in probes])
        if first.treatment != OWN:
            noises = [Noise(first.noise)] * len(probes)
            population = engine.recompute_statistics(
                population, train, noises, first.epoch, first.images, lambda n: tell(0, n)
            )
        scores = test_scores(engine, population, test, lambda n: tell(0, n))
        seconds = (time.perf_counter() - begun) / len(probes)
        rows = tuple(
            Measurement(
                *measurement_key(probe), probe.epoch, None, None, float(scores.loss_M[m]),
                float(scores.accuracy_M[m]), seconds,
            )
            for m, probe in enumerate(probes)
        )  # fmt: skip
        return Outcome(rows, ())

    def splits(self, config: Config) -> tuple[Dataset, Dataset]:
        """Training and test images of `config`, loaded once. Raises UserError where they are not what is expected."""
        kind = (config.data, config.engine)
        if kind not in self._splits:
            device = resolve_device(config.engine.device)
            self._splits[kind] = open_splits(config.data, device, self._root)
        train, test, card = self._splits[kind]
        self._hold(config, data_contents(card, config.data))
        return train, test

    def card(self, config: Config) -> Card:
        """The card of the dataset that `splits` has loaded."""
        self.splits(config)
        return self._splits[config.data, config.engine][2]

    def _hold(self, config: Config, found: Mapping[str, str]) -> None:
        planned = self._contents.get(contents_key(config))
        if planned is not None:
            check_contents(planned, found, config)

    def resident_splits(self, config: Config) -> tuple[ResidentDataset, ResidentDataset]:
        """The same for analyses, which take images at random. Raises UserError where they are streamed."""
        train, test = self.splits(config)
        return require_resident(train, "an analysis"), require_resident(test, "an analysis")

    def engine(self, config: Config) -> Engine:
        """An engine for `config`; the compiled network is shared by all that differ in settings only."""
        images = self._images(config)
        kind = (config.model, config.engine, *images)
        if kind not in self._engines:
            self._engines[kind] = build_engine(config, self.network(config))
        return self._engines[kind].with_settings(config.optimizer, config.schedule, config.augment)

    def tried_engine(self, config: Config) -> Engine:
        """`engine`, once a network of the user's own has been tried by it. Raises ConfigError where it fails."""
        engine = self.engine(config)
        kind = (config.model, config.engine, config.optimizer.batch_size, config.data)
        if kind not in self._tried:
            try_training(engine, config, self.network(config), *self.splits(config))
            self._tried.add(kind)
        return engine

    def layout(self, config: Config) -> Layout:
        """The layout of `config`'s network."""
        images = self._images(config)
        kind = (config.model, *images)
        if kind not in self._layouts:
            self._layouts[kind] = Layout.of(self.network(config))
        return self._layouts[kind]

    def network(self, config: Config) -> nn.Module:
        """The parent of `config` at initialisation. Raises UserError where its files are not what is expected."""
        network = network_for(config, self.splits(config)[0], self._root)
        # After they are read: what was replaced before shows, and what is replaced later was not used.
        self._hold(config, network_contents(config, self._root, built=True))
        return network

    def _images(self, config: Config) -> tuple[int, tuple[int, int]]:
        """What a network is built for: the number of classes, and (height, width) of the images."""
        train, _ = self.splits(config)
        return train.classes, train.image_shape[:2]

    def state_bytes(self, config: Config) -> int:
        """Bytes of one stored network of `config`: weights, momentum, batch-norm statistics, counters."""
        layout = self.layout(config)
        return 8 * layout.P + 4 * layout.Q + 8 * layout.B

    def state(self, key: str, config: Config, job: Job, trains: bool) -> Population:
        """The state `key` as a population of one: read, drawn, or averaged.

        What an average's batch-norm statistics are for its further training (`trains`) is the configuration's
        business; it is measured with the children's, averaged.
        """
        device = resolve_device(config.engine.device)
        if key in job.files:
            return read_state(self._store, job.files[key], self.layout(config), device)
        state = job.states[key]
        if isinstance(state, Initial):
            return Population.from_modules([self.network(state.config)], device=device)
        children = Population.stack([self.state(child, state.config, job, trains) for child in state.children])
        average = average_of(children, state.config)
        experiment = state.config.experiment
        if trains and experiment.batch_norm == "recompute":
            noise, train = Noise(state.config.seeds.statistics_noise), self.splits(state.config)[0]
            engine = self.engine(state.config)
            average = engine.recompute_statistics(average, train, [noise], state.epoch, experiment.recompute_images)
        return average
