"""What a sweep costs beside the training and evaluation that it is made of.

(a) path: ResNet20s whose training and evaluation are replaced by nothing: plan, schedule, clone, average, commit. A
    parent has 140 epochs: k = 10 and 20, 4 children each, s = 10, 10 epochs of each average. Target: 1,000 epochs of
    single networks a second on 2 cores.
(b) pairs: pairs of one parent's children, averaged from the store and ready to be evaluated. Target: at least 60 % of
    the speed of reading and hashing the files alone.
(c) grid: configs/digits_k_s_grid.yaml, trained. Target: 1.05 x what the engine takes in it.
(d) with --long EPOCHS alone: so many epochs of a network of 40 numbers, replaced by nothing. The rate in the last
    tenth: at least 0.8 of that in the first.

Each sweep is a command in a fresh process, seen from the methods of the `loop` engine. A small sweep runs first, so
that imports are not measured; figures are not drawn. Stores are written among temporary files. How long it takes to
plan: `python -m benchmarks.planning`.
"""

import contextlib
import hashlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks.runner import Report, benchmark, fresh, over_rounds

PARTS = {
    "path": "(a) ResNet20s, training and evaluation replaced by nothing; target: 1,000 epochs/s",
    "pairs": "(b) Pairs averaged from the store; target: 60 % of files read and hashed alone",
    "grid": "(c) The k x s grid on digits; target: at most 1.05 x the engine",
}
_LONG = "(d) Epochs of tiny networks; target: the last tenth at 0.8 of the first"
_TINY = """
from torch import nn

def tiny(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""
TRAIN, EVALUATE, RECOMPUTE = "train_epoch", "evaluate", "recompute_statistics"


@benchmark
def main(
    report: Report, parts: tuple[str, ...] = tuple(PARTS), rounds: int = 3, parents: int = 8, pairs: int = 512,
    images: int = 0, long: int = 0, threads: int = 0,
) -> None:  # fmt: skip
    """Each part is a table, of rounds in fresh processes."""
    from data_prep import prepare

    with tempfile.TemporaryDirectory() as directory:
        data = str(prepare("digits", Path(directory) / "digits", writer="raw"))
        settings = {"data": data, "threads": threads, "parents": parents, "pairs": pairs, "images": images}
        for part in ("long",) if long else parts:
            found = [fresh(globals()[part], epochs=long, **settings) for _ in range(rounds)]
            report.add(PARTS.get(part, _LONG), [over_rounds(found)], [{"part": part, **each} for each in found])


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
    with _engine(nothing=True) as calls:
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
    reads: list[float] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".safetensors"):
            reads.append(time.perf_counter())

    with _engine(nothing=True) as calls:
        _sweep(settings, "small", [*common, "--sweep.children=4"])
        _sweep(settings, "all", family)
        files = sorted(Path("all/store/states").rglob("*.safetensors"))
        calls.clear()
        sys.addaudithook(hear)
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


def grid(images: int, **settings: Any) -> dict[str, Any]:
    """(c) The k x s grid on digits, trained; and what the engine took in it."""
    argv = ["--config=fastwi:digits_k_s_grid", f"--data.train_images={images}", f"--data.test_images={images}"]
    _sweep(settings, "small", [*argv, "--axes.experiment.k=1", "--axes.experiment.s=1", "--sweep.children=2"])
    with _engine(nothing=False) as calls:
        took = _sweep(settings, "all", argv)
    epochs = sum(call.members for call in calls if call.method == TRAIN)
    in_engine_s = sum(call.ended - call.begun for call in calls)
    return {"epochs": epochs, **took, "engine_s": in_engine_s, "x_engine": took["seconds"] / in_engine_s}


def _sweep(settings: dict[str, Any], name: str, argv: Sequence[str]) -> dict[str, float]:
    """What the command `fastwi.sweep` took: seconds on the clock, and of all threads on a processor.

    Its store and results are in the directory `name`.
    """
    from fastwi.sweep import main as sweep

    argv = [
        *argv, f"--data.path={settings['data']}", f"--engine.threads={settings['threads']}", "--engine.name=loop",
        "--engine.device=cpu", f"--sweep.store={name}/store", f"--sweep.directory={name}", "--sweep.name=grid",
    ]  # fmt: skip
    printed = io.StringIO()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch("fastwi.report.heatmap.draw_heatmap", return_value=[]),
        mock.patch("fastwi.report.curves.draw_curves", return_value=[]),
    ):
        code = sweep(argv)
    assert code == 0, printed.getvalue()[-3000:]
    return {"seconds": time.perf_counter() - begun, "cpu_s": time.process_time() - begun_cpu}


@contextlib.contextmanager
def _engine(nothing: bool) -> Iterator[list[Call]]:
    """Within the block calls of the engine's methods are noted; with `nothing` they return constants at once."""
    from fastwi.engine.base import Scores
    from fastwi.engine.loop import LoopEngine

    calls: list[Call] = []
    constants: dict[str, Callable[[Any], Any]] = {
        TRAIN: lambda population: [1.0] * population.members,
        EVALUATE: lambda population: Scores(np.ones(population.members), np.full(population.members, 50.0)),
        RECOMPUTE: lambda population: population,
    }

    def noted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(engine: Any, population: Any, *arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            result = constants[name](population) if nothing else method(engine, population, *arguments, **named)
            calls.append(Call(name, population.members, begun, time.perf_counter()))
            return result

        return call

    methods: Any = {name: noted(name, getattr(LoopEngine, name)) for name in constants}
    if nothing:
        methods["draw_ahead"] = lambda *_, **__: None
    with mock.patch.multiple(LoopEngine, **methods):
        yield calls


if __name__ == "__main__":
    sys.exit(main())
