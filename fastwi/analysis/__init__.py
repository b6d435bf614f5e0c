"""Analyses of trained networks: one function a question, each citing its source. Nothing here trains.

The names below are imported on first use: intervals and tables need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastwi.analysis.barrier import Barrier, barrier_between, barrier_of
    from fastwi.analysis.blocks import BlocksResult, blocks_of, evaluate_blocks
    from fastwi.analysis.distance import (
        FunctionDistances,
        WeightDistances,
        function_distances,
        tangent_departure,
        weight_distances,
    )
    from fastwi.analysis.el2n import el2n_scores
    from fastwi.analysis.ensemble import ensemble_control
    from fastwi.analysis.evaluator import Evaluator, Recomputation, dataset_from_arrays, finite, measure_mixtures
    from fastwi.analysis.forgetting import forgetting_events
    from fastwi.analysis.line import LineResult, evaluate_line
    from fastwi.analysis.plane import Plane, PlaneResult, evaluate_plane, plane_through
    from fastwi.analysis.splits import equal_splits, split_scores
    from fastwi.analysis.trajectory import ema_weights, lawa_weights, trajectory_averages

__all__ = [
    "Barrier",
    "BlocksResult",
    "Evaluator",
    "FunctionDistances",
    "LineResult",
    "Plane",
    "PlaneResult",
    "Recomputation",
    "WeightDistances",
    "barrier_between",
    "barrier_of",
    "blocks_of",
    "dataset_from_arrays",
    "el2n_scores",
    "ema_weights",
    "ensemble_control",
    "equal_splits",
    "evaluate_blocks",
    "evaluate_line",
    "evaluate_plane",
    "finite",
    "forgetting_events",
    "function_distances",
    "lawa_weights",
    "measure_mixtures",
    "plane_through",
    "split_scores",
    "tangent_departure",
    "trajectory_averages",
    "weight_distances",
]

_HOMES = (
    "evaluator", "line", "barrier", "plane", "blocks", "distance", "splits", "el2n", "forgetting", "ensemble",
    "trajectory",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the public name from its home on first use (PEP 562)."""
    for home in _HOMES if name in __all__ else ():
        module = importlib.import_module(f"fastwi.analysis.{home}")
        if hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module 'fastwi.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
