"""`python -m benchmarks.throughput`: images/s of training M networks at once, fastwi's engines beside their peers.

usual           DataLoader workers, torchvision transforms, float32, eager
stock           resident data, bf16, channels-last, torch.compile; with glibc's own allocator settings
stock-static    (CPU) the same with the allocator settings that fastwi makes, which all population peers have too
stock-graphs    (GPU) the same with torch.compile's CUDA graphs
ffcv, airbench  FFCV's Loader and augmentations, airbench's CifarLoader, in front of the stock step
vmap            torch.func.vmap over functional_call, compiled; vmap-eager: not compiled
grouped         HFTA-style horizontal fusion by grouped convolutions, compiled; grouped-nhwc: in channels-last order
streams         (GPU) the stock step of each member on its own CUDA stream
loop ...        fastwi's engines; AGAIN is the first of them once more, which tells the noise

All train the same network (ResNet20) on the same images with the same batch size, crop, flip and SGD. Those down to
airbench train one network. M of them in series run at that same rate: stock rows are timed beside every M, the others
beside the first only. A round takes --batches steps of one network, and proportionally fewer of more, but at least
--least. Loaders start inside the timed part, with workers and threads already running. What cannot run here is listed
with the reason.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import Floors, floors_of
from benchmarks.machine import describe_machine, pick_device
from benchmarks.options import names, numbers, parse
from benchmarks.output import plot_lines, print_machine, print_table, write_results
from benchmarks.peers import airbench, engines, ffcv, grouped, stock, streams, usual, vmap
from benchmarks.task import Contestant, Task, Unavailable, make_task
from benchmarks.timing import Timing, interleave
from fastwi.cli import run_command
from fastwi.engine import allocator
from fastwi.engine.device import free_memory

Builder = Callable[[Task, int], Contestant]
AGAIN = "again"

SERIAL: dict[str, tuple[str, Builder]] = {
    "usual": ("usual script", usual.usual),
    "stock": ("best stock loop", stock.stock),
    "stock-static": ("best stock loop, static memory", stock.stock_static),
    "stock-graphs": ("best stock loop, CUDA graphs", stock.stock_graphs),
    "ffcv": ("FFCV + stock step", ffcv.ffcv),
    "airbench": ("airbench loader + stock step", airbench.airbench),
}
POPULATIONS: dict[str, tuple[str, Builder]] = {
    "vmap": ("vmap, compiled", vmap.vmap_compiled),
    "vmap-eager": ("vmap, eager", vmap.vmap_eager),
    "grouped": ("grouped convolutions (HFTA)", grouped.grouped),
    "grouped-nhwc": ("grouped convolutions, channels-last", grouped.grouped_channels_last),
    "streams": ("CUDA streams", streams.streams),
}
_SIZES: dict[tuple[bool, bool], tuple[tuple[int, ...], int, int]] = {
    (False, False): ((1, 2, 4), 24, 6),
    (False, True): ((1, 2), 4, 2),
    (True, False): ((1, 2, 4, 8, 16, 32, 64, 128, 256), 256, 16),
    (True, True): ((1, 16), 64, 8),
}
"""Defaults of --members, --batches and --least by (on a GPU, --short)."""

IN_EVERY_TABLE = ("stock", "stock-static", "stock-graphs")
"""Of the contestants that train one network, those that are timed beside every M; the others beside the first."""


@dataclass(frozen=True)
class Row:
    """One contestant at M members: its timing and the images of a round, or why it has none."""

    name: str
    members: int
    images: int
    timing: Timing | None
    problem: str = ""
    failed: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    entries = _entries()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="data/cifar10", help="dataset directory (default: data/cifar10)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--members", type=numbers, help="M (default: 1,2,4, with --short 1,2; GPU: 1 ... 256, 1,16)")
    parser.add_argument("--contestants", type=names, help=f"some of {', '.join(entries)} (default: all)")
    parser.add_argument("--model", default="resnet20", help="network (default: resnet20)")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of its channels (default: 1)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--batches", type=int, help="steps a round of one network (default: 24; 256 on a GPU)")
    parser.add_argument("--least", type=int, help="least steps a round of many (default: 6; 16 on a GPU)")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--workers", type=int, default=2, help="workers of DataLoader and FFCV (default: 2)")
    parser.add_argument("--minutes", type=float, default=1e9, help="build nothing more after so many (default: all)")
    parser.add_argument("--out", type=Path, help="directory for throughput-DEVICE.json, .png and .svg")
    options = parse(parser, arguments, {"rounds": 3})
    unknown = [name for name in options.contestants or () if name not in entries]
    if unknown or min(options.batch, options.batches or 1, options.least or 1, options.rounds) < 1:
        parser.error(f"--contestants: unknown: {unknown}" if unknown else "counts must be at least 1")
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    members, batches, least = _SIZES[on_gpu, options.short]
    members, batches, least = options.members or members, options.batches or batches, options.least or least
    # Shapes are fixed, and every M is compiled by itself: more versions of one function than torch expects.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch.backends.cudnn.benchmark = True
    task = make_task(options.data, str(device), options.batch, batches, options.workers, options.model, options.width)
    chosen = {name: entry for name, entry in entries.items() if name in (options.contestants or entries)}
    report = Report(task, options.model, options.rounds, options.out)
    deadline = time.monotonic() + 60 * options.minutes
    serial: dict[str, Contestant] = {}
    try:
        for M in members:
            if time.monotonic() > deadline:
                print(f"M = {M} and more: not measured, --minutes {options.minutes:g} were over")
                break
            measure(task, M, least, chosen, serial, options.rounds, report, members[0] == M, deadline)
    finally:
        for contestant in serial.values():
            contestant.close()
    return 1 if report.failed else 0


def _entries() -> dict[str, tuple[str, Builder]]:
    """All contestants by the name that --contestants knows them by: (name in tables, builder)."""
    ours: dict[str, tuple[str, Builder]] = {
        name: (f"fastwi {name}", functools.partial(_engine, name=name)) for name in engines.engine_names()
    }
    first = next(iter(ours))
    return SERIAL | POPULATIONS | ours | {AGAIN: (f"fastwi {first}, again", ours[first][1])}


def _engine(task: Task, members: int, name: str) -> Contestant:
    return engines.engine(task, members, name)[0]


def measure(
    task: Task, M: int, least: int, chosen: Mapping[str, tuple[str, Builder]], serial: dict[str, Contestant],
    rounds: int, report: "Report", first: bool, deadline: float,
) -> None:  # fmt: skip
    """Time all contestants at M members, interleaved with what the floors need, and report them.

    `serial` keeps the contestants that train one network from one M to the next. Whoever is not built and compiled
    by the deadline (of time.monotonic) is left out; fastwi's engines are built first.
    """
    free_memory(task.device)  # of the engines for fewer members
    rows: dict[str, Row] = {}
    contestants: dict[str, Contestant] = {}
    short = task.shortened(max(least, -(-task.steps // M)))
    for key, (name, builder) in sorted(chosen.items(), key=lambda item: not item[1][0].startswith("fastwi")):
        if key in SERIAL and not (first or key in IN_EVERY_TABLE):
            continue
        try:
            if time.monotonic() > deadline:
                raise Unavailable("not measured: --minutes were over")
            if key in SERIAL:
                contestant = serial[key] = serial.get(key) or builder(task, 1)
            elif key == AGAIN and report.first_engine(chosen) in contestants:
                contestant = contestants[report.first_engine(chosen)]
            else:
                contestant = builder(short, M)
            _prepare(contestant, task)
            contestant.run()
            contestants[name] = contestant
        except Unavailable as problem:
            rows[name] = Row(name, M, 0, None, str(problem))
        except Exception as problem:  # one contestant's failure must not cost the others' figures
            said = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else ''}"
            rows[name] = Row(name, M, 0, None, f"failed: {said:.300}", failed=name.startswith("fastwi"))
            if task.device.type == "cuda":
                torch.cuda.empty_cache()
    image_HWC = task.dataset.images_NHWC.shape[1:]
    floors = floors_of(task.network(), image_HWC, task.batch, task.device, task.dtype, training=True)
    runs: dict[str, Callable[[], object]] = {name: contestant.run for name, contestant in contestants.items()}
    prepare: dict[str, Callable[[], object]] = {
        name: functools.partial(_prepare, contestant, task) for name, contestant in contestants.items()
    }
    runs |= dict(floors.runs)
    timings = interleave(runs, rounds, task.device, prepare | floors.prepare(), warmups=1)
    rows |= {name: Row(name, M, contestants[name].images, timings[name]) for name in contestants}
    order = [name for name, _ in chosen.values() if name in rows]
    report.add(M, short.steps, [rows[name] for name in order], floors, timings)


def _prepare(contestant: Contestant, task: Task) -> None:
    if task.device.type == "cpu":
        (allocator.keep_freed_memory if contestant.static_memory else allocator.restore_defaults)()


class Report:
    """Tables as they are measured; JSON and a chart of everything so far, written anew after each M."""

    def __init__(self, task: Task, network: str, rounds: int, out: Path | None) -> None:
        self._task, self._network, self._rounds, self._out = task, network, rounds, out
        self._machine = describe_machine(task.device)
        self._measurements: list[dict[str, Any]] = []
        self._floors: dict[str, Any] = {}
        self.failed = False
        print_machine(self._machine)

    @staticmethod
    def first_engine(chosen: Mapping[str, tuple[str, Builder]]) -> str:
        """The name in tables of the engine that runs again."""
        return chosen[AGAIN][0].removesuffix(f", {AGAIN}") if AGAIN in chosen else ""

    def add(self, M: int, steps: int, rows: Sequence[Row], floors: Floors, timings: Mapping[str, Timing]) -> None:
        """Print the table of M members, and write."""
        bounds = floors.images_per_s(timings)
        self._floors[f"members_{M}"] = floors.settings(timings)
        self.failed |= any(row.failed for row in rows)
        speed = {row.name: row.images / row.timing.median_s for row in rows if row.timing}
        ours = [name for name in speed if name.startswith("fastwi") and not name.endswith(AGAIN)]
        best = max(ours, key=speed.__getitem__, default=None)
        table = []
        for row in rows:
            found = self._measurement(row, speed[best] if best else None, bounds)
            self._measurements.append(found)
            table.append(_words(found, bounds))
        columns = ["contestant", "images/s, median", "quartiles", "best fastwi is"]
        columns += [f"% of {name} floor" for name in bounds]
        title = (
            f"{M} x {self._network}, batch {self._task.batch}, {self._rounds} interleaved rounds of {steps} steps; "
            + ", ".join(f"{name} floor {value:,.0f} images/s" for name, value in bounds.items())
        )
        print_table(title, columns, [words for words in table if len(words) > 2])
        for words in table:
            if len(words) == 2:
                print(f"{words[0]}: {words[1]}")
        sys.stdout.flush()
        if self._out:
            self._write(bounds)

    def _measurement(self, row: Row, best: float | None, bounds: Mapping[str, float]) -> dict[str, Any]:
        found: dict[str, Any] = {"contestant": row.name, "members": row.members}
        if row.timing is None:
            return found | {"not_measured": row.problem}
        speed = row.images / row.timing.median_s
        found["images_per_s_median"] = speed
        found["images_per_s_quartiles"] = [row.images / seconds for seconds in reversed(row.timing.quartiles_s)]
        found["best_fastwi_ratio"] = best / speed if best else None
        found |= {f"of_{name}_floor_%": 100 * speed / value for name, value in bounds.items()}
        return found | {"images_a_round": row.images, "rounds": self._rounds, "seconds": list(row.timing.seconds)}

    def _write(self, bounds: Mapping[str, float]) -> None:
        assert self._out is not None
        settings = {
            "model": self._network,
            "batch": self._task.batch,
            "workers": self._task.workers,
            "dtype": str(self._task.dtype).removeprefix("torch."),
            "floors": self._floors,
        }
        stem = self._out / f"throughput-{self._task.device.type}"
        write_results(f"{stem}.json", "throughput", self._machine, settings, self._measurements)
        lines: dict[str, dict[int, tuple[float, float, float]]] = {}
        for found in self._measurements:
            if "images_per_s_median" in found:
                point = (found["images_per_s_median"], *found["images_per_s_quartiles"])
                lines.setdefault(found["contestant"], {})[found["members"]] = point
        if lines:
            title = f"Training {self._network}, batch {self._task.batch}; {self._machine['device']}"
            dashed = {f"{name} floor": value for name, value in bounds.items()}
            plot_lines(stem, title, ("networks trained together (M)", "images/s in all"), lines, dashed)


def _words(found: Mapping[str, Any], bounds: Mapping[str, float]) -> tuple[str, ...]:
    """A measurement as a row of the table, or (name, why there is none)."""
    if "not_measured" in found:
        return found["contestant"], found["not_measured"]
    low, high = found["images_per_s_quartiles"]
    ratio = found["best_fastwi_ratio"]
    return (
        found["contestant"], f"{found['images_per_s_median']:,.0f}", f"{low:,.0f} - {high:,.0f}",
        f"{ratio:.2f} x" if ratio else "-", *(f"{found[f'of_{name}_floor_%']:.0f}" for name in bounds),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
