"""What averages over time (LAWA, SWA, EMA: trajectory.averages) gain over the network whose states they average."""

from collections.abc import Iterator
from typing import Any

import polars

from fastwi.analysis.columns import Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.config.sweep import RECOMPUTED
from fastwi.errors import UserError
from fastwi.experiment.tree import MOVING, OWN
from fastwi.report.drawing import Sheet, style
from fastwi.report.estimates import cell_heading, cell_names, estimates_by, groups, verdict_table
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table

COLUMNS = {
    "over_time": {
        **AVERAGE_COLUMNS,
        "network": Column(
            "", "whose states: the parent's, a child's, or those of the average trained on", polars.String
        ),
        "child": Column("", "number of the child, from 1 within its parent and k", polars.Int64),
        "over_time": Column(
            "", "lawa, swa or ema (trajectory.*), or ema_iteration (optimizer.ema_decay)", polars.String
        ),
        "epoch": Column("epochs", "epochs done since initialisation", polars.Int64),
        "over_time_%": Column("%", "test accuracy of the average over time"),
        "network_%": Column("%", "that of the network itself; null: not measured with such statistics"),
        "gain_points": Column("points", "average over time less the network itself"),
    }
}


def measure(bench: Bench) -> Found:
    """Each average over time beside its network, after every epoch, as the sweep measured them; no state is read.

    over_time: one row an average, treatment of batch norm and pair. Recomputed statistics of the networks themselves
    are there at interpolation alone, or with experiment.measure: [own, recomputed]. Raises UserError without any.
    """
    pairs = bench.pairs()
    if not any(pair.place.over_time for pair in pairs):
        raise UserError("trajectory.averages: is empty in all cells; sweep with some, or with optimizer.ema_decay")
    return {"over_time": [row for pair in bench.each(pairs) for row in _rows(bench, pair)]}


def _rows(bench: Bench, pair: Pair) -> Iterator[Row]:
    tree = pair.place.tree
    for average in pair.place.over_time:
        made = tree.averages.get(average.node)
        network = average.node if made is None else made.nodes[-1]  # its newest state
        about = {"network": average.network, "over_time": average.name, "epoch": tree.epochs[average.node]}
        about["child"] = pair.numbers[average.child] if average.child >= 0 else None
        for treatment in average.treatments.values():
            of_time = bench.accuracy(tree.keys[average.node], treatment.name)
            own = bench.accuracy(tree.keys[network], treatment.name.removeprefix(MOVING))
            gain = None if of_time is None or own is None else of_time - own
            found = {"over_time_%": of_time, "network_%": own, "gain_points": gain}
            batch_norm = OWN if treatment.own else RECOMPUTED
            yield {**pair.columns(), **about, "batch_norm": batch_norm, **found}


def tables(frames: Frames) -> list[Table]:
    """The gain after each network's last epoch with its verdict, by cell, network, average over time, treatment."""
    frame = frames["over_time"]
    names = [*cell_names(frame, alpha=True), "network", "over_time", "batch_norm", "epoch"]
    of_network = [name for name in names if name != "epoch"]
    last = frame.filter(polars.col("epoch") == polars.col("epoch").max().over(of_network))
    title = "Accuracy of averages over time less that of the network itself, after its last epoch"
    columns = (*names, "points [95 %]", "parents", "pairs", "above 0")
    return [verdict_table(title, columns, estimates_by(last, names, "gain_points"))]


_COLOURS = {"lawa": "tab:blue", "swa": "tab:green", "ema": "tab:orange", "ema_iteration": "tab:red"}


def draw(frames: Frames, title: str) -> Any:
    """Draw the gain against epochs, a panel a cell and network, own statistics."""
    frame = frames["over_time"].filter(batch_norm=OWN)
    names = [*cell_names(frame, alpha=True), "network"]
    cells = list(groups(frame, names))
    sheet = Sheet.of(len(cells), 3, (3.8, 2.8), below=1.1)
    for axis, (values, rows) in zip(sheet.axes, cells, strict=True):
        for (name,), own in groups(rows, ["over_time"]):
            sheet.curve(axis, own, "epoch", "gain_points", marker=".", color=_COLOURS[name], label=name)
        heading = f"{values[-1]}: {cell_heading(names[:-1], values[:-1], rows)}"
        style(axis, "epochs since initialisation", "gain (points)", heading, whole_x=True)
        axis.axhline(0, color="0.4", lw=0.8)
    sheet.legend(ncols=3)
    return sheet.titled("Averages over time, less the network itself; own statistics", title)


QUESTION = "what averages over time of one network (LAWA, SWA, EMA) gain over it"
OPTIONS = ("cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
