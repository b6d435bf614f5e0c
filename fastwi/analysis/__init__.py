"""Analyses of trained networks: one function a question, each citing its source. Nothing here trains.

The names below are imported on first use: intervals and tables need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastwi.analysis.barrier import Barrier, barrier_between, barrier_of
    from fastwi.analysis.blocks import BlocksResult, blocks_of, evaluate_blocks
    from fastwi.analysis.distance import FunctionDistances, WeightDistances, function_distances, weight_distances
    from fastwi.analysis.evaluator import Evaluator, Recomputation, dataset_from_arrays
    from fastwi.analysis.line import LineResult, evaluate_line
    from fastwi.analysis.plane import Plane, PlaneResult, evaluate_plane, plane_through

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
    "evaluate_blocks",
    "evaluate_line",
    "evaluate_plane",
    "function_distances",
    "plane_through",
    "weight_distances",
]

_HOMES = {
    "barrier": ("Barrier", "barrier_between", "barrier_of"),
    "blocks": ("BlocksResult", "blocks_of", "evaluate_blocks"),
    "distance": ("FunctionDistances", "WeightDistances", "function_distances", "weight_distances"),
    "evaluator": ("Evaluator", "Recomputation", "dataset_from_arrays"),
    "line": ("LineResult", "evaluate_line"),
    "plane": ("Plane", "PlaneResult", "evaluate_plane", "plane_through"),
}


def __getattr__(name: str) -> Any:
    """Import the public name from its home on first use (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"fastwi.analysis.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'fastwi.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
