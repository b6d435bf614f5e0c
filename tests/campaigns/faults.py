"""`python tests/campaigns/faults.py`: every command that writes, disturbed; nothing may be lost or wrong.

Faults: kill -9 and SIGTERM at random moments and at random writes, a disk that is full, a directory that cannot be
written, a clock that runs backwards, a dataset that is replaced between two runs, another process that has claimed all
tasks of a store and dies. After each: no half-written file and no wrong value in a store; the command says what is
wrong in one line where it can (exit code 2, or 143 for SIGTERM); and the same command, run again, ends with the bytes
of an undisturbed run.

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

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}

from faulty.begin import printed_seed, workplace
from faulty.jobs import Job, check_same, check_whole, contents, copied, make_jobs
from faulty.process import Ended, Fault, run
from faulty.progress import shown

from data_prep import prepare
from fastwi.experiment.store import Store

# How often each kind is injected; kills matter most, as they strike anywhere.
_WEIGHTS = {
    "kill -9": 8,
    "SIGTERM": 6,
    "disk full": 4,
    "read-only": 2,
    "clock back": 1,
    "dataset replaced": 1,
    "claims": 1,
}


class Faults:
    """All faults of one campaign, in one directory."""

    def __init__(self, place: Path, seed: int) -> None:
        self._place = place / "box"
        self._place.mkdir()
        self._draw = random.Random(seed)
        self._jobs = make_jobs(place)
        self._by_name = {job.name: job for job in self._jobs}
        unusable = () if _can_mount(place) else ("disk full", "read-only")
        self.kinds = [kind for kind in _WEIGHTS if kind not in unusable]
        self.injected: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    def inject(self, kind: str) -> None:
        """One fault of a kind, in a job drawn for it."""
        job = self._draw.choice(self._jobs)
        inject: dict[str, Callable[[Job], None]] = {
            "kill -9": lambda job: self._killed(job, signal.SIGKILL), "SIGTERM": lambda job: self._killed(job, signal.SIGTERM),
            "disk full": self._full, "read-only": self._read_only, "clock back": self._clock_back,
            "dataset replaced": self._replaced, "claims": self._claimed,
        }  # fmt: skip
        if kind == "dataset replaced":
            job = self._by_name[self._draw.choice(("train", "sweep"))]
        elif kind == "claims":
            job = self._by_name["sweep"]
        self.injected[kind, job.name] += 1
        try:
            inject[kind](job)
        except AssertionError as error:
            self.wrong.append(f"{kind}, {job.name}: {error}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)

    def _again(self, job: Job, directory: Path) -> None:
        _check_whole(job, directory)
        check_same(job, directory, run(job.main, job.argv, directory))

    def _killed(self, job: Job, number: int) -> None:
        directory = copied(job, self._place / "t")
        for _ in range(self._draw.choice((1, 1, 2))):
            if self._draw.random() < 0.6:
                fault = Fault(number, write=self._draw.randrange(1, job.writes + 1))
            else:
                fault = Fault(number, seconds=self._draw.uniform(0, 1.1 * job.seconds))
            ended = run(job.main, job.argv, directory, fault)
            _check_said(ended, (0, -number, 143 if number == signal.SIGTERM else -number))
            _check_whole(job, directory)
        self._again(job, directory)

    def _full(self, job: Job) -> None:
        needed = sum(map(len, contents(job.end).values())) - sum(map(len, contents(job.start).values()))
        room = int(self._draw.uniform(0, 1.2) * max(needed, 50_000))
        with _file_system(self._place / "full") as directory:
            copied(job, directory)
            used = shutil.disk_usage(directory).used
            _mount("-o", f"remount,size={used + room}", directory)
            _check_said(run(job.main, job.argv, directory), (0, 2))
            _mount("-o", "remount,size=400M", directory)
            self._again(job, directory)

    def _read_only(self, job: Job) -> None:
        with _file_system(self._place / "full") as directory:
            copied(job, directory)
            before = contents(directory)
            _mount("-o", "remount,ro", directory)
            _check_said(run(job.main, job.argv, directory), (2,))
            assert contents(directory) == before
            _mount("-o", "remount,rw", directory)
            self._again(job, directory)

    def _clock_back(self, job: Job) -> None:
        directory = copied(job, self._place / "t")
        check_same(job, directory, run(job.main, job.argv, directory, Fault(clock_back=True)))

    def _replaced(self, job: Job) -> None:
        """Another dataset under the same name, or another file under the same card, after a run that was cut off."""
        directory = copied(job, self._place / "t")
        run(job.main, job.argv, directory, Fault(signal.SIGKILL, write=self._draw.randrange(1, job.writes + 1)))
        began = (directory / "runs" / "r" / "manifest.json").exists()
        shutil.copytree(directory / "data", directory / "kept")
        whole_set = self._draw.random() < 0.5
        _other_dataset(directory / "data", whole_set)
        ended = run(job.main, job.argv, directory)
        # The store's keys hold the dataset's digest: a sweep on another dataset is another sweep, beside the first.
        if not whole_set or (job.name == "train" and began):
            _check_said(ended, (2,))
        shutil.rmtree(directory / "data")
        (directory / "kept").rename(directory / "data")
        if not whole_set or (job.name == "train" and began):
            self._again(job, directory)

    def _claimed(self, job: Job) -> None:
        """Another process has claimed and pinned what the sweep wants, and is killed while the sweep waits."""
        directory = copied(job, self._place / "t")
        with Store.open(directory / "store"):
            pass
        reader, writer = os.pipe()
        holder = os.fork()
        if holder == 0:
            store = Store.open(directory / "store")
            owner = store.owner()
            keys = list(job.measured)
            owner.claim(keys)  # type: ignore[arg-type]
            owner.pin([state for state, _ in keys])  # type: ignore[misc]
            os.write(writer, b"x")
            time.sleep(600)
            os._exit(0)
        os.read(reader, 1)
        killer = os.fork()
        if killer == 0:
            time.sleep(self._draw.uniform(0, 2 * job.seconds))
            os.kill(holder, signal.SIGKILL)
            os._exit(0)
        try:
            ended = _reaping(holder, lambda: run(job.main, job.argv, directory))
            check_same(job, directory, ended)
        finally:
            os.waitpid(killer, 0)
            os.close(reader)
            os.close(writer)


def _reaping(child: int, body: Callable[[], Ended]) -> Ended:
    """Run `body`; afterwards wait for `child`, which is killed meanwhile."""
    try:
        return body()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


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
    from data_prep.dataset import ImageSet, Split, silent
    from data_prep.digits import load_digits
    from data_prep.write import write_dataset

    digits = load_digits("digits")
    turned = Split(digits.train.images_NHWC[:, ::-1], digits.train.labels_N)
    other = ImageSet(digits.name, digits.classes, turned, digits.test, digits.source)
    if whole_set:
        write_dataset(other, data, "raw", silent)
        return
    with tempfile.TemporaryDirectory() as place:
        write_dataset(other, Path(place), "raw", silent)
        shutil.copyfile(Path(place) / "train.beton", data / "train.beton")


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
    parser.add_argument("--kind", choices=tuple(_WEIGHTS), help="faults of this kind alone")
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    begun = time.monotonic()
    with workplace() as place:
        prepare("digits", place / "warm", writer="raw")  # imports what the commands import late
        faults = Faults(place, seed)
        print(f"undisturbed runs made in {time.monotonic() - begun:.0f} s", flush=True)
        draw = random.Random(seed + 1)
        for number in shown(options.faults, "faults"):
            # Each kind once first, however few there are.
            drawn = draw.choices(faults.kinds, [_WEIGHTS[kind] for kind in faults.kinds])[0]
            kind = faults.kinds[number] if number < len(faults.kinds) else drawn
            faults.inject(options.kind or kind)
    names = sorted({name for _, name in faults.injected})
    print(f"{'fault':<18}" + "".join(f"{name:>15}" for name in names))
    for kind in _WEIGHTS:
        print(f"{kind:<18}" + "".join(f"{faults.injected[kind, name] or '-':>15}" for name in names))
    print(f"{faults.injected.total()} faults injected, {len(faults.wrong)} lost or wrong results")
    return 1 if faults.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
