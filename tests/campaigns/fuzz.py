"""`python tests/campaigns/fuzz.py`: 100,000 hostile inputs for all that reads what a user passes.

Betons and cards, checkpoints, configurations and command lines, stores, sources of `data_prep`. Each input must be
refused in clean lines (UserError; exit code 2), or be accepted with the right content: compared with a second reading,
or with what was stored. Never another exception, a crash of the interpreter, a hang, a gigabyte of memory, a pickle
executed, a program started, or a byte written outside of the input's own directory.

Inputs are tried in a process of their own, with a bound on its memory. Failing ones are kept in the directory that is
printed, each with a report; `--seed S --target T --only N` tries one again. Exit code 1 where there are findings.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from faulty.begin import printed_seed, shown, workplace

TARGETS = {"betons": 0.45, "checkpoints": 0.34, "configs": 0.15, "stores": 0.02, "sources": 0.04}
MOST_SILENCE = 40.0  # seconds that one input may take on a busy machine before it counts as a hang


def try_all(name: str, numbers: range, seed: int, place: Path, findings: Path, pipe: Connection) -> None:
    """In a process of its own: try the inputs of these numbers. The same seed, target and number give the same input.

    Sends (number, "") before each input and (number, outcome) after it, so that the driver knows which one crashed
    the interpreter, or hangs. `hostile.NAME` has a class Name with `make_corpus(directory)`, which writes valid files,
    and `attempt(draw, work)`, which makes one input in an empty directory, tries it, and returns whether it was
    accepted. It raises Finding, or whatever the code under test let through.
    """
    log = os.open(place / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True
    warnings.simplefilter("error")  # a warning on the user's terminal is no clean line
    from hostile.guard import Guard

    corpus, work = place / "corpus" / name, place / "box" / "work" / "t"
    temporary = work / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    kind: Any = getattr(importlib.import_module(f"hostile.{name}"), name.capitalize())
    if not corpus.exists():
        corpus.mkdir(parents=True)
        kind.make_corpus(corpus)
    guard, target = Guard(place / "box", work), kind(corpus)
    for number in numbers:
        pipe.send((number, ""))
        if work.exists():
            shutil.rmtree(work)
        temporary.mkdir(parents=True)
        os.chdir(work)
        try:
            with guard:
                accepted = target.attempt(random.Random(f"{seed} {name} {number}"), work)
            guard.check()
            outcome = "accepted" if accepted else "refused"
        except BaseException:
            keep(findings / f"{name}-{number}", work, traceback.format_exc())
            outcome = "finding"
        pipe.send((number, outcome))
    os.chdir(place)


def keep(finding: Path, work: Path, report: str) -> None:
    """The input and what became of it."""
    finding.mkdir(parents=True, exist_ok=True)
    (finding / "report.txt").write_text(report, errors="backslashreplace")

    def odd(folder: str, names: list[str]) -> list[str]:
        paths = {name: Path(folder, name) for name in names}
        return [name for name, path in paths.items() if not (path.is_symlink() or path.is_dir() or path.is_file())]

    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(work, finding / "input", symlinks=True, ignore_dangling_symlinks=True, ignore=odd)


def outcomes(name: str, numbers: range, seed: int, place: Path, findings: Path) -> Iterator[str]:
    """The outcome of each input. Another worker is started where one dies or hangs."""
    spawn = multiprocessing.get_context("spawn")
    while numbers:
        pipe, theirs = spawn.Pipe(duplex=False)
        worker = spawn.Process(target=try_all, args=(name, numbers, seed, place, findings, theirs))
        worker.start()
        theirs.close()
        number, outcome = -1, "imports"
        try:
            while pipe.poll(10 * MOST_SILENCE if outcome else MOST_SILENCE):
                number, outcome = pipe.recv()
                if outcome:
                    yield outcome
            how = f"no end after {MOST_SILENCE:.0f} s"
        except EOFError:
            worker.join()
            how = f"exit code {worker.exitcode}"
        finally:
            worker.kill()
            worker.join()
        if number == numbers[-1] and outcome:
            return
        log = (place / "worker.log").read_bytes()[-5000:].decode(errors="replace")
        if outcome:
            raise SystemExit(f"{name}: the worker ended outside of an input: {how}\n{log}")
        keep(findings / f"{name}-{number}", place / "box" / "work", f"{how}\n{log}")
        yield "finding"
        numbers = range(number + 1, numbers.stop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all, in shares (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--only", type=int, help="try this one input, by its number")
    parser.add_argument("--findings", type=Path, help="directory for failing inputs (default: a new one)")
    options = parser.parse_args()
    shares = TARGETS if options.target == "all" else {options.target: 1.0}
    seed = printed_seed(options.seed)
    findings = options.findings or Path(tempfile.mkdtemp(prefix="fuzz-findings-"))
    os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    found = {}
    with workplace() as place:
        (place / "box" / "work").mkdir(parents=True)
        (place / "box" / "outside" / "inner").mkdir(parents=True)
        for canary in ("outside/canary.txt", "outside/inner/canary.txt", "canary.txt"):
            (place / "box" / canary).write_text("unchanged\n")
        for name, share in shares.items():
            count = max(1, round(options.inputs * share))
            numbers = range(count) if options.only is None else range(options.only, options.only + 1)
            progress = shown(len(numbers), name)
            found[name] = Counter[str]()
            for outcome in outcomes(name, numbers, seed, place, findings):
                next(progress)
                found[name][outcome] += 1
            assert found[name].total() == len(numbers)
    print(f"{'target':<12}{'inputs':>9}{'refused':>9}{'accepted':>10}{'findings':>10}")
    for name, of in found.items():
        print(f"{name:<12}{of.total():>9,}{of['refused']:>9,}{of['accepted']:>10,}{of['finding']:>10,}")
    bad = sum(of["finding"] for of in found.values())
    print(f"{bad:,} findings in {findings}" if bad else "no findings")
    if not bad and options.findings is None:
        findings.rmdir()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
