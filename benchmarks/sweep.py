"""`python -m benchmarks.sweep`: what a sweep costs beside the training and evaluation that it is made of.

(a) path: ResNet20s whose training and evaluation are replaced by nothing: plan, schedule, clone, average, commit. A
    parent has 140 epochs: k = 10 and 20, 4 children each, s = 10, 10 epochs of each average. Target: 1,000 epochs of
    single networks a second on 2 cores.
(b) pairs: pairs of one parent's children, averaged and ready to be evaluated. Of resident children, in the worker: at
    least 80 % of the speed of rows averaged in place as `benchmarks.interpolation` does. From the store, in a second
    command: at least 60 % of the speed of reading and hashing the files alone.
(c) grid: configs/digits_k_s_grid.yaml, trained. Target: 1.05 x its steps timed alone, right after it.
(d) long (only if asked for): a million epochs of a network of 40 numbers, replaced by nothing. The rate in the last
    tenth: at least 0.8 of that in the first.

Each sweep is a command in a fresh process, timed without imports and figures. `--before DIR` measures another
checkout's fastwi beside this one, in turn. How long it takes to plan: `python -m benchmarks.planning`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.options import names, parse
from benchmarks.output import print_machine, print_table, write_results
from fastwi.cli import SPINS, run_command
from fastwi.files import to_json

HERE, BEFORE = "this commit", "before"
_PARTS = ("path", "pairs", "grid", "long")
_RUN = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"

Found = dict[str, Any]
Rounds = dict[str, list[Found]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--parts", type=names, default=_PARTS[:3], help="of path,pairs,grid,long (default: the first 3)"
    )
    parser.add_argument("--before", type=Path, help="another checkout, to be measured beside this one")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each (default: 3)")
    parser.add_argument("--parents", type=int, default=8, help="of path (default: 8)")
    parser.add_argument("--pairs", type=int, default=512, help="(default: 512)")
    parser.add_argument("--images", type=int, default=0, help="training and test images of grid (default: all)")
    parser.add_argument("--epochs", type=int, default=1_000_000, help="of long (default: 1000000)")
    parser.add_argument("--threads", type=int, default=0, help="engine.threads (default: 0, all cores)")
    parser.add_argument("--place", type=Path, help="where stores are written (default: the system's temporary files)")
    parser.add_argument("--out", type=Path, help="directory for sweep-cpu.json")
    short = {"rounds": 1, "parents": 1, "pairs": 8, "images": 100, "epochs": 10_000}
    options = parse(parser, arguments, short)
    if not set(options.parts) <= set(_PARTS):
        parser.error(f"--parts: want some of {', '.join(_PARTS)}")
    trees = {HERE: Path(__file__).parents[1]} | ({BEFORE: options.before.resolve()} if options.before else {})
    measured: list[Found] = []
    tables = []
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        from data_prep import prepare

        data = prepare("digits", Path(place) / "digits", writer="raw")
        for part in options.parts:
            settings = {
                "part": part,
                "data": str(data),
                **{name: getattr(options, name) for name in (*short, "threads")},
            }
            rows = rows_alone(options.pairs) if part == "pairs" else dict
            rounds: Rounds = {name: [] for name in trees}
            draw, order = random.Random(0), list(trees)
            for _ in range(options.rounds):
                draw.shuffle(order)
                for name in order:
                    found = measure(trees[name], Path(place) / "box", settings)
                    rounds[name].append(found | rows())
            tables.append(_TABLES[part](rounds))
            measured += [{"part": part, "what": name, **found} for name, every in rounds.items() for found in every]
    _show(options, measured, tables)
    return 0


def measure(tree: Path, box: Path, settings: Found) -> Found:
    """One part of one checkout, in a fresh process and a fresh directory, which is removed."""
    with tempfile.TemporaryDirectory(dir=box.parent) as place:
        (Path(place) / "settings.json").write_text(json.dumps(settings))
        part = Path(__file__).with_name("sweep_parts.py")
        subprocess.run(
            [sys.executable, "-c", _RUN, str(part), "settings.json", "result.json"], cwd=place, check=True,
            env={"GOMP_SPINCOUNT": SPINS, **os.environ, "PYTHONPATH": str(tree)},  # torch is there before the command
        )  # fmt: skip
        found: Found = json.loads((Path(place) / "result.json").read_text())
    return found


def rows_alone(pairs: int) -> Callable[[], Found]:
    """A function that averages rows of ResNet20s in place as `benchmarks.interpolation` does: median s of 5."""
    import torch

    from benchmarks.interpolation import ALPHA, random_population
    from fastwi.kernels.interpolate import interpolate_rows_

    population = random_population(2 * pairs, torch.device("cpu"))
    a_L, b_L = list(range(0, 2 * pairs, 2)), list(range(1, 2 * pairs, 2))

    def run() -> Found:
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            for x_MP in (population.weights_MP, population.statistics_MQ):
                interpolate_rows_(x_MP, a_L, b_L, ALPHA)
            seconds.append(time.perf_counter() - begun)
        return {"rows_s": median(seconds)}

    return run


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def _path_table(rounds: Rounds) -> Table:
    rows = [
        (
            name,
            _spread([found["epochs"] / found["seconds"] for found in every]),
            _spread([found["epochs"] / found["first_to_last_call_s"] for found in every]),
            f"{1000 * median(found['cpu_s'] / found['epochs'] for found in every):.2f}",
        )
        for name, every in rounds.items()
    ]
    epochs = next(iter(rounds.values()))[0]["epochs"]
    title = f"(a) {epochs:,} epochs of ResNet20s, training and evaluation replaced by nothing; target: 1,000 epochs/s"
    return title, ("", "epochs/s", "from first to last call", "processor ms an epoch"), rows


def _pairs_table(rounds: Rounds) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, every in rounds.items():
        cells = [name]
        for seconds, floor in (("resident_s", "rows_s"), ("stored_s", "read_and_hash_s")):
            told = [found for found in every if found[seconds]]
            cells.append(_spread([found["pairs"] / found[seconds] for found in told]) if told else "-")
            cells.append(f"{100 * median(found[floor] / found[seconds] for found in told):.1f}" if told else "-")
        rows.append(tuple(cells))
    measured = [found for every in rounds.values() for found in every]
    pairs = measured[0]["pairs"]
    floors = [pairs / median(found[floor] for found in measured) for floor in ("rows_s", "read_and_hash_s")]
    title = (
        f"(b) {pairs} pairs averaged; rows alone: {floors[0]:,.0f} pairs/s (target: 80 %); files read and hashed "
        f"alone: {floors[1]:,.0f} pairs/s (target: 60 %)"
    )
    return title, ("", "resident, pairs/s", "% of rows", "stored, pairs/s", "% of files"), rows


def _grid_table(rounds: Rounds) -> Table:
    rows = [
        (
            name,
            _spread([found["seconds"] for found in every]),
            _spread([found["seconds"] / found["alone_s"] for found in every], 3),
            _spread([found["seconds"] / found["in_engine_s"] for found in every], 3),
        )
        for name, every in rounds.items()
    ]
    epochs = next(iter(rounds.values()))[0]["epochs"]
    title = f"(c) The k x s grid on digits, {epochs} epochs trained; target: at most 1.05 x its steps alone"
    return title, ("", "seconds", "x steps alone", "x the same steps in it"), rows


def _long_table(rounds: Rounds) -> Table:
    rows = []
    for name, every in rounds.items():
        tenth = every[0]["epochs"] / 10
        first, last = zip(*(_ends(found["tenths_s"]) for found in every), strict=True)
        cpu = [a / b for a, b in (_ends(found["tenths_cpu_s"]) for found in every)]
        ratio = [a / b for a, b in zip(first, last, strict=True)]
        rates = ([tenth / seconds for seconds in end] for end in (first, last))
        rows.append((name, *map(_spread, rates), _spread(ratio, 2), _spread(cpu, 2)))
    epochs = next(iter(rounds.values()))[0]["epochs"]
    title = f"(d) {epochs:,} epochs of tiny networks; target: the last tenth at 0.8 of the first"
    return title, ("", "epochs/s, first tenth", "last tenth", "last of first", "in processor time"), rows


def _ends(tenths: Sequence[float]) -> tuple[float, float]:
    """Seconds of the first and of the last tenth. The last two of a short sweep may end with one call."""
    return tenths[0], max(tenths[9] - tenths[8], 1e-9)


_TABLES = dict(zip(_PARTS, (_path_table, _pairs_table, _grid_table, _long_table), strict=True))


def _spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the range where there are several."""
    words = f"{median(values):,.{digits}f}"
    return words if len(values) == 1 else f"{words} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def _show(options: argparse.Namespace, measured: list[Found], tables: list[Table]) -> None:
    import torch

    from benchmarks.machine import describe_machine

    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    for table in tables:
        print_table(*table)
    if options.out:
        kept = ("rounds", "parents", "pairs", "images", "epochs", "threads")
        settings = {name: getattr(options, name) for name in kept}
        write_results(options.out / "sweep-cpu.json", "sweep", machine, settings, measured)
        print(to_json({"out": str(options.out / "sweep-cpu.json")}))


if __name__ == "__main__":
    sys.exit(main())
