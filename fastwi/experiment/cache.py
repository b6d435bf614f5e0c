"""States that stay on the device between jobs, as rows of the populations that they were made in."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from fastwi.population import Population

Row = tuple[Population, int]


class StateCache:
    """Rows by name, within a bound of memory; the least recently used go first.

    Rows are never written to: who trains one copies it. The rows of a population share its memory and go together.
    """

    def __init__(self, most_bytes: float) -> None:
        self._most, self._bytes = most_bytes, 0
        self._rows: dict[Hashable, Row] = {}
        self._names: OrderedDict[Population, set[Hashable]] = OrderedDict()  # in the order of their last use

    def __contains__(self, name: Hashable) -> bool:
        return name in self._rows

    def get(self, name: Hashable) -> Row | None:
        """The row called `name`, where it is there."""
        row = self._rows.get(name)
        if row is not None:
            self._names.move_to_end(row[0])
        return row

    def put(self, population: Population, names: Sequence[Hashable | None]) -> None:
        """Hold the rows of `population` under `names`; those without one are not looked for."""
        rows = {name: (population, m) for m, name in enumerate(names) if name is not None}
        self.drop(rows)
        if rows:
            self._rows |= rows
            self._names[population] = set(rows)
            self._bytes += population.members * population.layout.row_bytes
        while self._bytes > self._most and len(self._names) > 1:
            self.drop(list(next(iter(self._names.values()))))

    def drop(self, names: Iterable[Hashable]) -> None:
        """Let rows go, and the memory of populations of which none is left."""
        for name in names:
            row = self._rows.pop(name, None)
            if row is not None:
                population, left = row[0], self._names[row[0]]
                left.discard(name)
                if not left:
                    del self._names[population]
                    self._bytes -= population.members * population.layout.row_bytes
