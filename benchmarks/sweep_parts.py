"""What `python -m benchmarks.sweep` measures, in a process of its own: sweeps by the command, seen from the engine.

It runs on the fastwi that PYTHONPATH names, which may be another commit's: it uses the command's entry point and the
methods of the `loop` engine. The command runs once on a small sweep first, so that imports are not measured. Figures
are not drawn.
"""

import contextlib
import hashlib
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from fastwi.engine.base import Scores
from fastwi.engine.loop import LoopEngine
from fastwi.report import curves, heatmap
from fastwi.sweep import main as sweep

TRAIN, EVALUATE, RECOMPUTE = "train_epoch", "evaluate", "recompute_statistics"
_REPEATS = 5  # of what is timed alone
_TINY = """
from torch import nn

def tiny(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""

heatmap.draw_heatmap = curves.draw_curves = lambda *_, **__: []  # type: ignore[assignment]


class Call(NamedTuple):
    """One call of an engine's method, in seconds of the performance counter."""

    method: str
    members: int
    begun: float
    ended: float


def path(parents: int, **settings: Any) -> dict[str, Any]:
    """(a) A sweep of ResNet20s in which training and evaluation take no time."""
    common = ["--axes.experiment.k=10,20", "--axes.experiment.s=10", "--experiment.after=10"]
    return _of_nothing(settings, common, 4, parents, 0)


def long(epochs: int, **settings: Any) -> dict[str, Any]:
    """(d) Very many epochs of a network of 40 numbers that take no time."""
    Path("net.py").write_text(_TINY)
    argv = ["--model.name=net.py:tiny", "--axes.experiment.k=100", "--axes.experiment.s=100", "--experiment.after=25"]
    # A parent has 100 + 8 x 100 + 4 x 25.
    return _of_nothing(settings, argv, 8, max(1, epochs // 1000), 1)


def _of_nothing(
    settings: dict[str, Any], argv: list[str], children: int, parents: int, tried: int
) -> dict[str, float]:
    """Rates, in all and in the first and the last tenth. `tried`: epochs that try the user's own network first."""
    with _nothing(), _heard() as calls:
        _sweep(settings, "small", [*argv, "--sweep.parents=0", "--sweep.children=2"])
        calls.clear()
        took = _sweep(settings, "all", [*argv, f"--sweep.parents=0..{parents - 1}", f"--sweep.children={children}"])
    trained = [call for call in calls if call.method == TRAIN][tried:]
    done = np.cumsum([call.members for call in trained])
    first, ninth, last = (trained[int(np.searchsorted(done, done[-1] * share))].ended for share in (0.1, 0.9, 1.0))
    first_s = first - trained[0].begun
    last_s = max(last - ninth, 1e-9)  # the last two tenths of a short sweep may end with one call
    epochs = int(done[-1])
    return {
        "epochs": epochs,
        "seconds": took["seconds"],
        "epochs_per_s": epochs / took["seconds"],
        "epochs_per_s_from_first_to_last_call": epochs / (calls[-1].ended - calls[0].begun),
        "cpu_ms_an_epoch": 1e3 * took["cpu_s"] / epochs,
        "epochs_per_s_in_first_tenth": epochs / 10 / first_s,
        "epochs_per_s_in_last_tenth": epochs / 10 / last_s,
        "last_of_first": first_s / last_s,
    }


def pairs(pairs: int, **settings: Any) -> dict[str, Any]:
    """(b) Averages of stored children; and the files of these read and hashed alone."""
    common = ["--axes.experiment.k=1", "--axes.experiment.s=1", "--experiment.after=0", "--sweep.measure=own"]
    family = [*common, f"--sweep.children={2 * pairs}", "--sweep.memory_GiB=16"]
    with _nothing(), _heard() as calls:
        _sweep(settings, "small", [*common, "--sweep.children=4"])
        _sweep(settings, "all", family)
        files = sorted(Path("all/store/states").rglob("*.safetensors"))
        calls.clear()
        reads = _hear_reads()
        _sweep(settings, "all", [*family, "--sweep.alphas=0.25"])
    assert sum(call.members for call in calls) == pairs
    stored_pairs_per_s = pairs / (calls[-1].begun - reads[0])
    begun = time.perf_counter()
    for file in files:
        hashlib.sha256(file.read_bytes()).hexdigest()
    files_pairs_per_s = len(files) / 2 / (time.perf_counter() - begun)
    return {
        "pairs": pairs,
        "stored_pairs_per_s": stored_pairs_per_s,
        "files_pairs_per_s": files_pairs_per_s,
        "of_files_%": 100 * stored_pairs_per_s / files_pairs_per_s,
    }


def _median_s(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def grid(images: int, **settings: Any) -> dict[str, Any]:
    """(c) The k x s grid on digits, trained; and its steps, alone."""
    argv = ["--config=fastwi:digits_k_s_grid", f"--data.train_images={images}", f"--data.test_images={images}"]
    _sweep(settings, "small", [*argv, "--axes.experiment.k=1", "--axes.experiment.s=1", "--sweep.children=2"])
    kept: dict[str, Callable[[], object]] = {}
    with _heard(kept) as calls:
        took = _sweep(settings, "all", argv)
    members = {method: sum(call.members for call in calls if call.method == method) for method in kept}
    alone_s = sum(members[method] * _median_s(again) for method, again in kept.items())
    in_engine_s = sum(call.ended - call.begun for call in calls)
    return {
        "epochs": members[TRAIN], **took, "steps_alone_s": alone_s, "x_steps_alone": took["seconds"] / alone_s,
        "steps_in_it_s": in_engine_s, "x_steps_in_it": took["seconds"] / in_engine_s,
    }  # fmt: skip


def _sweep(settings: dict[str, Any], name: str, argv: Sequence[str]) -> dict[str, float]:
    """What the command `fastwi.sweep` took: seconds on the clock, and of all threads on a processor.

    Its store and results are in the directory `name`.
    """
    argv = [
        *argv, f"--data.path={settings['data']}", f"--engine.threads={settings['threads']}", "--engine.name=loop",
        "--engine.device=cpu", f"--sweep.store={name}/store", f"--sweep.directory={name}", "--sweep.name=grid",
    ]  # fmt: skip
    printed = io.StringIO()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = sweep(argv)
    assert code == 0, printed.getvalue()[-3000:]
    return {"seconds": time.perf_counter() - begun, "cpu_s": time.process_time() - begun_cpu}


def _nothing() -> Any:
    """Within the block the engine's methods return constants at once."""
    methods: dict[str, Callable[..., Any]] = {
        TRAIN: lambda _engine, population, *_, **__: [1.0] * population.members,
        EVALUATE: lambda _engine, population, *_, **__: Scores(
            np.ones(population.members), np.full(population.members, 50.0)
        ),
        RECOMPUTE: lambda _engine, population, *_, **__: population,
        "draw_ahead": lambda *_, **__: None,
    }
    known: Any = {name: method for name, method in methods.items() if hasattr(LoopEngine, name)}
    return mock.patch.multiple(LoopEngine, **known)


@contextlib.contextmanager
def _heard(kept: dict[str, Callable[[], object]] | None = None) -> Iterator[list[Call]]:
    """Within the block calls of the engine's methods are noted; `kept` gets a call of each, to be made again.

    That is made on a copy of the population's first member alone.
    """
    calls: list[Call] = []

    def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(engine: Any, population: Any, *arguments: Any, **named: Any) -> Any:
            if kept is not None and name not in kept:
                one = population.clone_rows([0])
                own = tuple(value[:1] if isinstance(value, list) else value for value in arguments)
                kept[name] = lambda: method(engine, one, *own, **named)
            begun = time.perf_counter()
            result = method(engine, population, *arguments, **named)
            calls.append(Call(name, population.members, begun, time.perf_counter()))
            return result

        return call

    methods: Any = {name: noted(name, getattr(LoopEngine, name)) for name in (TRAIN, EVALUATE, RECOMPUTE)}
    with mock.patch.multiple(LoopEngine, **methods):
        yield calls


def _hear_reads() -> list[float]:
    """When states' files are opened, from now on."""
    reads: list[float] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".safetensors"):
            reads.append(time.perf_counter())

    sys.addaudithook(hear)
    return reads
