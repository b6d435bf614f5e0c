"""Example importance (paper, Figure 5): on which training examples the average gains, and where it loses later.

The sweep's training images are split into equal parts by EL2N score, the mean over the sweep's parents at one epoch;
the paper's is epoch 10. Split 1 has the lowest scores (easy), the last the highest (hard). Every network is measured
on all splits without augmentation. Forgetting events stand beside EL2N where all the parents' states are stored.

Shapes: N images; S splits; T epochs; G parents.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars
from numpy.typing import NDArray

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair, all_pairs
from fastwi.analysis.statistics import spearman
from fastwi.config.sweep import RECOMPUTED
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.report.claims import CLAIMS
from fastwi.report.drawing import Sheet, set_title, spread_text, style
from fastwi.report.estimates import (
    cell_names,
    counted_text,
    distinct,
    estimate_tables,
    groups,
    shown,
    titled,
    variant_of,
)
from fastwi.report.study import AVERAGE_COLUMNS, Found, Frames, Row, Study
from fastwi.report.summary import Table

if TYPE_CHECKING:
    from fastwi.data.resident import ResidentDataset
    from fastwi.population import Population

_TOGETHER = 8  # networks in memory at one time
_ACCURACY, _LOSS = "train_accuracy_%", "train_loss_nats"

_SPLIT = {"split": Column("", "which of the equal parts by ascending EL2N: 1 is the easiest", polars.Int64)}
COLUMNS = {
    "scores": {
        "example": Column("", "place of the image among the sweep's training images, from 0", polars.Int64),
        "label": Column("", "its class", polars.Int64),
        "el2n": Column("1", "EL2N score, the mean over parents: 0 to the square root of 2"),
        **_SPLIT,
        "forgetting_events": Column("events", "forgetting events along the parents' epochs, the mean over parents"),
        "score_epoch": Column("epochs", "epoch of the parents' states that gave the score", polars.Int64),
        "n_parents": Column("", "parents that the score is the mean over", polars.Int64),
    },
    "splits": {
        **PAIR_COLUMNS,
        "network": Column("", "parent, child or average", polars.String),
        "child": Column("", "number of the child, from 1 within its parent and k", polars.Int64),
        "stage": Column("", "parent, children, interpolation or after", polars.String),
        "epoch": Column("epochs", "epochs done since initialisation", polars.Int64),
        "batch_norm": AVERAGE_COLUMNS["batch_norm"],
        **_SPLIT,
        "images": Column("images", "training images in the split", polars.Int64),
        _ACCURACY: Column("%", "accuracy on the split's images, without augmentation"),
        _LOSS: Column("nats", "mean cross-entropy on them; null where not finite"),
    },
    "split_gains": {
        **AVERAGE_COLUMNS,
        **_SPLIT,
        "gain_mean_points": Column("points", "accuracy of the average at interpolation less the children's mean"),
        "gain_best_points": Column("points", "that less the best child's on this split"),
        "gain_mean_loss_nats": Column("nats", "loss of the average at interpolation less the children's mean"),
    },
    "split_changes": {
        **PAIR_COLUMNS,
        "epochs_after": Column("epochs", "epochs that the average trained on", polars.Int64),
        **_SPLIT,
        "change_points": Column("points", "accuracy of the average trained on less at interpolation, own statistics"),
        "change_loss_nats": Column("nats", "loss likewise"),
    },
    "missing": {
        **PAIR_COLUMNS,
        "network": Column("", "child or average", polars.String),
        "epochs": Column(
            "epochs", "states of such networks, of the average without the one at interpolation", polars.Int64
        ),
        "epochs_not_stored": Column("epochs", "how many of them are not stored, nor measured", polars.Int64),
    },
}


_Key = tuple[str, float | None]
"""A state, and the epoch of the draws that its statistics are recomputed on; None: its own statistics."""


class _Parents(NamedTuple):
    """The parents' states that give scores at `epoch`. along: those of epochs 1 to `epoch`; empty: not all stored."""

    epoch: int
    last_G: list[str]
    along_TG: list[list[str]]


class _Scored(NamedTuple):
    """The images of one combination of the axes beside k and s, the split of each, and what was measured on them.

    found: of a network, a row for each split. Children of one parent at several s share states.
    """

    images: "ResidentDataset"
    splits_N: NDArray[np.int64]
    found: dict[_Key, list[Row]]


def measure(bench: Bench) -> Found:
    """Measure parent, children, average and continued average on each split, one combination of axes after another.

    scores: forgetting events are null where states are missing; an image that a parent never learned counts as many
    as there are measurements. split_gains: the average less the children's mean and best child. split_changes: the
    average after each further epoch less the average at interpolation, own statistics. Recomputed statistics are
    those of the interpolation epoch, for all networks. Raises UserError where no epoch has all parents' states.
    """
    pairs = bench.pairs()
    variants = list(dict.fromkeys(pair.variant for pair in pairs))
    pairs.sort(key=lambda pair: variants.index(pair.variant))
    parents = {variant: _parents(bench, variant) for variant in variants}
    lost = bench.opened.lost()
    networks = {pair: list(_networks(bench, pair, lost)) for pair in pairs}
    each = {(pair.variant, key) for pair in pairs for _, key in networks[pair]}
    bench.begin(len(each) + sum(len(states) for p in parents.values() for states in (p.last_G, *p.along_TG)))
    by_variant: dict[Any, _Scored] = {}
    rows: dict[str, list[Row]] = {"scores": [], "splits": [], "missing": []}
    for pair in pairs:
        if pair.variant not in by_variant:
            by_variant[pair.variant] = _score(bench, pair, parents[pair.variant], rows["scores"])
        scored = by_variant[pair.variant]
        _measure(bench, pair, [key for _, key in networks[pair]], scored)
        for named, key in networks[pair]:
            rows["splits"] += [{**pair.columns(), **named, **row} for row in scored.found[key]]
        rows["missing"] += _missing(bench, pair)
    frames = {name: bench.frame(COLUMNS[name], found) for name, found in rows.items()}
    frames |= {"split_gains": _gains(frames["splits"]), "split_changes": _changes(frames["splits"])}
    for name, columns in COLUMNS.items():
        losses = [polars.col(column) for column in columns if column.endswith("nats")]
        finite = frames[name].with_columns(polars.when(loss.is_finite()).then(loss) for loss in losses)
        frames[name] = finite.select(*dict(pairs[0].variant), *columns)
    return {name: frames[name] for name in COLUMNS}


def _score(bench: Bench, pair: Pair, parents: _Parents, rows: list[Row]) -> _Scored:
    """Score and split the images of the pair's combination of axes, and add their rows."""

    def loaded(each: Iterable[Sequence[str]]) -> "Iterator[Population]":
        for states in each:
            yield bench.opened.states(states)
            bench.passed(len(states))

    evaluator = bench.evaluator(pair.config)
    images, positions = bench.part(pair.config, "train")
    count = len(parents.last_G)
    el2n_N = analysis.el2n_scores(evaluator, loaded([state] for state in parents.last_G), images)
    splits_N = analysis.equal_splits(el2n_N, bench.options.splits)
    columns = {"example": positions, "label": images.labels_N.tolist(), "el2n": el2n_N, "split": splits_N + 1}
    if parents.along_TG:
        events_N = analysis.forgetting_scores(evaluator, loaded(parents.along_TG), images, parents.epoch)
        columns["forgetting_events"] = events_N / count
    of_all = {**dict(pair.variant), "score_epoch": parents.epoch, "n_parents": count}
    rows += [{**of_all, **row} for row in polars.DataFrame(columns).rows(named=True)]
    return _Scored(images, splits_N, {})


def _parents(bench: Bench, variant: Any) -> _Parents:
    """The parents' states at the epoch that gives scores: `asked`, or the last that is stored of all parents.

    Parents that diverged or are not trained to their end are left out: n counts the others only.
    """
    opened, asked = bench.opened, bench.options.score_epoch
    paths: dict[int, tuple[str, ...]] = {}
    for pair in all_pairs(opened):
        if pair.variant == variant:
            whole = tuple(state for state in pair.place.parent if isinstance(pair.place.time(state), int))
            paths[pair.point.parent] = max(whole, paths.get(pair.point.parent, ()), key=len)
    sound = [path for path in paths.values() if all(bench.accuracy(state) is not None for state in path)]
    reached = min(map(len, sound), default=0)
    if asked > reached:
        raise UserError(
            f"analysis.score_epoch: {asked}, but the sweep's parents end at epoch {reached}; give that or less, "
            "0 for the last one, or sweep a larger experiment.k"
        )
    parents_TG = [list(states) for states in zip(*(path[:reached] for path in sound), strict=True)]
    epoch = asked or max((e for e, states in enumerate(parents_TG, 1) if opened.has(states)), default=0)
    if not epoch:
        raise UserError(
            "analysis.score_epoch: no epoch has the states of all parents; run the sweep with sweep.keep: stops, and "
            "a k above 0"
        )
    along_TG = parents_TG[:epoch]
    return _Parents(epoch, along_TG[-1], along_TG if epoch > 1 and all(map(opened.has, along_TG)) else [])


def _networks(bench: Bench, pair: Pair, lost: set[str]) -> Iterator[tuple[Row, _Key]]:
    """The pair's networks in order: columns that name each, and its key.

    Without those that diverged; of those between stops, the ones that are stored.
    """
    place, end, has = pair.place, pair.place.end, bench.opened.has

    def named(network: str, child: int | None, stage: str, epoch: int | float, treatment: str = OWN) -> Row:
        return {"network": network, "child": child, "stage": stage, "epoch": epoch, "batch_norm": treatment}

    again = RECOMPUTED in bench.options.treatments
    treatments = ((OWN, None), (RECOMPUTED, end)) if again else ((OWN, None),)
    for treatment, draws in treatments:
        yield named("parent", None, "parent", pair.k, treatment), (place.clone, draws)
    for number, path, on in zip(pair.numbers, place.children_to_end, place.children_on, strict=True):
        for stage, states in (("children", path[:-1]), ("after", on)):
            for state in states:
                if state not in lost and has([state]):
                    yield named("child", number, stage, place.time(state)), (state, None)
    for treatment, draws in treatments:
        for number, state in zip(pair.numbers, place.ends, strict=True):
            yield named("child", number, "interpolation", end, treatment), (state, draws)
        yield named("average", None, "interpolation", end, treatment), (place.average, draws)
    for state in place.after:
        if state not in lost and (has([state]) or state == place.after[-1]):
            yield named("average", None, "after", place.time(state)), (state, None)


def _measure(bench: Bench, pair: Pair, wanted: list[_Key], scored: _Scored) -> None:
    """Measure those of the pair's networks that were not before on each split, some networks at a time."""
    evaluator = bench.evaluator(pair.config)
    missing = [key for key in wanted if key not in scored.found]
    for draws in dict.fromkeys(draws for _, draws in missing):
        alike = list(dict.fromkeys(key for key in missing if key[1] == draws))
        for first in range(0, len(alike), _TOGETHER):
            keys = alike[first : first + _TOGETHER]
            population = bench.opened.states([state for state, _ in keys])
            if draws is not None:
                population = evaluator.recompute(population, bench.recomputation(pair))
            scores = analysis.split_scores(evaluator, population, scored.images, scored.splits_N)
            for key, accuracy_S, loss_S in zip(keys, *scores, strict=True):
                columns = {"images": np.bincount(scored.splits_N), _ACCURACY: accuracy_S, _LOSS: loss_S}
                scored.found[key] = polars.DataFrame(columns).with_row_index("split", 1).rows(named=True)
            bench.passed(len(keys))


def _missing(bench: Bench, pair: Pair) -> Iterator[Row]:
    """How many of the pair's states are not stored."""
    for name, paths in (("child", pair.place.children), ("average", (pair.place.after,))):
        states = [state for path in paths for state in path]
        lacking = sum(not bench.opened.has([state]) for state in states)
        if lacking:
            yield {**pair.columns(), "network": name, "epochs": len(states), "epochs_not_stored": lacking}


def _gains(frame: polars.DataFrame) -> polars.DataFrame:
    """The average at interpolation less the children's mean and best child, for each pair, treatment and split."""
    of_average = polars.col("network") == "average"
    of_child = polars.col("network") == "child"
    accuracy = polars.col(_ACCURACY)
    loss = polars.col(_LOSS)
    average = accuracy.filter(of_average).first()
    children = accuracy.filter(of_child)
    at = frame.filter(stage="interpolation")
    keys = [*frame.columns[: frame.columns.index("network")], "batch_norm", "split"]
    return at.group_by(keys, maintain_order=True).agg(
        gain_mean_points=average - children.mean(),
        gain_best_points=average - children.max(),
        gain_mean_loss_nats=loss.filter(of_average).first() - loss.filter(of_child).mean(),
    )


def _changes(frame: polars.DataFrame) -> polars.DataFrame:
    """The average trained on less the average at interpolation, own statistics, for each pair, epoch and split."""
    averages = frame.filter(network="average", batch_norm=OWN)
    keys = [*frame.columns[: frame.columns.index("network")], "split"]
    at = polars.col("stage") == "interpolation"
    accuracy = polars.col(_ACCURACY)
    loss = polars.col(_LOSS)
    return averages.with_columns(
        epochs_after=polars.col("epoch") - polars.col("epoch").filter(at).first().over(keys),
        change_points=accuracy - accuracy.filter(at).first().over(keys),
        change_loss_nats=loss - loss.filter(at).first().over(keys),
    ).filter(stage="after")


def tables(frames: Frames) -> list[Table]:
    """The claim with its verdicts, gains and later changes by split, the scores, and what was not stored."""
    gains = frames["split_gains"]
    changes = frames["split_changes"]
    missing = frames["missing"]
    found = [_claim(frames)]
    for frame, quantities, name in ((gains, _GAINS, "batch_norm"), (changes, _CHANGES, "epochs_after")):
        names = [*cell_names(gains, alpha=True), name]
        rows = frame.sort("split")
        found += estimate_tables(rows, quantities, names, ["split"], heading="split {}") if rows.height else []
    found.append(_scores(frames["scores"]))
    if missing.height:
        names = [*cell_names(missing), "network"]
        body = tuple(
            (*map(str, values), f"{here['epochs_not_stored'].sum():,} of {here['epochs'].sum():,}")
            for values, here in groups(missing, names)
        )
        title = "Epochs that were not measured, because their states were not kept (sweep.keep: all keeps them)"
        found.append(Table(title, (*names, "epochs not stored"), body))
    return found


_GAINS = {
    "gain_mean_points": ("Gain of the average over the children's mean by split (1 easiest), in points", 2),
    "gain_best_points": ("Gain of the average over the best child on that split (1 easiest), in points", 2),
}
_CHANGES = {
    "change_points": ("The average trained on: accuracy less at interpolation, own statistics, in points", 2),
    "change_loss_nats": ("The average trained on: loss less at interpolation, own statistics, in nats", 4),
}


def _claim(frames: Frames) -> Table:
    """What the paper's claim 5 rests on, and further estimates, over all cells together."""
    statement = CLAIMS[5]
    of_claim = statement.find({f"importance/{name}": frame for name, frame in frames.items()})
    found = [*of_claim.findings, *of_claim.details]
    body = []
    for finding in found:
        estimate = finding.estimate
        n = estimate.n_parents
        body.append([finding.what, shown(estimate, n), str(n), str(estimate.n_pairs), finding.verdict_text])
    estimates = [finding.estimate for finding in found]
    columns = ("estimate, all cells together", "points [95 %]", "parents", "pairs", "verdict")
    return titled(f"Claim 5: {statement.title.rstrip('.')}", columns, body, estimates)


def _scores(frame: polars.DataFrame) -> Table:
    """What the splits rest on."""
    body = []
    names = frame.columns[: frame.columns.index("example")]
    for values, rows in groups(frame, [*names, "score_epoch"]):
        said = "states of every epoch are not stored"
        events = rows["forgetting_events"]
        if events.null_count() == 0 and events.n_unique() > 1 and rows["el2n"].n_unique() > 1:
            found = spearman(rows["el2n"], events, [0] * rows.height)
            said = f"{found.value:+.2f}"
        spans = rows.group_by("split").agg(low=polars.min("el2n"), high=polars.max("el2n")).sort("split")
        ranges = "; ".join(f"{low:.3f} to {high:.3f}" for _, low, high in spans.rows())
        body.append((*map(str, values), str(rows["n_parents"][0]), str(rows.height), said, ranges))
    columns = (*names, "epoch", "parents", "images", "rank correlation with forgetting", "EL2N of each split")
    return Table("The scores: EL2N, the mean over parents; the same for all pairs", columns, tuple(body))


_PARENT, _CHILD, _AVERAGE = "0.2", "tab:green", "#cc1a26"  # blue and orange are treatments of batch norm


def draw(frames: Frames, title: str) -> Any:
    """Draw accuracy over epochs, one panel a split (paper, Figure 5), and the gain by split.

    Of the frame's first cell. Networks are thin lines, their means over parents thick.
    """
    names = cell_names(frames["splits"], alpha=True)
    values, rows = next(groups(frames["splits"], names))
    gains = next(groups(frames["split_gains"], names))[1]
    numbers = sorted(distinct(rows, "split"))
    sheet = Sheet.of(len(numbers) + 1, 5, (2.9, 3.0), below=1.1)
    *axes, bars = sheet.axes
    for axis, number in zip(axes, numbers, strict=True):
        panel = rows.filter(split=number, batch_norm=OWN)
        _draw_curves(sheet, axis, panel)
        hardness = " (easiest)" if number == numbers[0] else " (hardest)" if number == numbers[-1] else ""
        label = "training accuracy (%)" if axis is axes[0] else ""
        heading = f"Split {number}{hardness}: {panel['images'][0]:,} images"
        style(axis, "epochs since initialisation", label, heading, whole_x=True)
    _same_span(axes)
    spread = spread_text(sheet.bars(bars, gains, "gain_mean_points", "split", "{} statistics"))
    style(bars, "split", "gain (points)", f"Gain over the children's mean\n{spread}")
    bars.margins(y=0.2)
    bars.legend(fontsize=7)
    sheet.legend(ncols=4)
    score = frames["scores"]
    cell = dict(zip(names, values, strict=True))
    where = ", ".join(f"{name} = {cell[name]:g}" for name in ("k", "s", "alpha") if cell.get(name) is not None)
    set_title(
        sheet.figure,
        "Training accuracy by importance of the examples: thin lines each network, thick their mean over parents",
        title,
        variant_of(cell_names(rows), values),
        f"{where}; {counted_text(gains)}; split by EL2N at epoch {score['score_epoch'][0]} (mean of "
        f"{score['n_parents'][0]} parents); curves with own batch-norm statistics",
    )
    return sheet.figure


def _draw_curves(sheet: Sheet, axis: Any, rows: polars.DataFrame) -> None:
    """One split: children from the parent on, the average, and the average trained on."""
    parent, average = (rows.filter(network=name) for name in ("parent", "average"))
    children = rows.filter(network="child")
    start = average["epoch"].min()

    def mean(chosen: polars.DataFrame, **look: Any) -> None:
        sheet.curve(axis, chosen, "epoch", _ACCURACY, spread=False, **look)

    for label, colour, chosen in (("children", _CHILD, children), ("average trained on", _AVERAGE, average)):
        for (seed, pair, child), line in groups(chosen.sort("epoch"), ["parent_seed", "pair", "child"]):
            if child is not None:
                line = polars.concat([parent.filter(parent_seed=seed, pair=pair), line])
            axis.plot(line["epoch"], line[_ACCURACY], color=colour, lw=0.5, alpha=0.35)
        whole = polars.concat([parent, chosen]) if label == "children" else chosen
        mean(whole, color=colour, lw=1.8, marker="o", markersize=2.5, label=label, zorder=3)
    mean(average.filter(epoch=start), color=_AVERAGE, marker="*", ls="", markersize=10, label="average", zorder=4)
    axis.axvline(start, color="0.6", lw=0.8, ls="--", zorder=0)
    mean(parent, color=_PARENT, marker="s", ls="", markersize=4, label="parent at k", zorder=4)


def _same_span(axes: Sequence[Any]) -> None:
    """Give all panels of accuracies the same number of points, within 0 to 100 %."""
    limits = [axis.get_ylim() for axis in axes]
    span = min(100.0, max(high - low for low, high in limits))
    for axis, (low, high) in zip(axes, limits, strict=True):
        bottom = min(max(0.0, (low + high - span) / 2), 100.0 - span)
        axis.set_ylim(bottom - 0.02 * span, bottom + 1.02 * span)
        axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= 100])
        axis.set_ylim(bottom - 0.02 * span, bottom + 1.02 * span)


QUESTION = "the importance-score splits of the training images on which averaging gains and loses"
OPTIONS = ("train_images", "splits", "score_epoch", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
