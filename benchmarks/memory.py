"""Peak memory of training M networks, and what one more network costs.

Every engine trains M = 1, 2, 4 ... networks, each (engine, M) in a fresh process. The peak is of the second epoch, so
that compilation is not in it: on a GPU of PyTorch's allocations, on a CPU of the process's resident set. The slope of
a straight line through the peaks (least squares) is the memory of a member beyond what all members share: code,
images, one set of activations. Target: under 12 MB (10^6 bytes) for ResNet20. The arithmetic beside it is the
population alone: weights and momentum [M, P], statistics [M, Q] in float32, counters in int64.
"""

import sys
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch

from benchmarks.runner import Report, benchmark, fresh, over_rounds, peak_bytes, problem_of
from benchmarks.task import RANDOM, fastwi_case, make_task
from fastwi.engine.choose import ENGINES
from fastwi.engine.device import free_memory
from fastwi.errors import UserError

MB = 1e6
TARGET_MB = 12
_CLEAR = Path("/proc/self/clear_refs")


@benchmark
def main(
    report: Report, data: str = "data/cifar10", device: str = "auto", members: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    engines: tuple[str, ...] = tuple(ENGINES), model: str = "resnet20", width: float = 1.0, batch: int = 128,
    rounds: int = 3,
) -> None:  # fmt: skip
    """A table for each engine; a fresh process for each round and M."""
    if data != RANDOM:
        from fastwi.data.card import read_card

        read_card(data)  # UserError where there is no dataset
        data = str(Path(data).resolve())
    settings = {"data": data, "device": str(report.device), "model": model, "width": width}
    title = f"Peak memory of training M x {model}, batch {batch}"
    title += f"; {rounds} fresh processes each; target: under {TARGET_MB} MB a member"
    for engine in engines:
        try:
            every = [_peaks(members, {"engine": engine, "batch": batch, **settings}) for _ in range(rounds)]
        except Exception as error:  # the other engines' figures are wanted all the same
            print(f"{engine}: {problem_of(error)}")
            report.add(title, [], [{"engine": engine, "not_measured": problem_of(error)}])
            report.failed |= not isinstance(error, UserError)
            continue
        row: dict[str, Any] = {"engine": engine, **over_rounds(every)}
        points = {M: row[f"peak_MB_of_{M}"] for M in members}
        row["target_met"] = row["MB_a_member"][0] < TARGET_MB
        measurements = [{"engine": engine, **each} for each in every]
        report.add(title, [row], measurements, {f"fastwi {engine}": points}, "peak memory, MB")


def _peaks(members: tuple[int, ...], settings: dict[str, Any]) -> dict[str, float]:
    """One round: the peaks, and the straight line through them."""
    measured = [fresh(train, members=M, **settings) for M in members]
    peaks = [each["peak_bytes"] / MB for each in measured]
    line = linear_regression(members, peaks)
    return {
        **{f"peak_MB_of_{M}": peak for M, peak in zip(members, peaks, strict=True)},
        "MB_a_member": line.slope, "shared_MB": line.intercept,
        "population_MB_a_member": measured[0]["population_bytes_a_member"] / MB,
    }  # fmt: skip


def train(engine: str, members: int, **settings: Any) -> dict[str, int]:
    """In a fresh process: train two epochs; the peak of the second, and the arithmetic."""
    task = make_task(steps=2, **settings)
    case, population = fastwi_case(task, members, engine)
    case.run()
    forget_peak(task.device)
    case.run()
    # What captured steps use is reserved, and not allocated.
    peak = torch.cuda.max_memory_reserved() if task.device.type == "cuda" else peak_bytes()
    held = sum(matrix.element_size() * matrix.shape[1] for matrix in population.matrices)
    return {"peak_bytes": peak, "population_bytes_a_member": held}


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak again. Raises UserError where the system does not let a process do so."""
    if device.type == "cuda":
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            _CLEAR.write_text("5")
        except OSError as error:
            raise UserError(f"a peak of memory cannot be forgotten here: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
