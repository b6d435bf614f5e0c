"""The runner of all benchmarks: options, rounds in turn, the table, the JSON file and the plot.

A benchmark is a function whose keywords are its options. It gives `Report.time` cases to run in turn, or `Report.add`
rows that it measured itself. Each table is printed at once, and the files hold everything so far.
"""

import argparse
import contextlib
import inspect
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from benchmarks.output import Points, plot, print_table
from fastwi.cli import command
from fastwi.engine import allocator
from fastwi.errors import UserError
from fastwi.files import write_json

GIGA = 1e9
AGAIN = "again"
"""Among --baselines: fastwi's first case once more. Its difference from the first is the noise."""

Result = TypeVar("Result")
Run = Callable[[], object]
Timings = Mapping[str, Sequence[float]]
"""The seconds of each counted round, by the case's name."""

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """One way to do a benchmark's work.

    `run` is timed and does `work` units; `prepare` runs before each run, untimed; `close` ends it. On a CPU it runs
    under the allocator settings that fastwi makes if `static_memory`, else under glibc's own.
    """

    run: Callable[..., object]
    work: float
    prepare: Run = lambda: None
    close: Run = lambda: None
    static_memory: bool = False


@dataclass(frozen=True)
class Floor:
    """A bound on rates in units/s. It follows from runs that are timed among the cases."""

    name: str
    runs: Mapping[str, Run]
    rate: Callable[[Timings], float]


class Report:
    """Times cases; prints tables; writes NAME-DEVICE.json, .png and .svg into the directory `out`."""

    def __init__(self, name: str, options: Mapping[str, Any], out: Path | None) -> None:
        from benchmarks.machine import describe_machine  # imports torch, which planning must not
        from fastwi.engine.device import resolve_device

        self.device = resolve_device(options.get("device", "cpu"))
        self.failed = False
        """Whether a case of fastwi's own failed; a baseline's failure is only printed."""
        machine = describe_machine(self.device)
        for key, value in machine.items():
            print(f"{key}: {value}")
        self._stem = out and out / f"{name}-{self.device.type}"
        self._results: dict[str, Any] = {
            "benchmark": name,
            "machine": machine,
            "settings": dict(options),
            "measurements": [],
        }
        self._points: Points = {}

    def time(
        self,
        title: str,
        unit: str,
        cases: Mapping[str, Case | Callable[[], Case]],
        rounds: int,
        *,
        reference: Sequence[str] = (),
        again: str = "",
        each: Mapping[str, float] | None = None,
        floors: Sequence[Floor] = (),
        check: Callable[[Mapping[str, Any]], None] | None = None,
        at: Mapping[str, Any] | None = None,
        sums: bool = False,
        until: float = math.inf,
    ) -> list[str]:
        """Run cases and what the floors need once, then in turn: a warm-up round and `rounds` rounds.

        Report them; returns the names of those that could run.

        Each round's rates are printed as it ends, so that a run that is cut off leaves figures.

        Args:
            title: the table's. Up to a semicolon it is the figure's, which shows the cases of all calls.
            unit: of the cases' work, such as "images".
            cases: by their names in tables; what may fail, or be unavailable here, is built by a call.
            rounds: counted rounds.
            reference: all cases are compared with the fastest of these.
            again: the case that runs a second time under another name, if any.
            each: what a unit moves or computes, such as {"GB": 1e-3}: rates of it are reported too.
            floors: bounds, which are rows of the table too.
            check: gets what the first run of each case returned; raises UserError where cases disagree.
            at: what sets this call's cases apart from other calls'; "members" is the axis of a line plot.
            sums: whether the rounds are the parts of one whole, so that their sums are compared, not their medians.
            until: after this (`time.monotonic`) no further round begins, but the first.
        """
        at = at or {}
        ready: dict[str, Case] = {}
        # Each floor runs untimed before each timed run, so that none is low because a cache was cold.
        runs = {name: Case(run, 0, run, static_memory=True) for floor in floors for name, run in floor.runs.items()}

        def show(number: int, seconds: Mapping[str, float]) -> None:
            rates = ", ".join(f"{name} {case.work / seconds[name]:,.0f}" for name, case in ready.items())
            print(f"round {number}, {unit}/s: {rates}", flush=True)

        with contextlib.ExitStack() as built:
            results, problems = self._build(cases, ready, built)
            if check:
                check(results)
            if again in ready:
                ready[f"{again}, {AGAIN}"] = ready[again]
            timings = interleave(ready | runs, rounds, self.device, until, show)
        rounds = min(map(len, timings.values()), default=rounds)
        took = {name: (sum if sums else median)(timings[name]) / case.work for name, case in ready.items()}
        best = min((name for name in reference if name in ready), key=lambda name: took[name], default=None)
        bounds = {floor.name: floor.rate(timings) for floor in floors}
        rows: list[dict[str, Any]] = []
        for name, case in ready.items():
            rates = [case.work / seconds for seconds in timings[name]]
            low, rate, high = quantiles(rates if rounds > 1 else 2 * rates, n=4, method="inclusive")
            if sums:  # parts may be unlike, and the median one is not the whole
                rate = rounds / took[name]
            row: dict[str, Any] = {"case": name, f"{unit}_per_s": rate, "quartiles": [low, high]}
            row["s_in_all" if sums else "ms_a_round"] = took[name] * case.work * (1 if sums else 1e3)
            if best:
                row["reference_is_x"] = took[name] / took[best]
            row |= {f"{what}_per_s": rate * amount for what, amount in (each or {}).items()}
            row |= {f"of_{floor}_floor_%": 100 * rate / bound for floor, bound in bounds.items()}
            rows.append(row)
        rows += [{"case": f"{name} floor", f"{unit}_per_s": rate} for name, rate in bounds.items()]
        where = "".join(f", {value}" for key, value in at.items() if key != "members")
        measurements: list[dict[str, Any]] = []
        for row in rows:
            name, rate = row["case"], row[f"{unit}_per_s"]
            low_high = row.get("quartiles", [rate, rate])
            self._points.setdefault(name + where, {})[at.get("members", "")] = [rate, *low_high]
            raw = {f"{unit}_a_round": ready[name].work, "seconds": timings[name]} if name in ready else {}
            measurements.append({**row, **at, **raw})
        measurements += [{"case": name, **at, "not_measured": problem} for name, problem in problems.items()]
        self.add(f"{title}; {rounds} rounds; reference: {best or 'none'}", rows, measurements, unit=f"{unit}/s")
        for name, problem in problems.items():
            print(f"{name}: {problem}", flush=True)
        return list(ready)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails within the block is reported as a failure, and the benchmark goes on without it."""
        try:
            yield
        except Exception as error:  # the other figures are wanted all the same
            print(f"{what}: {problem_of(error)}", flush=True)
            self.failed = True

    def _build(
        self, cases: Mapping[str, Case | Callable[[], Case]], ready: dict[str, Case], built: contextlib.ExitStack
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Run each case once. `ready` gets those that can run, and `built` the end of all that were built.

        Returns what the runs returned, and what is wrong with the other cases.
        """
        results: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for name, entry in cases.items():
            begun = time.monotonic()
            try:
                case = entry if isinstance(entry, Case) else entry()
                built.callback(case.close)
                _prepare(case, self.device.type)
                results[name] = case.run()
                ready[name] = case
                print(f"{name}: built and run once in {time.monotonic() - begun:.1f} s", flush=True)
            except Exception as error:  # one case's failure must not cost the others' figures
                problems[name] = problem_of(error)
                self.failed |= name.startswith("fastwi") and not isinstance(error, UserError)
        return results, problems

    def add(
        self,
        title: str,
        rows: Sequence[Mapping[str, Any]],
        measurements: Sequence[Any] | None = None,
        points: Points | None = None,
        unit: str = "",
    ) -> None:
        """Print a table. Add its rows, or the `measurements` behind them, and `points` to the files."""
        if rows:
            print_table(title, rows)
        sys.stdout.flush()
        self._results["measurements"] += rows if measurements is None else measurements
        self._points |= points or {}
        if self._stem:
            write_json(f"{self._stem}.json", self._results)
            if self._points and unit:
                try:
                    plot(self._stem, title.partition(";")[0], unit, self._points)
                except Exception as error:  # figures are wanted all the same
                    print(f"no picture: {error}")


def benchmark(body: Callable[..., None]) -> Callable[..., int]:
    """Make `body(report, option=default, ...)` a command. Its help is the module's docstring.

    By its default, an option is a text, a number, a whole number (at least 1 unless the default is 0), ascending
    whole numbers (a tuple; '1,2,4') or some of the names in the default (a tuple; 'a,b').
    """
    module: Any = inspect.getmodule(body)
    name = Path(module.__file__).stem

    @command
    def main(argv: list[str]) -> int:
        parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}", description=module.__doc__, allow_abbrev=False,
            formatter_class=argparse.RawTextHelpFormatter,
        )  # fmt: skip
        parser.add_argument("--out", type=Path, help=f"directory for {name}-DEVICE.json and its plot")
        defaults = {key: value.default for key, value in inspect.signature(body).parameters.items()}
        del defaults["report"]
        for key, default in defaults.items():
            text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            parser.add_argument(f"--{key}", default=text, help="default: %(default)s")
        texts = vars(parser.parse_args(argv))
        out = texts.pop("out")
        options = {key: _value(key, texts[key], default) for key, default in defaults.items()}
        report = Report(name, options, out)
        body(report, **options)
        return 1 if report.failed else 0

    return main


def _value(option: str, text: str, default: Any) -> Any:
    """An option's value, of the kind of its default."""
    several = isinstance(default, tuple)
    kind = type(default[0] if several else default)
    try:
        values = [kind(part) for part in text.split(",")] if several else [kind(text)]
    except ValueError:
        raise UserError(f"--{option} {text}: is not a number") from None
    if kind is int and (min(values) < bool(default) or values != sorted(set(values))):
        raise UserError(
            f"--{option} {text}: must be at least {bool(default):d}, and several numbers in ascending order"
        )
    unknown = [name for name in values if name not in default] if kind is str and several else []
    if unknown:
        raise UserError(f"--{option} {text}: {unknown[0]} is not one of {', '.join(default)}")
    return tuple(values) if several else values[0]


def interleave(
    cases: Mapping[str, Case],
    rounds: int,
    device: Any,
    until: float = math.inf,
    show: Callable[[int, Mapping[str, float]], None] = lambda number, seconds: None,
) -> dict[str, list[float]]:
    """Run every case once a round, in an order drawn again each round; the seconds of all rounds after a first.

    On a GPU, times are those between two events on the current stream; elsewhere wall-clock time. `show` gets every
    counted round's number and seconds. After `until` (`time.monotonic`) no round begins but the first counted one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order, draw = list(cases), random.Random(0)
    for number in range(1 + rounds):
        if number > 1 and time.monotonic() > until:
            break
        draw.shuffle(order)
        for name in order:
            _prepare(cases[name], device.type)
            seconds[name].append(_time(cases[name].run, device))
        if number:
            show(number, {name: values[-1] for name, values in seconds.items()})
    return {name: values[1:] for name, values in seconds.items()}


def _prepare(case: Case, device_type: str) -> None:
    if device_type == "cpu":
        (allocator.keep_freed_memory if case.static_memory else allocator.restore_defaults)()
    case.prepare()


def _time(run: Run, device: Any) -> float:
    """Seconds of one run."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    import torch

    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3


def problem_of(error: Exception) -> str:
    """In a line: what failed, or by a UserError why it cannot run here, as for this network or so many members."""
    return str(error) if isinstance(error, UserError) else f"failed: {type(error).__name__}: {error}".splitlines()[0]


def over_rounds(found: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of measurements of several rounds: median, least and greatest of every number that all have."""
    every = {key: [each[key] for each in found] for key in found[0] if isinstance(found[0][key], int | float)}
    return {key: [median(values), min(values), max(values)] for key, values in every.items()}


def fresh(function: Callable[..., Result], **settings: Any) -> Result:
    """What `function(**settings)` returns or raises, in a process and an empty directory of its own."""
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(1, get_context("spawn"), os.chdir, (place,)) as process,
    ):
        return process.submit(function, **settings).result()


def peak_bytes() -> int:
    """The most memory that this process ever had. Raises UserError where the system does not say."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    if found is None:
        raise UserError(f"the memory of a process cannot be measured here: {_STATUS} does not have it")
    return int(found.split()[1]) * 1024
