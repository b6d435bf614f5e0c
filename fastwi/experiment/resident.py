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
Files = Mapping[str, StateFile]


class ResidentStates:
    """The states that a worker has at hand, within a bound of memory."""

    def __init__(self, store: Path, resources: Resources, most_bytes: float) -> None:
        """`store`: its directory, for the states that are not resident."""
        self._store, self._resources = store, resources
        self._cache = StateCache(most_bytes)
        self._scratch: Population | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def hold(self, population: Population, names: Sequence[str | None]) -> None:
        """Have the rows of `population`, which nobody writes to any more, at hand under `names`."""
        self._cache.put(population, names)

    def forget(self, keys: Iterable[str]) -> None:
        """Let the memory of states go."""
        self._cache.drop([name for key in keys for name in (key, _recomputed(key))])

    def gather(self, keys: Sequence[str], config: Config, made: Made, files: Files, trains: bool) -> Population:
        """The states `keys`, of the network of `config`, as the members of one population in fresh memory.

        `made`: the initial networks and averages among them, and what these are made of; `files`: the stored ones.
        What an average's batch-norm statistics are for its further training (`trains`) is its configuration's
        business; it is measured with the children's, averaged.

        Raises DamagedState for a state whose file is damaged or gone.
        """
        names = [trained_name(key, made) if trains else key for key in keys]
        rows = self.at_hand([*names, *_children_of(keys, made)], {})
        self._bring(dict(zip(names, keys, strict=True)), config, made, files, rows)
        return Population.gather([rows[name] for name in names])

    def at_hand(self, keys: Sequence[str], made: Made) -> dict[str, Row]:
        """The rows of the states `keys`, and of what averages among them are made of, that are resident.

        Whoever brings others meanwhile may push them out, and they need not have files yet: hold on to them.
        """
        names = (*keys, *_children_of(keys, made))
        return {name: row for name in names if (row := self._cache.get(name)) is not None}

    def gather_to_measure(
        self, keys: Sequence[str], config: Config, made: Made, files: Files, rows: dict[str, Row]
    ) -> Population:
        """As `gather`, without momentum, for use until the next call: averages that end here need no more memory.

        `rows`: of `at_hand`, for these states and those that follow; what is brought is added.
        """
        averages = [state for key in keys if isinstance(state := made.get(key), Average)]
        if len(averages) < len(keys) or any(state.config.experiment.after for state in averages):
            self._bring({key: key for key in keys}, config, made, files, rows)
            return Population.gather([rows[key] for key in keys])
        self._bring({child: child for child in _children_of(keys, made)}, config, made, files, rows)
        like = next(iter(rows.values()))[0]
        if self._scratch is None or len(self._scratch) < len(keys) or self._scratch.layout != like.layout:
            self._scratch = Population.zeros(like.layout, len(keys), like.device)
        return _average(averages, rows, momentum=None, into=self._scratch[: len(keys)])

    def _bring(
        self,
        keys: Mapping[str, str],
        config: Config,
        made: Made,
        files: Files,
        rows: dict[str, Row],
    ) -> None:
        """Add to `rows`, by name, the states `keys` that are not there; they are resident from then on."""
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
            self._keep(read_states(self._store, [files[key] for key in stored], layout, device), stored, rows)
        if initial:
            networks = [self._resources.network(state.config) for state in initial.values()]
            self._keep(Population.from_modules(networks, device), list(initial), rows)
        for (_, settings), group in averages.items():
            states = list(group.values())
            self._bring({child: child for state in states for child in state.children}, config, made, files, rows)
            self._keep(self._averages(states, settings is not None, rows), list(group), rows)

    def _averages(self, states: Sequence[Average], recomputed: bool, rows: Mapping[str, Row]) -> Population:
        """Averages of which momentum and statistics are made alike; `rows` has their children."""
        config = states[0].config
        averages = _average(states, rows, config.experiment.momentum)
        if not recomputed:
            return averages
        noises = [Noise(config.seeds.statistics_noise)] * len(states)
        train, _ = self._resources.splits(config)
        return self._resources.engine(config).recompute_statistics(
            averages, train, noises, states[0].epoch, config.experiment.recompute_images
        )

    def _keep(self, population: Population, names: Sequence[str], rows: dict[str, Row]) -> None:
        self._cache.put(population, names)
        rows |= {name: (population, m) for m, name in enumerate(names)}


def _average(
    states: Sequence[Average], rows: Mapping[str, Row], momentum: str | None, into: Population | None = None
) -> Population:
    children = [[rows[child] for child in state.children] for state in states]
    return Population.averages(children, [state.weights for state in states], momentum, into)


def _children_of(keys: Sequence[str], made: Made) -> list[str]:
    """What the averages among `keys` are made of."""
    averages = [state for key in keys if isinstance(state := made.get(key), Average)]
    return list(dict.fromkeys(child for state in averages for child in state.children))


def trained_name(key: str, made: Made) -> str:
    """What the state `key` is called as training starts from it: an average may have statistics of its own then."""
    state = made.get(key)
    trained_on = isinstance(state, Average) and state.config.experiment.batch_norm == "recompute"
    return _recomputed(key) if trained_on else key


def _recomputed(key: str) -> str:
    return f"{key} recomputed"
