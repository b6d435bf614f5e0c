"""States that stay on the device between jobs, as rows of the populations that they were made in."""

from collections.abc import Hashable, Iterable, Sequence

from fastwi.population import Population

Row = tuple[Population, int]


class StateCache:
    """Rows by name, within a bound of memory; the least recently used go first.

    Rows are never written to: who trains one copies it. The rows of a population share its memory and go together.
    """

    def __init__(self, most_bytes: float) -> None:
        self._most = most_bytes
        self._rows: dict[Hashable, Row] = {}
        self._names: dict[int, set[Hashable]] = {}  # by population
        self._populations: dict[int, Population] = {}  # in the order of their last use
        self._bytes = 0

    def __contains__(self, name: Hashable) -> bool:
        return name in self._rows

    def get(self, name: Hashable) -> Row | None:
        """The row called `name`, where it is there."""
        row = self._rows.get(name)
        if row is not None:
            self._populations[id(row[0])] = self._populations.pop(id(row[0]))
        return row

    def put(self, population: Population, names: Sequence[Hashable | None]) -> None:
        """Hold the rows of `population` under `names`; those without one are not looked for."""
        held = {name for name in names if name is not None}
        if not held:
            return
        self.drop(held)
        self._rows.update({name: (population, m) for m, name in enumerate(names) if name is not None})
        self._names[id(population)], self._populations[id(population)] = held, population
        self._bytes += _bytes(population)
        for oldest in list(self._populations)[:-1]:
            if self._bytes <= self._most:
                break
            self.drop(list(self._names[oldest]))

    def drop(self, names: Iterable[Hashable]) -> None:
        """Let rows go, and the memory of populations of which none is left."""
        for name in names:
            row = self._rows.pop(name, None)
            if row is not None:
                mine = self._names[id(row[0])]
                mine.discard(name)
                if not mine:
                    del self._names[id(row[0])], self._populations[id(row[0])]
                    self._bytes -= _bytes(row[0])


def _bytes(population: Population) -> int:
    return population.members * population.layout.row_bytes
