"""Does one noise scale predict what averaging gives: gain and barrier against the noise of the children's SGD.

Zhang, Theus, Teney, Orvieto, Pang, Mauw, How does the optimizer implicitly bias the model merging loss landscape?
(arXiv 2510.04686): the success of merging rises and falls with one effective noise scale, which learning rate, weight
decay, batch size and augmentation change. This project had its abstract only, and uses

- of the settings: l N / (B (1 - m)), with learning rate l, N training images, batch size B and momentum m (Smith,
  Kindermans, Ying, Le 2018, Don't Decay the Learning Rate, Increase the Batch Size, equation 4). Weight decay and
  augmentation have no part in it.
- measured: l / (1 - m) E||g - E g||^2 / ||w||^2, g the gradient of a training batch at a child's last state (see
  `fastwi.analysis.step_noise`): how far noise alone moves the weights, relative to their length, squared, while the
  steps' learning rates sum to 1. With batch norm the length of weights does not change what a network computes (van
  Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization): weight decay acts by ||w||.

l is that at the start of the children's last epoch: a warm-up or a drop within it is not seen. A rank correlation
does not see what rises and then falls: the figure does.
"""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from fastwi import analysis
from fastwi.analysis.columns import PAIR_COLUMNS, Column
from fastwi.analysis.measuring import Bench
from fastwi.analysis.pairs import Pair
from fastwi.experiment.tree import OWN
from fastwi.report.drawing import Sheet, looks, style
from fastwi.report.estimates import cell_names, counted_text, groups, pairs_at_interpolation, shown
from fastwi.report.study import Found, Frames, Row, Study
from fastwi.report.summary import Table
from fastwi.studies.governance import (
    ALL_PAIRS,
    CELL_MEANS,
    GAINS,
    barriers_of,
    correlation_tables,
    correlations,
    of_outcome,
    pairs_with_gains,
)
from fastwi.studies.governance import COLUMNS as GOVERNANCE

if TYPE_CHECKING:
    from fastwi.population import Population

OUTCOMES = {
    **{gain: f"the gain over {words}" for gain, words in GAINS.items() if "mean" in gain},
    "error_barrier_points": "the error barrier (points)",
    "error_barrier_recomputed_points": "the error barrier, recomputed statistics (points)",
}
"""What noise might predict, by column of the frame, in words."""

QUANTITIES = {
    "noise_measured": "noise scale, measured",
    "noise_settings": "noise scale of the settings (images)",
    "learning_rate": "learning rate at the start of the children's last epoch",
    "batch_size": "batch size (images)",
    "weight_decay": "weight decay",
    "padding": "padding of random crops (pixels)",
    "flip": "probability of a flip",
    "gradient_variance": "variance of a batch's gradient",
    "weights_l2": "L2 norm of the children's weights",
}
"""What outcomes are compared with, likewise."""
_SCOPES = (CELL_MEANS, ALL_PAIRS)

COLUMNS = {
    "pairs": {
        **PAIR_COLUMNS,
        **{name: Column("points", words) for name, words in OUTCOMES.items()},
        **{name: Column("", words) for name, words in QUANTITIES.items()},
    },
    "correlations": {
        **GOVERNANCE["correlations"],
        "gain": Column("", "which gain or barrier", polars.String),
        "scope": Column("", "all pairs, or cell means: of the cells' means over parents and pairs", polars.String),
    },
}


def measure(bench: Bench) -> Found:
    """Measure noise and barrier of each chosen pair beside its gain, and correlate over cells.

    Barriers take `options.alphas` places on test images. Null: not measured, or not finite.
    """
    rows = list[Row]()
    for pair, gain in pairs_with_gains(bench):
        test, _ = bench.part(pair.config, "test")
        children = bench.opened.states(pair.place.ends)
        barriers = barriers_of(children, bench.options.alphas, splits={"test": test}, **bench.how(pair))
        rows.append({**gain, **barriers, **_noise(bench, pair, children)})
    frame = bench.frame(COLUMNS["pairs"], rows)
    return {"pairs": frame, "correlations": correlations(frame, OUTCOMES, QUANTITIES, _SCOPES)}


def _noise(bench: Bench, pair: Pair, children: "Population") -> dict[str, float | None]:
    """`QUANTITIES` of a pair: of what is measured, the children's mean."""
    config, opened = pair.config, bench.opened
    train, _ = opened.resident_splits(config)
    rate = opened.measured[pair.place.ends[0], OWN].learning_rate if pair.s else None
    variance_M = analysis.step_noise(bench.evaluator(config), children, train, epoch=pair.statistics_epoch)
    norm_M = children.weights_MP.double().norm(dim=1).cpu().numpy()
    momentum = 1.0 - config.optimizer.momentum
    found: dict[str, float | None] = {
        "learning_rate": rate,
        "batch_size": config.optimizer.batch_size,
        "weight_decay": config.optimizer.weight_decay,
        "padding": config.augment.padding,
        "flip": config.augment.flip,
        "gradient_variance": analysis.finite(float(variance_M.mean())),
        "weights_l2": analysis.finite(float(norm_M.mean())),
    }
    if rate is not None:
        found["noise_settings"] = rate * len(train) / (config.optimizer.batch_size * momentum)
        found["noise_measured"] = analysis.finite(float(np.mean(rate / momentum * variance_M / norm_M**2)))
    return found


def tables(frames: Frames) -> list[Table]:
    """A table for each gain and barrier: correlations with both noise scales and with each setting alone."""
    return correlation_tables(frames, OUTCOMES, QUANTITIES, _SCOPES)


_DRAWN = ("noise_measured", "noise_settings")


def draw(frames: Frames, title: str) -> Any:
    """Draw gains and barriers against both noise scales: a dot a pair, a marker the mean of a cell.

    Colour: the learning rate; marker: the batch size. The correlation of cell means stands above each panel.
    """
    from matplotlib.ticker import LogLocator

    pairs = frames["pairs"]
    outcomes = [name for name in OUTCOMES if pairs[name].null_count() < pairs.height] or list(OUTCOMES)[:1]
    rates, sizes = (sorted(set(pairs[name].drop_nulls())) for name in ("learning_rate", "batch_size"))
    colours, markers, handles = looks(rates, sizes, ("learning rate {:g}", "batch size {:g}"))
    sheet = Sheet(len(_DRAWN), len(outcomes), (3.4, 3.0), (0.6, 1.0))
    cells = list(groups(pairs.drop_nulls("learning_rate"), [*cell_names(pairs), "alpha"]))
    for row, quantity in zip(sheet.axes, _DRAWN, strict=True):
        for axis, outcome in zip(row, outcomes, strict=True):
            for _, here in cells:
                look = {
                    "color": colours[here["learning_rate"][0]],
                    "marker": markers[here["batch_size"][0]],
                    "ls": "",
                }
                axis.plot(here[quantity], here[outcome], ms=2, alpha=0.5, **look)
                axis.plot([here[quantity].mean()], [here[outcome].mean()], ms=7, markeredgecolor="black", **look)
            estimate = of_outcome(frames, outcome, QUANTITIES, CELL_MEANS).get(quantity)
            above = f"Spearman of cell means {shown(estimate, estimate.n_parents)}" if estimate else ""
            style(axis, QUANTITIES[quantity], textwrap.fill(OUTCOMES[outcome].removeprefix("the "), 32), above)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.tick_params(axis="x", labelrotation=30)  # they may be long, and many in a narrow range
            axis.axhline(0, color="0.5", lw=0.8)
    sheet.figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6) or 1, fontsize=8)
    what = "Gain and barrier against the noise of the children's SGD"
    counts = counted_text(pairs, pairs_at_interpolation(pairs))
    return sheet.titled(what, title, counts, "large: means of cells, small: pairs")


QUESTION = "whether one noise scale of SGD predicts gain and barrier"
OPTIONS = ("alphas", "test_images", "treatments", "cells", "pairs")
STUDY = Study(QUESTION, OPTIONS, COLUMNS, measure, tables, draw)
