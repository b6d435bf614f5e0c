"""Training on a CPU that other work is using, by how long a waiting thread spins.

default     libgomp's: milliseconds
fastwi      what every command of fastwi sets (GOMP_SPINCOUNT)
passive     OMP_WAIT_POLICY=passive: no spinning at all

One process each, since OpenMP reads its settings when torch is loaded; they take their rounds in turn, first on the
quiet machine, then beside one busy process (a loop that does nothing), two ... up to --busy.
"""

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.runner import Case, Report, Run, benchmark
from benchmarks.task import make_task
from fastwi.cli import SPINS

WAYS = {"default": {}, "fastwi": {"GOMP_SPINCOUNT": SPINS}, "passive": {"OMP_WAIT_POLICY": "passive"}}
_SETTINGS = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
# Ends with the benchmark, however that ends.
_LOOP = "import os; ours = os.getppid()\nwhile os.getppid() == ours:\n  for _ in range(10**6): pass"
_TRAIN = "import json, sys; from benchmarks.busy import train; train(**json.loads(sys.argv[1]))"


@benchmark(rounds=3, batches=2, busy=1)
def main(
    report: Report, data: str = "data/cifar10", batch: int = 128, batches: int = 5, rounds: int = 12, busy: int = 2
) -> None:
    """Each number of busy processes is a table."""
    settings: dict[str, Any] = {"data": data, "steps": batches, "batch": batch}
    make_task(**settings)  # what is wrong with the dataset is reported here
    with contextlib.ExitStack() as stack:

        def start(code: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
            kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], env=kept | environment, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        trainers = {way: start(_TRAIN, json.dumps(settings), **environment) for way, environment in WAYS.items()}
        for count in range(busy + 1):
            if count:
                start(_LOOP)
            title = f"Training beside {count} busy processes, {os.cpu_count()} cores"
            cases = {way: Case(_round_of(trainer), batch * batches) for way, trainer in trainers.items()}
            report.time(title, "images", cases, rounds, reference=["fastwi"], at={"busy": f"{count} busy"})


def _round_of(trainer: "subprocess.Popen[str]") -> Run:
    def run() -> None:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdin.write("\n")
        trainer.stdin.flush()
        if not trainer.stdout.readline():
            raise RuntimeError("the training process ended")

    return run


def train(**settings: Any) -> None:
    """In a process of its own: train one round for each line of standard input, and answer each with a line."""
    from benchmarks.peers.engines import engine
    from fastwi.engine import allocator

    case, _ = engine(make_task(**settings), 1, "loop")
    allocator.keep_freed_memory()
    case.run()
    for _ in sys.stdin:
        case.run()
        print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
