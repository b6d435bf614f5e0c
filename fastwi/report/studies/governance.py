"""What goes along with the gain: correlations by strength, and the gain over each quantity."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars

from fastwi.analysis.statistics import CONFIRMED, REFUTED, Estimate, verdict, verdict_text
from fastwi.analysis.studies.governance import GAINS, QUANTITIES, SCOPES
from fastwi.report.heatmap import save_figure
from fastwi.report.studies.cells import titled
from fastwi.report.summary import LEVEL, Table

_WORDS = {
    "gain_best_own_points": "the best child, own statistics",
    "gain_best_recomputed_points": "the best child, recomputed statistics",
    "gain_mean_own_points": "the children's mean, own statistics",
    "gain_mean_recomputed_points": "the children's mean, recomputed statistics",
}
_MARKERS = "osD^vP*X<>"
_ACROSS = 5


def tables(frames: Mapping[str, polars.DataFrame]) -> list[Table]:
    """A table for each gain: correlations with every quantity, strongest first, with intervals and n.

    Nothing is corrected for their number. `correlates` is confirmed where the interval excludes 0. Within cells k
    and s are constant, and undefined.
    """
    correlations = frames["correlations"]
    found = []
    for gain in GAINS:
        rows = correlations.filter(polars.col("gain") == gain)
        if not rows.height:
            continue
        by_scope = {(row["quantity"], row["scope"]): _estimate(row) for row in rows.iter_rows(named=True)}
        overall = {quantity: by_scope[quantity, SCOPES[0]] for quantity in QUANTITIES
                   if (quantity, SCOPES[0]) in by_scope}  # fmt: skip
        order = sorted(overall, key=lambda name: -abs(overall[name].value or 0.0))
        body: list[Sequence[str]] = []
        for quantity in order:
            all_pairs, within = overall[quantity], by_scope[quantity, SCOPES[1]]
            body.append([
                QUANTITIES[quantity], _shown(all_pairs), _sided(all_pairs), _shown(within), _sided(within),
                str(all_pairs.n_parents), str(all_pairs.n_pairs),
            ])  # fmt: skip
        columns = ("quantity", "all pairs [95 %]", "correlates", "within cells [95 %]", "correlates", "parents",
                   "pairs")  # fmt: skip
        most = max(estimate.n_parents for estimate in overall.values())
        title = f"Spearman's correlation with the gain over {_WORDS[gain]}, uncorrected for many comparisons"
        found.append(titled(title, columns, body, most, [estimate.note for estimate in overall.values()]))
    return found


def draw(frames: Mapping[str, polars.DataFrame], path: Path, title: str) -> None:
    """Draw the gain over the best child against each quantity, a dot a pair: colour k, marker s.

    Own statistics; correlations over all pairs stand above each panel. Writes PNG (`path`), PDF and SVG; raises
    UserError where that fails.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    gain = GAINS[0]
    pairs = frames["pairs"].drop_nulls(gain)
    shown = [name for name in QUANTITIES if pairs[name].null_count() < pairs.height]
    ks, ss = (sorted(pairs[name].unique().to_list()) for name in ("k", "s"))
    colours = {k: colormaps["viridis"](0.92 * i / max(1, len(ks) - 1)) for i, k in enumerate(ks)}
    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(2.7 * _ACROSS, 2.5 * down + 1.1), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False, sharey=True)
    correlations = frames["correlations"].filter(polars.col("gain") == gain, polars.col("scope") == SCOPES[0])
    for axis, name in zip(axes.flat, shown, strict=False):
        for k in ks:
            for i, s in enumerate(ss):
                dots = pairs.filter(polars.col("k") == k, polars.col("s") == s)
                axis.plot(dots[name], dots[gain], ls="", marker=_MARKERS[i % len(_MARKERS)], markersize=4,
                          color=colours[k], alpha=0.75, markeredgewidth=0.3, markeredgecolor="white")  # fmt: skip
        row = next(correlations.filter(polars.col("quantity") == name).iter_rows(named=True), None)
        axis.set_title("" if row is None else f"{_shown(_estimate(row))}", fontsize=8)
        axis.set_xlabel(_wrapped(QUANTITIES[name]), fontsize=7.5)
        axis.axhline(0, color="0.5", lw=0.8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel("gain (points)", fontsize=8)
    handles: list[Any] = [Line2D([], [], ls="", marker="o", color=colours[k], label=f"k = {k}") for k in ks]
    handles += [Line2D([], [], ls="", marker=_MARKERS[i % len(_MARKERS)], color="0.35", label=f"s = {s}")
                for i, s in enumerate(ss)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 12), fontsize=8)
    parents = pairs["parent_seed"].n_unique()
    level = LEVEL if correlations["low"].count() else ""
    figure.suptitle(
        f"{title}\nGain of the average over {_WORDS[gain]}; above each panel its rank correlation{level}; "
        f"n = {parents} parents, {pairs.height} pairs", fontsize=10,
    )  # fmt: skip
    save_figure(figure, path)


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


def _wrapped(text: str, width: int = 30) -> str:
    lines = math.ceil(len(text) / width)
    if lines == 1:
        return text
    words, out = text.split(), [""]
    for word in words:
        if len(out[-1]) + len(word) > width and out[-1]:
            out.append("")
        out[-1] = f"{out[-1]} {word}".strip()
    return "\n".join(out)
