"""The device check: its limits, its command lines, and what becomes of a step that runs too long."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import device_check, device_steps, runner
from benchmarks.device_check import run_until
from benchmarks.device_steps import BUDGET_S, ROOT, STEPS, chosen_steps, words_of
from fastwi.errors import UserError


def test_the_limits_sum_to_the_budget():
    assert sum(step.seconds for step in chosen_steps([]).values()) == BUDGET_S
    chosen = chosen_steps(["population=300", "numbers"])
    assert [(name, step.seconds) for name, step in chosen.items()] == [
        ("numbers", STEPS["numbers"].seconds), ("population", 300),
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["walk", "numbers=soon", "numbers=0"])
def test_unknown_steps_are_refused(word):
    with pytest.raises(UserError, match=word.partition("=")[0]):
        chosen_steps([word])


@pytest.mark.parametrize(
    ("name", "on_gpu"),
    [(name, on_gpu) for name, step in STEPS.items() for on_gpu in (True, False) if on_gpu or step.cpu],
)
def test_command_lines_are_accepted(name, on_gpu, tmp_path, monkeypatch):
    words = words_of(STEPS[name], on_gpu, "random", tmp_path)
    assert not any("{" in word for word in words)
    assert words[0] == "-m"
    if words[1] == "pytest":
        files = [ROOT / word for word in words if word.startswith("tests")]
        assert files
        assert all(path.exists() for path in files)
        chosen = words[words.index("-k") + 1].split(" or ") if "-k" in words else []
        text = "".join(path.read_text() for path in files if path.is_file())
        assert all(part in text for part in chosen)
    elif words[1] != "benchmarks.machine":

        def accept(*_):
            raise SystemExit(0)

        monkeypatch.setattr(runner, "Report", accept)
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(words[1]).main(words[2:])
        assert stopped.value.code == 0


def test_what_steps_need(tmp_path):
    """A lent machine has torch and little else of what fastwi depends on: the rest is imported where it is used."""
    words = [words_of(step, True, "random", tmp_path) for step in STEPS.values()]
    needed = {word for _, module, *rest in words for word in (rest if module == "pytest" else [module])}
    program = tmp_path / "program.py"
    program.write_text(
        "import importlib, pathlib, sys\n"
        "absent = 'fastargs jinja2 matplotlib polars pydantic rich simplejpeg sklearn terminaltables yaml'\n"
        "sys.modules |= dict.fromkeys(absent.split())\n"
        "sys.path.insert(0, 'tests')\n"
        "for word in sys.argv[1:]:\n"
        "    path = pathlib.Path(word)\n"
        "    if path.suffix == '.py':\n"
        "        sys.path.insert(0, str(path.parent))\n"
        "        word = path.stem\n"
        "    importlib.import_module(word)\n"
        "from benchmarks import throughput\n"
        "words = '--data=random --device=cpu --batch=8 --batches=1 --least=1 --rounds=1 --width=0.25 --members=1'\n"
        "sys.exit(throughput.main([*words.split(), '--baselines=loop']))\n"
    )
    chosen = sorted(word for word in needed if word.startswith(("benchmarks", "tests/")))
    assert {"benchmarks.throughput", "benchmarks.evaluation", "tests/engine/test_engines.py"} < set(chosen)
    done = subprocess.run(
        [sys.executable, str(program), *chosen], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_step_that_runs_too_long_is_interrupted_with_its_children(tmp_path, capsys, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the child\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    print(child.pid, flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('kept')\n    raise SystemExit(130)\n"
    )
    log, wait = tmp_path / "step.log", subprocess.Popen.wait

    def until_it_waits(process, timeout=None):
        """The time is over as soon as the program waits, however slow the machine is."""
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while not capsys.readouterr().out:
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_waits)
    assert run_until([sys.executable, str(program)], time.monotonic() + 60, log, os.environ) is None
    number, kept = log.read_text().split()[:2]
    assert kept == "kept"
    assert kept in capsys.readouterr().out
    deadline = time.monotonic() + 20  # a killed child takes a moment, and may then wait for its new parent
    while _lives(number) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _lives(number)
    assert run_until([sys.executable, "-c", "raise SystemExit(3)"], time.monotonic() + 60, log, os.environ) == 3


def _lives(number):
    try:
        return "State:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_steps_and_their_files(tmp_path, monkeypatch, capsys):
    """One step passes and leaves JSON, one fails and leaves none of an earlier run, one needs a GPU."""
    write = "import sys, pathlib; pathlib.Path(sys.argv[1], 'a-cpu.json').write_text('{}')"
    steps = {
        "good": device_steps.Step(60, "", f'-c "{write}" {{out}}'),
        "bad": device_steps.Step(60, "", "-c 'raise SystemExit(1)'"),
        "absent": device_steps.Step(60, "-c ''"),
    }
    monkeypatch.setattr(device_steps, "STEPS", steps)
    monkeypatch.setattr(device_check, "KEPT", tmp_path / "kept")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text('{"earlier": 1, "bad": 2}')
    assert device_check.main([f"--out={tmp_path}/out"]) == 1
    assert json.loads((tmp_path / "out/results.json").read_text()) == {"earlier": 1, "good": {}}
    (archive,) = (tmp_path / "out").glob("logs-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("device_check/") for name in opened.getnames()}
    assert {"good.log", "bad.log", "summary.txt", "good/a-cpu.json"} <= names
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown[-4:-1]] == [["good", "passed"], ["bad", "FAILED:"], ["absent", "left"]]
    assert device_check.main([f"--out={tmp_path}/out", "good"]) == 0


def test_the_clocks_of_a_busy_gpu():
    lines = [
        "0, 345, 3201, 75.10, 31, 0x0000000000000001\n",
        "87, 1980, 3201, 512.31, 55, 0x0000000000000000\n",
        "99, 1755, 3201, 698.90, 61, 0x0000000000000004\n",
        "99, 1755, 32",
    ]
    (shown,) = device_check._busy(iter(lines))
    assert "2 busy samples: SM 1755 - 1980 MHz" in shown
    assert "699 W and 61 C; slowed by: power cap" in shown
    assert not list(device_check._busy(iter(lines[:1])))


def test_wheels_that_cannot_be_installed_cost_no_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_steps, "STEPS", {"good": device_steps.Step(60, "", "-c 'print(1)'")})
    monkeypatch.setattr(device_check, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(device_check, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/broken-1.0-py3-none-any.whl").write_text("not a zip")
    assert device_check.main([f"--out={tmp_path}/out"]) == 0
    assert str(tmp_path / "wheels") in capsys.readouterr().out


def test_the_memory_checker_sees_no_captured_step(tmp_path):
    """torch captures none where its cache of memory is off, as it is there. Engines capture their steps."""
    files = [word for word in words_of(STEPS["memcheck"], True, "random", tmp_path) if word.startswith("tests/")]
    assert files
    assert not [file for file in files if "train_epoch" in (ROOT / file).read_text()]


def test_warnings_fail_no_test_on_a_device(tmp_path):
    for step in STEPS.values():
        words = words_of(step, True, "random", tmp_path)
        assert words[1] != "pytest" or words[words.index("-W") + 1] == "default"
