"""Host time that a GPU waits for: of averaging pairs, and of an epoch's draws, made ahead, on their way to a GPU.

No GPU is needed or used: Triton compiles for an H100 and prepares its launches, which do nothing. What is missing is
the driver's own part of a launch and the copies to the device. The operations on counters are real ones, on a CPU.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.pretended import pretend_driver
from benchmarks.runner import Case, Report, benchmark, fresh, interleave
from fastwi.errors import UserError

ALPHA = 0.5
IMAGES, DRAWN = 50_000, 16


@benchmark
def main(report: Report, pairs: int = 256, rounds: int = 300) -> None:
    """One table, measured in a process of its own: whether kernels are interpreted is decided at import."""
    found = fresh(host_seconds, pairs=pairs, rounds=rounds)
    rows = [{"case": case, "us": median(s) * 1e6, "least_us": min(s) * 1e6} for case, s in found.items()]
    report.add(f"host time, {pairs} pairs of ResNet20s, one thread; {rounds} calls", rows)


def host_seconds(pairs: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each call, by case. Calls of all cases come in turn."""
    cases = {case: Case(run, 1, static_memory=True) for case, run in _runs(pairs).items()}
    return interleave(cases, rounds, torch.device("cpu"))


def _runs(pairs: int) -> dict[str, Callable[[], object]]:
    os.environ["TRITON_INTERPRET"] = "0"
    if importlib.util.find_spec("triton") is None:
        raise UserError("triton is not installed; it is a part of torch for CUDA")
    from fastwi.config.schema import Config, EngineConfig
    from fastwi.data.noise import Noise
    from fastwi.engine.draws import DrawRequest
    from fastwi.engine.graph import GraphEngine
    from fastwi.kernels import gpu
    from fastwi.kernels.interpolate import RowInterpolation
    from fastwi.models.registry import build_model
    from fastwi.population import Layout, Population

    torch.set_num_threads(1)
    pretend_driver()
    kernels: Any = gpu
    kernels.has_triton = lambda device: True
    network = build_model("resnet20", 10)
    kind = EngineConfig(device="cpu", precision="fp32", backend="eager", threads=1)
    engine = GraphEngine(network, Config(engine=kind))
    draws = [DrawRequest(Noise(seed), 0, IMAGES, 4, 0.5).draw() for seed in range(DRAWN)]
    by_kind = list(zip(*((d.order_N, d.offset_N2, d.flip_N) for d in draws), strict=True))
    layout = Layout.of(network)
    # Fresh memory that nothing writes to takes no room.
    population, averages = Population.empty(layout, 2 * pairs), Population.empty(layout, pairs)
    population.counters_MB.zero_()
    a_L, b_L = range(0, 2 * pairs, 2), range(1, 2 * pairs, 2)
    both = list(zip(a_L, b_L, strict=True))
    members = [[(population, a), (population, b)] for a, b in both]
    weights = [[1 - ALPHA, ALPHA]] * pairs
    return {
        "rows, planned": RowInterpolation(population.weights_MP, a_L, b_L, ALPHA),
        "rows, once": lambda: RowInterpolation(population.weights_MP, a_L, b_L, ALPHA)(),
        "population, planned": population.interpolation(both, ALPHA, momentum="average"),
        "population, once": lambda: population.lerp_rows_(both, ALPHA, momentum="average"),
        "averages": lambda: Population.averages(members, weights, None, averages),
        f"draws of {DRAWN} members and {IMAGES:,} images": lambda: [engine.stacked(arrays) for arrays in by_kind],
    }


if __name__ == "__main__":
    sys.exit(main())
