"""The commands, each with the directory that it starts from and the files in it that it may read."""

import importlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from faulty.process import Fault, Main, run
from PIL import Image
from tiny_runs import NETWORK, few_digits

import data_prep.__main__
import fastwi
import fastwi.analyze
import fastwi.convert
import fastwi.report.__main__
import fastwi.sweep
import fastwi.train
from data_prep.dataset import silent
from data_prep.write import write_dataset
from fastwi.models.registry import build_model
from flipped.numbers import (
    Collect,
    leave_out_figures,
    of_analysis,
    of_export,
    of_report,
    of_sweep,
    of_train,
    reported,
)

TRAIN_IMAGES, TEST_IMAGES = 40, 30

_SETTINGS = """\
data: {{path: {data}, train_images: 36, test_images: 0}}
augment: {{padding: 1, flip: 0.5}}
model: {{name: "net.py:Tiny"{weights}}}
optimizer: {{batch_size: 12, learning_rate: 0.05, momentum: 0.9, weight_decay: 1.0e-4}}
schedule: {{drop_epochs: [2], drop_factor: 0.5, warmup_iterations: 2}}
experiment: {{{spans}after: 1, recompute_images: 24, momentum: average}}
"""
_AXES = """\
axes:
  experiment.k: [1]
  experiment.s: [1, 2]
sweep: {store: store, directory: sweeps, name: grid, parents: [0, 3], children: 2}
analysis: {alphas: 3, pairs: 1, treatments: [averaged]}
"""
# Not in the files: a flip here changes how results are computed, to rounding, and no name tells rounding.
_ENGINE = ("--engine.device=cpu", "--engine.precision=fp32", "--engine.backend=eager", "--engine.threads=1",
           "--engine.name=loop", "--engine.evaluation_batch=500", "--data.decoder=reference")  # fmt: skip


@dataclass
class Job:
    """A command. `start`: the directory it is run in a copy of; `kinds`: patterns of the files of each kind there.

    `collect` gathers all numbers that the command showed or stored, after it; `expected` are those of a run on files
    that are whole.
    """

    name: str
    main: Main
    argv: list[str]
    start: Path
    kinds: Mapping[str, tuple[str, ...]]
    collect: Collect
    expected: dict[str, object] = field(default_factory=dict)

    def files(self, kind: str) -> list[Path]:
        """The files of a kind, relative to `start`."""
        found = {path for pattern in self.kinds[kind] for path in self.start.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.start) for path in found if path.stat().st_size)


_RAW = {
    "card": ("data/card.json",), "beton, raw": ("data/*.beton",),
    "digests of the data": ("data/*digest*", "data/*.sha256*"),
}  # fmt: skip
_JPEG = {
    "card": ("jpegs/card.json",), "beton, JPEG": ("jpegs/*.beton",),
    "digests of the data": ("jpegs/*digest*", "jpegs/*.sha256*"),
}  # fmt: skip
_SOURCE = {"network's source": ("net.py",)}
_RUN = {
    "run: checkpoints": ("runs/*/checkpoints/*",), "run: metrics.jsonl": ("runs/*/metrics.jsonl",),
    "run: config.yaml": ("runs/*/config.yaml",), "run: manifest.json": ("runs/*/manifest.json",),
    "run: summary.md": ("runs/*/summary.md",),
}  # fmt: skip
_STORE_FILES = {
    "index.sqlite": "index.sqlite*", "metrics.parquet": "*.parquet", "states": "states/**/*.safetensors",
    "store.json": "store.json",
}  # fmt: skip
_RUN |= {f"run's store: {kind}": (f"runs/*/store/{files}",) for kind, files in _STORE_FILES.items()}
_STORE = {f"store: {kind}": (f"store/{files}",) for kind, files in _STORE_FILES.items()}
_STORE |= {"store: sweeps": ("store/sweeps/*",)}
_SWEEP = {
    "sweep: results.parquet": ("sweeps/*/results.parquet",), "sweep: gains.parquet": ("sweeps/*/gains.parquet",),
    "sweep: sweep.yaml": ("sweeps/*/sweep.yaml",), "sweep: manifest.json": ("sweeps/*/manifest.json",),
    "sweep: summary.md": ("sweeps/*/summary.md",),
}  # fmt: skip
_ANALYSIS = {
    "analysis: frames": ("sweeps/*/analyses/*/*.parquet",), "analysis: manifest.json": ("sweeps/*/analyses/*/manifest.json",),
    "analysis: tables": ("sweeps/*/analyses/*/*.csv", "sweeps/*/analyses/*/*.md"),
}  # fmt: skip
_RUN_FILE, _SWEEP_FILE = {"config file": ("run.yaml",)}, {"config file": ("grid.yaml",)}


def make_jobs(place: Path) -> list[Job]:
    """Every job. All that a job starts from is made by the commands themselves."""
    _import_all()
    empty = place / "empty"
    _write_inputs(empty, place)
    train, sweep = fastwi.train.main, fastwi.sweep.main
    run_argv = ["--config", "run.yaml", *_ENGINE, "--json"]
    grid_argv = ["--config", "grid.yaml", *_ENGINE]
    analyze_argv = ["connectivity", *grid_argv]
    trained = _after(place, "trained", empty, train, run_argv)
    half_trained = _cut_off(place, "half trained", empty, train, run_argv)
    swept = _after(place, "swept", empty, sweep, grid_argv)
    half_swept = _cut_off(place, "half swept", empty, sweep, grid_argv)
    analyzed = _after(place, "analyzed", swept, fastwi.analyze.main, analyze_argv)
    weights = {"model.weights": ("weights.safetensors",)}
    inputs = {**_RAW, **_SOURCE}
    streamed = ["--data.path=jpegs", "--data.streaming=streamed"]
    jobs = [
        Job("train", train, run_argv, empty, inputs | weights | _RUN_FILE, of_train),
        Job("train, JPEGs streamed", train, [*run_argv, *streamed], empty, _JPEG, of_train),
        Job("train, JPEGs resident", train, [*run_argv, "--data.path=jpegs", "--data.streaming=resident"], empty, _JPEG,
            of_train),
        Job("train, raw streamed", train, [*run_argv, "--data.streaming=streamed"], empty, _RAW, of_train),
        Job("train, half-way", train, run_argv, half_trained, _RUN | inputs | weights | _RUN_FILE, of_train),
        Job("train, finished", train, run_argv, trained, _RUN | inputs | weights | _RUN_FILE, of_train),
        Job("sweep, half-way", sweep, grid_argv, half_swept, _STORE | inputs | _SWEEP_FILE, of_sweep),
        Job("sweep, finished", sweep, grid_argv, swept, _STORE | _SWEEP | inputs | _SWEEP_FILE, of_sweep),
        Job("sweep, a parent more", sweep, [*grid_argv, "--sweep.parents=[0, 3, 5]"], swept, _STORE | inputs, of_sweep),
        Job("analyze", fastwi.analyze.main, analyze_argv, analyzed, _STORE | _ANALYSIS | inputs | _SWEEP_FILE,
            of_analysis),
        Job("report", fastwi.report.__main__.main, ["sweeps/grid", "--json"], analyzed, _SWEEP | _ANALYSIS, of_report),
        Job("convert", fastwi.convert.main, ["export", "final.safetensors", "--member", "0", "--out", "out.pt"],
            _with_final(place, trained), {"run: checkpoints": ("final.safetensors",)}, of_export),
    ]  # fmt: skip
    for job in jobs:
        job.expected = _expected(job, place / "reference")
    return jobs


def _expected(job: Job, directory: Path) -> dict[str, object]:
    shutil.copytree(job.start, directory)
    ended = run(reported(job.main, job.collect), job.argv, directory)
    assert ended.status == 0, f"{job.name}: {ended.said}"
    found = reported_numbers(directory)
    assert found, f"{job.name}: {ended.said}"
    shutil.rmtree(directory)
    return found


def reported_numbers(directory: Path) -> dict[str, object]:
    """What `reported` left beside the directory; nothing where the command failed. It is taken away."""
    path = directory.with_name(f"{directory.name}.numbers")
    if not path.exists():
        return {}
    found: dict[str, object] = json.loads(path.read_text())
    path.unlink()
    return found


def _after(place: Path, name: str, start: Path, main: Main, argv: list[str]) -> Path:
    directory = place / name
    shutil.copytree(start, directory)
    ended = run(_undrawn(main), argv, directory)
    assert ended.status == 0, f"{name}: {ended.said}"
    return directory


def _cut_off(place: Path, name: str, start: Path, main: Main, argv: list[str]) -> Path:
    """What the command leaves where it is killed at two thirds of its writes."""
    whole = place / "whole"
    shutil.copytree(start, whole)
    writes = run(_undrawn(main), argv, whole).writes
    shutil.rmtree(whole)
    directory = place / name
    shutil.copytree(start, directory)
    ended = run(_undrawn(main), argv, directory, Fault(signal.SIGKILL, write=writes * 2 // 3))
    assert ended.status == -signal.SIGKILL, f"{name}: {ended.said}"
    return directory


def _undrawn(main: Main) -> Main:
    def begin(argv: list[str]) -> int:
        leave_out_figures()
        return main(argv)

    return begin


def _write_inputs(empty: Path, place: Path) -> None:
    empty.mkdir()
    digits = few_digits(TRAIN_IMAGES, TEST_IMAGES)
    (empty / "data").mkdir()
    write_dataset(digits, empty / "data", "raw", silent)
    pictures = place / "pictures"
    for name, split in (("train", digits.train), ("test", digits.test)):
        for i, (image, label) in enumerate(zip(split.images_NHWC, split.labels_N, strict=True)):
            path = pictures / name / str(label) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(path, quality=90)
    argv = [
        "folder",
        "--source",
        str(pictures),
        "--out",
        "jpegs",
        "--name",
        "jpegs",
        "--writer",
        "raw",
        "--write-mode",
        "jpeg",
    ]
    ended = run(data_prep.__main__.main, argv, empty)
    assert ended.status == 0, ended.said
    (empty / "net.py").write_text(NETWORK)
    network = build_model(f"{empty / 'net.py'}:Tiny", 10)
    fastwi.save_state_dict(network.state_dict(), empty / "weights.safetensors")
    (empty / "run.yaml").write_text(
        _SETTINGS.format(data="data", weights=", weights: weights.safetensors", spans="k: 1, s: 1, ")
    )
    (empty / "grid.yaml").write_text(_SETTINGS.format(data="data", weights="", spans="") + _AXES)


def _with_final(place: Path, trained: Path) -> Path:
    """A checkpoint at a path that does not depend on the run's name."""
    directory = place / "converted"
    directory.mkdir()
    (final,) = trained.glob("runs/*/checkpoints/final.safetensors")
    shutil.copyfile(final, directory / "final.safetensors")
    return directory


def _import_all() -> None:
    """Import what the commands import late, so that a fork costs no more than its work."""
    for name in (
        "fastwi.experiment.scheduler", "fastwi.experiment.execution",
        "fastwi.engine.choose", "fastwi.report.page", "fastwi.studies.connectivity", "fastwi.report.tensorboard",
        "fastwi.report.progress", "fastwi.report.results", "fastwi.report.plan", "fastwi.analysis.line",
        "fastwi.report.curves", "fastwi.report.figures", "fastwi.report.heatmap", "rich.console", "torch._dynamo",
    ):  # fmt: skip
        importlib.import_module(name)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
