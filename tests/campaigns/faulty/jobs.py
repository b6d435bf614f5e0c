"""A command that writes: what it starts from, what an undisturbed run leaves, and what must come out the same."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars
from PIL import Image

from fastwi.beton import StoredBeton
from fastwi.experiment.store import Store
from fastwi.experiment.store.repair import verify
from fastwi.population import Population
from faulty.process import Ended, Fault, Main, run

_VOLATILE = (".lock", ".tmp", "-wal", "-shm", "-journal")
# Results that no time is in, by command.
_RESULTS = {
    "data_prep": {"card.json", "train.beton", "test.beton"}, "train": {"metrics.jsonl", "final.safetensors"},
    "sweep": {"results.parquet", "gains.parquet", "summary.md"}, "analyze": {"barrier.parquet"},
    "report": {"report.html"}, "convert": {"out.pt"},
}  # fmt: skip


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
    stable: set[str]
    measured: dict[object, object]
    seconds: float
    writes: int


def make_job(place: Path, name: str, main: Main, argv: list[str], start: Path) -> Job:
    """A job with its undisturbed results; it is run twice, to see what of it is stable.

    The second run is timed by a faster clock: of two runs that take equally long, files with their time in are alike.
    """
    ends = [Path(shutil.copytree(start, place / f"{name} {number}")) for number in range(2)]
    runs = [run(main, argv, end, Fault(clock_fast=fast)) for end, fast in zip(ends, (False, True), strict=True)]
    assert not any(ended.status for ended in runs), f"{name}: {runs[0].said}"
    files, others = map(contents, ends)
    assert files.keys() == others.keys(), sorted(files.keys() ^ others.keys())
    stable = {path for path, data in files.items() if data == others[path] and not _is_index(path)}
    lacking = _RESULTS.get(name.partition(",")[0], set()) - {Path(path).name for path in stable}
    assert not lacking, f"{name}: two undisturbed runs give other {sorted(lacking)}"
    seconds = min(ended.seconds for ended in runs)
    return Job(name, main, argv, start, ends[0], stable, measurements(ends[0]), seconds, runs[0].writes)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but locks, owners' files, and what is damaged or was left unfinished, by path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        if (
            path.is_file()
            and not {"owners", "damaged"} & set(parts)
            and not any(p.endswith(_VOLATILE) for p in parts)
        ):
            found["/".join(parts)] = path.read_bytes()
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
    """Where there are stores, a run's own among them."""
    return [path.parent for path in sorted(directory.rglob("index.sqlite"))]


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
        if not (place / "index.rebuilt.sqlite").exists():
            _in_child(partial(_undamaged, place))
            more = measurements(directory).items() - job.measured.items()
            assert not more, "the store holds values that an undisturbed run has not"


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


def _undamaged(place: Path) -> None:
    with Store.open(place, create=False) as store:
        damage = verify(store).damage
    assert not damage, f"the store is damaged: {damage}"


def _in_child(body: Callable[[], object]) -> None:
    """Call `body` in a process of its own, which may use polars."""
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


def _ends_with(end: bytes) -> Callable[[Path], object]:
    def check(path: Path) -> None:
        assert path.read_bytes().rstrip().endswith(end)

    return check


def _lines(path: Path) -> None:
    for line in path.read_text().splitlines(keepends=True):
        assert line.endswith("\n")
        json.loads(line)


_READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()), ".jsonl": _lines, ".png": lambda path: Image.open(path).load(),
    ".parquet": lambda path: _in_child(lambda: polars.read_parquet(path)), ".pdf": _ends_with(b"%%EOF"),
    ".svg": _ends_with(b"</svg>"), ".html": _ends_with(b"</html>"), ".safetensors": Population.load,
    ".beton": lambda path: StoredBeton(path).read_raw(),
}  # fmt: skip


def copied(start: Path, place: Path) -> Path:
    """A fresh copy of what a job starts from."""
    if place.exists() and not os.path.ismount(place):
        shutil.rmtree(place)
    return Path(shutil.copytree(start, place, dirs_exist_ok=True))
