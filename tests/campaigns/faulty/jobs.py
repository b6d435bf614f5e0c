"""The commands that write, each with what it starts from and what of its files must come out the same."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars
from PIL import Image

import data_prep.__main__
import fastwi.analyze
import fastwi.report.__main__
import fastwi.store
import fastwi.sweep
import fastwi.train
from fastwi.beton import read_beton
from fastwi.experiment.store import Store
from fastwi.experiment.store.repair import verify
from fastwi.population import Population
from faulty.process import Ended, Main, run

_SWEEP = """
data: {path: data, train_images: 60, test_images: 30}
augment: {padding: 0, flip: 0.0}
model: {width: 0.25}
optimizer: {batch_size: 30, learning_rate: 0.05}
schedule: {drop_epochs: []}
experiment: {after: 0, recompute_images: 60}
engine: {device: cpu, precision: fp32, backend: eager, threads: 1}
axes:
  experiment.k: [1]
  experiment.s: [1, 2]
sweep: {store: store, directory: sweeps, name: grid, parents: [0, 3], children: 2, measure: [own, recomputed]}
analysis: {alphas: 3, pairs: 1, treatments: [averaged]}
"""
_TRAIN = [
    "--data.path=data", "--data.train_images=60", "--data.test_images=30", "--run.directory=runs", "--run.name=r", "--model.width=0.25",
    "--optimizer.batch_size=30", "--experiment.k=1", "--experiment.s=1", "--experiment.after=1", "--engine.device=cpu",
    "--engine.precision=fp32", "--engine.backend=eager", "--engine.threads=1", "--schedule.drop_epochs=",
]  # fmt: skip


@dataclass
class Job:
    """A command. `start`: the directory it is run in a copy of; `end`: the same after an undisturbed run.

    `stable` are the files that two undisturbed runs give alike, to the byte; `seconds` and `writes` what one takes.
    """

    name: str
    main: Main
    argv: list[str]
    start: Path
    end: Path
    stable: set[str] = field(default_factory=set)
    measured: dict[object, object] = field(default_factory=dict)
    seconds: float = 0.0
    writes: int = 0


def make_jobs(place: Path) -> list[Job]:
    """Every job."""
    empty, data = place / "empty", place / "with data"
    empty.mkdir()
    prepare = make_job(place, "data_prep", data_prep.__main__.main, ["digits", "--out=data", "--writer=raw"], empty)
    shutil.copytree(prepare.end, data)
    (data / "grid.yaml").write_text(_SWEEP)
    sweep = make_job(place, "sweep", fastwi.sweep.main, ["--config=grid.yaml"], data)
    analysis = ["connectivity", "--config=grid.yaml"]
    analyze = make_job(place, "analyze", fastwi.analyze.main, analysis, sweep.end)
    littered = place / "littered"
    shutil.copytree(sweep.end, littered)
    _litter(littered / "store")
    return [
        prepare,
        make_job(place, "train", fastwi.train.main, _TRAIN, data),
        sweep,
        analyze,
        make_job(place, "report", fastwi.report.__main__.main, ["sweeps/grid"], analyze.end),
        make_job(place, "store gc", fastwi.store.main, ["gc", "store"], littered),
        make_job(place, "store rebuild", fastwi.store.main, ["rebuild", "store"], sweep.end),
    ]


def make_job(place: Path, name: str, main: Main, argv: list[str], start: Path) -> Job:
    """A job with its undisturbed results; it is run twice, to see what of it is stable."""
    ends = []
    for number in range(2):
        end = place / f"{name} {number}"
        shutil.copytree(start, end)
        ended = run(main, argv, end)
        assert ended.status == 0, f"{name}: {ended.said}"
        ends.append((end, ended))
    (end, ended), (other, again) = ends
    files, others = contents(end), contents(other)
    assert files.keys() == others.keys(), sorted(files.keys() ^ others.keys())
    stable = {path for path, data in files.items() if data == others[path] and not _is_index(path)}
    return Job(
        name, main, argv, start, end, stable, measurements(end), min(ended.seconds, again.seconds), ended.writes
    )


def _litter(store: Path) -> None:
    """What gc is for: unfinished files, a state without a row, damaged files."""
    state = next((store / "states").rglob("*.safetensors"))
    (state.parent / f".{state.name}.abc.tmp").write_bytes(state.read_bytes()[:1000])
    orphan = store / "states" / "zz" / f"zz{state.name[2:]}"
    orphan.parent.mkdir()
    shutil.copyfile(state, orphan)
    (store / "damaged").mkdir()
    (store / "damaged" / "x.safetensors").write_bytes(b"x")
    (store / "owners" / "dead.lock").touch()


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but locks, owners' files and what was left unfinished, by path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        volatile = path.suffix in (".lock", ".tmp") or "owners" in relative.parts or "damaged" in relative.parts
        unfinished = any(part.endswith(".tmp") for part in relative.parts)
        if (
            path.is_file()
            and not volatile
            and not unfinished
            and not path.name.endswith(("-wal", "-shm", "-journal"))
        ):
            found[str(relative)] = path.read_bytes()
    return found


def _is_index(path: str) -> bool:
    return "index.sqlite" in path


def measurements(directory: Path) -> dict[object, object]:
    """All that the stores in a directory have measured, as bits."""
    found: dict[object, object] = {}
    for place in stores(directory):
        with Store.open(place, create=False) as store:
            found |= {key: m.result() for key, m in store.measurements().items()}
    return found


def stores(directory: Path) -> list[Path]:
    """Where there are stores, a run's own among them. Not what a rebuilding has left."""
    found = (path.parent for path in sorted(directory.rglob("index.sqlite")))
    return [place for place in found if not place.name.endswith(".tmp")]


def check_whole(job: Job, directory: Path) -> None:
    """No half-written file: each is as before, as at the end, or whole by its own kind's reader."""
    start, end = contents(job.start), contents(job.end)
    for path, data in contents(directory).items():
        if data in (start.get(path), end.get(path)) or _is_index(path):
            continue
        reader = _READERS.get(Path(path).suffix)
        assert reader is not None, f"{path}: of a kind that must be as before or as at the end"
        try:
            reader(directory / path)
        except Exception as error:
            raise AssertionError(f"{path}: half-written ({error!r})") from error
    for place in stores(directory):
        if (place / "index.rebuilt.sqlite").exists():
            continue
        _in_child(partial(_undamaged, place))
        known = set(job.measured.items())
        assert set(measurements(directory).items()) <= known, "the store holds values that an undisturbed run has not"


def check_same(job: Job, directory: Path, ended: Ended) -> None:
    """After the command was run again: all that an undisturbed run leaves, and stable files to the byte."""
    assert ended.status == 0, f"run again it fails ({ended.status}): {ended.said[-2000:]}"
    end, found = contents(job.end), contents(directory)
    missing = end.keys() - found.keys()
    assert not missing, f"run again {sorted(missing)} are missing"
    more = {path for path in found.keys() - end.keys() if not path.startswith("store/index.")}
    assert not more, f"run again {sorted(more)} are there beside"
    differing = [path for path in job.stable if found[path] != end[path]]
    assert not differing, f"run again {sorted(differing)} differ"
    assert measurements(directory) == job.measured, "run again the store holds other values"
    check_whole(job, directory)


def _parquet(path: Path) -> None:
    _in_child(lambda: polars.read_parquet(path))


def _undamaged(place: Path) -> None:
    with Store.open(place, create=False) as store:
        damage = verify(store).damage
    assert not damage, f"the store is damaged: {damage}"


def _in_child(body: Callable[[], object]) -> None:
    """Call `body` in a process of its own: one that has used polars has threads, for which its forks wait in vain."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    assert not said, said


def _svg(path: Path) -> None:
    assert path.read_text().rstrip().endswith("</svg>")


def _pdf(path: Path) -> None:
    assert path.read_bytes().rstrip().endswith(b"%%EOF")


def _html(path: Path) -> None:
    assert path.read_text().rstrip().endswith("</html>")


def _png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _lines(path: Path) -> None:
    for line in path.read_text().splitlines(keepends=True):
        assert line.endswith("\n")
        json.loads(line)


_READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()), ".jsonl": _lines, ".parquet": _parquet, ".png": _png, ".pdf": _pdf,
    ".svg": _svg, ".html": _html, ".safetensors": Population.load, ".beton": read_beton,
}  # fmt: skip


def copied(job: Job, place: Path) -> Path:
    """A fresh copy of what the job starts from."""
    if place.exists() and not os.path.ismount(place):
        shutil.rmtree(place)
    return Path(shutil.copytree(job.start, place, dirs_exist_ok=True))
