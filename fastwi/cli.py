"""What every command's entry point shares: errors to one line and an exit code, signals to a clean end.

Exit codes: 0 ok; 1 the run failed (a traceback says where); 2 bad configuration or use; 130 Ctrl-C;
143 SIGTERM; 141 nobody reads the output any more; 3 a sweep is partly done.
"""

import contextlib
import errno
import functools
import io
import os
import select
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

from fastwi.errors import UserError, printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

SPINS = "1000"  # GOMP_SPINCOUNT, some 30 us: see _let_waiting_threads_sleep


class ShowAndExit(Exception):
    """Not an error: its text (help, version) is all that was asked for. Printed to stdout, exit code 0."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where it arrived. A KeyboardInterrupt: what tidies up after Ctrl-C does so here too."""


def command(body: Callable[[list[str]], int], resumes: bool = False) -> Callable[..., int]:
    """A command's entry point, made of its body, which takes the arguments, works and returns the exit code.

    `resumes`: the same command continues what was interrupted, and the message says so.

    Without arguments it takes those of the process. It returns the body's exit code, or one of those that this
    module's docstring lists. A UserError prints `fastwi: error: ...` to stderr, once for each line of its message; an
    unexpected exception prints its traceback; SystemExit passes through.
    """

    @functools.wraps(body)
    def main(argv: list[str] | None = None) -> int:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the caller, as by >&-
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold characters that its encoding lacks
            sys.stdout.reconfigure(errors="backslashreplace")
        _let_waiting_threads_sleep()
        with _sigterm_as_interrupt():
            try:
                try:
                    status = body(sys.argv[1:] if argv is None else argv)
                except ShowAndExit as shown:
                    print(shown)
                    status = 0
                return status if _flush_stdout() else EXIT_FAILED
            except BaseException as error:
                return _exit_code(error, "; the same command continues" if resumes else "")

    return main


def _exit_code(error: BaseException, after_interrupt: str) -> int:
    """The exit code after an exception, which is reported. Raises it again where it is not for here."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, UserError):
        _say_error(str(error))
        return EXIT_USAGE
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # where no one asked whether a path is there
        _say_error(f"{printable(str(error.filename))}: {error.strerror}; give shorter names")
        return EXIT_USAGE
    # A pipe to a worker process breaks with the same exception, and that is no quiet end.
    if isinstance(error, BrokenPipeError) and _silence_broken(sys.stdout) | _silence_broken(sys.stderr):
        return EXIT_BROKEN_PIPE
    # A full disk: was it behind standard output? Writing to it again shows that.
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None and not _flush_stdout("\n"):
        return EXIT_FAILED
    interrupt: BaseException | None = error
    while interrupt is not None and not isinstance(interrupt, KeyboardInterrupt):
        interrupt = interrupt.__context__  # raised by code that tidies up what was only begun
    if interrupt is not None:
        terminated = isinstance(interrupt, Terminated)
        print(f"fastwi: {'terminated' if terminated else 'interrupted'}{after_interrupt}", file=sys.stderr)
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    if not isinstance(error, Exception):
        raise error
    # Python or torch could not have the memory that it asked for.
    allocator = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if allocator or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _say_error(
            f"not enough memory ({textwrap.shorten(str(error), 200)}); lower optimizer.batch_size, "
            "engine.evaluation_batch, data.image_size or model.width"
        )
    else:
        traceback.print_exception(error)
    return EXIT_FAILED


def _let_waiting_threads_sleep() -> None:
    """Have a thread of torch's that waits for another one spin briefly and then sleep; read when torch is loaded.

    libgomp's default is to spin for milliseconds. On cores that other work has too, a spinning thread takes the core
    from the very thread that it waits for: training beside one busy process took 1.55 x as long (benchmarks.busy).
    What the user set stays.
    """
    if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _say_error(message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"fastwi: error: {line}", file=sys.stderr)


def _flush_stdout(more: str = "") -> bool:
    """Print `more` and flush, here and not at the interpreter's exit, where a full disk ends in code 120."""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout.fileno())
        _say_error(f"standard output: cannot be written ({error.strerror or error}); redirect it elsewhere")
        return False
    return True


def _silence_broken(stream: TextIO) -> bool:
    """Whether nobody reads `stream` any more; if so, let what is still buffered vanish without a message."""
    try:
        descriptor = stream.fileno()
    except OSError:  # a stream that is no file, as under a test's capture
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are reported unasked
    broken = bool(poll.poll(0))
    if broken:
        _discard(descriptor)
    return broken


def _discard(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated. Only the main thread may set handlers; others do not."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)
