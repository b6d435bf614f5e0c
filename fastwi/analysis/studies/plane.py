"""The loss over the plane through a parent and two of its children (Garipov et al. 2018, appendix A.1).

Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, NeurIPS 2018. O is the parent where it was cloned, A
and B its children; distances in the plane are L2 distances of weights (`fastwi.analysis.plane`).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from fastwi.analysis.studies.pairs import LINE_COLUMNS, Bench, Pair, Tell, frame_of, pairs_of
from fastwi.config.analysis import AnalysisOptions

if TYPE_CHECKING:
    from fastwi.analysis.studies.opened import OpenedSweep

POINTS = ("parent", "A", "B", "average")
_WEIGHTS_43 = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.5]])  # of O, A and B
_SPLIT = "test"

COLUMNS = LINE_COLUMNS | {
    "x_l2": ("L2 distance of weights", "place along the way from the parent to A; the parent is at 0"),
    "y_l2": ("L2 distance of weights", "place across it, on B's side; the parent and A are at 0"),
    "point": ("", "which network: parent, A, B, or the average of A and B"),
}
"""Unit and meaning of the columns of both frames."""


def plane(opened: "OpenedSweep", options: AnalysisOptions, tell: Tell) -> dict[str, polars.DataFrame]:
    """Measure a grid of `alphas` x `alphas` networks over the plane of one pair, on the test images.

    The pair is the first of the first of `cells`; of the largest k, and of its largest s, where none is given.
    Frames, after the columns that name a pair:
      plane   one row a treatment and place: test loss (nats) and error (%); null where a variance is negative.
      points  the same at the parent, A, B and the average.

    Raises UserError where the sweep has no pairs, where parent, A and B span no plane (s = 0), or where their states
    are not in the store.
    """
    import torch

    from fastwi.analysis.evaluator import measure
    from fastwi.analysis.plane import evaluate_plane

    pair = _pair(pairs_of(opened, options), options)
    keys = (pair.place.clone, *pair.place.ends)
    opened.require(keys)
    bench = Bench(opened, options, tell)
    bench.expect([(pair.config, options.alphas**2 + len(POINTS))], [_SPLIT])
    measuring, three = bench.of(pair.config), opened.states(keys)
    weights_43 = torch.from_numpy(_WEIGHTS_43)
    splits = {_SPLIT: measuring.splits[_SPLIT]}
    found = evaluate_plane(
        measuring.evaluator, three, splits, points=(options.alphas, options.alphas), treatments=options.treatments,
        recomputation=measuring.recomputation,
    )  # fmt: skip
    at = measure(
        measuring.evaluator, len(POINTS), lambda first, last: three.combine(weights_43[first:last]), splits,
        options.treatments, measuring.recomputation,
    )  # fmt: skip
    bench.finish()
    places_42 = _WEIGHTS_43 @ found.points_32
    points: list[dict[str, Any]] = [
        {**pair.head, "batch_norm": treatment, "point": name, "x_l2": float(x), "y_l2": float(y),
         **at.columns(treatment, i)}
        for treatment in options.treatments
        for i, (name, (x, y)) in enumerate(zip(POINTS, places_42, strict=True))
    ]  # fmt: skip
    types: dict[str, Any] = {"x_l2": polars.Float64, "y_l2": polars.Float64}
    types |= {f"{_SPLIT}_loss_nats": polars.Float64, f"{_SPLIT}_error_%": polars.Float64}
    spec, named = opened.planned.spec, {"batch_norm": polars.String}
    return {
        "plane": frame_of(spec, [{**pair.head, **row} for row in found.rows()], named | types),
        "points": frame_of(spec, points, named | {"point": polars.String} | types),
    }


def _pair(pairs: list[Pair], options: AnalysisOptions) -> Pair:
    """The first pair of the cell asked for first; without one, of the largest k and s."""
    return pairs[0] if options.cells else max(pairs, key=lambda pair: pair.cell)
