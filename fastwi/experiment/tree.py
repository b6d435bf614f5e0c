"""The nodes of a tree of trajectories: states of networks, named by all that decides them.

A state is a network at some moment: its weights, momentum and batch-norm statistics. There are three kinds, and
only epochs' are ever stored; the others are made anew in milliseconds wherever they are needed:

- `Initial`: a freshly drawn parent;
- `Average`: the weighted mean of children;
- `Epoch`: what one epoch of training makes of the state before it. An epoch is the tree's edge and its unit of work.

Keys are hex digests of what decides the state and what is measured of it: the start, the network, optimizer,
augmentation, dataset, precision, noise, epoch and the learning rates of that epoch. Not: devices, engines, threads,
names or places of files. Two points of a sweep that agree up to an epoch share its key, so the epoch is trained once.

A tree holds one object a key, so objects are compared by identity.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from fastwi.config.schema import Config, DataConfig, ModelConfig

OWN = "own"


@dataclass(frozen=True, slots=True, eq=False)
class Initial:
    """A parent at initialisation, drawn from `config.seeds.init`. `epoch` counts epochs done: 0."""

    key: str
    config: Config
    epoch: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Epoch:
    """A network's training under `noise` from the state `before` through one epoch, to the state `key`.

    `epoch` counts epochs done at its end. `alike` is equal for epochs that can be trained as one population: same
    network, optimizer, rates, augmentation, dataset and epoch. `config` is that of some point that needs the epoch.
    """

    key: str
    before: str
    epoch: int
    noise: int
    alike: str
    config: Config


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """The mean of the states `children`, weighted, at `epoch` epochs done.

    What momentum and batch-norm statistics it gets is `config.experiment`'s business.
    """

    key: str
    children: tuple[str, ...]
    weights: tuple[float, ...]
    epoch: int
    config: Config


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A measurement of a state at `epoch`, beside those that its own training makes: test loss and accuracy.

    `treatment` of its batch-norm statistics is OWN, or names their recomputation: on `images` images drawn from
    the statistics streams of `noise` at the state's epoch (0 images: all).
    """

    state: str
    treatment: str
    epoch: int
    noise: int
    images: int
    config: Config

    @property
    def key(self) -> tuple[str, str]:
        """What a measurement is filed under: the state and the treatment."""
        return self.state, self.treatment


State: TypeAlias = Initial | Epoch | Average
Task: TypeAlias = Epoch | Probe
MeasurementKey: TypeAlias = tuple[str, str]
Contents: TypeAlias = dict[tuple[DataConfig, ModelConfig], str]  # `fastwi.experiment.plan.result_digest`


def measurement_key(task: Task) -> MeasurementKey:
    """What the task's measurement is filed under, and the task's name."""
    return task.key if isinstance(task, Probe) else (task.key, OWN)


def start_of(task: Task) -> str:
    """Key of the state that the task trains or measures."""
    return task.state if isinstance(task, Probe) else task.before


@dataclass(slots=True)
class Tree:
    """States by key (each after those that it is made of), probes by key, and the states worth keeping.

    An `Epoch` is measured with its OWN statistics as part of its training and has no probe for that. `contents`:
    what was planned on, by `fastwi.experiment.plan.contents_key`.
    """

    states: dict[str, State] = field(default_factory=dict)
    probes: dict[MeasurementKey, Probe] = field(default_factory=dict)
    stops: set[str] = field(default_factory=set)
    contents: Contents = field(default_factory=dict)

    def epochs(self) -> Iterator[Epoch]:
        """Every epoch, each after the one before it."""
        return (state for state in self.states.values() if isinstance(state, Epoch))

    def measurement_keys(self) -> list[MeasurementKey]:
        """What all measurements are filed under, those of epochs first."""
        return [*((epoch.key, OWN) for epoch in self.epochs()), *self.probes]

    def needs(self, task: Task) -> tuple[str, ...]:
        """Keys of the stored states that `task` starts from."""
        return self.sources(start_of(task))

    def made_of(self, key: str) -> dict[str, Initial | Average]:
        """The states that are not stored and that `key` is made of, itself among them."""
        state = self.states[key]
        if isinstance(state, Average):
            return {key: state} | {k: s for child in state.children for k, s in self.made_of(child).items()}
        return {} if isinstance(state, Epoch) else {key: state}

    def sources(self, key: str) -> tuple[str, ...]:
        """Keys of the epochs whose stored states are needed to have state `key`: none for an initial one."""
        state = self.states[key]
        if isinstance(state, Epoch):
            return (key,)
        if isinstance(state, Average):
            return tuple(source for child in state.children for source in self.sources(child))
        return ()
