"""Analyses of trained networks: one function a question, each citing its source. Nothing here trains.

The names below are imported on first use: intervals and tables need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastwi.analysis.activations import images_of
    from fastwi.analysis.blocks import block_groups, evaluate_blocks
    from fastwi.analysis.calibration import Calibration, calibration_of, calibration_scores
    from fastwi.analysis.curvature import (
        Curvature,
        curvature_cost,
        gradient_noise,
        lanczos,
        measure_curvature,
        step_noise,
    )
    from fastwi.analysis.distance import (
        FunctionDistances,
        WeightDistances,
        function_distances,
        tangent_departure,
        weight_distances,
    )
    from fastwi.analysis.evaluator import Evaluator, Measured, Recomputation, dataset_from_arrays, finite
    from fastwi.analysis.examples import (
        el2n_scores,
        ensemble_scores,
        equal_splits,
        forgetting_scores,
        split_scores,
    )
    from fastwi.analysis.line import Barrier, barrier_between, barrier_of, evaluate_line
    from fastwi.analysis.matched import MatchedLines
    from fastwi.analysis.matching import match_activations, match_weights
    from fastwi.analysis.plane import evaluate_plane, plane_points
    from fastwi.analysis.repair import moments_of, rescaled, variance_ratios
    from fastwi.analysis.representation import Similarities, linear_cka
    from fastwi.analysis.soups import greedy_soup, uniform_soups
    from fastwi.analysis.symmetry import Order, Symmetry

__all__ = [
    "Barrier", "Calibration", "Curvature", "Evaluator", "FunctionDistances", "MatchedLines", "Measured", "Order",
    "Recomputation", "Similarities", "Symmetry", "WeightDistances", "barrier_between", "barrier_of", "block_groups",
    "calibration_of", "calibration_scores", "curvature_cost", "dataset_from_arrays", "el2n_scores",
    "ensemble_scores", "equal_splits", "evaluate_blocks", "evaluate_line", "evaluate_plane", "finite",
    "forgetting_scores", "function_distances", "gradient_noise", "greedy_soup", "images_of", "lanczos",
    "linear_cka", "match_activations", "match_weights", "measure_curvature", "moments_of", "plane_points",
    "rescaled", "split_scores", "step_noise", "tangent_departure", "uniform_soups", "variance_ratios",
    "weight_distances",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public name from its home on first use (PEP 562)."""
    homes = (
        "evaluator", "line", "plane", "blocks", "distance", "examples", "calibration", "representation", "curvature",
        "activations", "matching", "repair", "soups", "symmetry", "matched",
    )  # fmt: skip
    for home in homes if name in __all__ else ():
        module = importlib.import_module(f"fastwi.analysis.{home}")
        if hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'fastwi.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
