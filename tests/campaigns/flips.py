"""`python tests/campaigns/flips.py`: one bit flipped in one file that a run or sweep reads or leaves.

For each flip a small finished or half-way run or sweep is copied, one bit of one file is flipped, and the command is
run again. What came of it is one of:

- refused: exit code 1, 2 or 3, and a line that says so and names the file;
- another name: other numbers, filed under another name than those of the whole files (a flip in a configuration, in a
  network's source or in given weights is another configuration, source or weights, which looks like an
  edit; its name must differ);
- the same: exit code 0 and every number as without the flip, whether the flip had no effect or what it damaged was
  noticed and made again ("made again": the command said so);
- WRONG: another number under the same name with exit code 0, a traceback, or a refusal that does not say which file.

Numbers are the measurements in stores, by state and treatment, and the bytes of every file that two runs on whole
files leave alike, by path and the identities in manifests. Figures are not drawn. Exit code 1 where anything is WRONG.
"""

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg", "PYTHONDONTWRITEBYTECODE": "1"}
sys.path.append(str(Path(__file__).parents[2]))  # data_prep; tests has a directory of this name
sys.path.append(str(Path(__file__).parents[1]))  # what tests share

import numpy as np
from faulty.begin import printed_seed, shown, workplace
from faulty.jobs import Job, contents, copied, make_job, measurements
from faulty.process import Ended, Fault, Main, run
from PIL import Image
from tiny_runs import NETWORK, few_digits

import data_prep.__main__
import fastwi
import fastwi.analyze
import fastwi.convert
import fastwi.report.__main__
import fastwi.sweep
import fastwi.train
from data_prep.progress import silent
from data_prep.write import write_dataset
from fastwi.models.registry import build_model

REFUSED, ANOTHER, SAME, AGAIN, WRONG = "refused", "another name", "the same", "made again", "WRONG"
OUTCOMES = (REFUSED, ANOTHER, AGAIN, SAME, WRONG)
_AGAIN = re.compile(r"trained again|exported again|is made again")
_ENDS = 512  # bytes at both ends of a file, where formats keep what matters

_SETTINGS = """\
data: {{path: data, train_images: 36, test_images: 0}}
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
# Not in the files: a flip here changes results by rounding, which is not in any name.
_ENGINE = ("--engine.device=cpu", "--engine.precision=fp32", "--engine.backend=eager", "--engine.threads=1",
           "--engine.name=loop", "--engine.evaluation_batch=500", "--data.decoder=reference")  # fmt: skip

Kinds = Mapping[str, tuple[str, ...]]
"""Patterns of the files of each kind, relative to the directory in which a command is run."""


def _data(name: str, kind: str) -> Kinds:
    digests = (f"{name}/*digest*", f"{name}/*.sha256*")
    return {"card": (f"{name}/card.json",), f"beton, {kind}": (f"{name}/*.beton",), "digests of the data": digests}


def _within(title: str, directory: str, files: Mapping[str, str]) -> Kinds:
    return {f"{title}: {kind}": (f"{directory}/{pattern}",) for kind, pattern in files.items()}


_RAW, _JPEG = _data("data", "raw"), _data("jpegs", "JPEG")
_INPUTS = {**_RAW, "network's source": ("net.py",)}
_STORE_FILES = {
    "index.sqlite": "index.sqlite*", "metrics.parquet": "*.parquet", "states": "states/**/*.safetensors",
    "store.json": "store.json",
}  # fmt: skip
_WRITTEN = ("manifest.json", "summary.md")
_RUN = _within("run", "runs/*", {each: each for each in ("metrics.jsonl", "config.yaml", *_WRITTEN)})
_RUN = {"run: checkpoints": ("runs/*/checkpoints/*",), **_RUN, **_within("run's store", "runs/*/store", _STORE_FILES)}
_STORE = _within("store", "store", {**_STORE_FILES, "sweeps": "sweeps/*"})
_TABLES = ("results.parquet", "gains.parquet", "sweep.yaml", *_WRITTEN)
_SWEEP = _within("sweep", "sweeps/*", {each: each for each in _TABLES})
_ANALYSIS = _within("analysis", "sweeps/*/analyses/*", {"frames": "*.parquet", "manifest.json": "manifest.json"})
_ANALYSIS["analysis: tables"] = ("sweeps/*/analyses/*/*.csv", "sweeps/*/analyses/*/*.md")
_RUN_FILES = {"config file": ("run.yaml",), "model.weights": ("weights.safetensors",)}
_SWEEP_FILE = {"config file": ("grid.yaml",)}
_WRITTEN_AGAIN = {
    "run: metrics.jsonl", "run: summary.md", "sweep: results.parquet", "sweep: gains.parquet", "sweep: summary.md",
    "analysis: frames",
}  # fmt: skip
_MAY_RENAME = {*_INPUTS, *_JPEG, *_RUN_FILES}


@dataclass(frozen=True)
class Flip:
    """One bit of a file of one kind, before one command."""

    job: str
    kind: str
    file: Path
    byte: int
    bit: int

    def __str__(self) -> str:
        return f"{self.job}: bit {self.bit} of byte {self.byte} of {self.file}"


def make_jobs(place: Path) -> list[tuple[Job, Kinds]]:
    """Every command, with the files that it may read. All that one starts from is made by the commands themselves."""
    _import_all()
    empty = place / "empty"
    _write_inputs(empty, place)
    jobs: list[tuple[Job, Kinds]] = []

    def add(name: str, module: Any, argv: list[str], start: Path, *kinds: Kinds) -> Job:
        job = make_job(place, name, _undrawn(module.main), argv, start)
        jobs.append((job, {kind: patterns for each in kinds for kind, patterns in each.items()}))
        return job

    def add_cut_off(name: str, module: Any, whole: Job, *kinds: Kinds) -> None:
        """As `whole`, from what it leaves where it is killed at two thirds of its writes."""
        directory = copied(whole.start, place / f"{name}, begun")
        ended = run(whole.main, whole.argv, directory, Fault(signal.SIGKILL, write=whole.writes * 2 // 3))
        assert ended.status == -signal.SIGKILL, f"{name}: {ended.said}"
        add(name, module, whole.argv, directory, *kinds)

    run_argv, grid_argv = ["--config", "run.yaml", *_ENGINE], ["--config", "grid.yaml", *_ENGINE]
    train = add("train", fastwi.train, run_argv, empty, _INPUTS, _RUN_FILES)
    for name, options, kinds in (
        ("JPEGs streamed", ("--data.path=jpegs", "--data.streaming=streamed"), _JPEG),
        ("JPEGs resident", ("--data.path=jpegs", "--data.streaming=resident"), _JPEG),
        ("raw streamed", ("--data.streaming=streamed",), _RAW),
    ):
        add(f"train, {name}", fastwi.train, [*run_argv, *options], empty, kinds)
    add_cut_off("train, half-way", fastwi.train, train, _RUN, _INPUTS, _RUN_FILES)
    add("train, finished", fastwi.train, run_argv, train.end, _RUN, _INPUTS, _RUN_FILES)
    sweep = add("sweep", fastwi.sweep, grid_argv, empty, _INPUTS, _SWEEP_FILE)
    add_cut_off("sweep, half-way", fastwi.sweep, sweep, _STORE, _INPUTS, _SWEEP_FILE)
    add("sweep, finished", fastwi.sweep, grid_argv, sweep.end, _STORE, _SWEEP, _INPUTS, _SWEEP_FILE)
    more = [*grid_argv, "--sweep.parents=[0, 3, 5]"]
    add("sweep, a parent more", fastwi.sweep, more, sweep.end, _STORE, _INPUTS)
    argv = ["connectivity", *grid_argv]
    analyzed = add("analyze", fastwi.analyze, argv, sweep.end, _STORE, _INPUTS, _SWEEP_FILE).end
    add("analyze, finished", fastwi.analyze, argv, analyzed, _STORE, _ANALYSIS, _INPUTS, _SWEEP_FILE)
    add("report", fastwi.report.__main__, ["sweeps/grid"], analyzed, _SWEEP, _ANALYSIS)
    converted = place / "converted"
    converted.mkdir()
    (final,) = train.end.glob("runs/*/checkpoints/final.safetensors")
    shutil.copyfile(final, converted / "final.safetensors")
    argv = ["export", "final.safetensors", "--member", "0", "--out", "out.pt"]
    add("convert", fastwi.convert, argv, converted, {"run: checkpoints": ("final.safetensors",)})
    return jobs


_NOT_DONE = (
    "heatmap.draw_gains", "curves.draw_curves", "curves.draw_run", "study_files.save_figure", "manifest.commit",
)  # fmt: skip


def _undrawn(main: Main) -> Main:
    """`main`, which draws nothing: no number is read from a figure, and drawing takes most time."""

    def begin(argv: list[str]) -> int:
        nothing: Callable[..., list[Path]] = lambda *_, **__: []  # noqa: E731
        for name in _NOT_DONE:
            module, function = name.split(".")
            place = importlib.import_module(f"fastwi.report.{module}")
            assert hasattr(place, function), name
            setattr(place, function, nothing)
        return main(argv)

    return begin


def _write_inputs(empty: Path, place: Path) -> None:
    empty.mkdir()
    digits = few_digits(40, 30)
    (empty / "data").mkdir()
    write_dataset(digits, empty / "data", "raw", silent)
    pictures = place / "pictures"
    for name, split in (("train", digits.train), ("test", digits.test)):
        for i, (image, label) in enumerate(zip(split.images_NHWC, split.labels_N, strict=True)):
            path = pictures / name / str(label) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(path, quality=90)
    argv = ["folder", f"--source={pictures}", "--out=jpegs", "--name=jpegs", "--writer=raw", "--write-mode=jpeg"]
    ended = run(data_prep.__main__.main, argv, empty)
    assert ended.status == 0, ended.said
    (empty / "net.py").write_text(NETWORK)
    network = build_model(f"{empty / 'net.py'}:Tiny", 10)
    fastwi.save_state_dict(network.state_dict(), empty / "weights.safetensors")
    weights = ", weights: weights.safetensors"
    (empty / "run.yaml").write_text(_SETTINGS.format(weights=weights, spans="k: 1, s: 1, "))
    (empty / "grid.yaml").write_text(_SETTINGS.format(weights="", spans="") + _AXES)


def _import_all() -> None:
    """Import what the commands import late, so that a fork costs no more than its work."""
    for name in (
        "experiment.scheduler", "experiment.execution", "engine.choose", "report.page", "studies.connectivity",
        "report.run_directory", "report.progress", "report.results", "report.plan", "analysis.line", "report.curves",
        "report.figures", "report.heatmap",
    ):  # fmt: skip
        importlib.import_module(f"fastwi.{name}")
    importlib.import_module("rich.console")
    importlib.import_module("torch._dynamo")


class Flips:
    """All flips of one campaign, in one directory."""

    def __init__(self, place: Path, seed: int, only: str) -> None:
        self._place = place / "box"
        self._place.mkdir()
        self._draw = random.Random(seed)
        jobs = [(job, kinds) for job, kinds in make_jobs(place) if only in job.name]
        found = [(job, kind, _files(job.start, patterns)) for job, kinds in jobs for kind, patterns in kinds.items()]
        self.choices = [choice for choice in found if choice[2]]
        self.counted: Counter[tuple[str, str, str]] = Counter()
        self.wrong: list[str] = []

    def flip(self, job: Job, kind: str, files: list[Path]) -> None:
        """One flip in a file of a kind."""
        file = self._draw.choice(files)
        data = bytearray((job.start / file).read_bytes())
        end = self._draw.randrange(min(_ENDS, len(data)))
        used = [at for at, value in enumerate(data) if value] or [0]  # most of a beton is padding
        places = (self._draw.randrange(len(data)), end, len(data) - 1 - end, *self._draw.choices(used, k=2))
        flip = Flip(job.name, kind, file, self._draw.choice(places), self._draw.randrange(8))
        directory = copied(job.start, self._place / "t")
        data[flip.byte] ^= 1 << flip.bit
        (directory / file).write_bytes(data)
        outcome, why = _judged(job, flip, run(job.main, job.argv, directory), directory)
        self.counted[kind, job.name, outcome] += 1
        if outcome == WRONG:
            self.wrong.append(f"{flip}: {why}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)


def _files(start: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in start.glob(pattern) if path.is_file() and path.stat().st_size}
    return sorted(path.relative_to(start) for path in found)


def _judged(job: Job, flip: Flip, ended: Ended, directory: Path) -> tuple[str, str]:
    """The outcome, and why it is wrong where it is."""
    if ended.status not in (0, 1, 2, 3) or "Traceback" in ended.said:
        return WRONG, f"exit code {ended.status}: {ended.said[-1500:]}"
    if ended.status != 0:
        lines = [line for line in ended.said.splitlines() if line.startswith("fastwi: ")]
        if not any(_names(line, flip) for line in lines):
            return WRONG, f"exit code {ended.status}, and no line names the file: {ended.said[-500:]}"
        return REFUSED, ""
    found, measured = contents(directory), measurements(directory)
    for name in measured.keys() & job.measured.keys():
        if measured[name] != job.measured[name]:
            return WRONG, f"{name} is {measured[name]}, not {job.measured[name]}"
    end = contents(job.end)
    renamed = measured.keys() != job.measured.keys() or _identities(found) != _identities(end)
    if renamed and flip.kind in _MAY_RENAME:
        return ANOTHER, ""
    checked = job.stable
    if job.name == "report" or flip.kind not in _WRITTEN_AGAIN:  # the flip may stay there
        checked = checked - {str(flip.file)}
    differing = sorted(path for path in checked if found.get(path) != end[path])
    if renamed or differing:
        return WRONG, f"other numbers under the same name: {differing or measured.keys() ^ job.measured.keys()}"
    return (AGAIN if _AGAIN.search(ended.said) else SAME), ""


def _identities(files: Mapping[str, bytes]) -> dict[str, object]:
    """What the manifests say that results are results of."""
    return {path: json.loads(files[path])["identity"] for path in files if path.endswith("manifest.json")}


def _names(line: str, flip: Flip) -> bool:
    """Whether a line names the file, its directory, or (of a configuration) what is wrong in it."""
    directory = str(flip.file.parent)
    return flip.file.name in line or (directory != "." and directory in line) or flip.kind == "config file"


def _table(counted: Counter[tuple[str, str, str]]) -> str:
    """Flips by kind of file and command, one column an outcome."""
    lines = [f"{'file':<32}{'command':<24}" + "".join(f"{name:>14}" for name in OUTCOMES)]
    for kind, job in sorted({(kind, job) for kind, job, _ in counted}):
        lines.append(f"{kind:<32}{job:<24}" + "".join(f"{counted[kind, job, name] or '-':>14}" for name in OUTCOMES))
    totals = [sum(count for (_, _, outcome), count in counted.items() if outcome == name) for name in OUTCOMES]
    return "\n".join([*lines, f"{'all':<56}" + "".join(f"{total:>14}" for total in totals)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="commands with this in their name alone, such as sweep")
    parser.add_argument("--kind", default="", help="files of kinds with this in their name alone, such as card")
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    begun = time.monotonic()
    with workplace() as place:
        flips = Flips(place, seed, options.only)
        print(f"whole runs made in {time.monotonic() - begun:.0f} s", flush=True)
        choices = [choice for choice in flips.choices if options.kind in choice[1]]
        random.Random(seed).shuffle(choices)
        seen: set[str] = set()
        # Each kind once first, however few flips there are.
        choices.sort(key=lambda choice: choice[1] in seen or seen.add(choice[1]) is not None)
        for number in shown(options.flips, "flips"):
            flips.flip(*choices[number % len(choices)])
    print(_table(flips.counted))
    print(f"{flips.counted.total()} bits flipped, {len(flips.wrong)} wrong results")
    return 1 if flips.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
