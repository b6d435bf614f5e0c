"""Analyses of trained networks: one function a question, each citing its source. Nothing here trains.

The names below are imported on first use: intervals and tables need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from fastwi.analysis.plane import evaluate_plane, plane_points
    from fastwi.analysis.representation import Similarities, linear_cka

__all__ = [
    "Barrier", "Calibration", "Curvature", "Evaluator", "FunctionDistances", "Measured", "Recomputation",
    "Similarities", "WeightDistances", "barrier_between", "barrier_of", "block_groups", "calibration_of",
    "calibration_scores", "curvature_cost", "dataset_from_arrays", "el2n_scores", "ensemble_scores",
    "equal_splits", "evaluate_blocks", "evaluate_line", "evaluate_plane", "finite", "forgetting_scores",
    "function_distances", "gradient_noise", "lanczos", "linear_cka", "measure_curvature", "plane_points",
    "split_scores", "step_noise", "tangent_departure", "weight_distances",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public name from its home on first use (PEP 562)."""
    homes = (
        "evaluator", "line", "plane", "blocks", "distance", "examples", "calibration", "representation", "curvature",
    )  # fmt: skip
    for home in homes if name in __all__ else ():
        module = importlib.import_module(f"fastwi.analysis.{home}")
        if hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'fastwi.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
