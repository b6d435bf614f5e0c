"""Does the gain of averaging add up over rounds, against the same epochs spent on one network?

The network alone is the parent, trained on under its own noise (experiment.continue_parent). It is compared with the
average of round r after as many epochs as each child has (k + r s), and after as many as all C children have
together (k + r s C), at the rates of the global epoch.
"""

from collections.abc import Iterator
from typing import Any

import polars

from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.config.sweep import RECOMPUTED
from fastwi.experiment.places import Round
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import TREATMENT_COLOURS, Sheet, style
from fastwi.report.estimates import cell_names, cells_of, estimate_of, estimate_table, groups, verdict_table
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table, value_text

_OVER = {
    "best": ("best_child", "the best child of the round"),
    "alone": ("alone", "the parent trained alone for as many epochs as each child"),
    "total": ("alone_total", "the parent trained alone for as many epochs as all children together"),
}
"""What the average of a round is compared with: its column, in words."""

COLUMNS = {
    "rounds": {
        **AVERAGE_COLUMNS,
        "round": Column("", "round of cloning and averaging, from 1", polars.Int64),
        "epochs_after": Column("epochs", "epochs that the last round's average was trained on; else 0", polars.Int64),
        "epochs": Column(
            "epochs", "epochs of the average and of the parent alone, from initialisation", polars.Int64, True
        ),
        "epochs_total": Column(
            "epochs", "epochs of the parent, all children and the average together", polars.Int64, True
        ),
        "average_%": Column("%", "test accuracy of the average"),
        **{f"{name}_%": Column("%", f"that of {words}") for name, words in _OVER.values()},
        **{f"over_{name}_points": Column("points", f"average less {words}") for name, (_, words) in _OVER.items()},
    }
}
"""Null: not measured, or not trained (experiment.continue_parent)."""


def measure(bench: Bench) -> Found:
    """Each round's average beside its children and the parent alone, as the sweep measured them; no state is read.

    rounds: one row a pair, round and treatment of batch norm, and one for each epoch that the last average is trained
    on.
    """
    rows = list[Row]()
    for pair in bench.each(bench.pairs()):
        for number, each in enumerate(pair.place.rounds, 1):
            rows += [_row(pair, number, 0, *found) for found in _of_round(bench, pair, each)]
        rows += [_row(pair, number, *found) for found in _further(bench, pair)]
    return {"rounds": rows}


_Accuracies = dict[str, float | None]


def _of_round(bench: Bench, pair: Pair, each: Round) -> Iterator[tuple[str, _Accuracies]]:
    """Each treatment, and the accuracies of a round at interpolation."""
    keys = pair.place.tree.keys
    for i, (batch_norm, treatment) in enumerate(zip((OWN, RECOMPUTED), each.treatments, strict=False)):
        average, *children = (bench.accuracy(keys[n], treatment) for n in (each.average_node, *each.end_nodes))
        sound = [accuracy for accuracy in children if accuracy is not None]
        alone = [bench.accuracy(keys[node], list(treatments)[i]) for node, treatments in each.alone]
        best = max(sound) if len(sound) == len(children) else None
        yield batch_norm, {"average": average, "best_child": best, **_alone(alone)}


def _further(bench: Bench, pair: Pair) -> Iterator[tuple[int | float, str, _Accuracies]]:
    """Each epoch that the last average is trained on, treatment, and the accuracies after it."""
    place, tree = pair.place, pair.place.tree
    at = {tree.iterations[tree.nodes[state]]: state for state in place.alone}
    for further, state in zip(place.further(place.after), place.after, strict=True):
        done = tree.iterations[tree.nodes[state]] - tree.iterations[place.average_node]
        for batch_norm in (OWN, RECOMPUTED) if place.recomputed else (OWN,):
            ends = (tree.iterations[end] + done for end, _ in place.rounds[-1].alone)
            alone = [bench.accuracy(*place.filed(at[end], batch_norm)) if end in at else None for end in ends]
            average = bench.accuracy(*place.filed(state, batch_norm))
            yield further, batch_norm, {"average": average, "best_child": None, **_alone(alone)}


def _alone(accuracies: list[float | None]) -> _Accuracies:
    each, total = (*accuracies, None, None)[:2]
    return {"alone": each, "alone_total": total}


def _row(pair: Pair, number: int, further: int | float, batch_norm: str, accuracies: _Accuracies) -> Row:
    experiment, average = pair.config.experiment, accuracies["average"]
    trained = pair.place.rounds[number - 1].average_node
    done = pair.place.tree.time(trained) - pair.k
    row: Row = {
        **pair.columns(), "batch_norm": batch_norm, "round": number, "epochs_after": further,
        "epochs": pair.k + done + further, "epochs_total": pair.k + done * experiment.children + further,
    }  # fmt: skip
    row |= {f"{name}_%": accuracy for name, accuracy in accuracies.items()}
    for name, (column, _) in _OVER.items():
        other = accuracies[column]
        row[f"over_{name}_points"] = None if average is None or other is None else average - other
    return row


def tables(frames: Frames) -> list[Table]:
    """A table for each comparison: rows a cell and round, columns the treatments; one more of the last average."""
    frame = frames["rounds"]
    found = [_verdicts(frame)]
    names = [*cell_names(frame, alpha=True), "round"]
    for name, (_, words) in _OVER.items():
        column = f"over_{name}_points"
        for rows, what, each in (
            (frame.filter(epochs_after=0), "Accuracy of each round's average", names),
            (frame.filter(polars.col("epochs_after") > 0), "The last average trained on", [*names, "epochs_after"]),
        ):
            if rows[column].count():
                title = f"{what} less that of {words}, in points"
                found.append(estimate_table(rows.drop_nulls(column), title, each, ["batch_norm"], column))
    return found


def _verdicts(frame: polars.DataFrame) -> Table:
    """What the last round says, a row a cell and treatment for each claim that a difference is above 0."""
    pair = frame.columns[: frame.columns.index("batch_norm") + 1]
    at = polars.col("round")
    rows = frame.filter(epochs_after=0).sort("round", maintain_order=True)
    rows = rows.with_columns(first=polars.col("over_alone_points").first().over(pair), most=at.max().over(pair))
    last = rows.filter(at == polars.col("most"))
    last = last.with_columns(more=polars.col("over_alone_points") - polars.col("first"))
    names = [*cell_names(frame, alpha=True), "batch_norm"]
    found = [
        ([*map(value_text, values), claim], estimate_of(here, column))
        for values, here in groups(last, names)
        for claim, column in _CLAIMS.items()
        if column != "more" or here["most"].max() != 1
    ]
    columns = (*names, "the average of the last round", "points [95 %]", "parents", "pairs", "verdict")
    return verdict_table("Does the gain add up over rounds? Differences of test accuracy", columns, found)


_CLAIMS = {
    "beats its best child": "over_best_points",
    "beats the parent alone at equal epochs": "over_alone_points",
    "beats it by more than the first round's did": "more",
    "beats the parent alone at equal epochs in total": "over_total_points",
}
_LOOKS: dict[str, dict[str, Any]] = {
    "average_%": {"ls": "-", "marker": "o"},
    "best_child_%": {"ls": ":", "marker": "^"},
    "alone_%": {"ls": "--", "marker": "s"},
    "alone_total_%": {"ls": "-.", "marker": "D"},
}


def draw(frames: Frames, title: str) -> Any:
    """Draw test accuracy against epochs, a panel a cell: each round's average, its best child, the parent alone."""
    cells, _ = cells_of(frames["rounds"].filter(epochs_after=0), alpha=True)
    sheet = Sheet.of(len(cells), 3, (4.0, 3.0), below=1.2)
    for axis, cell in zip(sheet.axes, cells, strict=True):
        for (treatment,), own in groups(cell.rows, ["batch_norm"]):
            for column, line in _LOOKS.items():
                if not own[column].count():
                    continue
                label = f"{column.removesuffix('_%').replace('_', ' ')}, {treatment}"
                look: dict[str, Any] = {"color": TREATMENT_COLOURS[treatment], "label": label, "ms": 4, "lw": 1.2}
                sheet.curve(axis, own, "epochs", column, spread=column == "average_%", **look, **line)
        style(axis, "epochs of a child since initialisation", "test accuracy (%)", cell.heading, whole_x=True)
    sheet.legend(ncols=4, size=7)
    what = "Rounds of averaging, against one network trained alone for as many epochs and for as many in total"
    return sheet.titled(what, title)


QUESTION = "does the gain add up over rounds of averaging, against the same epochs spent on one network"
OPTIONS = ("cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
