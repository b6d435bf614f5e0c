"""`python -m benchmarks.memory`: peak memory of training M networks, and what one more network costs.

Every engine trains M = 1, 2, 4 ... networks, each (engine, M) in a fresh process. The peak is of the second epoch, so
that compilation is not in it: on a GPU of PyTorch's allocations, on a CPU of the process's resident set. The slope of
a straight line through the peaks (least squares) is the memory of a member beyond what all members share: code,
images, one set of activations. Target: under 12 MB (10^6 bytes) for ResNet20. The arithmetic beside it is the
population alone: weights and momentum [M, P], statistics [M, Q] in float32, counters in int64.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from benchmarks.options import names, numbers, parse
from benchmarks.output import plot_lines, print_machine, print_table, write_results
from fastwi.cli import run_command
from fastwi.errors import UserError
from fastwi.files import to_json

MB = 1e6
TARGET_MB = 12
_UNAVAILABLE = 4  # exit code of a child whose engine is not for this device


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--members", type=numbers, default=(1, 2, 4, 8, 16, 32), help="M (default: 1,2,4,8,16,32)")
    parser.add_argument("--engines", type=names, help="engines (default: all)")
    parser.add_argument("--model", default="resnet20", help="network (default: resnet20)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of its channels (default: 1)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes each (default: 3)")
    parser.add_argument("--out", type=Path, help="directory for memory-DEVICE.json, .png and .svg")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parse(parser, arguments, {"members": (1, 4), "rounds": 1})
    if options.child:
        return child(options)
    # What the parent imports before it starts children is little, so that nothing of it is counted as theirs.
    from benchmarks.peers.engines import engine_names

    known = engine_names()
    unknown = [name for name in options.engines or () if name not in known]
    if unknown or len(options.members) < 2 or options.rounds < 1:
        parser.error(f"--engines: unknown: {unknown}" if unknown else "a slope needs two values of --members")
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    problems: dict[str, str] = {}
    for _ in range(options.rounds):
        for engine in options.engines or known:
            for M in options.members:
                if engine not in problems:
                    run_child(arguments, engine, M, found.setdefault(engine, {}), problems)
    report(options, {engine: points for engine, points in found.items() if engine not in problems}, problems)
    return 1 if any(problem.startswith("failed") for problem in problems.values()) else 0


def run_child(
    arguments: Sequence[str], engine: str, M: int, found: dict[int, list[dict[str, Any]]], problems: dict[str, str]
) -> None:
    """Train M networks with `engine` in a fresh process; its peak goes to `found`, or its reason to `problems`."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments, "--child", engine, "--members", str(M)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found.setdefault(M, []).append(json.loads(done.stdout.splitlines()[-1]))
    elif done.returncode == _UNAVAILABLE:
        problems[engine] = done.stdout.strip()
    elif done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("fastwi: error: "))
    else:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        problems[engine] = f"failed at M = {M}: {said:.300}"


def child(options: argparse.Namespace) -> int:
    """In a fresh process: train, and print peak and arithmetic as one line of JSON."""
    import torch

    from benchmarks.peers.engines import engine
    from benchmarks.task import Unavailable, make_task

    (M,) = options.members
    task = make_task(options.data, options.device, options.batch, 2, 0, options.model, options.width)
    try:
        contestant, population = engine(task, M, options.child)
        contestant.run()
        before = bytes_now(task.device)
        forget_peak(task.device)
        contestant.run()
    except Unavailable as problem:
        print(problem)
        return _UNAVAILABLE
    matrices = (population.weights_MP, population.momentum_MP, population.statistics_MQ, population.counters_MB)
    held = sum(matrix.element_size() * matrix.shape[1] for matrix in matrices)
    told = {"peak_bytes": peak_bytes(task.device), "between_epochs_bytes": before, "population_bytes_a_member": held}
    print(to_json(told | {"device": str(torch.device(task.device).type)}))
    return 0


def peak_bytes(device: Any) -> int:
    """The most memory that was in use since `forget_peak`, or since the start where that cannot be set back."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)  # what captured steps use is reserved, and not allocated
    # Not getrusage's figure, where the system has a better one: that is inherited from the process that started this
    # one, and cannot be set back.
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bytes_now(device: Any) -> int:
    """Memory in use now; 0 on a CPU where the system does not say."""
    import torch

    return torch.cuda.memory_reserved(device) if device.type == "cuda" else _status("VmRSS")


def forget_peak(device: Any) -> None:
    """Begin to measure the peak anew."""
    import torch

    from fastwi.engine.device import free_memory

    if device.type == "cuda":
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> int:
    """A size of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def slope_and_shared(peaks: dict[int, float]) -> tuple[float, float]:
    """Of the least-squares line through {M: peak}: what one more member takes, and what all share."""
    line = linear_regression(list(peaks), list(peaks.values()))
    return line.slope, line.intercept


def report(
    options: argparse.Namespace, found: dict[str, dict[int, list[dict[str, Any]]]], problems: dict[str, str]
) -> None:
    """Print peaks and slopes; write JSON and a chart where asked to."""
    import torch

    from benchmarks.machine import describe_machine, pick_device

    device = pick_device(options.device)
    machine = describe_machine(torch.device(device))
    rows, measurements = [], []
    lines: dict[str, dict[int, tuple[float, float, float]]] = {}
    for engine, points in found.items():
        peaks = {M: median(run["peak_bytes"] for run in runs) / MB for M, runs in points.items()}
        slope, shared = slope_and_shared(peaks)
        arithmetic = next(iter(points.values()))[0]["population_bytes_a_member"] / MB
        every = {M: [run["peak_bytes"] / MB for run in runs] for M, runs in points.items()}
        lines[f"fastwi {engine}"] = {M: (peaks[M], min(every[M]), max(every[M])) for M in peaks}
        rows.append(
            (engine, *(f"{peak:,.0f}" for peak in peaks.values()), f"{slope:.2f}", f"{shared:,.0f}",
             f"{arithmetic:.2f}", f"{100 * arithmetic / slope:.0f}" if slope > 0 else "-",
             "yes" if slope < TARGET_MB else "no")
        )  # fmt: skip
        measurements.append(
            {"engine": engine, "peak_MB": peaks, "peak_MB_of_every_process": every, "MB_a_member": slope,
             "shared_MB": shared, "population_MB_a_member": arithmetic, "of_population_floor_%":
             100 * arithmetic / slope if slope > 0 else None, "target_MB_a_member": TARGET_MB}
        )  # fmt: skip
    measurements += [{"engine": engine, "not_measured": problem} for engine, problem in problems.items()]
    print_machine(machine)
    title = (
        f"Peak memory in MB of training M x {options.model}, batch {options.batch}; "
        f"medians of {options.rounds} fresh processes; target: under {TARGET_MB} MB a member"
    )
    columns = ("engine", *(f"M = {M}" for M in options.members), "a member", "shared", "[M, P] a member", "% of it")
    print_table(title, (*columns, "target met"), rows)
    for engine, problem in problems.items():
        print(f"{engine}: {problem}")
    if options.out:
        settings = {"model": options.model, "width": options.width, "batch": options.batch, "rounds": options.rounds}
        stem = options.out / f"memory-{device.type}"
        write_results(f"{stem}.json", "memory", machine, settings, measurements)
        if lines:
            plot_lines(stem, title, ("networks trained together (M)", "peak memory, MB"), lines, {})


if __name__ == "__main__":
    sys.exit(main())
