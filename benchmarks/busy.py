"""Training on a CPU that other work is using, by how long a waiting thread spins.

default     libgomp's: milliseconds
fastwi      what every command of fastwi sets (GOMP_SPINCOUNT)
passive     OMP_WAIT_POLICY=passive: no spinning at all

One process each, since OpenMP reads its settings when torch is loaded; they take their rounds in turn, first on the
quiet machine, then beside one busy process (a loop that does nothing), two ... up to --busy.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

from benchmarks.runner import Case, Report, benchmark
from fastwi.cli import SPINS

WAYS = {"default": {}, "fastwi": {"GOMP_SPINCOUNT": SPINS}, "passive": {"OMP_WAIT_POLICY": "passive"}}
_round: Callable[[], object]


@benchmark
def main(
    report: Report, data: str = "data/cifar10", batch: int = 128, batches: int = 5, rounds: int = 12, busy: int = 2
) -> None:
    """Each number of busy processes is a table."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        trainers = {}
        for way, environment in WAYS.items():
            with mock.patch.dict(os.environ):
                os.environ.pop("GOMP_SPINCOUNT", None)
                os.environ.pop("OMP_WAIT_POLICY", None)
                os.environ.update(environment)
                trainers[way] = stack.enter_context(ProcessPoolExecutor(1, spawn))
                trainers[way].submit(_start, data, batches, batch).result()
        for count in range(busy + 1):
            if count:
                loop = spawn.Process(target=_loop, args=(os.getpid(),), daemon=True)
                loop.start()
                stack.callback(loop.kill)
            title = f"Training beside busy processes, {os.cpu_count()} cores; {count} of them"
            cases = {way: Case(_run(trainer), batch * batches) for way, trainer in trainers.items()}
            report.time(title, "images", cases, rounds, reference=["fastwi"], at={"busy": f"{count} busy"})


def _run(trainer: ProcessPoolExecutor) -> Callable[[], object]:
    return lambda: trainer.submit(_train).result()


def _start(data: str, batches: int, batch: int) -> None:
    """In a process of its own: prepare to train."""
    from benchmarks.task import fastwi_case, make_task
    from fastwi.engine import allocator

    global _round
    _round = fastwi_case(make_task(data, batches, batch), 1, "loop")[0].run
    allocator.keep_freed_memory()


def _train() -> None:
    _round()


def _loop(parent: int) -> Any:
    while os.getppid() == parent:
        for _ in range(10**6):
            pass


if __name__ == "__main__":
    sys.exit(main())
