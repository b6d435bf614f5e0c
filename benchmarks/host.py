"""Host time that a GPU waits for: of averaging pairs, and of an epoch's draws, made ahead, on their way to a GPU.

No GPU is needed or used: Triton compiles for an H100 and prepares its launches, which do nothing. What is missing is
the driver's own part of a launch and the copies to the device. The operations on counters are real ones, on a CPU.
"""

import os
import sys
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

from benchmarks.runner import Report, benchmark, fresh
from fastwi.errors import UserError

ALPHA = 0.5
IMAGES, DRAWN = 50_000, 16
WARM_UP = 5


@benchmark
def main(report: Report, pairs: int = 256, rounds: int = 300) -> None:
    """One table, measured in a process of its own: whether kernels are interpreted is decided at import."""
    found = fresh(__file__, "host_seconds", pairs=pairs, rounds=rounds)
    rows = [{"case": case, "us": median(s) * 1e6, "least_us": min(s) * 1e6} for case, s in found.items()]
    report.add(f"host time, {pairs} pairs of ResNet20s, one thread; {rounds} calls", rows)


def host_seconds(pairs: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of each call, by case. Calls of all cases come in turn."""
    runs = _runs(pairs)
    seconds: dict[str, list[float]] = {case: [] for case in runs}
    for _ in range(WARM_UP + rounds):
        for case, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[case].append(time.perf_counter() - begun)
    return {case: values[WARM_UP:] for case, values in seconds.items()}


def _runs(pairs: int) -> dict[str, Callable[[], object]]:
    os.environ["TRITON_INTERPRET"] = "0"
    try:
        import triton
    except ImportError:
        raise UserError("triton is not installed; it is a part of torch for CUDA") from None
    import torch

    from fastwi.config.schema import AugmentConfig, EngineConfig, OptimizerConfig, ScheduleConfig
    from fastwi.data.noise import Noise
    from fastwi.engine.base import Settings
    from fastwi.engine.draws import DrawRequest
    from fastwi.engine.graph import GraphEngine
    from fastwi.kernels import gpu
    from fastwi.kernels.interpolate import RowInterpolation
    from fastwi.models.registry import build_model
    from fastwi.population import Layout, Population

    torch.set_num_threads(1)
    triton.runtime.driver.set_active(_no_driver(triton.backends.compiler.GPUTarget("cuda", 90, 32)))
    kernels: Any = gpu
    kernels.has_triton = lambda device: True
    network = build_model("resnet20", 10)
    kind = EngineConfig(device="cpu", precision="fp32", backend="eager", threads=1)
    engine = GraphEngine(network, Settings(kind, OptimizerConfig(), ScheduleConfig(), AugmentConfig()))
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


def _no_driver(target: Any) -> Any:
    """A driver of Triton's for a device that is not there: what it launches does nothing."""
    properties = {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}
    return SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda *arguments: (1, 1, 0, 0, 1024),
            unload_module=lambda module: None,
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
