"""On which examples the average gains and loses: tables by split, the claim with its verdict, Figure 5's shape."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
from scipy import stats

from fastwi.analysis.statistics import (
    CONFIRMED,
    NOT_SETTLED,
    REFUTED,
    Estimate,
    mean_estimate,
    verdict,
    verdict_text,
)
from fastwi.report.heatmap import save_figure
from fastwi.report.studies.cells import (
    cell_names,
    counted,
    draw_spread,
    estimate_of,
    estimate_table,
    groups,
    shown,
    titled,
    variant_of,
)
from fastwi.report.summary import Table

ALMOST = 9  # times as much on the hard half as on the easy one, over 90 % of the whole, is almost the whole of it
_CHILD, _AVERAGE, _AFTER = "tab:blue", "#cc1a26", "tab:orange"
_BARS = {"own": "tab:blue", "recomputed": "tab:orange"}
_ACROSS = 5  # panels beside each other


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """The claims with their verdicts, gains and later changes by split, the scores, and what was not stored."""
    gains, changes = frames["split_gains"], frames["split_changes"]
    names = _names(gains)
    by_split = {split: polars.col("split") == split for split in _splits(gains)}
    found = [_claims(gains, changes)]
    for over, text in (("mean", "children's mean"), ("best", "best child on that split")):
        title = f"Gain of the average over the {text} at interpolation by split (1 easiest), in points [95 %]"
        columns = {f"split {split}": (chosen, f"gain_{over}_points", 2) for split, chosen in by_split.items()}
        found.append(estimate_table(gains, title, [*names, "batch_norm"], columns))
    if changes.height:
        title = "The average trained on: accuracy less at interpolation by split, own statistics, in points [95 %]"
        columns = {f"split {split}": (chosen, "change_points", 2) for split, chosen in by_split.items()}
        found.append(estimate_table(changes, title, [*names, "epochs_after"], columns))
        columns = {f"split {split}": (chosen, "change_loss_nats", 4) for split, chosen in by_split.items()}
        title = "The average trained on: loss less at interpolation by split, own statistics, in nats [95 %]"
        found.append(estimate_table(changes, title, [*names, "epochs_after"], columns))
    found.append(_scores(frames["scores"]))
    if frames["missing"].height:
        found.append(_missing(frames["missing"]))
    return found


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw accuracy over epochs, one panel a split (paper, Figure 5), and the gain by split with its interval.

    Of the frame's first cell. Networks are thin lines, their means over parents thick. All panels of splits span the
    same number of points. Writes PNG (`path`), PDF and SVG; raises UserError where that fails.
    """
    from matplotlib.figure import Figure

    names = _names(frames["splits"])
    values, rows = next(iter(groups(frames["splits"], names)))
    gains = next(iter(groups(frames["split_gains"], names)))[1]
    numbers = _splits(rows)
    across = min(len(numbers) + 1, _ACROSS)
    down = -(-(len(numbers) + 1) // across)
    figure = Figure(figsize=(2.9 * across + 0.6, 3.0 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    panels = [rows.filter(polars.col("split") == number) for number in numbers]
    spans = [(panel["train_accuracy_%"].min(), panel["train_accuracy_%"].max()) for panel in panels]
    widest = max(1.0, *(float(high) - float(low) for low, high in spans))  # type: ignore[arg-type]
    for axis, number, panel, (low, high) in zip(axes.flat, numbers, panels, spans, strict=False):
        _curves(axis, panel)
        middle = (float(low) + float(high)) / 2  # type: ignore[arg-type]
        axis.set_ylim(middle - 0.55 * widest, middle + 0.55 * widest)
        hardness = " (easiest)" if number == numbers[0] else " (hardest)" if number == numbers[-1] else ""
        axis.set_title(f"Split {number}{hardness}: {panel['images'][0]:,} images", fontsize=8)
    axes[0, 0].set_ylabel("training accuracy (%)", fontsize=8)
    _bars(axes.flat[len(numbers)], gains, numbers)
    for axis in axes.flat[len(numbers) + 1 :]:
        axis.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    parents, pairs = counted(gains)
    score = frames["scores"]
    where = ", ".join(f"{name} = {value:g}" for name, value in zip(names[-len(values):], values, strict=True)
                      if name in ("k", "s", "alpha") and value is not None)  # fmt: skip
    other = variant_of(cell_names(rows), values)
    figure.suptitle(
        "\n".join(filter(None, [
            title, other, f"{where}; n = {parents} parents, {pairs} pairs; split by EL2N at epoch "
            f"{score['score_epoch'][0]} (mean of {score['n_parents'][0]} parents); own batch-norm statistics",
        ])), fontsize=9,
    )  # fmt: skip
    save_figure(figure, path)


def hard_less_easy(rows: polars.DataFrame, column: str, times: int = 1) -> Estimate | None:
    """The mean of `column` over the harder half of the splits, less `times` that over the easier half, paired.

    In points. Where the whole is positive, it is above 0 where the harder half has over times / (1 + times) of the
    whole: 9 times asks for over 90 %. Of an odd number of splits the middle one is in neither half. None where no
    pair has all splits.
    """
    splits = _splits(rows)
    half = len(splits) // 2
    split = polars.col("split")
    weight = polars.when(split.is_in(splits[-half:])).then(1).when(split.is_in(splits[:half])).then(-times)
    keys = [*_names(rows), "parent_seed", "pair", *(n for n in ("epochs_after", "batch_norm") if n in rows.columns)]
    contrast = (polars.col(column) * weight.otherwise(0)).sum() / half
    sums = rows.drop_nulls(column).group_by(keys, maintain_order=True).agg(contrast.alias("sum"), polars.len())
    whole = sums.filter(polars.col("len") == len(splits))
    if not whole.height:
        return None
    return mean_estimate(whole["sum"].to_numpy(), whole["parent_seed"].to_list())


def _claims(gains: polars.DataFrame, changes: polars.DataFrame) -> Table:
    """The paper's claim 5 in parts that data can settle, over all cells together.

    Each needs two things: that there is a gain (a drop) over all splits, and that it lies on the hard ones. It is
    confirmed where both are, refuted where one is.
    """
    body: list[Sequence[str]] = []
    parts = [
        (f"gain at interpolation, {treatment} statistics", gains.filter(polars.col("batch_norm") == treatment),
         "gain_mean_points", "above")
        for treatment in gains["batch_norm"].unique(maintain_order=True)
    ]  # fmt: skip
    further: list[int] = sorted(changes["epochs_after"].unique().to_list())
    for epochs in dict.fromkeys((*further[:1], *further[-1:])):
        parts.append((f"drop after {epochs} further epoch{'s' * (epochs != 1)}",
                      changes.filter(polars.col("epochs_after") == epochs), "change_points", "below"))  # fmt: skip
    notes, most = list[str](), 0
    for what, rows, column, claim in parts:
        whole = estimate_of(rows, column)  # splits are equal, so their mean is that of all images
        easiest = estimate_of(rows.filter(polars.col("split") == rows["split"].min()), column)
        for text, times in (
            ("lies more on the hard half of the splits than on the easy half", 1),
            (f"lies to over {100 * ALMOST // (ALMOST + 1)} % on the hard half", ALMOST),
        ):
            estimate = hard_less_easy(rows, column, times)
            if estimate is None or whole is None:
                continue
            notes.append(estimate.note)
            most = max(most, estimate.n_parents)
            contrast = "hard - easy" if times == 1 else f"hard - {times} x easy"
            parents = estimate.n_parents
            body.append([
                f"the {what} {text}", shown(whole, parents), f"{shown(estimate, parents)} ({contrast})",
                shown(easiest, parents), str(parents), str(estimate.n_pairs),
                verdict_text(_both(verdict(whole, claim=claim), verdict(estimate, claim=claim)), parents),
            ])  # fmt: skip
    columns = ("claim", "all splits, points [95 %]", "contrast, points [95 %]", "easiest split, points [95 %]",
               "parents", "pairs", "verdict")  # fmt: skip
    title = (
        "Gains and losses of accuracy fall almost wholly on the hard splits: the claim in parts, all cells together"
    )
    return titled(title, columns, body, most, notes)


def _both(first: str, second: str) -> str:
    """The verdict on a claim that needs two things."""
    found = {first, second}
    return REFUTED if REFUTED in found else CONFIRMED if found == {CONFIRMED} else NOT_SETTLED


def _scores(frame: polars.DataFrame) -> Table:
    """What the splits rest on."""
    body = []
    names = frame.columns[: frame.columns.index("example")]
    for values, rows in groups(frame, [*names, "score_epoch"]):
        events = rows["forgetting_events"]
        told = "states of every epoch are not stored"
        if events.null_count() == 0 and events.n_unique() > 1 and rows["el2n"].n_unique() > 1:
            told = f"{stats.spearmanr(rows['el2n'], events).statistic:+.2f}"
        in_splits = [part["el2n"].to_list() for _, part in groups(rows.sort("el2n"), ["split"])]
        ranges = [f"{scores_n[0]:.3f} to {scores_n[-1]:.3f}" for scores_n in in_splits]
        body.append([*map(str, values), str(rows["n_parents"][0]), str(rows.height), told, "; ".join(ranges)])
    columns = (*names, "epoch", "parents", "images", "rank correlation with forgetting", "EL2N of each split")
    return Table("The scores: EL2N, the mean over parents; the same for all pairs", tuple(columns),
                 tuple(tuple(row) for row in body))  # fmt: skip


def _missing(missing: polars.DataFrame) -> Table:
    body = [
        [*map(str, values), f"{rows['epochs_not_stored'].sum():,} of {rows['epochs'].sum():,}"]
        for values, rows in groups(missing, [*cell_names(missing), "network"])
    ]
    columns = (*cell_names(missing), "network", "epochs not stored")
    return Table("Epochs that were not measured, for want of states (sweep.keep: all keeps them)", columns,
                 tuple(tuple(row) for row in body))  # fmt: skip


def _curves(axis: Any, rows: polars.DataFrame) -> None:
    """One split: children from the parent on, the average, and the average trained on."""
    own = rows.filter(polars.col("batch_norm") == "own")
    means: dict[str, dict[int, list[tuple[int, float]]]] = {"children": {}, "average": {}}
    for (seed, _), pair in groups(own, ["parent_seed", "pair"]):
        parent = pair.filter(polars.col("network") == "parent")
        for _, child in groups(pair.filter(polars.col("network") == "child"), ["child"]):
            line = polars.concat([parent, child.sort("epoch")])
            axis.plot(line["epoch"], line["train_accuracy_%"], color=_CHILD, lw=0.5, alpha=0.35)
            for epoch, value in line.select("epoch", "train_accuracy_%").rows():
                means["children"].setdefault(epoch, []).append((seed, value))
        line = pair.filter(polars.col("network") == "average").sort("epoch")
        axis.plot(line["epoch"], line["train_accuracy_%"], color=_AFTER, lw=0.5, alpha=0.35)
        for epoch, value in line.select("epoch", "train_accuracy_%").rows():
            means["average"].setdefault(epoch, []).append((seed, value))
    for name, colour, label in (("children", _CHILD, "children"), ("average", _AFTER, "average trained on")):
        epochs = sorted(means[name])
        values = [_mean_over_parents(means[name][epoch]) for epoch in epochs]
        axis.plot(epochs, values, color=colour, lw=1.8, marker="o", markersize=2.5, label=label, zorder=3)
        if name == "average" and epochs:
            axis.plot(epochs[:1], values[:1], color=_AVERAGE, marker="*", ls="", markersize=10, label="average",
                      zorder=4)  # fmt: skip
            axis.axvline(epochs[0], color="0.6", lw=0.8, ls="--", zorder=0)
    parent_rows = own.filter(polars.col("network") == "parent")
    estimate = estimate_of(parent_rows, "train_accuracy_%")
    if estimate is not None and estimate.value is not None:
        axis.plot([parent_rows["epoch"][0]], [estimate.value], color="0.2", marker="s", ls="", markersize=4,
                  label="parent at k", zorder=4)  # fmt: skip
    axis.set_xlabel("epochs since initialisation", fontsize=8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)


def _mean_over_parents(values: Sequence[tuple[int, float]]) -> float:
    by_parent: dict[int, list[float]] = {}
    for parent, value in values:
        by_parent.setdefault(parent, []).append(value)
    return float(np.mean([np.mean(each) for each in by_parent.values()]))


def _bars(axis: Any, gains: polars.DataFrame, splits: Sequence[int]) -> None:
    treatments = gains["batch_norm"].unique(maintain_order=True).to_list()
    width, shown = 0.8 / len(treatments), list[Estimate | None]()
    for t, treatment in enumerate(treatments):
        chosen = gains.filter(polars.col("batch_norm") == treatment)
        found = [estimate_of(chosen.filter(polars.col("split") == split), "gain_mean_points") for split in splits]
        shown += found
        x = np.arange(len(splits)) + (t - (len(treatments) - 1) / 2) * width
        values = [math.nan if e is None or e.value is None else e.value for e in found]
        axis.bar(x, values, width, color=_BARS.get(treatment, "0.4"), label=treatment, alpha=0.75)
        for place, e in zip(x, found, strict=True):
            draw_spread(axis, e, place, "0.15")
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set_xticks(range(len(splits)), [str(split) for split in splits])
    axis.set_xlabel("split", fontsize=8)
    axis.set_ylabel("points", fontsize=8)
    spread = "[95 % over parents]" if any(e is not None and e.conclusive for e in shown) else "dots: each parent"
    axis.set_title(f"Gain over the children's mean\n{spread}, by batch norm", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=7)


def _names(frame: polars.DataFrame) -> list[str]:
    """The columns that name a cell, with alpha where there is one."""
    return cell_names(frame) + (["alpha"] if frame["alpha"].null_count() < frame.height else [])


def _splits(frame: polars.DataFrame) -> list[int]:
    return sorted(frame["split"].unique().to_list())
