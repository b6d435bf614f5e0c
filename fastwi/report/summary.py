"""What commands print of their results: tables and lines for a reader, or one JSON object for a program."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fastwi.analysis.statistics import Estimate
from fastwi.config.values import show
from fastwi.files import to_json

OVER_PARENTS = (
    "Each parent counts once: children of one parent share its past. Intervals (95 %) are over parents, and need 5."
)
"""What summaries say below their tables."""
LEVEL = " [95 %]"
"""What headings say of intervals."""
_INTERVAL = re.compile(r"\d \[[-+]")
_DIGITS = 12  # characters of a number that is shown as it is; a part of an epoch may have more
_HEADING = 12  # characters of a heading that stay in one line
_NUMBER = re.compile(r"\[?[-+]?\d")


@dataclass(frozen=True)
class Table:
    """A titled table of strings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> list[bool]:
        """For each column whether it holds numbers: a cell that is filled begins with one."""
        cells = [[row[i] for row in self.rows if row[i]] for i in range(len(self.columns))]
        return [bool(column) and any(map(_NUMBER.match, column)) for column in cells]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        columns, *rows = (f"| {' | '.join(row)} |" for row in escaped)
        return "\n".join([f"**{self.title}**", "", columns, "|" + "---|" * len(self.columns), *rows]) + "\n"

    def print(self) -> None:
        """Print it to stdout, every cell whole: what is wider than the terminal in parts, or a line a cell."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=sys.maxsize)
        # Texts, not strings: Rich would read what is in brackets as markup.
        console.print(Text(self.title, "table.title"))
        widths, numeric = self._widths(), self.numeric
        parts = self._parts(widths, console.width)
        for part in parts:
            shown = RichTable()
            for i in part:
                shown.add_column(Text(self.columns[i]), width=widths[i], justify="right" if numeric[i] else "left")
            for row in self.rows:
                shown.add_row(*(Text(row[i]) for i in part))
            console.print(shown)
        for row in self.rows if not parts else ():
            for column, cell in zip(self.columns, row, strict=True):
                console.print(Text(f"{column}: {cell}"), soft_wrap=True)
            console.print()

    def _widths(self) -> list[int]:
        """Of the columns, with room for their cells. Headings may wrap between words."""
        widths = []
        for i, heading in enumerate(self.columns):
            whole = [*heading.split(), *(row[i] for row in self.rows)]
            widths.append(max([min(cell_len(heading), _HEADING), *map(cell_len, whole)]))
        return widths

    def _parts(self, widths: Sequence[int], most: int) -> list[list[int]]:
        """The columns of each part, at most `most` characters wide. All begin with the columns that name a row.

        Empty where these and one further column are too wide.
        """
        count = len(self.columns)
        if sum(widths) + 3 * count + 1 <= most:
            return [list(range(count))]
        names = next((n for n in range(1, count) if len({row[:n] for row in self.rows}) == len(self.rows)), count)
        begin = sum(widths[:names]) + 3 * names + 1  # a column has two spaces and a line; one line more
        parts = list[list[int]]()
        used = most
        for i in range(names, count):
            needed = widths[i] + 3
            if begin + needed > most:
                return []
            if used + needed > most:
                parts.append(list(range(names)))
                used = begin
            parts[-1].append(i)
            used += needed
        return parts


def estimates_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of estimates. Its headings promise intervals, by `LEVEL`, only where a cell has one."""
    if not any(_INTERVAL.search(cell) for row in rows for cell in row):
        title, columns = (title.replace(LEVEL, ""), [column.replace(LEVEL, "") for column in columns])
    return Table(title, tuple(columns), tuple(tuple(row) for row in rows))


@dataclass(frozen=True)
class Summary:
    """What a command did, or would do: `values` for programs, `tables` and `lines` for a reader.

    `problems`: a line for each thing that went wrong.
    """

    values: Mapping[str, Any]
    lines: Sequence[str]
    tables: Sequence[Table] = ()
    problems: Sequence[str] = ()

    def show(self, as_json: bool) -> None:
        """Print the values as one JSON object, or the tables and then the lines. Problems go to stderr."""
        if as_json:
            print(to_json(self.values))
        else:
            for table in self.tables:
                table.print()
            for line in self.lines:
                print(line)
        for problem in self.problems:
            print(f"fastwi: error: {problem}", file=sys.stderr)


def count_of(number: int | float, what: str) -> str:
    """'1 pair', '1,200 pairs', '2 trajectories'."""
    many = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what if number == 1 else many}"


def n_text(parents: int, pairs: int) -> str:
    """'n = 5 parents, 10 pairs'."""
    return f"n = {count_of(parents, 'parent')}, {count_of(pairs, 'pair')}"


def sentence(text: str) -> str:
    """`text` with a capital in front; others stay."""
    return text[:1].upper() + text[1:]


def interval_text(estimate: Estimate, digits: int = 2) -> str:
    """'[+1.00, +2.00]'; empty where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def value_text(value: Any) -> str:
    """An axis value as tables and figures show it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and len(show(value)) > _DIGITS:
        return f"{value:.6g}"
    return f"[{', '.join(map(value_text, value))}]" if isinstance(value, list | tuple) else show(value)


def variant_text(variant: Iterable[tuple[str, Any]]) -> str:
    """Axes and alpha of a cell in one line: 'optimizer.learning_rate = 0.1, alpha = 0.5'."""
    return ", ".join(f"{name} = {value_text(value)}" for name, value in variant)
