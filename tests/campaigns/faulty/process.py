"""A command in a forked child: undisturbed, killed at a moment or at a write, with a clock that runs backwards.

The parent has imported everything, so that a child costs no more than its work. The parent uses no polars: it has
threads then, for which its forks would wait in vain.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Main = Callable[[list[str]], int]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect")
PATIENCE = 300.0  # seconds on a busy machine


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the child: `signal` is sent at the write number `write`, or after `seconds`.

    `clock_back`: the time of day runs backwards; `clock_fast`: all that is timed takes ten times as long.
    """

    signal: int = 0
    seconds: float = 0.0
    write: int = 0
    clock_back: bool = False
    clock_fast: bool = False


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code, or minus the signal; what it said; how long it took and how often it wrote."""

    status: int
    said: str
    seconds: float
    writes: int


def run(main: Main, argv: list[str], directory: Path, fault: Fault | None = None) -> Ended:
    """Run an entry point in `directory` in a forked child, and wait for it."""
    log, count = directory.with_name(f"{directory.name}.log"), directory.with_name(f"{directory.name}.writes")
    sys.stdout.flush()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(main, argv, directory, fault or Fault(), log, count)
    if fault is not None and fault.signal and not fault.write:
        time.sleep(fault.seconds)
        os.kill(child, fault.signal)  # a child that has ended is still there to be waited for
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - begun > PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"no end after {PATIENCE:.0f} s")
        time.sleep(0.005)
    writes = int(count.read_text() or 0) if count.exists() else 0
    seconds = time.monotonic() - begun
    return Ended(os.waitstatus_to_exitcode(found[1]), log.read_text(errors="replace"), seconds, writes)


def _be_the_child(main: Main, argv: list[str], directory: Path, fault: Fault, log: Path, count: Path) -> None:
    """Never returns."""
    code = 70
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.chdir(directory)
        if fault.clock_back:
            _turn_clock_back()
        if fault.clock_fast:
            _time_tenfold()
        writes = _count_writes(fault)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        count.write_text(str(writes[0]))
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _count_writes(fault: Fault) -> list[int]:
    """Count what changes files, before it does; at number `fault.write` the process gets its signal."""
    writes = [0]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            writes[0] += 1
            if fault.signal and writes[0] == fault.write:
                os.kill(os.getpid(), fault.signal)

    sys.addaudithook(hear)
    return writes


def _turn_clock_back() -> None:
    """Every look at the clock finds it an hour earlier than the last."""
    start, looks = time.time(), [0]

    def back() -> float:
        looks[0] += 1
        return start - 3600.0 * looks[0]

    time.time = back
    time.time_ns = lambda: int(back() * 1e9)


def _time_tenfold() -> None:
    """What is timed takes ten times as long as it does."""
    for name in ("monotonic", "perf_counter"):
        setattr(time, name, _tenfold(getattr(time, name)))


def _tenfold(clock: Callable[[], float]) -> Callable[[], float]:
    start = clock()
    return lambda: start + 10 * (clock() - start)
