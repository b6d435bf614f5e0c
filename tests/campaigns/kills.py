"""`python tests/campaigns/kills.py`: train and sweep killed at random moments; how much work each kill costs.

Each kill strikes a fresh run of its own: half of them at moments drawn uniformly over an undisturbed run's time, half
within milliseconds after the run began to write, rename or remove a file. The same command then goes on to the end.
After each: no half-written file, no wrong value; then the bytes of an undisturbed run, no row lost or doubled. A
state's file that was written and not yet in the index may be there beside, for `gc` to remove. SIGTERM and Ctrl-C are
sent too: the command ends within `--patience` seconds.

Work is counted where it is done: every call of the engine's `train_epoch` notes its members, begin and end. Lost are
the epochs that were trained to their end before the kill and are trained again after it, and the time from the begin
of the first of them, or of the epoch in progress, to the kill. `sweep.checkpoint_seconds` is `--checkpoint`, of runs
too; at most so many seconds may be lost, and two steps: a checkpoint waits for the end of the step in progress, and is
written while the next one goes on. A step is an epoch of the networks trained together, with all that comes before the
next one.
"""

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "MPLBACKEND": "agg"}

from faulty.begin import printed_seed, shown, workplace
from faulty.jobs import Job, check_same, check_whole, copied, make_job, stores
from faulty.process import Ended, Fault, Main, run

import fastwi.report.manifest
import fastwi.sweep
import fastwi.train
from data_prep import prepare
from fastwi.config.sweep import SweepOptions
from fastwi.engine.loop import LoopEngine
from fastwi.experiment.store import Store

_COMMON = [
    "--data.path=data", "--data.test_images=50", "--model.width=0.25", "--optimizer.batch_size=30",
    "--schedule.drop_epochs=", "--engine.device=cpu", "--engine.precision=fp32", "--engine.backend=eager",
    "--engine.threads=1",
]  # fmt: skip
_TRAIN = ["--run.directory=runs", "--run.name=r", "--experiment.k=3", "--experiment.s=3", "--experiment.after=3"]
_SWEEP = [
    "--axes.experiment.k=1,2", "--axes.experiment.s=1,3", "--experiment.after=1", "--sweep.children=4", "--sweep.store=store",
    "--sweep.directory=sweeps", "--sweep.name=grid",
]  # fmt: skip
_MOST_DELAY = 0.02  # seconds from the begin of a write to the kill
_STATUS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
_NAMES = {signal.SIGKILL: "kill -9", signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


@dataclass(frozen=True)
class Trained:
    """One call of `train_epoch`. Seconds of the monotonic clock; `ended` is None where it was cut off."""

    members: int
    begun: float
    ended: float | None


@dataclass(frozen=True)
class Loss:
    """What one kill cost, beside the bound."""

    epochs: int
    seconds: float
    bound: float
    until_end: float


class Kills:
    """All kills of one campaign, in one directory."""

    def __init__(self, place: Path, images: int, checkpoint: float, patience: float, grace: float, seed: int) -> None:
        self._place, self._patience, self._grace = place / "box", patience, grace
        self._place.mkdir()
        self._draw = random.Random(seed)
        start = place / "start"
        prepare("digits", start / "data", writer="raw")
        self._bound = checkpoint
        self._jobs, self._whole = dict[str, Job](), dict[str, list[Trained]]()
        for name, main, argv in (("train", fastwi.train.main, _TRAIN), ("sweep", fastwi.sweep.main, _SWEEP)):
            argv = [*_COMMON, *argv, f"--data.train_images={images}"]
            self._jobs[name] = make_job(place, name, _counted(main, checkpoint), argv, start)
            self._whole[name] = _work(place / f"{name} 1")
        self.losses: dict[tuple[str, str], list[Loss]] = {}
        self.wrong: list[str] = []

    def kill(self, name: str, number: signal.Signals, write: bool) -> None:
        """One kill of a command; drawn again while the command ends before it is killed."""
        job = self._jobs[name]
        while True:
            directory = copied(job.start, self._place / "t")
            seconds = self._draw.uniform(0, _MOST_DELAY if write else job.seconds)
            fault = Fault(number, seconds, self._draw.randrange(1, job.writes + 1) if write else 0)
            begun = time.monotonic()
            ended = run(job.main, job.argv, directory, fault)
            if ended.status:
                break
        try:
            loss = self._checked(name, directory, ended, begun, begun + fault.seconds, number)
        except AssertionError as error:
            self.wrong.append(f"{_NAMES[number]}, {name}, {fault}: {error}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)
            return
        self.losses.setdefault((name, _NAMES[number] + (", at a write" if write else "")), []).append(loss)

    def _checked(
        self, name: str, directory: Path, ended: Ended, begun: float, sent: float, number: signal.Signals
    ) -> Loss:
        job = self._jobs[name]
        assert ended.status == _STATUS[number], f"exit code {ended.status}: {ended.said[-2000:]}"
        assert "Traceback" not in ended.said, ended.said[-2000:]
        check_whole(job, directory)
        before, end = _work(directory), begun + ended.seconds
        again = run(job.main, job.argv, directory)
        for place in stores(directory):
            with Store.open(place, create=False) as store:
                store.gc()
        check_same(job, directory, again)
        after = _work(directory)
        lost = _epochs(before) + _epochs(after) - _epochs(self._whole[name])
        assert lost >= 0, f"{-lost} epochs were never trained"
        bound = self._bound + 2 * max(map(_longest_step, (self._whole[name], before, after)))
        loss = Loss(lost, end - _first_lost(before, lost, end), bound, end - sent)
        assert loss.seconds <= bound + self._grace, (
            f"{lost} epochs and {loss.seconds:.2f} s lost, {bound:.2f} s allowed"
        )
        waited = number != signal.SIGKILL and loss.until_end > self._patience + self._grace
        assert not waited, f"{loss.until_end:.1f} s from the signal to the end"
        return loss


def _counted(main: Main, checkpoint: float) -> Main:
    """`main`, which notes each epoch's training in a file beside the directory that it runs in."""

    def begin(argv: list[str]) -> int:
        here = Path.cwd()
        log = os.open(here.with_name(f"{here.name}.trained"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        train = LoopEngine.train_epoch

        def train_epoch(engine: Any, population: Any, *arguments: Any, **named: Any) -> list[float]:
            os.write(log, f"{population.members} {time.monotonic()} ".encode())
            losses = train(engine, population, *arguments, **named)
            os.write(log, f"{time.monotonic()}\n".encode())
            return losses

        made = SweepOptions.__init__

        def make(options: SweepOptions, **named: Any) -> None:  # a run has no option of its own
            made(options, **named | {"checkpoint_seconds": checkpoint})

        SweepOptions.__init__ = make  # type: ignore[method-assign]
        fastwi.report.manifest.commit = lambda: None  # a commit that is made meanwhile changes no result
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
        LoopEngine.train_epoch = train_epoch  # type: ignore[method-assign]
        return main(argv)

    return begin


def _work(directory: Path) -> list[Trained]:
    """What was trained by the command that ran in `directory` last."""
    log = directory.with_name(f"{directory.name}.trained")
    found = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return [Trained(int(line[0]), float(line[1]), float(line[2]) if line[2:] else None) for line in found]


def _epochs(work: list[Trained]) -> int:
    """Epochs of single networks, trained to their end."""
    return sum(each.members for each in work if each.ended is not None)


def _longest_step(work: list[Trained]) -> float:
    """Seconds from the begin of one epoch to that of the next."""
    steps = [after.begun - before.begun for before, after in itertools.pairwise(work)]
    return max([0.0, *steps, *(each.ended - each.begun for each in work if each.ended is not None)])


def _first_lost(work: list[Trained], again: int, end: float) -> float:
    """When the training of the last `again` epochs began, or of that which was cut off; `end` where there is none."""
    first = end
    for each in reversed(work):
        if each.ended is not None:
            if again <= 0:
                break
            again -= each.members
        first = each.begun
    return first


def _table(losses: dict[tuple[str, str], list[Loss]]) -> str:
    titles = ("epochs lost", "most", "seconds lost", "most", "bound", "s to end, most")
    lines = [f"{'command':<9}{'signal':<22}{'kills':>6}" + "".join(f"{title:>16}" for title in titles)]
    for (name, kind), found in sorted(losses.items()):
        epochs, seconds = [loss.epochs for loss in found], [loss.seconds for loss in found]
        ends = "-" if kind.startswith(_NAMES[signal.SIGKILL]) else f"{max(loss.until_end for loss in found):.2f}"
        cells = (
            f"{statistics.median(epochs):g}", str(max(epochs)), f"{statistics.median(seconds):.2f}",
            f"{max(seconds):.2f}", f"{max(loss.bound for loss in found):.2f}", ends,
        )  # fmt: skip
        lines.append(f"{name:<9}{kind:<22}{len(found):>6}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=15, help="of each of the two commands (default 15)")
    parser.add_argument("--signals", type=int, default=3, help="SIGTERMs and Ctrl-Cs, each of each (default 3)")
    parser.add_argument("--images", type=int, default=600, help="training images (default 600)")
    parser.add_argument("--checkpoint", type=float, default=1.0, help="seconds between checkpoints (default 1)")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds from a signal to the end (default 5)")
    parser.add_argument("--grace", type=float, default=0.0, help="seconds allowed beyond all bounds (default 0)")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = printed_seed(options.seed)
    begun = time.monotonic()
    with workplace() as place:
        kills = Kills(place, options.images, options.checkpoint, options.patience, options.grace, seed)
        print(f"undisturbed runs made in {time.monotonic() - begun:.0f} s", flush=True)
        todo: list[tuple[str, signal.Signals, bool]] = []
        for name in ("train", "sweep"):
            todo += [(name, signal.SIGKILL, i % 2 == 1) for i in range(options.kills)]
            todo += [
                (name, number, False) for number in (signal.SIGTERM, signal.SIGINT) for _ in range(options.signals)
            ]
        for place_in_line in shown(len(todo), "kills"):
            kills.kill(*todo[place_in_line])
    print(_table(kills.losses))
    print(f"{len(todo)} times killed, {len(kills.wrong)} times more lost than allowed, or wrong results")
    return 1 if kills.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
