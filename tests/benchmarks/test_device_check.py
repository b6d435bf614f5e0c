"""`benchmarks/device_check.sh` with an interpreter that only pretends: every step is tried, and failures are told."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE = """#!/usr/bin/env bash
case "$*" in
  -c*) exit {no_gpu} ;;
  *{broken}*) echo broken; exit 3 ;;
esac
echo "ran $*"
"""


def check(tmp_path, broken="no-such-step", no_gpu=1, **environment):
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(broken=broken, no_gpu=no_gpu))
    fake.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks" / "device_check.sh"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHON": str(fake), "DATA": "data/none", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)


BENCHMARKS = ("interpolation", "loading", "evaluation", "throughput", "memory", "planning")


def test_all_benchmarks_run_where_there_is_no_gpu(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout
    for name in BENCHMARKS:
        assert f"passed    {name} " in done.stdout
        assert f"-m benchmarks.{name} --short" in (tmp_path / "out" / f"{name}.log").read_text()
    for name in ("gpu-tests", "kernel-tests", "memcheck"):
        assert f"left out  {name}: torch sees no GPU" in done.stdout


def test_one_failure_stops_nothing_and_is_told(tmp_path):
    done = check(tmp_path, broken="benchmarks.loading")
    assert done.returncode == 1
    assert "FAILED    loading: exit code 3" in done.stdout
    assert (tmp_path / "out" / "loading.log").read_text() == "broken\n"
    for name in set(BENCHMARKS) - {"loading"}:
        assert f"passed    {name} " in done.stdout


def test_gpu_steps_run_where_there_is_a_gpu(tmp_path):
    check(tmp_path, no_gpu=0)
    assert "-m gpu" in (tmp_path / "out" / "gpu-tests.log").read_text()
    assert "tests/kernels" in (tmp_path / "out" / "kernel-tests.log").read_text()
    for name, members in (("throughput", "1"), ("throughput-16", "16"), ("memory", "8,32")):
        ran = (tmp_path / "out" / f"{name}.log").read_text()
        assert "--device cuda" in ran
        assert f"--members {members} " in ran


def test_no_time_left_is_a_failure(tmp_path):
    done = check(tmp_path, SCALE="0")
    assert done.returncode == 1
    assert "FAILED    planning: not run" in done.stdout
