"""The Figure 1 protocol as a list of steps (paper, section 'Protocol'): parent, children, average, train on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fastwi.config.schema import Config, DataConfig, ExperimentConfig, ModelConfig, OptimizerConfig
from fastwi.data.card import Card
from fastwi.data.identity import data_contents
from fastwi.errors import UserError
from fastwi.models.load import built_digest
from fastwi.models.source import source_digest

_HERE = Path()


class Stage(str, Enum):
    """The part of the protocol that a step belongs to. The values appear in metrics."""

    PARENT = "parent"
    CHILDREN = "children"
    INTERPOLATION = "interpolation"
    AFTER = "after"


@dataclass(frozen=True)
class Step:
    """One unit that is done whole or not at all: an epoch of every network alive, or the interpolation.

    `epoch` is the global epoch that is trained, from 0; for the interpolation, k + s.
    """

    stage: Stage
    epoch: int


def plan(experiment: ExperimentConfig) -> tuple[Step, ...]:
    """The steps of a run, in order. The schedule and the noise run on the global epoch throughout."""
    k, end = experiment.k, experiment.k + experiment.s
    return (
        *(Step(Stage.PARENT, epoch) for epoch in range(k)),
        *(Step(Stage.CHILDREN, epoch) for epoch in range(k, end)),
        Step(Stage.INTERPOLATION, end),
        *(Step(Stage.AFTER, epoch) for epoch in range(end, end + experiment.after)),
    )


def child_seeds(config: Config) -> tuple[int, ...]:
    """The children's noise seeds: as configured, else 1, 2, ... n."""
    return config.seeds.child_noise or tuple(range(1, config.experiment.children + 1))


def networks(step: Step, config: Config) -> tuple[str, ...]:
    """Names of the members that are alive during `step`, in the population's row order."""
    children = tuple(f"child {i + 1}" for i in range(config.experiment.children))
    if step.stage is Stage.PARENT:
        return ("parent",)
    if step.stage is Stage.CHILDREN:
        return children
    if step.stage is Stage.INTERPOLATION or config.experiment.continue_children:
        return ("average", *children)
    return ("average",)


def rates_after(config: Config) -> OptimizerConfig:
    """The optimizer of children that are trained on after the interpolation."""
    factor = config.experiment.children_rate_factor
    return dataclasses.replace(config.optimizer, learning_rate=config.optimizer.learning_rate * factor)


def result_digest(card: Card, config: Config) -> str:
    """What decides a result beside the configuration: the content of the files that it names, a line each.

    The dataset and what decodes it (`fastwi.data.identity.data_contents`), the source of a user's network, the
    tensors of `model.weights`. Raises CheckpointError where these cannot be read.
    """
    contents = data_contents(card, config.data) | network_contents(config)
    return "\n".join(f"{name}: {content}" for name, content in contents.items() if content)


def contents_key(config: Config) -> tuple[DataConfig, ModelConfig]:
    """Equal for configurations whose files are the same (`result_digest`), however many images they take."""
    return dataclasses.replace(config.data, train_images=0, test_images=0, streaming="auto"), config.model


def network_contents(config: Config, root: Path = _HERE, built: bool = False) -> dict[str, str]:
    """Name -> content of the files that a network is made of; a relative path of weights is relative to `root`.

    `built`: of the source that this process built the network from last, which may be edited by now.
    """
    weights = config.model.weights
    return {
        "network": (built_digest if built else source_digest)(config.model.name),
        "weights": weights_digest(str(root / weights) if weights else ""),
    }


def check_contents(planned: str, found: Mapping[str, str], config: Config) -> None:
    """Raise UserError where something of `found` is not what `planned` (`result_digest`) says: it was replaced."""
    lines = dict(line.split(": ", 1) for line in planned.splitlines())
    for name, content in found.items():
        if lines.get(name, "") != content:
            path = {"network": config.model.name, "weights": config.model.weights}.get(name, config.data.path)
            raise UserError(
                f"{path}: changed since this command read it first ({name}: {lines.get(name) or 'none'}, now "
                f"{content or 'none'}); leave it alone while it is in use, and start again"
            )


def weights_digest(path: str) -> str:
    """What names the state dict in the file `path`, by its tensors; empty where there is no path."""
    if not path:
        return ""
    from fastwi.population.state_file import read_state_file  # imports torch

    return read_state_file(path).digest


def check_batch(config: Config, train_images: int) -> None:
    """Raise UserError where not even one batch can be made of the training images."""
    if train_images < config.optimizer.batch_size:
        raise UserError(
            f"optimizer.batch_size: {config.optimizer.batch_size} is more than the {train_images} training "
            "images; give a smaller one"
        )


@dataclass(frozen=True)
class Work:
    """Images that a step passes through the networks: trained, only passed forward to evaluate or re-estimate."""

    trained: int
    evaluated: int


def work(step: Step, config: Config, train_images: int, test_images: int) -> Work:
    """The work of one step, in images."""
    members = len(networks(step, config))
    if step.stage is Stage.INTERPOLATION:
        sample = min(config.experiment.recompute_images or train_images, train_images)
        return Work(0, members * (2 * test_images + sample))
    return Work(members * train_images, members * test_images)
