"""What names the files that decide a result beside the configuration: dataset, source of a network, weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fastwi.config.schema import Config, DataConfig, ModelConfig
from fastwi.data.card import Card
from fastwi.data.identity import data_contents
from fastwi.errors import UserError
from fastwi.models.load import built_digest
from fastwi.models.source import source_digest

_HERE = Path()


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
    weights = ""
    if config.model.weights:
        from fastwi.population.state_file import read_state_file  # imports torch

        weights = read_state_file(root / config.model.weights).digest
    return {"network": (built_digest if built else source_digest)(config.model.name), "weights": weights}


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
