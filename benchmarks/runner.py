"""The one runner of all benchmarks: options, rounds in turn, the table, the JSON file and the plot.

A benchmark is a body whose keywords are its options. It gives `Report.time` cases to run in turn, or `Report.add`
rows that it measured itself. Each table is printed at once, and the files hold everything so far.
"""

import argparse
import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.output import plot, print_table
from fastwi.cli import command
from fastwi.engine import allocator
from fastwi.errors import UserError
from fastwi.files import write_json

GIGA = 1e9
AGAIN = "again"
"""Among --baselines: fastwi's first case once more, whose difference from the first is the noise."""

Run = Callable[[], object]
Timings = Mapping[str, Sequence[float]]
"""The seconds of each counted round, by the case's name."""

_ROOT = Path(__file__).parents[1]
_CHILD = """
import importlib.util, json, sys
file, function, settings, result = sys.argv[1:]
spec = importlib.util.spec_from_file_location("part", file)
sys.modules["part"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
found = getattr(module, function)(**json.loads(settings))
open(result, "w").write(json.dumps(found))
"""


@dataclass(frozen=True)
class Case:
    """One way to do a benchmark's work.

    `run` is timed and does `work` units; `prepare` runs before each run, untimed; `close` ends it. On a CPU it runs
    under the allocator settings that fastwi makes if `static_memory`, else under glibc's own.
    """

    run: Run
    work: float
    prepare: Run = lambda: None
    close: Run = lambda: None
    static_memory: bool = False


@dataclass(frozen=True)
class Floor:
    """A bound on rates in units/s, which follows from runs that are timed among the cases."""

    name: str
    runs: Mapping[str, Run]
    rate: Callable[[Timings], float]


class Report:
    """Times cases; prints tables; writes NAME-DEVICE.json, .png and .svg into the directory `out`."""

    def __init__(self, name: str, options: Mapping[str, Any], out: Path | None) -> None:
        from benchmarks.machine import describe_machine, pick_device  # torch: not in processes that measure memory

        self.device = pick_device(options.get("device", "cpu"))
        self.failed = False
        """Whether a case of fastwi's own failed; a baseline's failure is only printed."""
        self._stem = out and out / f"{name}-{self.device.type}"
        self._results: dict[str, Any] = {"benchmark": name, "machine": describe_machine(self.device)}
        self._results |= {"settings": dict(options), "floors": {}, "measurements": []}
        self._points: dict[str, dict[Any, Sequence[float]]] = {}
        for key, value in self._results["machine"].items():
            print(f"{key}: {value}")

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
    ) -> None:
        """Run cases and what the floors need once, then in turn: a warm-up round and `rounds` rounds. Report them.

        Args:
            title: the table's.
            unit: what a case does in one unit of its work, such as "images".
            cases: by their names in tables; what may fail, or be unavailable here, is built by a call.
            rounds: counted rounds.
            reference: all cases are compared with the fastest of these.
            again: the case that runs a second time under another name, if any.
            each: what a unit moves or computes, such as {"GB": 1e-3}: rates of it are reported too.
            floors: bounds.
            check: gets what the first run of each case returned; raises UserError where cases disagree.
            at: what sets this call's cases apart from other calls'; "members" is the axis of a line plot.
            sums: whether the rounds are the parts of one whole, so that their sums are compared, not their medians.
        """
        at = at or {}
        lines = tuple(at) == ("members",)
        ready, problems = self._build(cases, check)
        if again in ready:
            ready[f"{again}, {AGAIN}"] = ready[again]
        # Floors run untimed before each timed run, so that none is low because a cache was cold.
        runs = {name: Case(run, 0, run, static_memory=True) for floor in floors for name, run in floor.runs.items()}
        try:
            timings = interleave(ready | runs, rounds, self.device)
        finally:
            for case in ready.values():
                case.close()
        bounds = {floor.name: floor.rate(timings) for floor in floors}
        self._results["floors"][title] = {f"{name}_{unit}_per_s": rate for name, rate in bounds.items()}
        took = {name: (sum if sums else median)(timings[name]) / case.work for name, case in ready.items()}
        best = min((name for name in reference if name in ready), key=lambda name: took[name], default=None)
        rows: list[dict[str, Any]] = []
        for name, case in ready.items():
            rate = case.work / median(timings[name])
            row: dict[str, Any] = {"case": name, **at, f"{unit}_per_s": rate}
            row["quartiles"] = [case.work / seconds for seconds in reversed(_quartiles(timings[name]))]
            row["s_in_all" if sums else "ms_a_round"] = took[name] * case.work * (1 if sums else 1e3)
            row |= {"reference_is_x": took[name] / took[best]} if best else {}
            row |= {f"{what}_per_s": rate * amount for what, amount in (each or {}).items()}
            row |= {f"of_{floor}_floor_%": 100 * rate / bound for floor, bound in bounds.items()}
            rows.append(row | {f"{unit}_a_round": case.work, "seconds": list(timings[name])})
            point = (rate, *row["quartiles"])
            self.point(
                name if lines else ", ".join(map(str, (name, *at.values()))), at["members"] if lines else "", point
            )
        title += f"; {rounds} rounds" + "".join(
            f"; {name} floor {rate:,.0f} {unit}/s" for name, rate in bounds.items()
        )
        title += f"; reference: {best}" if best else ""
        hidden = {*at, f"{unit}_a_round", "seconds"}
        shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
        unmeasured = [{"case": name, **at, "not_measured": problem} for name, problem in problems.items()]
        self.add(title, shown, rows + unmeasured)
        for name, problem in problems.items():
            print(f"{name}: {problem}", flush=True)
        self.write(title.partition(";")[0], f"{unit}/s", bounds if not at or lines else {})

    def add(self, title: str, rows: Sequence[Mapping[str, Any]], measurements: Iterable[Any] | None = None) -> None:
        """Print a table, and add its rows, or what they come from, to the file."""
        if rows:
            print_table(title, rows)
        sys.stdout.flush()
        self._results["measurements"] += rows if measurements is None else measurements

    def point(self, name: str, x: Any, values: Sequence[float]) -> None:
        """Add (median, low, high) to the plot: at `x` of the line `name`, or as a bar where x is ""."""
        self._points.setdefault(name, {})[x] = values

    def write(self, title: str = "", unit: str = "", floors: Mapping[str, float] | None = None) -> None:
        """Write the files, if there is a directory for them."""
        if self._stem:
            write_json(f"{self._stem}.json", self._results)
            if self._points:
                plot(self._stem, title, unit, self._points, floors or {})

    def _build(
        self, cases: Mapping[str, Case | Callable[[], Case]], check: Callable[[Mapping[str, Any]], None] | None
    ) -> tuple[dict[str, Case], dict[str, str]]:
        """The cases, each run once, and checked; and why others cannot run."""
        ready: dict[str, Case] = {}
        problems: dict[str, str] = {}
        results = {}
        for name, entry in cases.items():
            try:
                case = entry if isinstance(entry, Case) else entry()
                _prepare(case, self.device.type)
                results[name] = case.run()
                ready[name] = case
            except UserError as problem:  # it cannot run here, for this network or for so many members
                problems[name] = str(problem)
            except Exception as problem:  # one case's failure must not cost the others' figures
                lines = str(problem).strip().splitlines() or [""]
                problems[name] = f"failed: {type(problem).__name__}: {lines[0]:.300}"
                self.failed |= name.startswith("fastwi")
        if check:
            check(results)
        return ready, problems


def benchmark(**short: Any) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """A decorator that makes `body(report, option=default, ...)` a command. Its help is the module's docstring.

    An option is a text, a number, a whole number (at least 1 unless the default is 0), ascending whole numbers (a
    tuple; '1,2,4'), or names (a tuple of all that are known; 'a,b'). `short`: options of a quick look.
    """

    def wrap(body: Callable[..., None]) -> Callable[..., int]:
        module: Any = inspect.getmodule(body)
        name = Path(module.__file__).stem

        @command
        def main(argv: list[str]) -> int:
            parser = argparse.ArgumentParser(
                prog=f"python -m benchmarks.{name}", description=module.__doc__, allow_abbrev=False,
                formatter_class=argparse.RawTextHelpFormatter,
            )  # fmt: skip
            parser.add_argument("--out", type=Path, help=f"directory for {name}-DEVICE.json and its plot")
            words = " ".join(f"--{key} {_text(value)}" for key, value in short.items())
            parser.add_argument("--short", action="store_true", help=f"a quick look, no result: {words}")
            for key, parameter in list(inspect.signature(body).parameters.items())[1:]:
                default = short.get(key, parameter.default) if "--short" in argv else parameter.default
                reader = _reader(parameter.default)
                parser.add_argument(
                    f"--{key}", default=default, type=reader, help=f"default: {_text(parameter.default)}"
                )
            options = vars(parser.parse_args(argv))
            out = options.pop("out")
            del options["short"]
            report = Report(name, options, out)
            body(report, **options)
            return 1 if report.failed else 0

        return main

    return wrap


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _reader(default: Any) -> Callable[[str], Any]:
    """What reads an option's text, by its default."""
    if isinstance(default, int):
        return lambda text: _numbers(text, 1 if default else 0)[0]
    if isinstance(default, tuple):
        return _numbers if not default or isinstance(default[0], int) else lambda text: _names(text, default)
    return type(default)


def _numbers(text: str, least: int = 1) -> tuple[int, ...]:
    found = tuple(int(part) for part in text.split(","))
    if min(found) < least or sorted(set(found)) != list(found):
        raise argparse.ArgumentTypeError(f"must be at least {least}, and several numbers in ascending order")
    return found


def _names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    for name in found:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
    return found


def interleave(cases: Mapping[str, Case], rounds: int, device: Any) -> dict[str, list[float]]:
    """Run every case once a round, in an order drawn again each round; the seconds of all rounds after a first.

    On a GPU, times are those between two events on the current stream; elsewhere wall-clock time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    order, draw = list(cases), random.Random(0)
    for _ in range(1 + rounds):
        draw.shuffle(order)
        for name in order:
            _prepare(cases[name], device.type)
            seconds[name].append(_time(cases[name].run, device))
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


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile, inclusive."""
    first, _, third = quantiles(values if len(values) > 1 else [*values, *values], n=4, method="inclusive")
    return first, third


def over_rounds(found: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Of measurements of several rounds: median, least and greatest of every number that all have."""
    every = {key: [each[key] for each in found] for key in found[0] if isinstance(found[0][key], int | float)}
    return {key: [median(values), min(values), max(values)] for key, values in every.items()}


def fresh(
    file: str, function: str, settings: Mapping[str, Any], root: Path = _ROOT, directory: str | None = None,
    **environment: str,
) -> Any:  # fmt: skip
    """What `function(**settings)` of a Python file returns, in a process and an empty directory of its own.

    root: the checkout whose packages it imports. directory: where its own is made (default: among temporary files).
    Raises UserError where the function does, and RuntimeError where it fails.
    """
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory(dir=directory) as place:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, file, function, json.dumps(settings), "result.json"], cwd=place,
            env={**os.environ, **environment, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads((Path(place) / "result.json").read_text())
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if last.startswith(UserError.__module__):
        raise UserError(last.partition(": ")[2])
    raise RuntimeError(f"{last:.300}")


def memory_bytes(name: str) -> int:
    """Of this process: VmRSS is the memory in use, VmHWM the most that ever was; 0 where the system has no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
