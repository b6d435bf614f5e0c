"""States on the device: resident rows, and others read, drawn or averaged when a job asks for them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastwi.config.schema import Config
from fastwi.data.noise import Noise
from fastwi.engine.device import resolve_device
from fastwi.experiment.cache import Row, StateCache
from fastwi.experiment.resources import Resources
from fastwi.experiment.store import StateFile, read_states
from fastwi.experiment.tree import Average, Initial
from fastwi.population import Population

Made = Mapping[str, Initial | Average]


class ResidentStates:
    """The states that a worker has at hand, within a bound of memory."""

    def __init__(self, store: Path, resources: Resources, most_bytes: float) -> None:
        """`store`: its directory, for the states that are not resident."""
        self._store, self._resources = store, resources
        self._cache = StateCache(most_bytes)

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def hold(self, population: Population, names: Sequence[str | None]) -> None:
        """Have the rows of `population`, which nobody writes to any more, at hand under `names`."""
        self._cache.put(population, names)

    def forget(self, keys: Iterable[str]) -> None:
        """Let the memory of states go."""
        self._cache.drop([name for key in keys for name in (key, _recomputed(key))])

    def gather(
        self, keys: Sequence[str], config: Config, made: Made, files: Mapping[str, StateFile], trains: bool
    ) -> Population:
        """The states `keys`, of the network of `config`, as the members of one population in fresh memory.

        `made`: the initial networks and averages among them, and what these are made of; `files`: the stored ones.
        What an average's batch-norm statistics are for its further training (`trains`) is its configuration's
        business; it is measured with the children's, averaged.

        Raises DamagedState for a state whose file is damaged or gone.
        """
        names = [trained_name(key, made) if trains else key for key in keys]
        rows = self._rows(dict(zip(names, keys, strict=True)), config, made, files)
        return Population.gather([rows[name] for name in names])

    def _rows(
        self, keys: Mapping[str, str], config: Config, made: Made, files: Mapping[str, StateFile]
    ) -> dict[str, Row]:
        """Rows by name, of states by name. What is not resident is brought, and stays for a while."""
        rows = {name: row for name in keys if (row := self._cache.get(name)) is not None}
        stored: list[str] = []
        initial: dict[str, Initial] = {}
        averages: dict[tuple[object, ...], dict[str, Average]] = defaultdict(dict)  # by what is done with them
        for name, key in keys.items():
            state = made.get(key)
            if name in rows:
                continue
            if state is None:
                stored.append(key)
            elif isinstance(state, Initial):
                initial[name] = state
            else:
                experiment, noise = state.config.experiment, state.config.seeds.statistics_noise
                how = (state.epoch, noise, experiment.recompute_images) if name != key else None
                averages[experiment.momentum, how][name] = state
        device = resolve_device(config.engine.device)
        if stored:
            layout = self._resources.layout(config)
            rows |= self._kept(read_states(self._store, [files[key] for key in stored], layout, device), stored)
        if initial:
            networks = [self._resources.network(state.config) for state in initial.values()]
            rows |= self._kept(Population.from_modules(networks, device), list(initial))
        for (_, settings), group in averages.items():
            made_now = self._averages(list(group.values()), settings is not None, made, files)
            rows |= self._kept(made_now, list(group))
        return rows

    def _averages(
        self, states: Sequence[Average], recomputed: bool, made: Made, files: Mapping[str, StateFile]
    ) -> Population:
        """Averages of which momentum and statistics are made alike."""
        config, epoch = states[0].config, states[0].epoch
        children = dict.fromkeys(child for state in states for child in state.children)
        rows = self._rows({child: child for child in children}, config, made, files)
        averages = Population.averages(
            [[rows[child] for child in state.children] for state in states],
            [state.weights for state in states],
            config.experiment.momentum,
        )
        if recomputed:
            noises = [Noise(config.seeds.statistics_noise)] * len(states)
            train, _ = self._resources.splits(config)
            averages = self._resources.engine(config).recompute_statistics(
                averages, train, noises, epoch, config.experiment.recompute_images
            )
        return averages

    def _kept(self, population: Population, names: Sequence[str]) -> dict[str, Row]:
        self._cache.put(population, names)
        return {name: (population, m) for m, name in enumerate(names)}


def trained_name(key: str, made: Made) -> str:
    """What the state `key` is called as training starts from it: an average may have statistics of its own then."""
    state = made.get(key)
    trained_on = isinstance(state, Average) and state.config.experiment.batch_norm == "recompute"
    return _recomputed(key) if trained_on else key


def _recomputed(key: str) -> str:
    return f"{key} recomputed"
