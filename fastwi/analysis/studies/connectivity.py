"""Linear mode connectivity of siblings: error and loss on the whole line A -> B, its barriers, and the gain.

Iyer, Dziugaite, Rolnick 2024 tie the gain of averaging to linear mode connectivity. With E(alpha) the error of the
network at (1 - alpha) A + alpha B, the barrier (Frankle, Dziugaite, Roy, Carbin 2020, section 2) is

    max over alpha of E(alpha)  -  (E(0) + E(1)) / 2,     linear variant:
    max over alpha of [E(alpha) - (1 - alpha) E(0) - alpha E(1)],

over evenly spaced places; likewise for the loss. The gain is that of the plain mean, alpha = 0.5.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from fastwi.analysis.studies.pairs import LINE_COLUMNS, SPLITS, Bench, Tell, frame_of, pairs_of
from fastwi.config.analysis import AnalysisOptions

if TYPE_CHECKING:
    from fastwi.analysis.evaluator import Values
    from fastwi.analysis.line import LineResult
    from fastwi.analysis.studies.opened import OpenedSweep

MIDDLE = 0.5
_SNAP = 1e-9  # a place this near to an end or the middle is meant to be it

_BARRIERS = {
    "barrier_error_points": ("points", "largest error on the line less the mean of the ends' errors"),
    "barrier_error_linear_points": ("points", "largest excess of the error over the line between the ends' errors"),
    "barrier_loss_nats": ("nats", "largest loss on the line less the mean of the ends' losses"),
    "barrier_loss_linear_nats": ("nats", "largest excess of the loss over the line between the ends' losses"),
    "alpha_of_largest_error": ("1", "where on the line the error is largest"),
    "alpha_of_largest_loss": ("1", "where on the line the loss is largest"),
    "gain_best_points": (
        "points",
        "error of the better end less that at alpha = 0.5, the same statistics on both sides",
    ),
    "gain_mean_points": ("points", "mean of the ends' errors less that at alpha = 0.5, likewise"),
    "gain_best_nats": ("nats", "loss of the better end less that at alpha = 0.5, likewise"),
    "gain_mean_nats": ("nats", "mean of the ends' losses less that at alpha = 0.5, likewise"),
}
COLUMNS = LINE_COLUMNS | _BARRIERS | {
    "alpha": ("1", "place on the line: 0 is A, the pair's first child, 1 is B"),
    "split": ("", "images that were measured on, without augmentation: train or test"),
    "places": ("", "places on the line that the barriers are taken over, from 0 to 1"),
}  # fmt: skip
"""Unit and meaning of the columns of both frames."""


def connectivity(opened: "OpenedSweep", options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Measure the line of every chosen pair on training and test images, under each treatment of batch norm.

    Frames, after the columns that name a pair (`fastwi.analysis.studies.pairs`):
      line     one row a pair, treatment and alpha: loss (nats) and error (%) on train and on test.
      barrier  one row a pair, treatment and split: the barriers in both variants (points, nats) over the `alphas`
               places from `low` to `high` that lie in 0..1, and the gains at alpha = 0.5 (points, nats).
    0, 0.5 and 1 are measured whether they are among the places or not; 0.5 counts for a barrier only if it is.

    Raises UserError where the sweep has no pairs, or its states are not in the store.
    """
    from fastwi.analysis.line import evaluate_line

    pairs = pairs_of(opened, options)
    opened.require(key for pair in pairs for key in pair.place.ends)
    alphas_L, counts_L = line_places(options)
    bench = Bench(opened, options, tell)
    bench.expect((pair.config, len(alphas_L)) for pair in pairs)
    lines: list[dict[str, Any]] = []
    barriers: list[dict[str, Any]] = []
    for pair in pairs:
        measuring = bench.of(pair.config)
        line = evaluate_line(
            measuring.evaluator, opened.states(pair.place.ends), measuring.splits, alphas_L,
            treatments=options.treatments, recomputation=measuring.recomputation,
        )  # fmt: skip
        lines += [{**pair.head, **row} for row in line.rows()]
        barriers += [{**pair.head, **row} for row in barrier_rows(line, counts_L)]
    bench.finish()
    spec = opened.planned.spec
    measures = {f"{split}_{name}": polars.Float64 for split in SPLITS for name in ("loss_nats", "error_%")}
    return {
        "line": frame_of(spec, lines, {"batch_norm": polars.String, "alpha": polars.Float64, **measures}),
        "barrier": frame_of(
            spec, barriers,
            {"split": polars.String, "batch_norm": polars.String, **dict.fromkeys(_BARRIERS, polars.Float64),
             "places": polars.Int64},
        ),
    }  # fmt: skip


def line_places(options: AnalysisOptions) -> "tuple[Values, Any]":
    """Places on the line, float64 [L], ascending, each once; and whether each counts for a barrier, bool [L].

    Those are the evenly spaced ones and the ends 0 and 1.
    """
    even = np.linspace(options.low, options.high, options.alphas)
    for special in (0.0, MIDDLE, 1.0):
        even[np.abs(even - special) < _SNAP] = special
    alphas_L = np.unique(np.concatenate([even, [0.0, MIDDLE, 1.0]]))
    return alphas_L, np.isin(alphas_L, even) | np.isin(alphas_L, [0.0, 1.0])


def barrier_rows(line: "LineResult", counts_L: Any) -> list[dict[str, Any]]:
    """The barriers over the places `counts_L`, bool [L], and the gains of one line: one row a split and treatment."""
    from fastwi.analysis.barrier import barrier_of
    from fastwi.analysis.line import LineResult

    def counted(table: Any) -> Any:
        return {s: {t: values_L[counts_L] for t, values_L in found.items()} for s, found in table.items()}

    part = LineResult(counted(line.loss), counted(line.error), line.alphas_L[counts_L])
    rows = []
    for split in line.loss:
        for treatment in line.loss[split]:
            barrier = barrier_of(part, split, treatment)
            row: dict[str, Any] = {"split": split, "batch_norm": treatment}
            row |= {
                "barrier_error_points": barrier.error, "barrier_error_linear_points": barrier.error_linear,
                "barrier_loss_nats": barrier.loss, "barrier_loss_linear_nats": barrier.loss_linear,
                "alpha_of_largest_error": barrier.alpha_of_error, "alpha_of_largest_loss": barrier.alpha_of_loss,
            }  # fmt: skip
            for values_L, unit in ((line.error[split][treatment], "points"), (line.loss[split][treatment], "nats")):
                first, middle, last = (float(values_L[line.alphas_L == alpha][0]) for alpha in (0.0, MIDDLE, 1.0))
                row[f"gain_best_{unit}"] = float(np.minimum(first, last)) - middle
                row[f"gain_mean_{unit}"] = (first + last) / 2 - middle
            rows.append({name: _finite(value) for name, value in row.items()} | {"places": barrier.alphas})
    return rows


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
