"""How commands end: exit codes, what is printed where, signals, broken pipes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import fastwi.cli
from fastwi.cli import ShowAndExit, Terminated, command
from fastwi.errors import ConfigError, UserError

ROOT = Path(fastwi.cli.__file__).parents[1]


def program(body: str) -> list[str]:
    """The command line of a program whose command's body is `body`."""
    lines = "\n".join("    " + line for line in body.splitlines())
    head = "import os, sys, time\nfrom fastwi.cli import command\n"
    return [sys.executable, "-c", f"{head}def body(argv):\n{lines}\nsys.exit(command(body)())"]


def environment(unbuffered: bool = False) -> dict[str, str]:
    """This process's environment, with Python's output buffered or not whatever it is here."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return kept | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {})


def raising(error: BaseException, after: BaseException | None = None) -> int:
    """The exit code of a command that raises `error`, on the way out of `after`."""

    def body(argv: list[str]) -> int:
        if after is None:
            raise error
        try:
            raise after
        finally:
            raise error

    return command(body)([])


def test_the_bodys_exit_code_is_returned(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(lambda argv: 0)([]) == 0
    assert command(lambda argv: len(argv))(["a", "b", "c"]) == 3
    assert capsys.readouterr() == ("", "")


def test_text_to_show_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ShowAndExit("usage: x")) == 0
    assert capsys.readouterr() == ("usage: x\n", "")


def test_a_user_error_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(UserError("a.beton: is cut short; copy it again")) == 2
    assert capsys.readouterr() == ("", "fastwi: error: a.beton: is cut short; copy it again\n")


def test_every_problem_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ConfigError("one\ntwo")) == 2
    assert capsys.readouterr().err == "fastwi: error: one\nfastwi: error: two\n"


def test_an_unexpected_error_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(RuntimeError("odd")) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("RuntimeError: odd\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("that many"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    assert raising(error) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastwi: error: not enough memory (")
    assert "optimizer.batch_size" in line


def test_a_broken_pipe_elsewhere_is_no_quiet_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(BrokenPipeError("worker")) == 1
    assert capsys.readouterr().err.endswith("BrokenPipeError: worker\n")


def test_interrupts_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "fastwi: interrupted\n"
    assert raising(Terminated()) == 143
    assert capsys.readouterr().err == "fastwi: terminated\n"
    assert raising(AttributeError("of a figure begun only"), Terminated()) == 143
    assert capsys.readouterr().err == "fastwi: terminated\n"
    assert raising(AttributeError("of a figure begun only"), KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "fastwi: interrupted\n"
    assert raising(AttributeError("odd"), ValueError("odder")) == 1
    assert "odder" in capsys.readouterr().err


def test_system_exit_passes_through() -> None:
    with pytest.raises(SystemExit):
        raising(SystemExit(7))


def test_sigterm_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []
    command(lambda argv: inside.append(signal.getsignal(signal.SIGTERM)) or 0)([])
    assert inside[0] is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_no_handler_is_set() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(command(lambda argv: 4)([])))
    thread.start()
    thread.join()
    assert codes == [4]


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


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_went_away_is_no_error_message(unbuffered: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            program("print('result')\nreturn 0"),
            cwd=ROOT,
            env=environment(unbuffered),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            program("print('result')\nreturn 0"),
            cwd=ROOT,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        "fastwi: error: standard output: cannot be written (No space left on device); redirect it elsewhere\n"
    )


def test_what_the_encoding_lacks_is_escaped() -> None:
    line = program(r"print('a\ud800b \u2013')" + "\nreturn 0")
    ended = subprocess.run(
        line,
        cwd=ROOT,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "a\\ud800b \\u2013\n", "")


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], spins: str | None) -> None:
    mine = {name: value for name, value in environment().items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    body = "import torch\nprint(os.environ.get('GOMP_SPINCOUNT'))\nreturn 0"
    ended = subprocess.run(
        program(body), env=mine | given | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == str(spins)
    if "GOMP_SPINCOUNT" in ended.stderr and spins is not None:  # torch's OpenMP is libgomp: it has read it
        assert f"GOMP_SPINCOUNT = '{spins}'" in ended.stderr
