"""`python -m benchmarks.planning`: how long a large sweep takes to plan, and in how much memory.

Plans a k x s grid of at least `--trajectories` trajectories in fresh processes: points, tree, what is left to do on
an empty store, and the ready queue. Memory is the peak of the process, the interpreter and all imports included;
planning needs no torch.
Targets: 10,000 trajectories in under 2 s and 200 MB, 269,000 (2.0 million epochs) in 20 s and 1 GB.
"""

import argparse
import itertools
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.options import parse
from benchmarks.output import print_machine, print_table, write_results
from fastwi.cli import run_command
from fastwi.files import to_json

_STAGES = ("points_s", "tree_s", "what_is_left_s", "ready_queue_s", "all_s")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--trajectories", type=int, default=10_000, help="at least so many (default 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes (default 5)")
    parser.add_argument("--out", type=Path, help="file for the rounds, as JSON")
    arguments = parse(parser, argv, {"trajectories": 1_000, "rounds": 1})
    context = multiprocessing.get_context("spawn")
    rounds = []
    for _ in range(arguments.rounds):
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(arguments.trajectories, theirs))
        process.start()
        theirs.close()  # a process that fails ends the wait for it
        rounds.append(ours.recv())
        process.join()
    rows = []
    for stage in _STAGES:
        seconds = sorted(found[stage] for found in rounds)
        rows.append(
            (
                stage.removesuffix("_s").replace("_", " "),
                f"{statistics.median(seconds):.2f}",
                f"{seconds[0]:.2f} - {seconds[-1]:.2f}",
            )
        )
    first = rounds[0]
    memory = max(found["peak_MB"] for found in rounds)
    title = (
        f"Planning {first['trajectories']:,} trajectories: {first['points']:,} points, {first['epochs']:,} epochs, "
        f"{first['probes']:,} networks to measure; at most {memory:.0f} MB"
    )
    print_table(title, ("stage", "median s", "range s"), rows)
    import torch

    from benchmarks.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    if arguments.out:
        write_results(arguments.out, "planning", machine, {"rounds": arguments.rounds}, rounds)
        print(to_json({"out": str(arguments.out)}))
    return 0


def measure(least: int, pipe: Any) -> None:
    """In a fresh process: plan, and send seconds a stage, counts and the peak memory (MB, 10^6 bytes)."""
    from fastwi.config.schema import Config, EngineConfig
    from fastwi.config.sweep import Axis, SweepOptions, SweepSpec
    from fastwi.config.sweeppoints import points
    from fastwi.experiment.inputs import Inputs
    from fastwi.experiment.planner import plan_sweep
    from fastwi.experiment.ready import ReadyQueue
    from fastwi.experiment.todo import unfinished

    axes = (Axis("experiment.k", (1, 2, 4, 8, 16)), Axis("experiment.s", (1, 2, 4)))
    children = 64  # 32 pairs: a parent has 1 + 5 x 64 + 15 x 32 = 801 trajectories
    parents = -(-least // (1 + 5 * children + 15 * children // 2))
    base = Config(engine=EngineConfig(precision="bf16"))
    options = SweepOptions(parents=tuple(range(parents)), children=children)
    spec = SweepSpec(base, axes, options)
    inputs = Inputs("0" * 128, {"train": 50_000, "test": 10_000})
    times = [time.perf_counter()]
    every = list(points(spec))
    times.append(time.perf_counter())
    tree = plan_sweep(spec, every, lambda _: inputs).tree
    times.append(time.perf_counter())
    left = unfinished(tree, set(), set())
    times.append(time.perf_counter())
    queue = ReadyQueue(tree, left)
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert len(queue) == len(left)
    seconds = [after - before for before, after in itertools.pairwise(times)]
    begun = {
        (before, tree.noises[node])
        for node in tree.epoch_nodes()
        for before in [tree.before[node]]
        if not tree.is_epoch(before) or tree.noises[before] != tree.noises[node]
    }
    pipe.send(
        dict(zip(_STAGES, [*seconds, times[-1] - times[0]], strict=True))
        | {"trajectories": len(begun), "points": len(every), "peak_MB": peak}
        | dict(zip(("epochs", "probes"), tree.count(left), strict=True))
    )


if __name__ == "__main__":
    sys.exit(main())
