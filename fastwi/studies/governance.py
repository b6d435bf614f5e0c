"""What governs the gain: each pair's gain beside what it might depend on, and their rank correlations.

The paper's claims 3 and 4. Correlation shows what goes along with the gain, not what causes it: over all pairs every
quantity moves with k and s. So each correlation is also given within cells, after the mean of each cell was
subtracted. A barrier and a gain are of one line: part of their correlation follows from that. The learning rate is
that of the first step of the children's last epoch: a warm-up or a drop within it is not seen.

Shapes: C children.
"""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column, types_of
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.analysis.statistics import CONFIRMED, REFUTED, Estimate, spearman, verdict, verdict_text
from fastwi.config.sweep import RECOMPUTED
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import Sheet, looks, style
from fastwi.report.estimates import (
    cell_names,
    correlation_of,
    counted_text,
    distinct,
    groups,
    pairs_at_interpolation,
    shown,
    titled,
)
from fastwi.report.rows import gains
from fastwi.report.study import Found, Frames, Row, Study
from fastwi.report.summary import LEVEL, Table

if TYPE_CHECKING:
    from fastwi.population import Population

ALL_PAIRS, WITHIN_CELLS, CELL_MEANS = "all pairs", "within cells", "cell means"
SCOPES = (ALL_PAIRS, WITHIN_CELLS)
"""What a correlation is taken over; within cells: after the mean of each cell was subtracted."""

GAINS = {
    f"gain_{over}_{treatment}_points": f"{words}, {treatment} statistics"
    for treatment in (OWN, RECOMPUTED)
    for over, words in (("best", "the best child"), ("mean", "the children's mean"))
}
"""The gains that quantities are correlated with, in words."""

QUANTITIES = {
    "k": "k: epochs of the parent",
    "s": "s: epochs of each child",
    "learning_rate": "learning rate at the start of the children's last epoch",
    "distance_l2": "children's L2 distance",
    "relative_distance": "children's distance / parent's norm",
    "displacement_l2": "children's mean L2 displacement from the parent",
    "displacement_cosine": "cosine between the children's displacements",
    "disagreement_%": "children's disagreement on test images (%)",
    "kl_nats": "children's KL divergence on test images (nats)",
    "tangent_departure": "departure from the tangent regime",
    "error_barrier_points": "error barrier (points)",
    "loss_barrier_nats": "loss barrier (nats)",
    "error_barrier_recomputed_points": "error barrier, recomputed (points)",
    "loss_barrier_recomputed_nats": "loss barrier, recomputed (nats)",
    "parent_accuracy_%": "parent's test accuracy at k (%)",
    "children_accuracy_%": "children's mean test accuracy (%)",
    "children_train_loss_nats": "children's training loss in their last epoch (nats)",
}
"""What the gain is compared with, by column of the frame, in words."""

COLUMNS = {
    "pairs": {
        **PAIR_COLUMNS,
        **{name: Column("points", f"accuracy of the average less that of {words}") for name, words in GAINS.items()},
        **{name: Column("", words) for name, words in QUANTITIES.items() if name not in PAIR_COLUMNS},
    },
    "correlations": {
        "gain": Column("", "which gain", polars.String),
        "quantity": Column("", "what it is correlated with", polars.String),
        "scope": Column("", "all pairs, or within cells: the mean of each cell subtracted", polars.String),
        "spearman": Column("1", "Spearman's rank correlation"),
        "low": Column("1", "lower end of its 95 % interval over parents; null: none"),
        "high": Column("1", "upper end"),
        "n_parents": Column("", "parents", polars.Int64),
        "n_pairs": Column("", "pairs", polars.Int64),
        "note": Column("", "to be shown beside the interval", polars.String),
    },
}


def measure(bench: Bench) -> Found:
    """Measure each chosen pair, and correlate.

    pairs: the gains at interpolation as the sweep measured them, and `QUANTITIES`. Tuples of more than two children
    have the mean over their pairs. Barriers take `options.alphas` places from 0 to 1 on test images, with recomputed
    statistics only where `options.treatments` has them. Null: not measured, or not finite.
    """
    rows = [{**gain, **_quantities(bench, pair)} for pair, gain in pairs_with_gains(bench)]
    frame = bench.frame(COLUMNS["pairs"], rows)
    return {"pairs": frame, "correlations": correlations(frame)}


def pairs_with_gains(bench: Bench) -> Iterator[tuple[Pair, Row]]:
    """Each chosen pair, and its row of the gains at interpolation as the sweep measured them."""
    opened, pairs = bench.opened, bench.pairs()
    points, places = [pair.point for pair in pairs], [pair.place for pair in pairs]
    found = gains(replace(opened.planned, points=points, places=places), opened.measured)
    return zip(bench.each(pairs), found.rows(named=True), strict=True)


def _quantities(bench: Bench, pair: Pair) -> dict[str, float | None]:
    opened, place = bench.opened, pair.place
    test, _ = bench.part(pair.config, "test")
    how = bench.how(pair)
    evaluator = how["evaluator"]
    networks = opened.states([*place.ends, place.clone])
    count = len(place.ends)
    children = networks[:count]
    parent = networks[count:]
    mean = analysis.uniform_soups(children, [range(count)])  # the sweep's average may be at another alpha
    two = list(itertools.combinations(range(count), 2))
    first, second = zip(*two, strict=True)
    weights = analysis.weight_distances(children, parent)
    functions = analysis.function_distances(evaluator, children, test)
    distance = _mean(weights.l2_CC[first, second])
    norm = float(parent.weights_MP[0].double().norm())
    ends = [opened.measured[end, OWN] for end in place.ends]
    found: dict[str, float | None] = {
        "learning_rate": ends[0].learning_rate if pair.s else None,
        "distance_l2": distance,
        "relative_distance": distance / norm if norm and distance is not None else None,
        "displacement_l2": _mean(weights.displacement_C),
        "displacement_cosine": _mean(weights.cosine_CC[first, second]),
        "disagreement_%": _mean(functions.disagreement_CC[first, second]),
        "kl_nats": _mean(functions.kl_CC[first + second, second + first]),
        "tangent_departure": analysis.finite(analysis.tangent_departure(evaluator, children, mean, test)),
        "parent_accuracy_%": bench.accuracy(place.clone),
        "children_accuracy_%": _mean([end.test_accuracy for end in ends]),
        "children_train_loss_nats": _mean([end.train_loss for end in ends]) if pair.s else None,
    }
    return {**found, **barriers_of(children, bench.options.alphas, splits={"test": test}, **how)}


def barriers_of(children: "Population", alphas: int, **how: Any) -> dict[str, float | None]:
    """The barriers between the children, the mean over all two of them, as columns of a frame."""
    found: dict[str, float | None] = {}
    barriers = []
    for each in itertools.combinations(range(children.members), 2):
        barriers += analysis.barrier_between(pair=children.clone_rows(each), alphas=alphas, **how)
    for treatment, text in (("averaged", ""), (RECOMPUTED, "recomputed_")):
        here = [barrier for barrier in barriers if barrier.treatment == treatment]
        found[f"error_barrier_{text}points"] = _mean([barrier.error for barrier in here])
        found[f"loss_barrier_{text}nats"] = _mean([barrier.loss for barrier in here])
    return found


def _mean(values: Any) -> float | None:
    """The mean, or None where there is none that is finite."""
    return analysis.finite(float(np.mean(np.asarray(values, dtype=np.float64)))) if len(values) else None


def correlations(
    pairs: polars.DataFrame,
    outcomes: Iterable[str] = GAINS,
    quantities: Iterable[str] = QUANTITIES,
    scopes: Sequence[str] = SCOPES,
) -> polars.DataFrame:
    """Spearman's rank correlation of each gain with each quantity of a frame `pairs`, with its interval over parents.

    A row for each gain (or other outcome), quantity and scope that has data. Pairs that lack one of the two numbers
    are left out; n counts those that are in, each once, whatever the axes of its further training are.
    """
    cell = [*cell_names(pairs), "alpha"]
    rows = []
    for gain, quantity in itertools.product(outcomes, quantities):
        there = pairs.drop_nulls([gain, quantity])
        columns = [polars.col(name).cast(polars.Float64) for name in (gain, quantity)]
        for scope in scopes if there.height else ():
            found = Estimate(None, None, None, 1, 1, "undefined: one pair has no order")
            if there.height > 1:
                x, y = there.select(columns)
                cells = None if scope == ALL_PAIRS else list(map(str, there.select(cell).rows()))
                found = spearman(x, y, there["parent_seed"].to_list(), cells, within=scope == WITHIN_CELLS)
            interval = (found.value, found.low, found.high)
            counts = (found.n_parents, pairs_at_interpolation(there, gain, quantity))
            rows.append([gain, quantity, scope, *interval, *counts, found.note])
    return polars.DataFrame(rows, schema=types_of(COLUMNS["correlations"]), orient="row")


def renew(frames: Frames) -> Frames:
    """The frames of an earlier version with this version's intervals, where it measured the same quantities."""
    if {*GAINS, *QUANTITIES} <= set(frames["pairs"].columns if "pairs" in frames else ()):
        return {**frames, "correlations": correlations(frames["pairs"])}
    return frames


def tables(frames: Frames) -> list[Table]:
    """A table for each gain: correlations with every quantity, strongest first, with intervals and n.

    They are not corrected for their number. `correlates` is confirmed where the interval excludes 0. Within cells k
    and s are constant, and undefined.
    """
    gains = {gain: f"the gain over {words}" for gain, words in GAINS.items()}
    return correlation_tables(frames, gains, QUANTITIES, SCOPES)


def correlation_tables(
    frames: Frames, outcomes: Mapping[str, str], quantities: Mapping[str, str], scopes: Sequence[str]
) -> list[Table]:
    """A table for each of `outcomes` in words, with two columns for each scope; see `tables`."""
    found = []
    of_scopes = [name for scope in scopes for name in (f"{scope} [95 %]", "correlates")]
    columns = ("quantity", *of_scopes, "parents", "pairs")
    for gain, words in outcomes.items():
        overall, *others = (of_outcome(frames, gain, quantities, scope) for scope in scopes)
        if not overall:
            continue
        body = list[list[str]]()
        for name in sorted(overall, key=lambda name: -abs(overall[name].value or 0.0)):
            row = [quantities[name]]
            for estimate in (overall[name], *(other[name] for other in others)):
                row += [shown(estimate, estimate.n_parents), _sided(estimate)]
            body.append([*row, str(overall[name].n_parents), str(overall[name].n_pairs)])
        title = f"Spearman's correlation with {words}, uncorrected for many comparisons"
        found.append(titled(title, columns, body, overall.values()))
    return found


def of_outcome(frames: Frames, outcome: str, quantities: Iterable[str], scope: str) -> dict[str, Estimate]:
    """The correlations of one outcome by quantity, in the order of `quantities`."""
    chosen = frames["correlations"].filter(gain=outcome, scope=scope)
    found = {row["quantity"]: correlation_of(row) for row in chosen.iter_rows(named=True)}
    return {name: found[name] for name in quantities if name in found}


def _sided(estimate: Estimate) -> str:
    """Whether there is a correlation, and of which sign."""
    found = verdict(estimate)
    signed = {CONFIRMED: f"{CONFIRMED}, rising", REFUTED: f"{CONFIRMED}, falling"}
    return signed.get(found) or verdict_text(found, estimate.n_parents)


def draw(frames: Frames, title: str) -> Any:
    """Draw the gain over the best child against each quantity that varies, a dot a pair: colour k, marker s.

    Own statistics; correlations over all pairs stand above each panel.
    """
    gain = next(iter(GAINS))
    pairs = frames["pairs"].drop_nulls(gain)
    varied = [name for name in QUANTITIES if pairs[name].drop_nulls().n_unique() > 1]
    # Of a single pair nothing varies: what it has is shown.
    drawn = varied or [name for name in QUANTITIES if pairs[name].null_count() < pairs.height]
    ks, ss = (sorted(distinct(pairs, name)) for name in ("k", "s"))
    colours, markers, handles = looks(ks, ss, ("k = {}", "s = {}"))
    sheet = Sheet.of(len(drawn), 5, (2.7, 2.5), below=1.3, sharey=True)
    overall = of_outcome(frames, gain, QUANTITIES, ALL_PAIRS)
    for i, (axis, name) in enumerate(zip(sheet.axes, drawn, strict=True)):
        for (k, s), dots in groups(pairs, ["k", "s"]):
            axis.plot(dots[name], dots[gain], ls="", marker=markers[s], markersize=4, color=colours[k], alpha=0.75,
                      markeredgewidth=0.3, markeredgecolor="white")  # fmt: skip
        words = "\n".join(textwrap.wrap(QUANTITIES[name], 30))
        estimate = overall.get(name)
        above = shown(estimate, estimate.n_parents) if estimate else ""
        style(axis, words, "gain (points)" if i % 5 == 0 else "", above, name in ("k", "s"))
        axis.axhline(0, color="0.5", lw=0.8)
    sheet.figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 12), fontsize=8)
    level = LEVEL if any(estimate.conclusive for estimate in overall.values()) else ""
    constant = len(QUANTITIES) - len(drawn)
    left = f"left out: {constant} that were not measured or do not vary" if constant else ""
    above = f"above each panel Spearman's rank correlation{level}"
    what = f"Gain of the average over {GAINS[gain]}, against what it may depend on"
    return sheet.titled(what, title, counted_text(pairs, pairs_at_interpolation(pairs, gain)), above, left)


QUESTION = "what goes with the gain: k, s, learning rate, the children's distance, the barrier"
OPTIONS = ("alphas", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw, renew)
