"""`python -m benchmarks.pairs`: pairs averaged, re-estimated and evaluated, end to end, a second.

What an experiment pays for one more pair: average two ResNet20s, recompute the batch-norm statistics of the average
on training images, evaluate it on test images. Averaging alone is `python -m benchmarks.interpolation`; what is left
here is nearly all forward passes.

(a) stock: state dicts averaged in a loop, torch.optim.swa_utils.update_bn, compiled evaluation under bf16 autocast
(b) fastwi, by each engine: Population.lerp_rows_, Engine.recompute_statistics, Engine.evaluate

Before anything is timed, the accuracies that all arrive at are held to each other.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.options import parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.task import Task, make_task
from benchmarks.timing import Timing, interleave
from fastwi.cli import run_command
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine.choose import ENGINES, build_engine
from fastwi.errors import UserError
from fastwi.kernels.augment import augment
from fastwi.population import Population

Pairs = Callable[[], np.ndarray]  # to the accuracy of each pair's average, % [L]
STOCK = "(a) stock"
TOLERANCE = 1.5  # points of accuracy between contestants: other roundings, other batches of statistics


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--pairs", type=int, default=256, help="pairs a round (default: 256)")
    parser.add_argument("--statistics", type=int, default=2560, help="images for statistics (default: 2560)")
    parser.add_argument("--images", type=int, default=10_000, help="test images (default: 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--out", help="directory for pairs-DEVICE.json and .png")
    options = parse(parser, arguments, {"pairs": 4, "statistics": 256, "images": 500, "rounds": 3})
    if min(options.pairs, options.statistics, options.images, options.rounds) < 1:
        parser.error("--pairs, --statistics, --images and --rounds must be at least 1")
    task = make_task(options.data, options.device, 128, max(1, options.statistics // 128), 0)
    test = load_split(options.data, "test", task.device, options.images)[0]
    contestants = line_up(task, test, options.pairs)
    verify(contestants)
    timings = interleave(contestants, options.rounds, task.device, warmups=0)  # compiled in the verification
    report(task, len(test), options.pairs, timings, options.out)
    return 0


def line_up(task: Task, test: ResidentDataset, pairs: int) -> dict[str, Pairs]:
    """All contestants, on the children of one network that trained a little: rows 2 l and 2 l + 1 are pair l."""
    parent = Population.from_modules([task.network()], task.device)
    engine = build_engine(task.config, task.network())
    engine.train_epoch(parent, task.dataset, [Noise(0)], 0)
    children = parent.clone_rows([0, 0])
    engine.train_epoch(children, task.dataset, [Noise(1), Noise(2)], 1)
    population = children.clone_rows([0, 1] * pairs)
    contestants: dict[str, Pairs] = {STOCK: stock(task, test, population)}
    for name in ENGINES:
        contestants[f"(b) fastwi {name}"] = fastwi_pairs(task, test, population, name)
    contestants["(b) fastwi loop, again"] = contestants["(b) fastwi loop"]
    return contestants


def stock(task: Task, test: ResidentDataset, population: Population) -> Pairs:
    """(a): what a careful script does."""
    network = copy.deepcopy(task.network()).to(task.device).to(memory_format=torch.channels_last)
    states = [population.state_dict(m) for m in range(population.members)]
    table = task.dataset.table_C256.to(task.dtype)

    @torch.compile(dynamic=False)
    def forward(x_NCHW: Tensor) -> Tensor:
        with task.autocast():
            logits_NK: Tensor = network(x_NCHW)
        return logits_NK

    draws = Noise(0, statistics=True).draws(0, len(task.dataset), 4, 0.5)
    order, offset, flip = (
        torch.from_numpy(x).to(task.device) for x in (draws.order_N, draws.offset_N2, draws.flip_N)
    )
    batches = [slice(first, first + task.batch) for first in range(0, task.steps * task.batch, task.batch)]

    @torch.no_grad()
    def run() -> np.ndarray:
        found = []
        for l in range(0, len(states), 2):  # noqa: E741
            a, b = states[l], states[l + 1]
            mean = {key: (a[key] + b[key]) / 2 if a[key].is_floating_point() else a[key] for key in a}
            network.load_state_dict(mean)
            images = (augment(task.dataset.images_NHWC, order[i], offset[i], flip[i], table, 4) for i in batches)
            with task.autocast():
                torch.optim.swa_utils.update_bn(images, network)
            network.eval()
            right = torch.zeros((), dtype=torch.int64, device=task.device)
            for at in torch.arange(len(test), device=task.device).split(500):
                logits_NK = forward(augment(test.images_NHWC, at, None, None, table, 0))
                right += (logits_NK.argmax(1) == test.labels_N[at]).sum()
            found.append(right)
        return 100 * torch.stack(found).cpu().numpy() / len(test)

    return run


def fastwi_pairs(task: Task, test: ResidentDataset, population: Population, engine_name: str) -> Pairs:
    """(b)."""
    kind = dataclasses.replace(task.config.engine, name=engine_name)
    engine = build_engine(dataclasses.replace(task.config, engine=kind), task.network())
    pairs = [(row, row + 1) for row in range(0, population.members, 2)]
    children = population.clone_rows([*range(population.members), *[0] * len(pairs)])
    into = list(range(population.members, children.members))

    def run() -> np.ndarray:
        children.lerp_rows_(pairs, 0.5, into)
        made = children[population.members :]
        fresh = engine.recompute_statistics(made, task.dataset, [Noise(0)] * len(pairs), 0)
        return np.asarray(engine.evaluate(fresh, test).accuracy_M)

    return run


def verify(contestants: dict[str, Pairs]) -> None:
    """Raise UserError where contestants do not arrive at the same accuracies."""
    found = {name: run() for name, run in contestants.items()}
    expected = found[STOCK]
    for name, accuracy_L in found.items():
        if np.abs(accuracy_L - expected).max() > TOLERANCE:
            raise UserError(f"{name} has accuracies {accuracy_L[:3]} where {STOCK} has {expected[:3]}")


def report(task: Task, images: int, pairs: int, timings: dict[str, Timing], out: str | None) -> None:
    """Print the table; write JSON and a picture into `out` where it is given."""
    machine = describe_machine(task.device)
    stock_s = timings[STOCK].median_s
    rows, measurements = [], []
    bars: dict[str, tuple[float, float, float]] = {}
    for name, timing in timings.items():
        low, high = (pairs / seconds for seconds in reversed(timing.quartiles_s))
        speed, ratio = pairs / timing.median_s, stock_s / timing.median_s
        bars[name] = (speed, low, high)
        rows.append((name, f"{speed:,.2f}", f"{low:,.2f} - {high:,.2f}", f"{ratio:.2f} x"))
        measurements.append(
            {"contestant": name, "pairs_per_s_median": speed, "pairs_per_s_quartiles": [low, high],
             "stock_ratio": ratio, "seconds": list(timing.seconds)}
        )  # fmt: skip
    print_machine(machine)
    title = f"{pairs} pairs averaged, statistics of {task.images:,} images, {images:,} test images"
    print_table(title, ("contestant", "pairs/s, median", "quartiles", "of stock"), rows)
    if out:
        settings = {"pairs": pairs, "statistics_images": task.images, "test_images": images}
        stem = Path(out) / f"pairs-{task.device.type}"
        write_results(f"{stem}.json", "pairs", machine, settings, measurements)
        plot_bars(f"{stem}.png", title, "pairs/s", bars)


if __name__ == "__main__":
    sys.exit(main())
