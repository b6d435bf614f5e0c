"""`python -m benchmarks.busy`: training on a CPU that other work is using, by how long a waiting thread spins.

default     libgomp's: milliseconds
fastwi      what every command of fastwi sets (GOMP_SPINCOUNT)
passive     OMP_WAIT_POLICY=passive: no spinning at all

One process each, since OpenMP reads its settings when torch is loaded; they take their rounds in turn, first on the
quiet machine, then beside one busy process (a loop that does nothing), two ...
"""

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.options import parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.task import make_task
from benchmarks.timing import Timing, interleave
from fastwi.cli import SPINS, run_command

WAYS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "fastwi": {"GOMP_SPINCOUNT": SPINS},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
# Ends with the benchmark, however that ends.
_LOOP = "import os; ours = os.getppid()\nwhile os.getppid() == ours:\n  for _ in range(10**6): pass"
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.busy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--batches", type=int, default=5, help="steps a round (default: 5)")
    parser.add_argument("--rounds", type=int, default=12, help="counted rounds (default: 12)")
    parser.add_argument("--busy", type=int, default=2, help="busy processes at most (default: 2)")
    parser.add_argument("--out", type=Path, help="directory for busy-cpu.json and .png")
    options = parse(parser, arguments, {"rounds": 3, "batches": 2, "busy": 1})
    if min(options.batch, options.batches, options.rounds, options.busy + 1) < 1:
        parser.error("counts must be at least 1")
    make_task(options.data, "cpu", options.batch, options.batches, workers=0)  # what is wrong with it is said here
    images = options.batch * options.batches
    found: dict[tuple[int, str], Timing] = {}
    with contextlib.ExitStack() as stack:
        trainers = {
            way: stack.enter_context(_trainer(way, options.data, options.batch, options.batches)) for way in WAYS
        }
        for busy in range(options.busy + 1):
            if busy:
                stack.enter_context(_busy_process())
            runs = {way: trainer.run for way, trainer in trainers.items()}
            timings = interleave(runs, options.rounds, torch.device("cpu"), warmups=1)
            found |= {(busy, way): timing for way, timing in timings.items()}
    report(found, images, {name: value for name, value in vars(options).items() if name != "out"}, options.out)
    return 0


def report(
    found: Mapping[tuple[int, str], Timing], images: int, settings: dict[str, object], out: Path | None
) -> None:
    """Print the table; write it and a chart where a directory is given."""
    rows, measurements = [], []
    bars: dict[str, tuple[float, float, float]] = {}
    for (busy, way), timing in found.items():
        median, (high, low) = images / timing.median_s, (images / quartile for quartile in timing.quartiles_s)
        ratio = found[busy, "default"].median_s / timing.median_s
        rows.append((str(busy), way, f"{median:,.0f}", f"{low:,.0f} - {high:,.0f}", f"{ratio:.2f} x"))
        bars[f"{way}, {busy} busy"] = (median, low, high)
        measurements.append({"busy": busy, "way": way, "images": images, "round_s": list(timing.seconds)})
    title = f"Training beside busy processes, {os.cpu_count()} cores"
    print_table(title, ("busy", "threads wait", "images/s", "quartiles", "of default"), rows)
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    if out is not None:
        write_results(out / "busy-cpu.json", "busy", machine, settings, measurements)
        plot_bars(out / "busy-cpu.png", title, "images/s", bars)


class _Trainer:
    """A process that trains one round when it is asked to."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def run(self) -> None:
        self._pipe.send(None)
        self._pipe.recv()


@contextlib.contextmanager
def _trainer(way: str, data: str, batch: int, batches: int) -> Iterator[_Trainer]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(theirs, data, batch, batches))
    before = dict(os.environ)
    for name in _SETTINGS:
        os.environ.pop(name, None)
    os.environ.update(WAYS[way])
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        ours.recv()
        yield _Trainer(ours)
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _LOOP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _train(pipe: Connection, data: str, batch: int, batches: int) -> None:
    from benchmarks.peers.engines import engine
    from fastwi.engine import allocator

    task = make_task(data, "cpu", batch, batches, workers=0)
    contestant, _ = engine(task, 1, "loop")
    allocator.keep_freed_memory()
    contestant.run()
    pipe.send(None)
    while True:
        pipe.recv()
        contestant.run()
        pipe.send(None)


if __name__ == "__main__":
    sys.exit(main())
