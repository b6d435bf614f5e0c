"""`python -m benchmarks.evaluation`: the line between two ResNet20s, fastwi beside plain compiled evaluation.

(a) stock, autocast: the network in channels-last order, torch.compile'd under bf16 autocast; state dicts interpolated
    and loaded one alpha after the other
(b) stock, bf16 weights: the same with the network cast to bf16 whole, batch norm's statistics
    too; fewer casts, less exact
(c) fastwi: `fastwi.analysis.evaluate_line`, averaged statistics

Where the device does not compute in bf16 (`engine.precision: auto`) all compute in float32: (a) without autocast, and
without (b).

All evaluate the same networks on the same resident images of the train and the test split, in the same batches,
and sum the loss and count the errors of each split and alpha. Before anything is timed, all are held to each other.

The time of a line is proportional to alphas and images: --alphas and --images make a round shorter. With --pieces P a
round is every P-th place of the line, and P rounds are the whole line once: every contestant does the full work, in
turns short enough that what disturbs the machine disturbs them all. For the full size in some 10 minutes:
    python -m benchmarks.evaluation --pieces 10 --contestants fastwi,again,autocast-static
"""

import argparse
import copy
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.floor import Floors, floors_of
from benchmarks.machine import describe_machine, pick_device
from benchmarks.options import names, parse
from benchmarks.output import plot_bars, print_machine, print_table, write_results
from benchmarks.timing import Timing, interleave
from fastwi.analysis import Evaluator, evaluate_line
from fastwi.cli import run_command
from fastwi.config.schema import Config
from fastwi.data.noise import Noise
from fastwi.data.resident import ResidentDataset, load_split
from fastwi.engine import allocator
from fastwi.engine.choose import build_engine, build_network
from fastwi.errors import UserError
from fastwi.kernels.augment import augment_reference
from fastwi.population import Population

Line = Callable[[Sequence[float]], np.ndarray]  # alphas -> losses (nats) and errors (%), float64 [L, splits, 2]
AUTOCAST, LOW, FASTWI = "(a) stock, autocast", "(b) stock, bf16 weights", "(c) fastwi"
STATIC = " + static memory"
CONTESTANTS = {
    "autocast": AUTOCAST,
    "autocast-static": AUTOCAST + STATIC,
    "low": LOW,
    "low-static": LOW + STATIC,
    "fastwi": FASTWI,
    "again": f"{FASTWI}, again",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A pair of networks, the splits, the places on the line and the images of a step."""

    network: nn.Module
    pair: Population
    splits: dict[str, ResidentDataset]
    alphas: tuple[float, ...]
    batch: int
    device: torch.device
    dtype: torch.dtype
    """What activations and convolutions are computed in."""
    pieces: int
    """Rounds that the line is divided among; 1: every round is the whole line."""

    @property
    def images(self) -> int:
        """Images that pass through a network in one round."""
        return len(self.alphas) // self.pieces * sum(len(split) for split in self.splits.values())

    def piece(self, number: int) -> tuple[float, ...]:
        """The alphas of one round."""
        return self.alphas[number % self.pieces :: self.pieces]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--alphas", type=int, default=30, help="places on the line a round (default: 30)")
    parser.add_argument("--images", type=int, default=10_000, help="images of each split (default: 10000)")
    parser.add_argument("--batch", type=int, default=500, help="images a step (default: 500)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of whole lines (default: 5)")
    parser.add_argument("--pieces", type=int, default=1, help="rounds that are one line together (default: 1, whole)")
    parser.add_argument("--contestants", type=names, help=f"some of {', '.join(CONTESTANTS)} (default: all)")
    parser.add_argument("--out", help="directory for evaluation-DEVICE.json and .png")
    short = {"alphas": 6, "images": 300, "batch": 100, "pieces": 3, "contestants": ("fastwi", "again", "autocast")}
    options = parse(parser, arguments, short)
    if options.alphas < 2 or min(options.images, options.batch, options.rounds, options.pieces) < 1:
        parser.error("--alphas must be at least 2, and --images, --batch, --rounds and --pieces at least 1")
    if options.alphas % options.pieces:
        parser.error(f"--pieces {options.pieces} must divide --alphas {options.alphas}")
    unknown = [name for name in options.contestants or () if name not in CONTESTANTS]
    if unknown:
        parser.error(f"--contestants: unknown: {unknown}")
    device = pick_device(options.device)
    task = make_task(options.data, options.images, options.alphas, options.batch, device, options.pieces)
    chosen = [CONTESTANTS[name] for name in options.contestants or CONTESTANTS]
    contestants = {name: line for name, line in line_up(task).items() if name in chosen}
    if not contestants:
        parser.error(f"--contestants: none of them runs on {device.type}")
    verify(contestants, task)
    prepare: dict[str, Callable[[], object]] = {
        name: allocator.keep_freed_memory if STATIC in name or FASTWI in name else allocator.restore_defaults
        for name in contestants
    }
    runs: dict[str, Callable[[], object]] = {name: in_turn(task, line) for name, line in contestants.items()}
    rounds = task.pieces if task.pieces > 1 else options.rounds
    # Compiled, and allocated, in the verification.
    image_HWC = task.splits["train"].images_NHWC.shape[1:]
    floors = floors_of(task.network, image_HWC, task.batch, task.device, task.dtype, training=False)
    timings = interleave(runs | dict(floors.runs), rounds, task.device, prepare | floors.prepare(), warmups=0)
    report(task, {name: timings[name] for name in runs}, rounds, floors, timings, options.out)
    return 0


def in_turn(task: Task, line: Line) -> Callable[[], np.ndarray]:
    """A call that evaluates one piece of the line after the other."""
    numbers = itertools.count()
    return lambda: line(task.piece(next(numbers)))


def make_task(data: str, images: int, alphas: int, batch: int, device: torch.device, pieces: int = 1) -> Task:
    """The splits, and two siblings that trained on them for a few steps: weights and statistics of real networks."""
    config = Config()
    splits = {name: load_split(data, name, device, images)[0] for name in ("train", "test")}
    network = build_network(config, splits["train"].classes)
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, device=str(device)))
    engine = build_engine(config, network)
    parent = Population.from_modules([network], device)
    few = load_split(data, "train", device, min(images, 2_560))[0]
    engine.train_epoch(parent, few, [Noise(0)], 0)
    pair = parent.clone_rows([0, 0])
    engine.train_epoch(pair, few, [Noise(1), Noise(2)], 1)
    return Task(network, pair, splits, tuple(np.linspace(0, 1, alphas).tolist()), batch, device, engine.dtype, pieces)


def line_up(task: Task) -> dict[str, Line]:
    """All contestants. The same code runs with glibc's allocator settings and with those that fastwi makes."""
    stocks = {AUTOCAST: stock(task, low=False)}
    if task.dtype == torch.bfloat16:
        stocks[LOW] = stock(task, low=True)
    if task.device.type == "cpu":
        stocks |= {name + STATIC: line for name, line in stocks.items()}
    fastwi = fastwi_line(task)
    return dict(sorted((stocks | {FASTWI: fastwi, f"{FASTWI}, again": fastwi}).items()))


def stock(task: Task, low: bool) -> Line:
    """(a), and with `low` (b): what a careful script does."""
    network = copy.deepcopy(task.network).eval().to(task.device).to(memory_format=torch.channels_last)
    if low:
        network = network.to(torch.bfloat16)
    a, b = (task.pair.state_dict(m) for m in (0, 1))
    tables = {name: split.table_C256.to(task.dtype) for name, split in task.splits.items()}
    device_type, autocast = task.device.type, task.dtype == torch.bfloat16 and not low

    @torch.compile(dynamic=False)
    def step(images_NHWC: Tensor, labels_N: Tensor, order_N: Tensor, table_C256: Tensor) -> Tensor:
        x_NCHW = augment_reference(images_NHWC, order_N, None, None, table_C256, 0)
        with torch.autocast(device_type, torch.bfloat16, enabled=autocast):
            logits_NK = network(x_NCHW).float()
        labels_N = labels_N[order_N]
        loss = functional.cross_entropy(logits_NK, labels_N, reduction="sum")
        return torch.stack([loss, (logits_NK.argmax(1) != labels_N).sum().float()])

    @torch.no_grad()
    def line(alphas: Sequence[float]) -> np.ndarray:
        measured = []
        for alpha in alphas:
            mixed = {key: a[key].lerp(b[key], alpha) if a[key].is_floating_point() else a[key] for key in a}
            network.load_state_dict(mixed)
            row = []
            for name, split in task.splits.items():
                total = torch.zeros(2, dtype=torch.float64, device=task.device)
                for order_N in torch.arange(len(split), device=task.device).split(task.batch):
                    total += step(split.images_NHWC, split.labels_N, order_N, tables[name])
                row.append(total / len(split))
            measured.append(torch.stack(row))
        return torch.stack(measured).cpu().numpy() * (1, 100)

    return line


def fastwi_line(task: Task) -> Line:
    """(c)."""
    engine = dataclasses.replace(Config().engine, device=str(task.device), evaluation_batch=task.batch)
    evaluator = Evaluator(task.network, engine)

    def line(alphas: Sequence[float]) -> np.ndarray:
        found = evaluate_line(evaluator, task.pair, task.splits, alphas)
        tables = (found.loss, found.error)
        return np.stack([[table[name]["averaged"] for name in task.splits] for table in tables]).transpose(2, 1, 0)

    return line


def verify(contestants: dict[str, Line], task: Task) -> None:
    """Run all once, on the first piece. UserError where two of the losses or errors differ by more than rounding.

    The network whose weights and statistics are bf16 throughout is run too, but held to nothing: it is less exact.
    """
    found = {name: line(task.piece(0)) for name, line in contestants.items()}
    exact = {name: scores for name, scores in found.items() if not name.startswith(LOW)}
    # bf16 has 8 bits: a logit may be off by some per cent, and an image near a boundary falls on either side.
    nats, percent = (0.02, 1.5) if task.dtype == torch.bfloat16 else (1e-4, 0.5)
    for place, unit, bound in ((0, "nats", nats), (1, "%", percent)):
        for (one, a), (other, b) in itertools.combinations(exact.items(), 2):
            off = float(np.abs(a[..., place] - b[..., place]).max())
            if not off <= bound:
                raise UserError(f"{one} and {other} differ by {off:.2g} {unit}; nothing was measured")
    if FASTWI not in exact or not any(name.startswith(AUTOCAST) for name in exact):
        print("fastwi was not held to a stock evaluation: --contestants leaves one of them out")


def report(
    task: Task, timings: dict[str, Timing], rounds: int, floors: Floors, timed: dict[str, Timing], out: str | None
) -> None:
    """Print the table; write JSON and a picture into `out` where it is given.

    In pieces, the time of the line is the sum of its pieces'; speeds are the median and quartiles of the rounds.
    """
    machine = describe_machine(task.device)
    bounds = floors.images_per_s(timed)
    whole = task.pieces > 1

    def line_seconds(timing: Timing) -> float:
        return sum(timing.seconds) if whole else timing.median_s

    fastwi_s = line_seconds(timings[FASTWI]) if FASTWI in timings else None
    rows, measurements = [], []
    bars: dict[str, tuple[float, float, float]] = {}
    for name, timing in timings.items():
        low, high = (task.images / seconds for seconds in reversed(timing.quartiles_s))
        seconds, speed = line_seconds(timing), task.images / timing.median_s
        ratio = fastwi_s / seconds if fastwi_s else None
        bars[name] = (speed, low, high)
        rows.append(
            (name, f"{seconds:.2f}", f"{speed:,.0f}", f"{low:,.0f} - {high:,.0f}",
             f"{ratio:.2f} x" if ratio else "-", *(f"{100 * speed / bound:.0f}" for bound in bounds.values()))
        )  # fmt: skip
        measurements.append(
            {"contestant": name, "line_s_sum_of_pieces" if whole else "line_s_median": seconds,
             "images_per_s_median": speed, "images_per_s_quartiles": [low, high], "fastwi_takes_x_its_time": ratio,
             "rounds": rounds, "seconds": list(timing.seconds)}
            | {f"of_{name}_floor_%": 100 * speed / bound for name, bound in bounds.items()}
        )  # fmt: skip
    print_machine(machine)
    columns = ["contestant", "line, s", "images/s, median", "quartiles", "fastwi takes"]
    columns += [f"% of {name} floor" for name in bounds]
    counts = " + ".join(f"{len(split):,} {name}" for name, split in task.splits.items())
    each = f"of {len(task.alphas) // task.pieces} alphas, the line once in all" if whole else "of the whole line"
    dtype = str(task.dtype).removeprefix("torch.")
    title = f"{len(task.alphas)} alphas x ({counts}) images, batch {task.batch}, {dtype}, "
    title += f"{rounds} interleaved rounds {each}"
    print_table(title, columns, rows)
    if out:
        settings = {
            "dtype": dtype,
            "alphas": len(task.alphas),
            "images": {name: len(split) for name, split in task.splits.items()},
            "batch": task.batch,
            "pieces": task.pieces,
            "floors": floors.settings(timed),
        }
        stem = Path(out) / f"evaluation-{task.device.type}"
        write_results(f"{stem}.json", "evaluation", machine, settings, measurements)
        plot_bars(f"{stem}.png", title, "images/s", bars)


if __name__ == "__main__":
    sys.exit(main())
