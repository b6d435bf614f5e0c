"""Datasets, networks and engines, each loaded or built once, and held to what the results are named by."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from fastwi.config.schema import Config
from fastwi.data.batches import Dataset
from fastwi.data.card import Card, read_card
from fastwi.data.identity import data_contents, target_size
from fastwi.data.noise import Stream, raw_words
from fastwi.data.resident import ResidentDataset, require_resident
from fastwi.data.split import open_splits
from fastwi.engine.base import Engine
from fastwi.engine.choose import build_engine
from fastwi.engine.device import resolve_device
from fastwi.engine.trial import try_training
from fastwi.experiment.contents import check_contents, contents_key, network_contents
from fastwi.experiment.tree import Contents
from fastwi.models.generators import seeded
from fastwi.models.registry import build_model
from fastwi.population import Layout, Population
from fastwi.population.state_file import read_state_file

_HERE = Path()


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


class Resources:
    """What jobs need beside states, on one device."""

    def __init__(self, root: Path) -> None:
        """`root` is what a relative `data.path` or `model.weights` is relative to."""
        self._root = root
        self._contents: Contents = {}
        self._splits: dict[tuple[object, ...], tuple[Dataset, Dataset, Card]] = {}
        self._engines: dict[tuple[object, ...], Engine] = {}
        self._layouts: dict[tuple[object, ...], Layout] = {}
        self._tried: set[tuple[object, ...]] = set()

    def expect(self, contents: Contents) -> None:
        """Refuse, from now on, every dataset and network that is not what `contents` says."""
        self._contents.update(contents)

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
        network = build_network(config, *self._images(config), self._root)
        # After they are read: what was replaced before shows, and what is replaced later was not used.
        self._hold(config, network_contents(config, self._root, built=True))
        return network

    def _images(self, config: Config) -> tuple[int, tuple[int, int]]:
        """What a network is built for: the number of classes, and (height, width) of the images."""
        loaded = self._splits.get((config.data, config.engine))
        card = read_card(self._root / config.data.path) if loaded is None else loaded[2]
        self._hold(config, data_contents(card, config.data))
        return len(card.classes), target_size(card, config.data)

    def state_bytes(self, config: Config) -> int:
        """Bytes of one network of `config`: weights, momentum, batch-norm statistics, counters."""
        layout = self.layout(config)
        return 8 * layout.P + 4 * layout.Q + 8 * layout.B
