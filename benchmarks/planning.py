"""How long a large sweep takes to plan, and in how much memory.

Plans a k x s grid of at least --trajectories trajectories in fresh processes: points, tree, what is left to do on an
empty store, and the ready queue. Memory is the peak of the process, the interpreter and all imports included;
planning needs no torch.
Targets: 10,000 trajectories in under 2 s and 200 MB, 269,000 (2.0 million epochs) in 20 s and 1 GB.
"""

import itertools
import sys
import time

from benchmarks.runner import Report, benchmark, fresh, memory_bytes, over_rounds


@benchmark(trajectories=1_000, rounds=1)
def main(report: Report, trajectories: int = 10_000, rounds: int = 5) -> None:
    """A fresh process for each round."""
    found = [fresh(__file__, "measure", {"least": trajectories}) for _ in range(rounds)]
    report.add("Planning a sweep, median (range)", [over_rounds(found)], found)
    report.write()


def measure(least: int) -> dict[str, float]:
    """In a fresh process: plan; counts, seconds a stage and the peak memory (MB, 10^6 bytes)."""
    from fastwi.config.schema import Config, EngineConfig
    from fastwi.config.sweep import Axis, SweepOptions, SweepSpec, points
    from fastwi.experiment.inputs import Inputs
    from fastwi.experiment.planner import plan_sweep
    from fastwi.experiment.ready import ReadyQueue
    from fastwi.experiment.todo import unfinished

    axes = (Axis("experiment.k", (1, 2, 4, 8, 16)), Axis("experiment.s", (1, 2, 4)))
    children = 64  # 32 pairs: a parent has 1 + 5 x 64 + 15 x 32 = 801 trajectories
    parents = -(-least // (1 + 5 * children + 15 * children // 2))
    base = Config(engine=EngineConfig(precision="bf16"))
    spec = SweepSpec(base, axes, SweepOptions(parents=tuple(range(parents)), children=children))
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
    peak = memory_bytes("VmHWM") / 1e6
    assert len(queue) == len(left)
    stages = [after - before for before, after in itertools.pairwise(times)]
    begun = {
        (before, tree.noises[node])
        for node in tree.epoch_nodes()
        for before in [tree.before[node]]
        if not tree.is_epoch(before) or tree.noises[before] != tree.noises[node]
    }
    return {
        "trajectories": len(begun), "points": len(every),
        **dict(zip(("epochs", "probes"), tree.count(left), strict=True)),
        **dict(zip(("points_s", "tree_s", "what_is_left_s", "ready_queue_s"), stages, strict=True)),
        "all_s": times[-1] - times[0], "peak_MB": peak,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
