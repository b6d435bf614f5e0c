"""Carries out the plan of one run: train a parent, clone it, train the children, average them, train on.

A run is a pure function of its configuration and dataset. After each step everything that the rest depends on
is on disk; a run that is killed goes on from there and ends with the same numbers to the bit on that machine.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fastwi.config.schema import Config, OptimizerConfig
from fastwi.data.batches import Dataset
from fastwi.data.noise import Noise, Stream, raw_words
from fastwi.engine.base import Engine, Scores
from fastwi.engine.schedule import learning_rate
from fastwi.errors import CheckpointError
from fastwi.experiment.networks import source_change
from fastwi.experiment.paths import RunPaths
from fastwi.experiment.plan import Stage, Step, child_seeds, networks, plan, rates_after
from fastwi.experiment.progress import Row, check_state, read_progress, read_rows, write_progress
from fastwi.models.generators import seeded
from fastwi.models.registry import build_model
from fastwi.population import Population
from fastwi.population.state_file import read_state_file

_HERE = Path()
OWN, RECOMPUTED = "own", "recomputed"


class Listener(Protocol):
    """What hears of a run's progress. The experiment itself prints nothing."""

    def images(self, trained: int, evaluated: int) -> None:
        """Images passed through networks since the last call."""

    def step_done(self, step: Step, rows: list[Row]) -> None:
        """A step is done and on disk; `rows` are its measurements."""


@dataclass
class _State:
    """Where a run is: steps done, the networks alive, and all measurements so far."""

    done: int
    population: Population
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0


def build_network(
    config: Config, classes: int, image_size: tuple[int, int] | None = None, root: Path = _HERE
) -> nn.Module:
    """The parent at initialisation: a pure function of `seeds.init`, drawn on the CPU, or what `model.weights` holds.

    image_size: (height, width) in pixels of the images to come, where they are known; the user's own network is tried
    on that size, and built for it if it asks. A relative path of weights is relative to `root`. Raises ConfigError
    where the network cannot be built, and CheckpointError where the weights are of another network.
    """
    seed = int(raw_words(config.seeds.init, Stream.INIT, 0, 1)[0]) >> 1
    with seeded(seed):
        network = build_model(config.model.name, classes, config.model.width, image_size)
    if config.model.weights:
        population = Population.from_modules([network])
        read_state_file(root / config.model.weights).copy_into(population, 0)
        population.write_to(0, network)
    return network


def network_for(config: Config, dataset: Dataset, root: Path = _HERE) -> nn.Module:
    """`build_network` for the classes and the size of the images of `dataset`."""
    return build_network(config, dataset.classes, dataset.image_shape[:2], root)


def average_of(children: Population, config: Config) -> Population:
    """The average of the children [1, P], weighted and with momentum as `config.experiment` says."""
    M = children.members
    weights_1M = torch.tensor([config.experiment.weights or [1 / M] * M], dtype=torch.float64)
    return children.combine(weights_1M, momentum=config.experiment.momentum)


class Figure1Run:
    """One run of the Figure 1 protocol, resumable."""

    def __init__(
        self,
        config: Config,
        train: Dataset,
        test: Dataset,
        engine: Engine,
        paths: RunPaths,
        identity: str,
        listener: Listener,
        start: Population | None = None,
    ) -> None:
        """`identity` names all that decides the result; a state saved under another one is refused.

        `start`: the parent at initialisation, where it is built already.
        """
        self._config, self._train, self._test = config, train, test
        self._engine, self._paths, self._identity, self._listener = engine, paths, identity, listener
        self._start_from = start
        self._steps = plan(config.experiment)

    def run(self) -> list[Row]:
        """Do, or go on with, every step; returns all measurements.

        A network that diverged is trained no further; the others go on as far as they can without it: to the end of
        their span, but to no average that it would be part of. See `diverged`.

        Raises CheckpointError where the directory holds another run's state or a damaged one.
        """
        state = self._load() or self._start()
        self._listener_catch_up(state)
        for step in self._steps[state.done :]:
            if not self._alive(step, state.rows):
                break
            begun = time.perf_counter()
            rows = self._do(step, state)
            state.rows.extend(rows)
            state.done += 1
            state.seconds += time.perf_counter() - begun
            self._save(state, step)
            self._listener.step_done(step, rows)
        return state.rows

    def _listener_catch_up(self, state: _State) -> None:
        for step in self._steps[: state.done]:
            self._listener.step_done(step, [])

    def _do(self, step: Step, state: _State) -> list[Row]:
        if step.stage is Stage.INTERPOLATION:
            return self._interpolate(step, state)
        if step.stage is Stage.CHILDREN and state.population.members == 1:
            state.population = state.population.clone_rows([0] * self._config.experiment.children)
        names = self._alive(step, state.rows)
        noises = [self._noise(name) for name in names]
        # The average, or all before it, and then the children that are trained on: at rates of their own.
        first = names.count("average") if step.stage is Stage.AFTER else len(names)
        parts = [(slice(0, first), self._config.optimizer), (slice(first, None), rates_after(self._config))]
        losses: list[float] = []
        rates: list[float] = []
        for rows, optimizer in parts:
            if not names[rows]:
                continue
            engine = self._engine.with_settings(optimizer, self._config.schedule, self._config.augment)
            losses += engine.train_epoch(
                state.population.select(rows), self._train, noises[rows], step.epoch,
                lambda n: self._listener.images(n, 0),
            )  # fmt: skip
            rates += [self._rate(step.epoch, optimizer)] * len(names[rows])
        scores = self._score(state.population)
        going = [m for m, loss in enumerate(losses) if math.isfinite(loss) and math.isfinite(scores.loss_M[m])]
        if 0 < len(going) < len(names):
            state.population = state.population.clone_rows(going)
        return [
            _row(step.stage, step.epoch + 1, name, OWN, scores, m, train_loss=losses[m], learning_rate=rates[m])
            for m, name in enumerate(names)
        ]

    def _interpolate(self, step: Step, state: _State) -> list[Row]:
        """Average the children; score average and children under both treatments of batch norm."""
        experiment = self._config.experiment
        if state.population.members == 1:  # s = 0: the children are the parent still
            state.population = state.population.clone_rows([0] * experiment.children)
        children = state.population
        both = Population.stack([average_of(children, self._config), children])
        names = networks(step, self._config)
        own = self._score(both)
        # One set of images for all: nothing but weights differs.
        noises = [Noise(self._config.seeds.statistics_noise)] * both.members
        fresh = self._engine.recompute_statistics(
            both, self._train, noises, step.epoch, experiment.recompute_images,
            lambda n: self._listener.images(0, n),
        )  # fmt: skip
        recomputed = self._score(fresh)
        self._keep("children", children)
        if experiment.batch_norm == "recompute":
            both.statistics_MQ[0], both.counters_MB[0] = fresh.statistics_MQ[0], fresh.counters_MB[0]
        self._keep("average", both.select(slice(0, 1)))
        rows = [
            _row(step.stage, step.epoch, name, treatment, scores, m)
            for treatment, scores in ((OWN, own), (RECOMPUTED, recomputed))
            for m, name in enumerate(names)
        ]
        state.population = both if experiment.continue_children else both.select(slice(0, 1))
        if experiment.continue_children and "average" in self._stopped(rows):
            state.population = children
        return rows

    def _alive(self, step: Step, rows: list[Row]) -> tuple[str, ...]:
        """The networks that take part in `step`; none where one that it is made of has diverged."""
        stopped = self._stopped(rows)
        averaged = step.stage in (Stage.INTERPOLATION, Stage.AFTER)
        if "parent" in stopped or (averaged and any(r["stage"] == Stage.CHILDREN.value for r in diverged(rows))):
            return ()
        return tuple(name for name in networks(step, self._config) if name not in stopped)

    def _stopped(self, rows: list[Row]) -> set[str]:
        """The networks that are trained no further. At interpolation: the average, as it would be trained on."""
        trained_on = RECOMPUTED if self._config.experiment.batch_norm == "recompute" else OWN
        return {
            row["network"]
            for row in diverged(rows)
            if row["stage"] != Stage.INTERPOLATION.value
            or (row["network"] == "average" and row["batch_norm"] == trained_on)
        }

    def _score(self, population: Population) -> Scores:
        return test_scores(self._engine, population, self._test, lambda n: self._listener.images(0, n))

    def _noise(self, name: str) -> Noise:
        seeds = self._config.seeds
        if name == "parent":
            return Noise(seeds.parent_noise)
        if name == "average":
            return Noise(seeds.average_noise)
        return Noise(child_seeds(self._config)[int(name.split()[1]) - 1])

    def _rate(self, epoch: int, optimizer: OptimizerConfig) -> float:
        per_epoch = self._engine.iterations(self._train)
        return learning_rate(epoch * per_epoch, per_epoch, optimizer, self._config.schedule)

    def _keep(self, name: str, population: Population) -> None:
        population.save(self._paths.checkpoint(name))

    def _start(self) -> _State:
        start = self._start_from
        if start is None:
            start = Population.from_modules([network_for(self._config, self._train)], device=self._engine.device)
        return _State(0, start)

    def _save(self, state: _State, step: Step) -> None:
        """Networks, measurements, then the progress file that names them: a kill in between loses this step only."""
        state.population.save(self._paths.state(state.done))
        last = state.done == len(self._steps)
        following = None if last else self._steps[state.done].stage
        if step.stage is Stage.PARENT and following is not Stage.PARENT:
            self._keep("parent", state.population)
        if last:
            self._keep("final", state.population)
        told = {
            "identity": self._identity, "steps_done": state.done, "steps": len(self._steps),
            "seconds": round(state.seconds, 3), "precision": self._precision(),
        }  # fmt: skip
        write_progress(self._paths, state.rows, told)
        for stale in self._paths.directory.glob("state-*.safetensors"):
            if stale != self._paths.state(state.done):
                stale.unlink(missing_ok=True)

    def _progress(self) -> dict[str, Any]:
        found, directory = read_progress(self._paths), self._paths.directory
        if not found:
            return {}
        if found["identity"] != self._identity:
            change = source_change(self._paths.manifest, [self._config.model.name])
            what = "another configuration or dataset" if change is None else f"another network: {change}"
            raise CheckpointError(
                f"{directory}: holds a run of {what}; give another run.name, or delete the directory"
            )
        begun = found["precision"]
        if begun != self._precision() and found["steps_done"] < found["steps"]:
            raise CheckpointError(
                f"{directory}: was begun in {begun}, and engine.precision: auto is {self._precision()} on this "
                "machine; go on where it was begun, or give another run.name"
            )
        return found

    def _precision(self) -> str:
        """What activations are computed in: `auto` is resolved by the machine, so the identity does not tell."""
        return str(self._engine.dtype).removeprefix("torch.")

    def _load(self) -> _State | None:
        progress = self._progress()
        if not progress:
            return None
        rows = read_rows(self._paths, progress)
        check_state(self._paths, progress)
        layout = Population.from_modules([network_for(self._config, self._train)]).layout
        population = Population.load(self._paths.state(progress["steps_done"]), layout, self._engine.device)
        return _State(progress["steps_done"], population, rows, progress["seconds"])


def test_scores(engine: Engine, population: Population, test: Dataset, report: Callable[[int], None]) -> Scores:
    """Loss and accuracy of every member on the test images.

    A member with a weight or batch-norm statistic that is not finite has diverged, and its loss is NaN whatever came
    out: a ReLU, or a variance that is infinite, can hide it.
    """
    scores = engine.evaluate(population, test, report)
    return Scores(np.where(population.finite_M(), scores.loss_M, np.nan), scores.accuracy_M)


def diverged(rows: list[Row]) -> list[Row]:
    """The measurements at which a network's loss, in training or on the test images, was not finite."""
    return [row for row in rows if divergence(row)]


def divergence(row: Row) -> str:
    """Which loss of a measurement is not finite, in words; empty where the network has not diverged."""
    if not math.isfinite(row.get("train_loss", 0.0)):
        return f"its training loss is {row['train_loss']}"
    if math.isfinite(row["test_loss"]):
        return ""
    treatment = " with recomputed batch-norm statistics" if row["batch_norm"] == RECOMPUTED else ""
    return f"its test loss{treatment} is {row['test_loss']}"


def _row(stage: Stage, epoch: int, network: str, treatment: str, scores: Scores, m: int, **more: float) -> Row:
    """One measurement. `epoch` counts epochs done since initialisation."""
    return {
        "stage": stage.value, "epoch": epoch, "network": network, "batch_norm": treatment,
        **more, "test_loss": float(scores.loss_M[m]), "test_accuracy_%": float(scores.accuracy_M[m]),
    }  # fmt: skip
