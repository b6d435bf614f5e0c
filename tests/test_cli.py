"""How commands end: exit codes, what is printed where, signals, broken pipes."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import fastwi.cli
from fastwi.cli import ShowAndExit, Terminated, command
from fastwi.errors import ConfigError, UserError

ROOT = Path(fastwi.cli.__file__).parents[1]


def program(body: str) -> list[str]:
    """The command line of a program whose command's body is `body`."""
    lines = "\n".join("    " + line for line in body.splitlines())
    head = "import os, sys, time\nfrom fastwi.cli import command\n"
    return [sys.executable, "-c", f"{head}def body(argv):\n{lines}\nsys.exit(command(body)())"]


def ended(body: str, stdout: object = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Such a program at its end. Python's output is buffered unless `environment` says otherwise."""
    others = ("PYTHONUNBUFFERED", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    mine = {name: value for name, value in os.environ.items() if name not in others}
    return subprocess.run(
        program(body), cwd=ROOT, env=mine | environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )


def raising(error: BaseException, after: BaseException | None = None) -> int:
    """The exit code of a command that raises `error`, on the way out of `after`."""

    def body(argv: list[str]) -> int:
        try:
            raise after or error
        finally:
            raise error

    return command(body)([])


def test_the_bodys_exit_code_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(lambda argv: 0)([]) == 0
    assert command(lambda argv: len(argv))(["a", "b", "c"]) == 3
    assert raising(ShowAndExit("usage: x")) == 0
    assert capsys.readouterr() == ("usage: x\n", "")
    with pytest.raises(SystemExit):
        raising(SystemExit(7))


ODD = AttributeError("of a figure begun only")
ALLOCATOR = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.mark.parametrize(
    ("error", "after", "code", "lines"),
    [
        (UserError("a.beton: is cut short"), None, 2, ["fastwi: error: a.beton: is cut short"]),
        (ConfigError("one\ntwo"), None, 2, ["fastwi: error: one", "fastwi: error: two"]),
        (OSError(errno.ENAMETOOLONG, "too long", "r\nx"), None, 2, ["fastwi: error: r"]),
        (KeyboardInterrupt(), None, 130, ["fastwi: interrupted"]),
        (ODD, KeyboardInterrupt(), 130, ["fastwi: interrupted"]),
        (Terminated(), None, 143, ["fastwi: terminated"]),
        (ODD, Terminated(), 143, ["fastwi: terminated"]),
        (MemoryError("that many"), None, 1, ["fastwi: error: not enough memory (that many)"]),
        (RuntimeError(ALLOCATOR), None, 1, ["fastwi: error: not enough memory ("]),
        (torch.OutOfMemoryError("of a GPU"), None, 1, ["fastwi: error: not enough memory (of a GPU)"]),
    ],
)
def test_what_the_user_can_help_is_said_in_a_line(capsys, error, after, code, lines) -> None:
    assert raising(error, after) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == len(lines)
    assert all(map(str.startswith, err.splitlines(), lines))


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (RuntimeError("odd"), "RuntimeError: odd"),
        (BrokenPipeError("worker"), "BrokenPipeError: worker"),  # of a worker: no quiet end
    ],
)
def test_an_unexpected_error_shows_its_traceback(capsys, error, last) -> None:
    assert raising(error, ValueError("odder")) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "odder" in err
    assert err.splitlines()[-1] == last


def test_sigterm_handler_is_put_back_and_set_in_the_main_thread_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []

    def body(argv: list[str]) -> int:
        inside.append(signal.getsignal(signal.SIGTERM))
        return 4

    assert command(body)([]) == 4
    assert inside.pop() is not before
    assert signal.getsignal(signal.SIGTERM) is before
    thread = threading.Thread(target=lambda: inside.append(command(body)([])))
    thread.start()
    thread.join()
    assert inside == [before, 4]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_a_program_after_it_tidied_up(number: int, code: int, word: str) -> None:
    body = "try:\n    print('ready', flush=True)\n    time.sleep(600)\nfinally:\n    print('tidied')"
    with subprocess.Popen(
        program(body), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        out, err = running.communicate(timeout=300)
    assert (running.returncode, out, err) == (code, "tidied\n", f"fastwi: {word}\n")


def test_an_interrupted_command_that_resumes_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: list[str]) -> int:
        raise KeyboardInterrupt

    assert command(body, resumes=True)([]) == 130
    assert capsys.readouterr().err == "fastwi: interrupted; the same command continues\n"


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_reader_that_went_away_is_no_error_message(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = ended("print('result')\nreturn 0", writer, **environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@needs_full
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("lines", [1, 100_000])  # so many do not fit into the buffer
def test_a_full_disk_behind_stdout_is_said(environment: dict[str, str], lines: int) -> None:
    with open("/dev/full", "w") as full:
        done = ended(f"print('result' * {lines})\nreturn 0", full, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("fastwi: error: standard output: cannot be written (No space left on device)")
    assert len(done.stderr.splitlines()) == 1


@needs_full
def test_a_full_disk_elsewhere_is_not_said_of_stdout() -> None:
    done = ended("with open('/dev/full', 'w') as full:\n    full.write('a')")
    assert (done.returncode, done.stdout.strip()) == (1, "")
    assert "Traceback" in done.stderr
    assert "standard output" not in done.stderr


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize(
    ("closing", "out", "err"), [(">&-", "", "log\n"), ("2>&-", "usage\n", ""), (">&- 2>&-", "", "")]
)
def test_closed_streams(environment: dict[str, str], closing: str, out: str, err: str) -> None:
    body = "from fastwi.cli import ShowAndExit\nprint('log', file=sys.stderr)\nraise ShowAndExit('usage')"
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(program(body))} {closing}"],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


def test_what_the_encoding_lacks_is_escaped() -> None:
    done = ended(r"print('a\ud800b \u2013')" + "\nreturn 0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\\ud800b \\u2013\n", "")


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], spins: str | None) -> None:
    body = "import torch\nprint(os.environ.get('GOMP_SPINCOUNT'))\nreturn 0"
    done = ended(body, **{"OMP_DISPLAY_ENV": "verbose"} | given)
    assert done.stdout.strip() == str(spins)
    if "GOMP_SPINCOUNT" in done.stderr and spins is not None:  # torch's OpenMP is libgomp: it has read it
        assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
