"""What presentations of studies share: cells of a long frame, means with intervals as text, a figure's files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars

from fastwi.analysis.statistics import NOTHING, Estimate, mean_estimate
from fastwi.report.summary import Table, estimates_table
from fastwi.report.sweep import value_text, variant_text

TREATMENT_COLOURS = {"averaged": "tab:blue", "recomputed": "tab:orange"}


def cell_names(frame: polars.DataFrame) -> list[str]:
    """The columns that name a cell: the sweep's axes beside k and s, then k and s."""
    return frame.columns[: frame.columns.index("k") + 2]


def groups(frame: polars.DataFrame, names: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], polars.DataFrame]]:
    """The values of the columns `names` and the rows that have them, in order of first appearance."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(frame.select(names).rows()):
        places.setdefault(tuple(tuple(v) if isinstance(v, list) else v for v in row), []).append(i)
    for values, chosen in places.items():
        yield values, frame[chosen]


def variant_of(names: Sequence[str], values: Sequence[Any]) -> str:
    """The axes beside k and s in one line; empty where there are none."""
    return variant_text(zip(names[:-2], values, strict=False))


def estimate_of(rows: polars.DataFrame, column: str) -> Estimate | None:
    """The mean over parents of each parent's mean, of the rows that have a value; None where none has."""
    there = rows.drop_nulls(column)
    return mean_estimate(there[column].to_numpy(), there["parent_seed"].to_list()) if there.height else None


def counted(rows: polars.DataFrame) -> tuple[int, int]:
    """Parents, and pairs of all of them."""
    return rows["parent_seed"].n_unique(), rows.select("parent_seed", "pair").unique().height


def shown(estimate: Estimate | None, parents: int, digits: int = 2) -> str:
    """A mean with its interval; with its n where there is none, or where that is not `parents`."""
    if estimate is None or estimate.value is None:
        return "not defined"
    n = f" (n = {estimate.n_parents})" if estimate.n_parents != parents or not estimate.conclusive else ""
    value = f"{estimate.value:+.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return f"{value}{n}"
    return f"{value} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]{n}"


def titled(
    title: str, columns: Sequence[str], body: Sequence[Sequence[str]], parents: int, notes: Iterable[str] = ()
) -> Table:
    """A table whose title says what must be said beside it: what n = 1 lets conclude, and each of `notes` once.

    parents: of the row that has most.
    """
    said = [NOTHING] if parents == 1 else []
    end = "".join(f". {note}" for note in dict.fromkeys([*said, *notes]) if note)
    return estimates_table(title + end, columns, body)


def draw_spread(axis: Any, estimate: Estimate | None, at: float, colour: str, across: bool = False) -> None:
    """What an estimate rests on, at the place `at`: its interval as a line, or without one a dot for each parent.

    across: along x, with `at` on y.
    """
    if estimate is None:
        return
    values: Sequence[float] = estimate.points
    style: dict[str, Any] = {"ls": "", "marker": "o", "ms": 2.2, "alpha": 0.8}
    if estimate.low is not None and estimate.high is not None:
        values, style = (estimate.low, estimate.high), {"lw": 1.2}
    places = [at] * len(values)
    axis.plot(*((values, places) if across else (places, values)), color=colour, zorder=4, **style)


def estimate_table(
    frame: polars.DataFrame, title: str, names: Sequence[str], columns: Mapping[str, tuple[polars.Expr, str, int]]
) -> Table:
    """One row for each combination of the columns `names`, with parents and pairs.

    columns: heading -> (which rows, the column that is estimated, digits).
    """
    body, notes, most = [], list[str](), 0
    for values, rows in groups(frame, names):
        parents, pairs = counted(rows)
        most = max(most, parents)
        cells = []
        for chosen, column, digits in columns.values():
            estimate = estimate_of(rows.filter(chosen), column)
            cells.append(shown(estimate, parents, digits))
            notes.append("" if estimate is None else estimate.note)
        body.append([*map(value_text, values), str(parents), str(pairs), *cells])
    return titled(title, (*names, "parents", "pairs", *columns), body, most, notes)
