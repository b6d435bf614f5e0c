"""What decides a result beside its configuration: the content of the files that the configuration names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fastwi.config.schema import Config, DataConfig
from fastwi.data.card import Card
from fastwi.data.identity import data_contents
from fastwi.errors import UserError
from fastwi.models.load import built_digest
from fastwi.models.source import source_digest

InputsKey: TypeAlias = tuple[str, str, int, str, str]


@dataclass(frozen=True)
class Inputs:
    """A configuration's dataset, source of a user's network and weights, as they were when it was planned.

    `digest`: a line of name and content for each; it is in the names of results. `counts`: images of each split.
    """

    digest: str
    counts: Mapping[str, int]

    @classmethod
    def of(cls, card: Card, config: Config) -> "Inputs":
        """Read them; the dataset is what its card says. Raises CheckpointError where weights cannot be read."""
        contents = data_contents(card, config.data) | network_contents(config)
        return cls("\n".join(f"{name}: {content}" for name, content in contents.items() if content), card.counts)

    def images(self, split: str, data: DataConfig) -> int:
        """Images of `split` that are used. Raises UserError where the dataset has fewer than are asked for."""
        images, count = getattr(data, f"{split}_images"), self.counts[split]
        if images > count:
            raise UserError(f"data.{split}_images: {images} asked for, {data.path} has {count}; give fewer")
        return images or count

    def check(self, found: Mapping[str, str], config: Config) -> None:
        """Raise UserError where one of `found` (name -> content) was another one: its file was replaced."""
        planned = dict(line.split(": ", 1) for line in self.digest.splitlines())
        for name, content in found.items():
            if planned.get(name, "") != content:
                path = {"network": config.model.name, "weights": config.model.weights}.get(name, config.data.path)
                raise UserError(
                    f"{path}: changed since this command read it first ({name}: {planned.get(name) or 'none'}, now "
                    f"{content or 'none'}); leave it alone while it is in use, and start again"
                )


def inputs_key(config: Config) -> InputsKey:
    """Equal for configurations whose files are the same, however many images they take."""
    data, model = config.data, config.model
    return data.path, data.decoder, data.image_size, model.name, model.weights


def network_contents(config: Config, built: bool = False) -> dict[str, str]:
    """Name -> content of the files that a network is made of.

    `built`: of the source that this process built the network from last, which may be edited by now.
    """
    weights = ""
    if config.model.weights:
        from fastwi.population.state_file import read_state_file  # imports torch

        weights = read_state_file(Path(config.model.weights)).digest
    return {"network": (built_digest if built else source_digest)(config.model.name), "weights": weights}
