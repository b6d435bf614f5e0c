"""How long a large sweep takes to plan, and in how much memory.

Plans a k x s grid of at least --trajectories trajectories in fresh processes: points, tree, what is left to do on an
empty store, and the ready queue. Memory is the peak of the process, the interpreter and all imports included;
planning needs no torch.
Targets: 10,000 trajectories in under 2 s and 200 MB, 269,000 (2.0 million epochs) in 20 s and 1 GB.
"""

import contextlib
import sys
import time

from benchmarks.runner import Report, benchmark, fresh, over_rounds, peak_bytes
from fastwi.errors import UserError


@benchmark
def main(report: Report, trajectories: int = 10_000, rounds: int = 5) -> None:
    """A fresh process for each round."""
    found = [fresh(measure, least=trajectories) for _ in range(rounds)]
    report.add("Planning a sweep, median (range)", [over_rounds(found)], found)


def measure(least: int) -> dict[str, float]:
    """In a fresh process: plan; counts, seconds a stage and the peak memory (MB, 10^6 bytes)."""
    from fastwi.config.schema import Config, EngineConfig
    from fastwi.config.sweep import SweepOptions, SweepSpec, points
    from fastwi.experiment.inputs import Inputs
    from fastwi.experiment.planner import plan_sweep
    from fastwi.experiment.ready import ReadyQueue
    from fastwi.experiment.todo import unfinished

    axes = {"experiment.k": (1, 2, 4, 8, 16), "experiment.s": (1, 2, 4)}
    children = 64  # 32 pairs: a parent has 1 + 5 x 64 + 15 x 32 = 801 trajectories
    parents = -(-least // (1 + 5 * children + 15 * children // 2))
    base = Config(engine=EngineConfig(precision="bf16"))
    spec = SweepSpec(base, axes, SweepOptions(parents=tuple(range(parents)), children=children))
    inputs = Inputs("0" * 128, {"train": 50_000, "test": 10_000})
    stages = {}
    begun = last = time.perf_counter()

    def ended(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[f"{stage}_s"], last = now - last, now

    every = list(points(spec))
    ended("points")
    tree = plan_sweep(spec, every, lambda _: inputs).tree
    ended("tree")
    left = unfinished(tree, set(), set())
    ended("what_is_left")
    assert len(ReadyQueue(tree, left)) == len(left)
    ended("ready_queue")
    epochs, probes = tree.count(left)
    memory = {}
    with contextlib.suppress(UserError):  # where the system does not say
        memory["peak_MB"] = peak_bytes() / 1e6
    starts = {(tree.before[node], tree.noises[node]) for node in tree.epoch_nodes()}
    # An epoch that continues another one of the same noise does not begin a trajectory.
    trajectories = sum(not tree.is_epoch(before) or tree.noises[before] != noise for before, noise in starts)
    counts = {"trajectories": trajectories, "points": len(every), "epochs": epochs, "probes": probes}
    return {**counts, **stages, "all_s": last - begun, **memory}


if __name__ == "__main__":
    sys.exit(main())
