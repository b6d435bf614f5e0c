"""What each axis of a sweep beside k and s changes: differences between cells that agree in all else."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars

from fastwi.report.estimates import cell_names, groups, mean_text
from fastwi.report.summary import Table, estimates_table, value_text


def effects_table(gains: polars.DataFrame, columns: Mapping[str, str], note: str = "") -> Table | None:
    """One row for each value of an axis but its first; None where there is no other axis beside k and s.

    columns: headings to columns in points, of which the mean difference is shown, paired within parents.
    """
    axes, body = cell_names(gains)[:-2], []
    for axis in axes:
        for first, value, rows in differences(gains, axis, list(columns.values())):
            parents, pairs = rows["parent_seed"].n_unique(), rows.height
            texts = [mean_text(rows, column, pairs) for column in columns.values()]
            body.append([axis, value_text(value), value_text(first), str(parents), str(pairs), *texts])
    if not body:
        return None
    title = "What an axis changes: its value less its first one, all else the same, in points"
    headings = ["axis", "value", "less", "parents", "pairs", *(f"{heading} [95 %]" for heading in columns)]
    return estimates_table("; ".join(filter(None, [title, note])), headings, body)


def differences(
    gains: polars.DataFrame, axis: str, columns: Sequence[str]
) -> Iterator[tuple[Any, Any, polars.DataFrame]]:
    """The first value of `axis`, each other one, and a row a pair: `columns` at this value less those at the first.

    What is compared has the same seeds, and the same values of all other axes; null where either has no number.
    """
    same = [name for name in (*cell_names(gains, alpha=True), "parent_seed", "pair") if name != axis]
    ((first,), begin), *others = groups(gains, [axis])
    less = [(polars.col(f"{name} there") - polars.col(name)).alias(name) for name in columns]
    for (value,), rows in others:
        both = begin.join(rows, on=same, suffix=" there", nulls_equal=True, maintain_order="left")
        if both.height:
            yield first, value, both.select(*same, *less)
