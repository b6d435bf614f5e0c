"""What governs the gain: each pair's gain beside what it might depend on, and their rank correlations.

The paper's claims 3 and 4: two quantities govern the gain (k, s, the learning rate and the children's distance are
candidates), and it is tied to linear mode connectivity (the barrier of Frankle et al. 2020, section 2). Correlation
shows what goes along with the gain, not what causes it: over all pairs every quantity moves with k and s. So each
correlation is also given within cells, of ranks after the mean of each cell was subtracted.

A barrier and a gain are of one line: with 1/2 among its places, the error barrier on the same images is at least the
loss of accuracy there, minus the gain over the children's mean. Part of their correlation follows from that.

Shapes: C children.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import Bench, part_of
from fastwi.analysis.opened import OpenedSweep
from fastwi.analysis.pairs import Pair, Progress, chosen_pairs
from fastwi.analysis.statistics import (
    CONFIRMED,
    REFUTED,
    SCOPES,
    Estimate,
    spearman,
    verdict,
    verdict_text,
)
from fastwi.config.sweep import RECOMPUTED, AnalysisOptions
from fastwi.experiment.tree import OWN
from fastwi.report.estimates import counted_text, distinct, groups, style, titled
from fastwi.report.figures import save_figure
from fastwi.report.study import Frames, Study
from fastwi.report.summary import LEVEL, Table

GAINS = {
    f"gain_{over}_{treatment}_points": f"{words}, {treatment} statistics"
    for treatment in (OWN, RECOMPUTED)
    for over, words in (("best", "the best child"), ("mean", "the children's mean"))
}
"""The gains that quantities are correlated with, in words."""

QUANTITIES = {
    "k": "k: epochs of the parent",
    "s": "s: epochs of each child",
    "learning_rate": "learning rate of the children's last epoch",
    "distance_l2": "children's L2 distance",
    "relative_distance": "children's distance / parent's norm",
    "displacement_l2": "children's mean L2 way from the parent",
    "displacement_cosine": "cosine of the children's ways",
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


def measure(opened: OpenedSweep, options: AnalysisOptions, progress: Progress) -> dict[str, polars.DataFrame]:
    """Measure each chosen pair, and correlate.

    pairs: one row a pair: the gains at interpolation as the sweep measured them, and `QUANTITIES`. Distances are of
    parameters. Tuples of more than two children have the mean over their pairs. Barriers take `options.alphas`
    places from 0 to 1 on test images; recomputed ones only where `options.treatments` has them. Null: not measured,
    or not finite.
    correlations: see `correlations`.
    """
    pairs = chosen_pairs(opened, options)
    bench = Bench(opened, options)
    rows = []
    for done, pair in enumerate(pairs):
        progress(done, len(pairs))
        rows.append({**pair.columns(), **_gains(opened, pair), **_quantities(opened, pair, options, bench)})
    progress(len(pairs), len(pairs))
    frame = opened.frames({"pairs": COLUMNS["pairs"]}, pairs=rows)["pairs"]
    return {"pairs": frame, "correlations": correlations(frame)}


def _gains(opened: OpenedSweep, pair: Pair) -> dict[str, float]:
    found = {}
    for name, treatment in zip((OWN, RECOMPUTED), pair.place.treatments, strict=False):
        keys = [(state, treatment) for state in (pair.place.average, *pair.place.ends)]
        if all(key in opened.measured for key in keys):
            average, *children = (opened.measured[key].test_accuracy for key in keys)
            found[f"gain_best_{name}_points"] = average - max(children)
            found[f"gain_mean_{name}_points"] = average - sum(children) / len(children)
    return found


def _quantities(opened: OpenedSweep, pair: Pair, options: AnalysisOptions, bench: Bench) -> dict[str, float | None]:
    place, config = pair.place, pair.config
    test, _ = part_of(opened.resident_splits(config)[1], options.test_images, "analysis.test_images")
    count = len(place.ends)
    networks, members = opened.states([*place.ends, place.clone, place.average]), list(range(count))
    pairs = list(itertools.combinations(members, 2))
    evaluator = bench.evaluator(config)
    weights = analysis.weight_distances(networks, members, parent=count)
    assert weights.displacement_C is not None
    assert weights.cosine_CC is not None
    functions = analysis.function_distances(evaluator, networks, test, members)
    norm = float(networks.weights_MP[count].double().norm())
    distance = _mean([weights.l2_CC[i, j] for i, j in pairs])
    ends = [opened.measured[end, OWN] for end in place.ends]
    parent = opened.measured.get((place.clone, OWN))
    departure = analysis.tangent_departure(evaluator, networks, test, members, count + 1)
    found: dict[str, float | None] = {
        "learning_rate": ends[0].learning_rate if pair.s else None,
        "distance_l2": distance,
        "relative_distance": distance / norm if norm and distance is not None else None,
        "displacement_l2": _mean(weights.displacement_C),
        "displacement_cosine": _mean([weights.cosine_CC[i, j] for i, j in pairs]),
        "disagreement_%": _mean([functions.disagreement_CC[i, j] for i, j in pairs]),
        "kl_nats": _mean([functions.kl_CC[i, j] for i, j in (*pairs, *((j, i) for i, j in pairs))]),
        "tangent_departure": analysis.finite(departure),
        "parent_accuracy_%": None if parent is None else parent.test_accuracy,
        "children_accuracy_%": _mean([end.test_accuracy for end in ends]),
        "children_train_loss_nats": _mean([end.train_loss for end in ends]) if pair.s else None,
    }
    how = bench.treatments(pair)
    barriers = [
        barrier
        for i, j in pairs
        for barrier in analysis.barrier_between(
            evaluator, networks, {"test": test}, ends=(i, j), alphas=options.alphas, **how
        )
    ]
    for treatment, text in (("averaged", ""), (RECOMPUTED, "recomputed_")):
        here = [barrier for barrier in barriers if barrier.treatment == treatment]
        found[f"error_barrier_{text}points"] = _mean([barrier.error for barrier in here])
        found[f"loss_barrier_{text}nats"] = _mean([barrier.loss for barrier in here])
    return found


def _mean(values: Any) -> float | None:
    """The mean, or None where there is none that is finite."""
    return analysis.finite(float(np.mean(np.asarray(values, dtype=np.float64)))) if len(values) else None


def correlations(pairs: polars.DataFrame) -> polars.DataFrame:
    """Spearman's rank correlation of each gain with each quantity of a frame `pairs`, with its interval over parents.

    A row for each gain, quantity and scope that has data. Pairs that lack one of the two numbers are left out; n
    counts those that are in.
    """
    cell = [*pairs.columns[: pairs.columns.index("k") + 2], "alpha"]
    rows = []
    for gain, quantity in itertools.product(GAINS, QUANTITIES):
        there = pairs.drop_nulls([gain, quantity])
        if not there.height:
            continue
        columns = [polars.col(name).cast(polars.Float64) for name in (gain, quantity)]
        # Rounded: the mean of equal numbers may differ from them in its last digit, and ranks would see it.
        within = [(column - column.mean().over(cell)).round(10) for column in columns]
        for scope, chosen in zip(SCOPES, (columns, within), strict=True):
            x_n, y_n = (there.select(column).to_series().to_numpy() for column in chosen)
            found = Estimate(None, None, None, 1, 1, 0.95, "undefined: one pair has no order")
            if there.height > 1:
                found = spearman(x_n, y_n, there["parent_seed"].to_list())
            rows.append({
                "gain": gain, "quantity": quantity, "scope": scope, "spearman": found.value, "low": found.low,
                "high": found.high, "n_parents": found.n_parents, "n_pairs": found.n_pairs, "note": found.note,
            })  # fmt: skip
    return polars.DataFrame(rows, schema={name: column.type for name, column in COLUMNS["correlations"].items()})


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
    found = []
    columns = (
        "quantity", "all pairs [95 %]", "correlates", "within cells [95 %]", "correlates", "parents", "pairs",
    )  # fmt: skip
    for gain, words in GAINS.items():
        rows = frames["correlations"].filter(polars.col("gain") == gain)
        if not rows.height:
            continue
        scopes = [
            {row["quantity"]: _estimate(row) for row in rows.iter_rows(named=True) if row["scope"] == scope}
            for scope in SCOPES
        ]
        overall, within = ({name: each[name] for name in QUANTITIES if name in each} for each in scopes)
        body: list[Sequence[str]] = []
        for name in sorted(overall, key=lambda name: -abs(overall[name].value or 0.0)):
            every, inside = overall[name], within[name]
            body.append([
                QUANTITIES[name], _shown(every), _sided(every), _shown(inside), _sided(inside),
                str(every.n_parents), str(every.n_pairs),
            ])  # fmt: skip
        most = max(estimate.n_parents for estimate in overall.values())
        title = f"Spearman's correlation with the gain over {words}, uncorrected for many comparisons"
        found.append(titled(title, columns, body, most, [estimate.note for estimate in overall.values()]))
    return found


def _estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(
        row["spearman"], row["low"], row["high"], row["n_parents"], row["n_pairs"], 0.95, row["note"] or ""
    )


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.2f} (no interval)"
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _sided(estimate: Estimate) -> str:
    """Whether there is a correlation, and of which sign."""
    found = verdict(estimate)
    signed = {CONFIRMED: f"{CONFIRMED}, rising", REFUTED: f"{CONFIRMED}, falling"}
    return signed.get(found) or verdict_text(found, estimate.n_parents)


_MARKERS = "osD^vP*X<>"
_ACROSS = 5


def draw(frames: Frames, path: Path, title: str) -> None:
    """Draw the gain over the best child against each quantity that varies, a dot a pair: colour k, marker s.

    Own statistics; correlations over all pairs stand above each panel.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    gain = next(iter(GAINS))
    pairs = frames["pairs"].drop_nulls(gain)
    varied = [name for name in QUANTITIES if pairs[name].drop_nulls().n_unique() > 1]
    # Of a single pair nothing varies: what it has is shown.
    shown = varied or [name for name in QUANTITIES if pairs[name].null_count() < pairs.height]
    ks, ss = (sorted(distinct(pairs, name)) for name in ("k", "s"))
    colours = {k: colormaps["viridis"](0.92 * i / max(1, len(ks) - 1)) for i, k in enumerate(ks)}
    markers = {s: _MARKERS[i % len(_MARKERS)] for i, s in enumerate(ss)}
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.7 * across + 0.6, 2.5 * down + 1.3), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    correlation = frames["correlations"].filter(polars.col("gain") == gain, polars.col("scope") == SCOPES[0])
    by_quantity = {row["quantity"]: _shown(_estimate(row)) for row in correlation.iter_rows(named=True)}
    for i, (axis, name) in enumerate(zip(axes.flat, shown, strict=False)):
        for (k, s), dots in groups(pairs, ["k", "s"]):
            axis.plot(dots[name], dots[gain], ls="", marker=markers[s], markersize=4, color=colours[k], alpha=0.75,
                      markeredgewidth=0.3, markeredgecolor="white")  # fmt: skip
        words = "\n".join(textwrap.wrap(QUANTITIES[name], 30))
        style(axis, words, "gain (points)" if i % across == 0 else "", by_quantity.get(name, ""), name in ("k", "s"))
        axis.axhline(0, color="0.5", lw=0.8)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    handles: list[Any] = [Line2D([], [], ls="", marker="o", color=colours[k], label=f"k = {k}") for k in ks]
    handles += [Line2D([], [], ls="", marker=markers[s], color="0.35", label=f"s = {s}") for s in ss]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 12), fontsize=8)
    level, n = LEVEL if correlation["low"].count() else "", counted_text(pairs, pairs.height)
    constant = len(QUANTITIES) - len(shown)
    left = f"; left out: {constant} that were not measured or do not vary" if constant else ""
    figure.suptitle(
        f"Gain of the average over {GAINS[gain]}, against what it may depend on\n{title}; {n}; "
        f"above each panel Spearman's rank correlation{level}{left}", fontsize=9,
    )  # fmt: skip
    save_figure(figure, path)


STUDY = Study(
    question="what goes with the gain: k, s, learning rate, the children's distance, the barrier",
    options=("alphas", "test_images", "treatments", "cells", "pairs"),
    columns=COLUMNS,
    measure=measure,
    tables=tables,
    draw=draw,
    renew=renew,
)
