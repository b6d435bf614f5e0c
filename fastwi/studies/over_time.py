"""What averages over time (LAWA, SWA, EMA: trajectory.averages) gain over the network whose states they average."""

from typing import Any

import polars

from fastwi.analysis.columns import Column
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, chosen_pairs, counted
from fastwi.analysis.statistics import Estimate
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.errors import UserError
from fastwi.experiment.tree import MOVING, OWN
from fastwi.report.estimates import (
    cell_heading,
    cell_names,
    draw_spread,
    estimate_of,
    groups,
    panels,
    set_title,
    spread_text,
    style,
    titled,
    value_of,
    verdict_cells,
)
from fastwi.report.study import AVERAGE_COLUMNS, Frames, Study
from fastwi.report.summary import Table, value_text

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


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Each average over time beside its network, after every epoch, as the sweep measured them; no state is read.

    over_time: one row an average, treatment of batch norm and pair. Recomputed statistics of the networks themselves
    are there at interpolation alone, or with experiment.measure: [own, recomputed]. Raises UserError without any.
    """
    pairs = chosen_pairs(opened, options)
    if not any(pair.place.over_time for pair in pairs):
        raise UserError("trajectory.averages: is empty in all cells; sweep with some, or with optimizer.ema_decay")
    rows = list[dict[str, Any]]()
    for pair in counted(pairs, progress):
        rows += _rows(opened, pair)
    return opened.frames(COLUMNS, over_time=rows)


def _rows(opened: OpenedSweep, pair: Pair) -> list[dict[str, Any]]:
    tree, rows = pair.place.tree, list[dict[str, Any]]()
    for average in pair.place.over_time:
        made = tree.averages.get(average.node)
        network = average.node if made is None else made.nodes[-1]  # its newest state
        about = {"network": average.network, "over_time": average.name, "epoch": tree.epochs[average.node]}
        about["child"] = pair.numbers[average.child] if average.child >= 0 else None
        for treatment in average.treatments.values():
            here = (average.node, treatment.name), (network, treatment.name.removeprefix(MOVING))
            of_time, own = (
                None if (m := opened.measured.get((tree.keys[node], name))) is None or m.diverged else m.test_accuracy
                for node, name in here
            )
            gain = None if of_time is None or own is None else of_time - own
            found = {"over_time_%": of_time, "network_%": own, "gain_points": gain}
            batch_norm = OWN if treatment.own else RECOMPUTED
            rows.append({**pair.columns(), **about, "batch_norm": batch_norm, **found})
    return rows


def tables(frames: Frames) -> list[Table]:
    """The gain after each network's last epoch with its verdict, by cell, network, average over time, treatment."""
    frame = frames["over_time"]
    names = [*cell_names(frame, alpha=True), "network", "over_time", "batch_norm", "epoch"]
    of_network = [name for name in names if name != "epoch"]
    last = frame.filter(polars.col("epoch") == polars.col("epoch").max().over(of_network))
    body, most = [], 0
    for values, rows in groups(last, names):
        estimate = estimate_of(rows, "gain_points")
        if estimate is not None:
            body.append([*map(value_text, values), *verdict_cells(estimate)])
            most = max(most, estimate.n_parents)
    title = "Accuracy of averages over time less that of the network itself, after its last epoch"
    return [titled(title, (*names, "points [95 %]", "parents", "pairs", "above 0"), body, most)]


_COLOURS = {"lawa": "tab:blue", "swa": "tab:green", "ema": "tab:orange", "ema_iteration": "tab:red"}


def draw(frames: Frames, title: str) -> Any:
    """Draw the gain against epochs, a panel a cell and network, own statistics."""
    frame = frames["over_time"].filter(batch_norm=OWN)
    names = [*cell_names(frame, alpha=True), "network"]
    cells = list(groups(frame, names))
    figure, axes = panels(len(cells), 3, (3.8, 2.8), below=1.1)
    spreads = list[Estimate | None]()
    for axis, (values, rows) in zip(axes, cells, strict=True):
        for (name,), own in groups(rows, ["over_time"]):
            found = {at: estimate_of(here, "gain_points") for (at,), here in groups(own.sort("epoch"), ["epoch"])}
            axis.plot(list(found), list(map(value_of, found.values())), marker=".", color=_COLOURS[name], label=name)
            for at, estimate in found.items():
                draw_spread(axis, estimate, at, _COLOURS[name])
            spreads += found.values()
        heading = f"{values[-1]}: {cell_heading(names[:-1], values[:-1], rows)}"
        style(axis, "epochs since initialisation", "gain (points)", heading, whole_x=True)
        axis.axhline(0, color="0.4", lw=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    set_title(
        figure, "Averages over time, less the network itself; own statistics", f"{title}; {spread_text(spreads)}"
    )
    return figure


QUESTION = "what averages over time of one network (LAWA, SWA, EMA) gain over it"
OPTIONS = ("cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
