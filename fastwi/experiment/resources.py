"""Datasets, networks and engines, each loaded or built once, and held to what the results are named by."""

from dataclasses import replace

from torch import nn

from fastwi.config.schema import Config, DataConfig, ModelConfig
from fastwi.data.batches import Dataset
from fastwi.data.card import Card, read_card
from fastwi.data.identity import data_contents, target_size
from fastwi.data.split import open_splits
from fastwi.data.streamed import StreamedDataset
from fastwi.engine.base import Engine
from fastwi.engine.choose import build_engine, build_network
from fastwi.engine.device import resolve_device
from fastwi.engine.loop import LoopEngine
from fastwi.engine.trial import try_training
from fastwi.errors import ConfigError
from fastwi.experiment.inputs import inputs_key, network_contents
from fastwi.experiment.tree import Tree
from fastwi.models.names import is_own
from fastwi.population import Layout

Splits = tuple[Dataset, Dataset]  # training and test images
Architecture = tuple[ModelConfig, int, tuple[int, int]]  # with the number of classes, height and width of the images


class Resources:
    """What jobs need beside states, on one device. UserError where inputs are not those that were planned on."""

    def __init__(self, tree: Tree, population: int = 0) -> None:
        """population: `sweep.population`."""
        self._inputs = tree.inputs
        self._members = min(filter(None, (tree.widest(), population)), default=1)  # trained together
        self._splits: dict[tuple[DataConfig, str], tuple[Dataset, Dataset, Card]] = {}
        self._layouts: dict[Architecture, Layout] = {}
        self._engines: dict[tuple[object, ...], Engine] = {}
        self._tried: set[tuple[object, ...]] = set()

    def card(self, config: Config) -> Card:
        """The dataset's card: where its images are loaded, the one that they were loaded by."""
        loaded = self._splits.get(_images_of(config))
        card = read_card(config.data.path) if loaded is None else loaded[2]
        self._inputs[inputs_key(config)].check(data_contents(card, config.data), config)
        return card

    def splits(self, config: Config) -> Splits:
        """Training and test images."""
        kind = _images_of(config)
        if kind not in self._splits:
            self._splits[kind] = open_splits(config.data, resolve_device(config.engine.device))
        self.card(config)
        return self._splits[kind][:2]

    def architecture(self, config: Config) -> Architecture:
        """What decides a network beside its seed: equal for configurations whose networks differ in weights alone."""
        card = self.card(config)
        return config.model, len(card.classes), target_size(card, config.data)

    def network(self, config: Config) -> nn.Module:
        """The parent at initialisation."""
        kind = self.architecture(config)
        network = build_network(config, *kind[1:])
        # After they are read: what was replaced before shows, and what is replaced later was not used.
        self._inputs[inputs_key(config)].check(network_contents(config, built=True), config)
        if kind not in self._layouts:
            self._layouts[kind] = Layout.of(network)
        return network

    def layout(self, config: Config) -> Layout:
        """The layout of the network; a network is built for it only where none was before."""
        kind = self.architecture(config)
        if kind not in self._layouts:
            self.network(config)
        layout = self._layouts[kind]
        return replace(layout, moving=True) if config.optimizer.ema_decay else layout

    def engine(self, config: Config) -> Engine:
        """An engine; the compiled network is shared by all that differ in settings only."""
        kind = self._kind(config)
        if kind not in self._engines:
            resident = not self._streamed(config)
            self._engines[kind] = build_engine(config, self.network(config), self._members, resident)
        return self._engines[kind].with_config(config)

    def tried_engine(self, config: Config) -> Engine:
        """`engine`, once it has tried a network of the user's own. ConfigError where that fails.

        Whatever engine.name: auto chose but `loop` is tried with any network, and where it fails, `loop` it is.
        """
        (train, test), engine = self.splits(config), self.engine(config)
        kind = (config.model, config.engine, config.optimizer.batch_size, config.data)
        chosen = config.engine.name == "auto" and not isinstance(engine, LoopEngine)
        if (chosen or is_own(config.model.name)) and kind not in self._tried:
            network = self.network(config)
            try:
                try_training(engine, config, network, train, test)
            except ConfigError:
                if not chosen:
                    raise
                engine = self._engines[self._kind(config)] = LoopEngine(network, config)
                try_training(engine, config, network, train, test)
            self._tried.add(kind)
        return engine

    def _kind(self, config: Config) -> tuple[object, ...]:
        """What decides an engine: of `auto` the batch size too, as what was measured depends on it."""
        batch = config.optimizer.batch_size if config.engine.name == "auto" else 0
        return *self.architecture(config), config.engine, batch, self._streamed(config)

    def _streamed(self, config: Config) -> bool:
        """Whether images are streamed, as far as it is known before they are opened."""
        opened = self._splits.get(_images_of(config), ())[:2]
        return config.data.streaming == "streamed" or any(isinstance(each, StreamedDataset) for each in opened)


def _images_of(config: Config) -> tuple[DataConfig, str]:
    """Equal for configurations whose images are the same, on the same device."""
    return replace(config.data, last_batch="drop"), config.engine.device
