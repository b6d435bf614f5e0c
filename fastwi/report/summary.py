"""What commands print of their results, and the tables of one run: at interpolation, and trained on."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from fastwi.files import to_json
from fastwi.report.rows import ACCURACY, Row

OVER_PARENTS = (
    "Each parent counts once: children of one parent share its past. Intervals (95 %) are over parents, and need 5."
)
"""What summaries say below their tables."""
LEVEL = " [95 %]"
"""What headings say of intervals."""
_INTERVAL = re.compile(r"\d \[[-+]")


@dataclass(frozen=True)
class Table:
    """A titled table of strings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("|" + "---|" * len(self.columns))
        lines.extend("| " + " | ".join(row) + " |" for row in self.rows)
        return "\n".join(lines) + "\n"


def estimates_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of estimates. Its headings promise intervals, by `LEVEL`, only where a cell has one."""
    if not any(_INTERVAL.search(cell) for row in rows for cell in row):
        title, columns = (title.replace(LEVEL, ""), [column.replace(LEVEL, "") for column in columns])
    return Table(title, tuple(columns), tuple(tuple(row) for row in rows))


@dataclass(frozen=True)
class Summary:
    """What a command says of what it did, or would do: `values` for programs, `lines` and `tables` for a reader.

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
            console = Console()
            for table in self.tables:
                console.print(_rich_table(table))
            for line in self.lines:
                print(line)
        for problem in self.problems:
            print(f"fastwi: error: {problem}", file=sys.stderr)


def _rich_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left")
    for column in table.columns:
        shown.add_column(column, justify="right")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def gain(rows: Sequence[Row], treatment: str) -> tuple[float, float] | None:
    """Gain in test accuracy of the average over (the best child, the children's mean), in percentage points.

    `treatment` of batch-norm statistics ("own" or "recomputed") is the same for the average and the children. None
    where one of them diverged, or was not measured.
    """
    chosen = [r for r in _interpolation(rows) if r["batch_norm"] == treatment]
    at = {r["network"]: r[ACCURACY] for r in chosen}
    children = [value for name, value in at.items() if name != "average"]
    if "average" not in at or not children or not all(math.isfinite(r["test_loss"]) for r in chosen):
        return None
    return at["average"] - max(children), at["average"] - sum(children) / len(children)


def _interpolation(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["stage"] == "interpolation"]


def interpolation_table(rows: Sequence[Row]) -> Table:
    """Every network at interpolation under both treatments of batch norm, with the gain."""
    body = []
    for treatment in ("own", "recomputed"):
        found = gain(rows, treatment)
        best = "none: diverged" if found is None else f"{found[0]:+.2f}"
        for row in _interpolation(rows):
            if row["batch_norm"] == treatment:
                shown = best if row["network"] == "average" else ""
                body.append((row["network"], treatment, f"{row['test_loss']:.4f}", f"{row[ACCURACY]:.2f}", shown))
    columns: tuple[str, ...] = ("network", "statistics", "test loss", "test acc. (%)", "gain")
    return Table(
        "At interpolation; gain over the best child under the same batch-norm statistics, in points",
        columns,
        tuple(body),
    )


def after_table(rows: Sequence[Row]) -> Table:
    """The average's further epochs, with differences in test accuracy in percentage points.

    They are taken to the average at interpolation, to the best child there, and, where the children were trained on
    too, to the best of them at the same epoch. All with networks' own batch-norm statistics.
    """
    start = {
        r["network"]: r[ACCURACY]
        for r in _interpolation(rows)
        if r["batch_norm"] == "own" and math.isfinite(r["test_loss"])
    }
    best_child = max((value for name, value in start.items() if name != "average"), default=None)
    first = _interpolation(rows)[0]["epoch"]
    after = [row for row in rows if row["stage"] == "after"]
    continued = any(row["network"] != "average" for row in after)
    body = []
    for row in after:
        if row["network"] != "average":
            continue
        accuracy = row[ACCURACY]
        others = [start.get("average"), best_child]
        if continued:
            beside = [r for r in after if r["epoch"] == row["epoch"] and r["network"] != "average"]
            others.append(max((r[ACCURACY] for r in beside if math.isfinite(r["test_loss"])), default=None))
        # None where what it would be taken to diverged.
        against = [None if other is None else accuracy - other for other in others]
        body.append(
            (
                f"+{row['epoch'] - first}", f"{row['train_loss']:.4f}", f"{row['test_loss']:.4f}", f"{accuracy:.2f}",
                *("" if difference is None else f"{difference:+.2f}" for difference in against),
            )
        )  # fmt: skip
    columns: tuple[str, ...] = ("epoch", "train loss", "test loss", "test acc. (%)", "vs average", "vs best child")
    columns += ("vs child trained on",) if continued else ()
    return Table("The average trained on; differences to interpolation, in points", columns, tuple(body))
