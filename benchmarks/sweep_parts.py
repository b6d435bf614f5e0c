"""What `python -m benchmarks.sweep` measures, in a process of its own: sweeps by the command, seen from the engine.

It runs on the fastwi that PYTHONPATH names, which may be another commit's: it uses the command's entry point and the
methods of the `loop` engine. Only resident pairs (`_resident`) are measured within a worker: there is no figure of
commits without one, and the part fails with a commit whose worker gathers states by other arguments. The command runs
once on a small sweep first, so that imports are not measured. Figures are not drawn.

    python sweep_parts.py SETTINGS.json RESULT.json
"""

import contextlib
import hashlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastwi.config.sweepfile import read_sweep_request, sweep_name
from fastwi.engine.base import Scores
from fastwi.engine.loop import LoopEngine
from fastwi.population import Population
from fastwi.sweep import main as sweep

TRAIN, EVALUATE, RECOMPUTE = "train_epoch", "evaluate", "recompute_statistics"
_REPEATS = 5  # of each kind of step, alone
_LOOK_S = 0.25
_TINY = """
from torch import nn

def tiny(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of all threads on a processor."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Call:
    """One call of an engine's method, in seconds of the performance counter.

    `cpu_s`: of the process until then, or until a little before: the clock is slow to read.
    """

    method: str
    members: int
    begun: float
    ended: float
    cpu_s: float


class _Silent:
    """Hears of progress, and says nothing."""

    def planned(self, *_: Any) -> None:
        pass

    images = measured = told = planned


def main() -> None:
    """Measure one part."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    _without_figures()
    found = PARTS[settings["part"]](settings)
    Path(sys.argv[2]).write_text(json.dumps(found))


def path(settings: dict[str, Any]) -> dict[str, Any]:
    """(a) A sweep of ResNet20s in which training and evaluation take no time."""
    common = ["--axes.experiment.k=10,20", "--axes.experiment.s=10", "--experiment.after=10", "--sweep.children=4"]
    with _replaced(_nothing()), _heard() as calls:
        _sweep(settings, "small", [*common, "--sweep.parents=0"])
        calls.clear()
        begun = time.perf_counter()
        took = _sweep(settings, "all", [*common, f"--sweep.parents=0..{settings['parents'] - 1}"])
    carried = calls[-1].ended - calls[0].begun
    return {"epochs": _epochs(calls), "seconds": took.wall, "cpu_s": took.cpu, "first_to_last_call_s": carried,
            "until_first_call_s": calls[0].begun - begun}  # fmt: skip


def pairs(settings: dict[str, Any]) -> dict[str, Any]:
    """(b) Averages of resident children, then of stored ones; and the files of these read and hashed alone."""
    count = settings["pairs"]
    common = ["--axes.experiment.k=1", "--axes.experiment.s=1", "--experiment.after=0", "--sweep.measure=own"]
    family = [*common, f"--sweep.children={2 * count}", "--sweep.memory_GiB=16"]
    with _replaced(_nothing()), _heard() as calls:
        _sweep(settings, "small", [*common, "--sweep.children=4"])
        _sweep(settings, "all", family)
        files = sorted(Path("all/store/states").rglob("*.safetensors"))
        reads = _hear_reads()
        calls.clear()
        _sweep(settings, "all", [*family, "--sweep.alphas=0.25"])
        averages = [call for call in calls if call.method == EVALUATE]
        assert sum(call.members for call in averages) == count
        stored_s = averages[-1].begun - reads[0]
        calls.clear()
        alphas = "--sweep.alphas=0.3,0.4,0.6,0.7,0.8,0.9"  # some jobs
        a_pair_s = _resident(_arguments(settings, "all", [*family, alphas]), calls)
    begun = time.perf_counter()
    for file in files:
        hashlib.sha256(file.read_bytes()).hexdigest()
    hashed_s = (time.perf_counter() - begun) * 2 * count / len(files)
    return {
        "pairs": count,
        "resident_s": a_pair_s and count * a_pair_s,
        "stored_s": stored_s,
        "read_and_hash_s": hashed_s,
    }


def _resident(argv: Sequence[str], calls: list[Call]) -> float | None:
    """Seconds a pair that a worker takes to average children that are resident, of its jobs the median; or None."""
    try:
        execution: Any = import_module("fastwi.experiment.execution")
    except ImportError:
        return None
    request = read_sweep_request(list(argv))
    command: Any = import_module("fastwi.sweep")
    sweep = command.open_sweep(request.spec, sweep_name(request))
    tree, worker = sweep.planned.tree, sweep.worker
    children = list(dict.fromkeys(node for nodes, _ in tree.averages.values() for node in nodes))
    jobs: list[float] = []
    run = worker.run

    def noted(*arguments: Any) -> Any:
        jobs.append(time.perf_counter())
        return run(*arguments)

    stored: Any = import_module("fastwi.experiment.store")
    with stored.Store.open(sweep.planned.spec.options.store) as store:
        files = store.state_files(tree.keys[child] for child in children)
        worker.resident.gather(children, files, trains=False)
        worker.run = noted
        with mock.patch.object(Population, "finite_M", lambda population: [True] * population.members):
            execution.carry_out_planned(sweep.planned, worker, store, _Silent())
    seconds = []
    for begun, end in zip(jobs, [*jobs[1:], time.perf_counter()], strict=True):
        mine = [call for call in calls if begun < call.begun < end]
        seconds.append((mine[-1].begun - begun) / sum(call.members for call in mine))
    return statistics.median(seconds)


def grid(settings: dict[str, Any]) -> dict[str, Any]:
    """(c) The k x s grid on digits, trained; and its steps, alone."""
    images = settings["images"]
    argv = ["--config=fastwi:digits_k_s_grid", f"--data.train_images={images}", f"--data.test_images={images}"]
    _sweep(settings, "small", [*argv, "--axes.experiment.k=1", "--axes.experiment.s=1", "--sweep.children=2"])
    kept: dict[str, Callable[[], object]] = {}
    with _heard(kept) as calls:
        took = _sweep(settings, "all", argv)
    alone: dict[str, float] = {}
    for method, again in kept.items():
        seconds = []
        for _ in range(_REPEATS):
            begun = time.perf_counter()
            again()
            seconds.append(time.perf_counter() - begun)
        alone[method] = statistics.median(seconds)
    members = {method: sum(call.members for call in calls if call.method == method) for method in kept}
    return {"seconds": took.wall, "cpu_s": took.cpu, "in_engine_s": sum(call.ended - call.begun for call in calls),
            "alone_s": sum(members[method] * alone[method] for method in kept), "epochs": members[TRAIN]}  # fmt: skip


def long(settings: dict[str, Any]) -> dict[str, Any]:
    """(d) Very many epochs of a network of 40 numbers that take no time: when each tenth of them was done."""
    Path("net.py").write_text(_TINY)
    common = [
        "--model.name=net.py:tiny",
        "--axes.experiment.k=100",
        "--axes.experiment.s=100",
        "--experiment.after=25",
    ]
    parents = max(1, settings["epochs"] // 1000)  # a parent has 100 + 8 x 100 + 4 x 25
    with _replaced(_nothing()), _heard() as calls:
        _sweep(settings, "small", [*common, "--sweep.children=2"])
        calls.clear()
        begun = time.perf_counter()
        took = _sweep(settings, "all", [*common, f"--sweep.parents=0..{parents - 1}", "--sweep.children=8"])
    trained = [call for call in calls if call.method == TRAIN][1:]  # first the network is tried
    done = np.cumsum([call.members for call in trained])
    tenths = [trained[int(np.searchsorted(done, done[-1] * tenth / 10))] for tenth in range(1, 11)]
    return {"epochs": int(done[-1]), "seconds": took.wall, "cpu_s": took.cpu,
            "tenths_s": [call.ended - trained[0].begun for call in tenths],
            "tenths_cpu_s": [call.cpu_s - trained[0].cpu_s for call in tenths],
            "until_first_call_s": trained[0].begun - begun}  # fmt: skip


PARTS = {"path": path, "pairs": pairs, "grid": grid, "long": long}


def _arguments(settings: dict[str, Any], name: str, argv: Sequence[str]) -> list[str]:
    """Of a sweep with its store and results in the directory `name`."""
    places = [f"--sweep.store={name}/store", f"--sweep.directory={name}", "--sweep.name=grid", "--engine.device=cpu"]
    engine = ["--engine.name=loop", f"--engine.threads={settings['threads']}"]
    return [*argv, f"--data.path={settings['data']}", *engine, *places]


def _sweep(settings: dict[str, Any], name: str, argv: Sequence[str]) -> Took:
    """What the command `fastwi.sweep` took."""
    said = io.StringIO()
    begun = _now()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = sweep(_arguments(settings, name, argv))
    assert code == 0, said.getvalue()[-3000:]
    ended = _now()
    return Took(ended.wall - begun.wall, ended.cpu - begun.cpu)


def _epochs(calls: Sequence[Call]) -> int:
    return sum(call.members for call in calls if call.method == TRAIN)


def _nothing() -> dict[str, Callable[..., Any]]:
    """Methods of an engine that return constants at once."""

    def train_epoch(_engine: Any, population: Any, *_: Any, **__: Any) -> list[float]:
        return [1.0] * population.members

    def evaluate(_engine: Any, population: Any, *_: Any, **__: Any) -> Scores:
        return Scores(np.ones(population.members), np.full(population.members, 50.0))

    def recompute_statistics(_engine: Any, population: Any, *_: Any, **__: Any) -> Any:
        return population

    def draw_ahead(*_: Any, **__: Any) -> None:
        pass

    methods = {f.__name__: f for f in (train_epoch, evaluate, recompute_statistics, draw_ahead)}
    return {name: method for name, method in methods.items() if hasattr(LoopEngine, name)}


@contextlib.contextmanager
def _replaced(methods: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block these are the engine's methods."""
    before = {name: getattr(LoopEngine, name) for name in methods}
    for name, method in methods.items():
        setattr(LoopEngine, name, method)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(LoopEngine, name, method)


@contextlib.contextmanager
def _heard(kept: dict[str, Callable[[], object]] | None = None) -> Iterator[list[Call]]:
    """Within the block calls of the engine's methods are noted; `kept` gets a call of each, to be made again.

    That is made on a copy of the population's first member alone.
    """
    calls: list[Call] = []
    looked = _now()

    def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(engine: Any, population: Any, *arguments: Any, **named: Any) -> Any:
            if kept is not None and name not in kept:
                one = population.clone_rows([0])
                own = tuple(value[:1] if isinstance(value, list) else value for value in arguments)
                kept[name] = lambda: method(engine, one, *own, **named)
            nonlocal looked
            begun = time.perf_counter()
            result = method(engine, population, *arguments, **named)
            ended = time.perf_counter()
            if ended - looked.wall > _LOOK_S:
                looked = _now()
            calls.append(Call(name, population.members, begun, ended, looked.cpu))
            return result

        return call

    with _replaced({name: noted(name, getattr(LoopEngine, name)) for name in (TRAIN, EVALUATE, RECOMPUTE)}):
        yield calls


def _now() -> Took:
    return Took(time.perf_counter(), time.process_time())


def _hear_reads() -> list[float]:
    """When states' files are opened, from now on."""
    reads: list[float] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".safetensors"):
            reads.append(time.perf_counter())

    sys.addaudithook(hear)
    return reads


def _without_figures() -> None:
    from fastwi.report import curves, heatmap

    nothing: Callable[..., list[Path]] = lambda *_, **__: []  # noqa: E731
    heatmap.draw_heatmap = curves.draw_curves = nothing  # type: ignore[assignment]


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main()
