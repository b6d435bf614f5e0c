"""`python tests/campaigns/faults.py`: every command that writes, disturbed; nothing may be lost or wrong.

Faults: kill -9, SIGTERM and Ctrl-C at random moments and at random writes, a disk that is full, a directory that
cannot be written, a clock that runs backwards, a dataset that is replaced between two runs, another process that has
claimed all tasks of a store and dies. After each: no half-written file and no wrong value in a store; the command says
what is wrong in one line where it can (exit code 2, 143 for SIGTERM, 130 for Ctrl-C); and the same command, run again,
ends with the bytes of an undisturbed run. The epochs that were trained again because of kills are counted.

Disks that are full or not writable are small file systems in memory, which only root can mount: without that these
faults are left out.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}

from faulty.begin import printed_seed, shown, workplace
from faulty.jobs import Job, check_same, check_whole, contents, copied, make_job, measurements
from faulty.process import Ended, Fault, Main, run

import data_prep.__main__
import fastwi.analyze
import fastwi.report.__main__
import fastwi.report.manifest
import fastwi.store
import fastwi.sweep
import fastwi.train
from data_prep import prepare
from fastwi.engine.loop import LoopEngine
from fastwi.experiment.store import Store

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


def make_jobs(place: Path) -> dict[str, Job]:
    """Every command that writes, by name."""
    empty, data, littered = (place / name for name in ("empty", "with data", "littered"))
    empty.mkdir()
    jobs: dict[str, Job] = {}

    def add(name: str, module: object, argv: list[str], start: Path) -> Path:
        jobs[name] = make_job(place, name, _counted(module.main), argv, start)  # type: ignore[attr-defined]
        return jobs[name].end

    prepared = add("data_prep", data_prep.__main__, ["digits", "--out=data", "--writer=raw"], empty)
    shutil.copytree(prepared, data)
    (data / "grid.yaml").write_text(_SWEEP)
    add("train", fastwi.train, _TRAIN, data)
    swept = add("sweep", fastwi.sweep, ["--config=grid.yaml"], data)
    analyzed = add("analyze", fastwi.analyze, ["connectivity", "--config=grid.yaml"], swept)
    add("report", fastwi.report.__main__, ["sweeps/grid"], analyzed)
    shutil.copytree(swept, littered)
    _litter(littered / "store")
    add("store gc", fastwi.store, ["gc", "store"], littered)
    add("store rebuild", fastwi.store, ["rebuild", "store"], swept)
    return jobs


def _counted(main: Main) -> Main:
    """`main`, which notes the networks of each epoch that it has trained in a file beside its directory."""

    def begin(argv: list[str]) -> int:
        here, train = Path.cwd(), LoopEngine.train_epoch
        log = os.open(here.with_name(f"{here.name}.trained"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

        def train_epoch(engine: Any, population: Any, *arguments: Any, **named: Any) -> list[float]:
            losses = train(engine, population, *arguments, **named)
            os.write(log, f"{population.members}\n".encode())
            return losses

        LoopEngine.train_epoch = train_epoch  # type: ignore[method-assign]
        fastwi.report.manifest.commit = lambda: None  # a commit that is made meanwhile changes no result
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        return main(argv)

    return begin


def _epochs(directory: Path) -> int:
    """Epochs of single networks that were trained to their end by the command that ran in `directory` last."""
    log = directory.with_name(f"{directory.name}.trained")
    return sum(map(int, log.read_text().split())) if log.exists() else 0


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


class Faults:
    """All faults of one campaign, in one directory."""

    def __init__(self, place: Path, seed: int) -> None:
        self._box = place / "box"
        self._box.mkdir()
        self._draw = random.Random(seed)
        self._jobs = make_jobs(place)
        # What injects each kind, and how often: kills matter most, as they strike anywhere.
        self.kinds: dict[str, tuple[Callable[[Job], None], int]] = {
            "kill -9": (lambda job: self._killed(job, signal.SIGKILL), 8),
            "SIGTERM": (lambda job: self._killed(job, signal.SIGTERM), 4),
            "Ctrl-C": (lambda job: self._killed(job, signal.SIGINT), 2),
            "disk full": (self._full, 4),
            "read-only": (self._read_only, 2),
            "clock back": (self._clock_back, 1),
            "dataset replaced": (self._replaced, 1),
            "claims": (self._claimed, 1),
        }
        if not _can_mount(place):
            del self.kinds["disk full"], self.kinds["read-only"]
        self.injected: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[int] = Counter()  # kills, by the epochs that each cost
        self.wrong: list[str] = []

    def inject(self, kind: str) -> None:
        """One fault of a kind, in a job drawn for it."""
        names = {"dataset replaced": ("train", "sweep"), "claims": ("sweep",)}.get(kind, tuple(self._jobs))
        job = self._jobs[self._draw.choice(names)]
        self.injected[kind, job.name] += 1
        try:
            self.kinds[kind][0](job)
        except AssertionError as error:
            self.wrong.append(f"{kind}, {job.name}: {error}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)

    def _again(self, job: Job, directory: Path) -> None:
        _check_whole(job, directory)
        check_same(job, directory, run(job.main, job.argv, directory))

    def _killed(self, job: Job, number: int) -> None:
        directory, again = copied(job.start, self._box / "t"), -_epochs(job.end)
        for _ in range(self._draw.choice((1, 1, 2))):
            if self._draw.random() < 0.6:
                fault = Fault(number, write=self._draw.randrange(1, job.writes + 1))
            else:
                fault = Fault(number, seconds=self._draw.uniform(0, 1.1 * job.seconds))
            ended = run(job.main, job.argv, directory, fault)
            _check_said(ended, (0, -number, {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)))
            _check_whole(job, directory)
            again += _epochs(directory)
        self._again(job, directory)
        self.lost[again + _epochs(directory)] += 1
        assert min(self.lost) >= 0, "an epoch was never trained"

    def _full(self, job: Job) -> None:
        needed = sum(map(len, contents(job.end).values())) - sum(map(len, contents(job.start).values()))
        room = int(self._draw.uniform(0, 1.2) * max(needed, 50_000))
        with _file_system(self._box / "full") as directory:
            copied(job.start, directory)
            _mount("-o", f"remount,size={shutil.disk_usage(directory).used + room}", directory)
            _check_said(run(job.main, job.argv, directory), (0, 2))
            _mount("-o", "remount,size=400M", directory)
            self._again(job, directory)

    def _read_only(self, job: Job) -> None:
        with _file_system(self._box / "full") as directory:
            copied(job.start, directory)
            before = contents(directory)
            _mount("-o", "remount,ro", directory)
            _check_said(run(job.main, job.argv, directory), (2,))
            assert contents(directory) == before
            _mount("-o", "remount,rw", directory)
            self._again(job, directory)

    def _clock_back(self, job: Job) -> None:
        directory = copied(job.start, self._box / "t")
        check_same(job, directory, run(job.main, job.argv, directory, Fault(clock_back=True)))

    def _replaced(self, job: Job) -> None:
        """Another dataset under the same name, or another file under the same card, after a run that was cut off."""
        directory = copied(job.start, self._box / "t")
        # Long before its end: a finished command shows its results again, and reads no dataset.
        write = self._draw.randrange(1, job.writes // 3)
        run(job.main, job.argv, directory, Fault(signal.SIGKILL, write=write))
        began = (directory / "runs" / "r" / "manifest.json").exists()
        shutil.copytree(directory / "data", directory / "kept")
        whole_set = self._draw.random() < 0.5
        _other_dataset(directory / "data", whole_set)
        ended = run(job.main, job.argv, directory)
        # The store's keys hold the dataset's digest: a sweep on another dataset is another sweep, beside the first.
        refused = not whole_set or (job.name == "train" and began)
        _check_said(ended, (2,) if refused else (0,))
        shutil.rmtree(directory / "data")
        (directory / "kept").rename(directory / "data")
        if refused:
            self._again(job, directory)
            return
        ended = run(job.main, job.argv, directory)
        if job.name == "train":  # the run is another dataset's now
            _check_said(ended, (2,))
            return
        _check_said(ended, (0,))
        assert job.measured.items() <= measurements(directory).items(), "measurements are lost"
        end, found = contents(job.end), contents(directory)
        differing = [path for path in job.stable if path.startswith("sweeps/") and found.get(path) != end[path]]
        assert not differing, f"back on the first dataset {sorted(differing)} differ"

    def _claimed(self, job: Job) -> None:
        """Another process has claimed and pinned what the sweep wants, and is killed while the sweep waits."""
        directory = copied(job.start, self._box / "t")
        Store.open(directory / "store").close()
        reader, writer = os.pipe()
        seconds, keys = self._draw.uniform(0, 2 * job.seconds), list(job.measured)
        holder = os.fork()
        if holder == 0:
            owner = Store.open(directory / "store").owner()
            owner.claim(keys)  # type: ignore[arg-type]
            owner.pin([state for state, _ in keys])  # type: ignore[misc]
            os.write(writer, b"x")
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)
        os.read(reader, 1)
        try:
            check_same(job, directory, run(job.main, job.argv, directory))
        finally:
            os.waitpid(holder, 0)
            os.close(reader)
            os.close(writer)


def _check_whole(job: Job, directory: Path) -> None:
    """Nothing is half written, but where a rebuilding was cut off in its last step: the store says to start it again."""
    store = directory / "store"
    if not (store / "index.rebuilt.sqlite").exists() and (not store.exists() or (store / "index.sqlite").exists()):
        check_whole(job, directory)


def _check_said(ended: Ended, statuses: tuple[int, ...]) -> None:
    assert ended.status in statuses, f"exit code {ended.status}: {ended.said[-3000:]}"
    assert "Traceback" not in ended.said, ended.said[-3000:]
    if ended.status == 2:
        errors = [line for line in ended.said.splitlines() if line.startswith("fastwi: error: ")]
        assert len(errors) == 1, f"{len(errors)} lines: {ended.said[-2000:]}"


def _other_dataset(data: Path, whole_set: bool) -> None:
    """Another set of digits, complete; or its training file alone, under the card of the old one."""
    from data_prep.dataset import ImageSet, Split
    from data_prep.digits import load_digits
    from data_prep.progress import silent
    from data_prep.write import write_dataset

    digits = load_digits("digits")
    turned = Split(digits.train.images_NHWC[:, ::-1], digits.train.labels_N)
    other = ImageSet(digits.name, digits.classes, turned, digits.test, digits.source)
    with tempfile.TemporaryDirectory() as place:
        written = data if whole_set else Path(place)
        write_dataset(other, written, "raw", silent)
        if not whole_set:
            shutil.copyfile(written / "train.beton", data / "train.beton")


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def _can_mount(place: Path) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    try:
        with _file_system(place / "try"):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


@contextlib.contextmanager
def _file_system(place: Path) -> Iterator[Path]:
    """A file system in memory, for the block."""
    place.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", "size=400M", "tmpfs", place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kind", help="faults of this kind alone, such as claims")
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    begun = time.monotonic()
    with workplace() as place:
        prepare("digits", place / "warm", writer="raw")  # imports what the commands import late
        faults = Faults(place, seed)
        print(f"undisturbed runs made in {time.monotonic() - begun:.0f} s", flush=True)
        draw = random.Random(seed + 1)
        weights = [weight for _, weight in faults.kinds.values()]
        # Each kind once first, however few there are.
        kinds = [*faults.kinds, *draw.choices(list(faults.kinds), weights, k=options.faults)]
        for number in shown(options.faults, "faults"):
            faults.inject(options.kind or kinds[number])
    names = sorted({name for _, name in faults.injected})
    print(f"{'fault':<18}" + "".join(f"{name:>15}" for name in names))
    for kind in faults.kinds:
        print(f"{kind:<18}" + "".join(f"{faults.injected[kind, name] or '-':>15}" for name in names))
    print("epochs trained again after kills:", ", ".join(f"{n}: {faults.lost[n]} x" for n in sorted(faults.lost)))
    print(f"{faults.injected.total()} faults injected, {len(faults.wrong)} lost or wrong results")
    return 1 if faults.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
