"""Example importance (paper, Figure 5): on which training examples the average gains, and where it loses later.

The sweep's training images are split into equal parts by EL2N score (Paul et al. 2021, definition 2.3), the
expectation over the sweep's parents at one epoch; the paper's is epoch 10. Split 1 has the lowest scores (easy), the
last the highest (hard). Every network is measured on all splits in one pass over images without augmentation.

A second score, forgetting events (Toneva et al. 2019, section 3) along the parents' epochs, stands beside EL2N where
each parent's state after every epoch is stored.

Shapes: N images; S splits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars
from numpy.typing import NDArray

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import part_of, recomputed
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, all_pairs, chosen_pairs
from fastwi.analysis.statistics import CONFIRMED, NOT_SETTLED, REFUTED, spearman, verdict, verdict_text
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.errors import UserError
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import (
    ALMOST,
    cell_names,
    counted_text,
    distinct,
    draw_bars,
    estimate_of,
    estimate_table,
    groups,
    hard_less_easy,
    mean_of,
    shown,
    spread_text,
    style,
    titled,
    variant_of,
)
from fastwi.report.figures import save_figure
from fastwi.report.study import AVERAGE_COLUMNS, Frames, Study
from fastwi.report.summary import Table

if TYPE_CHECKING:
    from fastwi.data.resident import ResidentDataset
    from fastwi.population import Population

_TOGETHER = 8  # networks in memory at one time

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
        "train_accuracy_%": Column("%", "accuracy on the split's images, without augmentation"),
        "train_loss_nats": Column("nats", "mean cross-entropy on them; null where not finite"),
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
        "epochs": Column("epochs", "states of such networks beside the one at interpolation", polars.Int64),
        "epochs_not_stored": Column("epochs", "how many of them are not stored, nor measured", polars.Int64),
    },
}


class _Network(NamedTuple):
    """A network of a pair: what it is in the table, its state, and the epoch of the draws that its batch-norm
    statistics are recomputed on (None: its own)."""

    name: str
    child: int | None
    stage: str
    epoch: int
    state: str
    draws: int | None

    @property
    def measured(self) -> tuple[str, int | None]:
        """The key of its measurement: children of one parent at several s share states."""
        return self.state, self.draws

    @property
    def treatment(self) -> str:
        """Of its batch-norm statistics."""
        return OWN if self.draws is None else RECOMPUTED


_Scores = dict[tuple[str, int | None], tuple[NDArray[np.float64], NDArray[np.float64]]]


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Measure parent, children, average and continued average on each split, one combination of axes after another.

    scores: one row a training image. Forgetting events are null where states are missing; an image that a parent
    never learned counts as many events as there are measurements. Parents that diverged or are not trained to their
    end have no part.
    splits: one row a network, epoch, split and treatment. Recomputed statistics are those of the interpolation
    epoch, for parent, children and average alike.
    split_gains: the average less the children's mean and best child, on each split.
    split_changes: the average after each further epoch less the average at interpolation, own statistics.
    missing: states between the sweep's stops that are not stored and so not in `splits`.

    Raises UserError where no epoch has all parents' states.
    """
    by_variant: dict[Any, list[Pair]] = {}
    for pair in chosen_pairs(opened, options):
        by_variant.setdefault(pair.variant, []).append(pair)
    parts = [_Part.of(opened, options, pairs) for pairs in by_variant.values()]
    done, total = 0, sum(part.passes for part in parts)

    def passed(networks: int) -> None:
        nonlocal done
        done += networks
        progress(done, total)

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for part in parts:
        splits_N = _score(opened, options, part, rows["scores"], passed)
        found = _measure(opened, part, splits_N, passed)
        for pair, networks in part.networks:
            rows["splits"] += _split_rows(pair, networks, found, np.bincount(splits_N))
            rows["split_gains"] += _gain_rows(pair, networks, found)
            rows["split_changes"] += _change_rows(pair, networks, found)
            rows["missing"] += _missing_rows(opened, pair)
    return opened.frames(COLUMNS, **rows)


@dataclass(frozen=True, eq=False)
class _Part:
    """One combination of the axes beside k and s: the parents' states that give scores, and networks to measure.

    `along`: the parents' states after each epoch up to `epoch`, for forgetting; empty: not all are stored.
    """

    epoch: int
    parents: tuple[str, ...]
    along: tuple[tuple[str, ...], ...]
    networks: list[tuple[Pair, list[_Network]]]
    images: "ResidentDataset"
    positions: list[int]

    @classmethod
    def of(cls, opened: OpenedSweep, options: AnalysisOptions, pairs: list[Pair]) -> "_Part":
        """What is measured for `pairs`, of one combination. Raises UserError where no epoch gives scores."""
        paths: dict[int, tuple[str, ...]] = {}
        for pair in all_pairs(opened):
            if pair.variant == pairs[0].variant and len(pair.place.parent) >= len(paths.get(pair.point.parent, ())):
                paths[pair.point.parent] = pair.place.parent
        sound = [path for path in paths.values() if _is_sound(opened, path)]
        epoch = _score_epoch(opened, options.score_epoch, sound)
        along = tuple(tuple(path[e] for path in sound) for e in range(epoch))
        whole = epoch > 1 and all(opened.has(states) for states in along)
        train = opened.resident_splits(pairs[0].config)[0]
        again, lost = RECOMPUTED in options.treatments, opened.lost()
        networks = [(pair, list(_networks(opened, pair, again, lost))) for pair in pairs]
        images, positions = part_of(train, options.train_images, "analysis.train_images")
        return cls(epoch, along[-1], along if whole else (), networks, images, positions)

    @property
    def wanted(self) -> list[tuple[str, int | None]]:
        """Each measurement once."""
        return list(dict.fromkeys(network.measured for _, networks in self.networks for network in networks))

    @property
    def passes(self) -> int:
        """Networks that are passed over the training images."""
        return len(self.parents) + sum(map(len, self.along)) + len(self.wanted)


def _is_sound(opened: OpenedSweep, path: tuple[str, ...]) -> bool:
    """Whether a parent is trained to its end and has not diverged: n counts those only."""
    found = [opened.measured.get((state, OWN)) for state in path]
    return all(m is not None and not m.diverged for m in found)


def _score_epoch(opened: OpenedSweep, asked: int, paths: list[tuple[str, ...]]) -> int:
    """The epoch of the parents' states that give scores: the one asked for, or the last that is stored of all."""
    reached = min(map(len, paths), default=0)
    if asked > reached:
        raise UserError(
            f"analysis.score_epoch: {asked}, but the sweep's parents end at epoch {reached}; give that or less, "
            "0 for the last one, or sweep a larger experiment.k"
        )
    stored = (epoch for epoch in range(reached, 0, -1) if opened.has([path[epoch - 1] for path in paths]))
    epoch = asked or next(stored, 0)
    if not epoch:
        raise UserError(
            "analysis.score_epoch: no epoch has the states of all parents; run the sweep with sweep.keep: stops, and "
            "a k above 0"
        )
    return epoch


def _networks(opened: OpenedSweep, pair: Pair, again: bool, lost: set[str]) -> Iterator[_Network]:
    """The pair's networks in order, without those that diverged; of those between stops, the ones that are stored."""
    place, k, end = pair.place, pair.k, pair.k + pair.s
    treatments: tuple[int | None, ...] = (None, end) if again else (None,)
    for draws in treatments:
        yield _Network("parent", None, "parent", k, place.clone, draws)
    for number, path in zip(pair.numbers, place.children, strict=True):
        for epoch, state in enumerate(path, k + 1):
            if epoch != end and state not in lost and opened.has([state]):
                stage = "children" if epoch < end else "after"
                yield _Network("child", number, stage, epoch, state, None)
    for draws in treatments:
        for number, state in zip(pair.numbers, place.ends, strict=True):
            yield _Network("child", number, "interpolation", end, state, draws)
        yield _Network("average", None, "interpolation", end, place.average, draws)
    for epoch, state in enumerate(place.after, end + 1):
        if state not in lost and (opened.has([state]) or epoch == end + len(place.after)):
            yield _Network("average", None, "after", epoch, state, None)


def _score(
    opened: OpenedSweep,
    options: AnalysisOptions,
    part: _Part,
    rows: list[dict[str, Any]],
    passed: Callable[[int], None],
) -> NDArray[np.int64]:
    """Score and split the images, and add their rows; returns the split of each, from 0."""
    first = part.networks[0][0]
    engine = opened.resources.engine(first.config)

    def loaded(each: Iterable[Sequence[str]]) -> "Iterator[Population]":
        for states in each:
            yield opened.states(states)
            passed(len(states))

    el2n_N = analysis.el2n_scores(engine, loaded([state] for state in part.parents), part.images)
    splits_N = analysis.equal_splits(el2n_N, options.splits)
    forgotten: Sequence[float | None] = [None] * len(el2n_N)
    if part.along:
        forgetting = analysis.forgetting_events(engine, loaded(part.along), part.images)
        scores_N = forgetting.scores(float(forgetting.measurements)) / len(part.parents)
        forgotten = scores_N.tolist()
    columns = part.positions, part.images.labels_N.tolist(), el2n_N.tolist(), (splits_N + 1).tolist(), forgotten
    every = dict(first.variant) | {"score_epoch": part.epoch, "n_parents": len(part.parents)}
    rows += [every | dict(zip(COLUMNS["scores"], values, strict=False)) for values in zip(*columns, strict=True)]
    return splits_N


def _measure(opened: OpenedSweep, part: _Part, splits_N: NDArray[np.int64], passed: Callable[[int], None]) -> _Scores:
    """Accuracy (%) and loss (nats) [S] of each wanted network, some networks at a time."""
    config = part.networks[0][0].config
    engine = opened.resources.engine(config)
    found: _Scores = {}
    by_draws: dict[int | None, list[str]] = {}
    for state, draws in part.wanted:
        by_draws.setdefault(draws, []).append(state)
    for draws, states in by_draws.items():
        for first in range(0, len(states), _TOGETHER):
            chosen = states[first : first + _TOGETHER]
            population = opened.states(chosen)
            if draws is not None:
                population = recomputed(opened, population, config, draws)
            scores = analysis.split_scores(engine, population, part.images, splits_N)
            for m, state in enumerate(chosen):
                found[state, draws] = scores.accuracy_MS[m], scores.loss_MS[m]
            passed(len(chosen))
    return found


def _split_rows(
    pair: Pair, networks: list[_Network], found: _Scores, images_S: NDArray[np.int64]
) -> list[dict[str, Any]]:
    return [
        {
            **pair.columns(), **network._asdict(), "batch_norm": network.treatment, "split": split,
            "images": int(images), "train_accuracy_%": float(accuracy), "train_loss_nats": analysis.finite(loss),
            "network": network.name,
        }
        for network in networks
        for split, (images, accuracy, loss) in enumerate(zip(images_S, *found[network.measured], strict=True), 1)
    ]  # fmt: skip


def _gain_rows(pair: Pair, networks: list[_Network], found: _Scores) -> list[dict[str, Any]]:
    rows = []
    for treatment in (OWN, RECOMPUTED):
        here = [n for n in networks if n.stage == "interpolation" and n.treatment == treatment]
        if not here:
            continue
        *children, average = (found[network.measured] for network in here)
        accuracy_CS, loss_CS = (np.array([child[i] for child in children]) for i in range(2))
        for split, (accuracy, loss) in enumerate(zip(*average, strict=True)):
            rows.append({
                **pair.columns(), "batch_norm": treatment, "split": split + 1,
                "gain_mean_points": float(accuracy - accuracy_CS[:, split].mean()),
                "gain_best_points": float(accuracy - accuracy_CS[:, split].max()),
                "gain_mean_loss_nats": analysis.finite(loss - loss_CS[:, split].mean()),
            })  # fmt: skip
    return rows


def _change_rows(pair: Pair, networks: list[_Network], found: _Scores) -> list[dict[str, Any]]:
    at, loss_at = found[pair.place.average, None]
    return [
        {
            **pair.columns(), "epochs_after": network.epoch - pair.k - pair.s, "split": split + 1,
            "change_points": float(found[network.measured][0][split] - at[split]),
            "change_loss_nats": analysis.finite(found[network.measured][1][split] - loss_at[split]),
        }
        for network in networks
        if network.name == "average" and network.stage == "after"
        for split in range(len(at))
    ]  # fmt: skip


def _missing_rows(opened: OpenedSweep, pair: Pair) -> list[dict[str, Any]]:
    rows = []
    for name, paths in (("child", pair.place.children), ("average", (pair.place.after,))):
        states = [state for path in paths for state in path]
        lacking = sum(not opened.has([state]) for state in states)
        if lacking:
            rows.append({**pair.columns(), "network": name, "epochs": len(states), "epochs_not_stored": lacking})
    return rows


def tables(frames: Frames) -> list[Table]:
    """The claims with their verdicts, gains and later changes by split, the scores, and what was not stored."""
    gains, changes = frames["split_gains"], frames["split_changes"]

    def by_split(rows: polars.DataFrame, title: str, column: str, digits: int, name: str) -> Table:
        columns = {f"split {split}": (polars.col("split") == split, column, digits) for split in _splits(gains)}
        return estimate_table(rows, f"{title} [95 %]", [*cell_names(gains, alpha=True), name], columns)

    gain = "Gain of the average over the {} at interpolation by split (1 easiest), in points"
    after = "The average trained on: {} less at interpolation by split, own statistics, in {}"
    found = [
        _claims(gains, changes),
        by_split(gains, gain.format("children's mean"), "gain_mean_points", 2, "batch_norm"),
        by_split(gains, gain.format("best child on that split"), "gain_best_points", 2, "batch_norm"),
    ]
    if changes.height:
        found.append(by_split(changes, after.format("accuracy", "points"), "change_points", 2, "epochs_after"))
        found.append(by_split(changes, after.format("loss", "nats"), "change_loss_nats", 4, "epochs_after"))
    found.append(_scores(frames["scores"]))
    missing = frames["missing"]
    if missing.height:
        names = [*cell_names(missing), "network"]
        body = tuple(
            (*map(str, values), f"{rows['epochs_not_stored'].sum():,} of {rows['epochs'].sum():,}")
            for values, rows in groups(missing, names)
        )
        title = "Epochs that were not measured, for want of states (sweep.keep: all keeps them)"
        found.append(Table(title, (*names, "epochs not stored"), body))
    return found


def _claims(gains: polars.DataFrame, changes: polars.DataFrame) -> Table:
    """The paper's claim 5 in parts that data can settle, over all cells together.

    Each needs two things: that there is a gain (a drop) over all splits, and that it lies on the hard ones. It is
    confirmed where both are, refuted where one is.
    """
    parts = [
        (f"gain at interpolation, {treatment} statistics", rows, "gain_mean_points", "above")
        for (treatment,), rows in groups(gains, ["batch_norm"])
    ]
    further: list[int] = sorted(distinct(changes, "epochs_after"))
    for epochs in dict.fromkeys((*further[:1], *further[-1:])):
        rows = changes.filter(polars.col("epochs_after") == epochs)
        parts.append((f"drop after {epochs} further epoch{'s' * (epochs != 1)}", rows, "change_points", "below"))
    body, notes, most = list[Sequence[str]](), list[str](), 0
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
            parents = estimate.n_parents
            most = max(most, parents)
            contrast = "hard - easy" if times == 1 else f"hard - {times} x easy"
            both = {verdict(whole, claim=claim), verdict(estimate, claim=claim)}
            found = REFUTED if REFUTED in both else CONFIRMED if both == {CONFIRMED} else NOT_SETTLED
            body.append([
                f"the {what} {text}", shown(whole, parents), f"{shown(estimate, parents)} ({contrast})",
                shown(easiest, parents), str(parents), str(estimate.n_pairs), verdict_text(found, parents),
            ])  # fmt: skip
    columns = ("claim", "all splits, points [95 %]", "contrast, points [95 %]", "easiest split, points [95 %]",
               "parents", "pairs", "verdict")  # fmt: skip
    title = (
        "Gains and losses of accuracy fall almost wholly on the hard splits: the claim in parts, all cells together"
    )
    return titled(title, columns, body, most, notes)


def _scores(frame: polars.DataFrame) -> Table:
    """What the splits rest on."""
    body = []
    names = frame.columns[: frame.columns.index("example")]
    for values, rows in groups(frame, [*names, "score_epoch"]):
        said, events = "states of every epoch are not stored", rows["forgetting_events"]
        if events.null_count() == 0 and events.n_unique() > 1 and rows["el2n"].n_unique() > 1:
            found = spearman(rows["el2n"], events, [0] * rows.height)
            said = f"{found.value:+.2f}"
        in_splits = [part["el2n"].to_list() for _, part in groups(rows.sort("el2n"), ["split"])]
        ranges = "; ".join(f"{scores_n[0]:.3f} to {scores_n[-1]:.3f}" for scores_n in in_splits)
        body.append((*map(str, values), str(rows["n_parents"][0]), str(rows.height), said, ranges))
    columns = (*names, "epoch", "parents", "images", "rank correlation with forgetting", "EL2N of each split")
    return Table("The scores: EL2N, the mean over parents; the same for all pairs", columns, tuple(body))


_PARENT, _CHILD, _AVERAGE = "0.2", "tab:green", "#cc1a26"  # blue and orange are treatments of batch norm
_ACROSS = 5  # panels beside each other


def draw(frames: Frames, path: Path, title: str) -> None:
    """Draw accuracy over epochs, one panel a split (paper, Figure 5), and the gain by split.

    Of the frame's first cell. Networks are thin lines, their means over parents thick.
    """
    from matplotlib.figure import Figure

    names = cell_names(frames["splits"], alpha=True)
    values, rows = next(groups(frames["splits"], names))
    gains = next(groups(frames["split_gains"], names))[1]
    numbers = _splits(rows)
    across = min(len(numbers) + 1, _ACROSS)
    down = -(-(len(numbers) + 1) // across)
    figure = Figure(figsize=(2.9 * across + 0.6, 3.0 * down + 1.1), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, number in zip(axes, numbers, strict=False):
        panel = rows.filter(polars.col("split") == number, polars.col("batch_norm") == OWN)
        _draw_curves(axis, panel)
        hardness = " (easiest)" if number == numbers[0] else " (hardest)" if number == numbers[-1] else ""
        label = "training accuracy (%)" if axis is axes[0] else ""
        heading = f"Split {number}{hardness}: {panel['images'][0]:,} images"
        style(axis, "epochs since initialisation", label, heading, whole_x=True)
    _same_span(list(axes[: len(numbers)]))
    bars = axes[len(numbers)]
    spread = spread_text(draw_bars(bars, gains, "gain_mean_points", "split", "{} statistics"))
    style(bars, "split", "gain (points)", f"Gain over the children's mean\n{spread}")
    bars.margins(y=0.2)
    bars.legend(fontsize=7)
    for axis in axes[len(numbers) + 1 :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    score = frames["scores"]
    cell = dict(zip(names, values, strict=True))
    where = ", ".join(f"{name} = {cell[name]:g}" for name in ("k", "s", "alpha") if cell.get(name) is not None)
    lines = [
        "Training accuracy by importance of the examples: thin lines each network, thick their mean over parents",
        title, variant_of(cell_names(rows), values),
        f"{where}; {counted_text(gains)}; split by EL2N at epoch {score['score_epoch'][0]} (mean of "
        f"{score['n_parents'][0]} parents); curves with own batch-norm statistics",
    ]  # fmt: skip
    figure.suptitle("\n".join(filter(None, lines)), fontsize=9)
    save_figure(figure, path)


def _draw_curves(axis: Any, rows: polars.DataFrame) -> None:
    """One split: children from the parent on, the average, and the average trained on."""
    column, network = "train_accuracy_%", polars.col("network")
    parent, average = rows.filter(network == "parent"), rows.filter(network == "average")
    for label, colour, chosen in (
        ("children", _CHILD, rows.filter(network == "child")), ("average trained on", _AVERAGE, average),
    ):  # fmt: skip
        for (seed, pair, child), line in groups(chosen.sort("epoch"), ["parent_seed", "pair", "child"]):
            if child is not None:
                own = (polars.col("parent_seed") == seed) & (polars.col("pair") == pair)
                line = polars.concat([parent.filter(own), line])
            axis.plot(line["epoch"], line[column], color=colour, lw=0.5, alpha=0.35)
        from_start = polars.concat([parent, chosen]) if label == "children" else chosen
        points = list(groups(from_start.sort("epoch"), ["epoch"]))
        epochs, means = [epoch for (epoch,), _ in points], [mean_of(here, column) for _, here in points]
        axis.plot(epochs, means, color=colour, lw=1.8, marker="o", markersize=2.5, label=label, zorder=3)
    start = average["epoch"].min()
    here = average.filter(polars.col("epoch") == start)
    axis.plot([start], [mean_of(here, column)], color=_AVERAGE, marker="*", ls="", markersize=10, label="average",
              zorder=4)  # fmt: skip
    axis.axvline(start, color="0.6", lw=0.8, ls="--", zorder=0)
    axis.plot([parent["epoch"][0]], [mean_of(parent, column)], color=_PARENT, marker="s", ls="", markersize=4,
              label="parent at k", zorder=4)  # fmt: skip


def _same_span(axes: Sequence[Any]) -> None:
    """Give all panels of accuracies the same number of points, within 0 to 100 %."""
    limits = [axis.get_ylim() for axis in axes]
    span = min(100.0, max(high - low for low, high in limits))
    for axis, (low, high) in zip(axes, limits, strict=True):
        bottom = min(max(0.0, (low + high - span) / 2), 100.0 - span)
        axis.set_ylim(bottom - 0.02 * span, bottom + 1.02 * span)
        axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= 100])
        axis.set_ylim(bottom - 0.02 * span, bottom + 1.02 * span)


def _splits(frame: polars.DataFrame) -> list[int]:
    return sorted(distinct(frame, "split"))


STUDY = Study(
    question="the importance-score splits of the training images on which averaging gains and loses",
    options=("train_images", "splits", "score_epoch", "treatments", "cells", "pairs"),
    columns=COLUMNS,
    measure=measure,
    tables=tables,
    draw=draw,
)
