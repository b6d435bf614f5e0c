"""The doctor's table, how it says to fix what is missing, and its exit code."""

import importlib.util
import re
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastwi.doctor
from fastwi.doctor import Check, examine, main

ROOT = Path(fastwi.doctor.__file__).parents[1]


def test_this_machine(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for subject in ("Python", "torch", "CUDA device", "Triton", "CPU precision", "FFCV", "CPU cores", "free memory"):
        assert f" {subject} " in out
    assert "LACKS" not in out


@pytest.mark.parametrize(("needed", "code", "mark"), [(True, 1, "LACKS"), (False, 0, "could")])
def test_only_what_is_needed_and_missing_stops_training(monkeypatch, capsys, needed, code, mark):
    checks = [
        Check("a", "1.0", needed=True),
        Check("b", "none", "pip install b", needed),
        Check("c", "1.0", needed=True),
    ]
    monkeypatch.setattr(fastwi.doctor, "examine", lambda: iter(checks))
    assert main([]) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["ok", mark, "fix:"]
    assert lines[2].endswith("pip install b")


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (check,) = fastwi.doctor._torch()
    assert check.needed
    assert check.fix == "pip install 'torch>=2.11' torchvision"


@pytest.mark.parametrize(("version", "enough"), [("2.10.1+cpu", False), ("2.11.0", True), ("3.0.0a0", True)])
def test_the_lowest_torch(monkeypatch, version, enough):
    monkeypatch.setattr("torch.__version__", version)
    check = next(fastwi.doctor._torch())
    assert (check.found, check.needed, check.fix == "") == (version, True, enough)


@pytest.mark.parametrize(("version", "enough"), [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 14), False)])
def test_pythons_that_are_supported(monkeypatch, version, enough):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", version)
        check = next(examine())
    assert (check.subject, check.needed, check.fix == "") == ("Python", True, enough)


def test_missing_packages_are_named_as_pip_calls_them(monkeypatch):
    packages = {"numpy": None, "no_such_module": None, "nor_this": "other==1.0"}
    monkeypatch.setattr(fastwi.doctor, "_PACKAGES", packages)
    check = fastwi.doctor._packages()
    assert (check.needed, check.fix) == (True, "pip install no_such_module other==1.0")


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise ImportError('libopencv_core.so.9')", "libopencv_core.so.9"), ("import os; os.abort()", "exit code -6")],
)
def test_ffcv_that_fails_takes_only_its_own_process_down(monkeypatch, tmp_path, code, reason):
    (tmp_path / "ffcv.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = fastwi.doctor._ffcv()
    assert reason in check.found
    assert check.fix.endswith("pip install ffcv==1.0.2")
    assert not check.needed


def test_ffcv_that_does_not_end_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "ffcv.py").write_text("import time; time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fastwi.doctor, "_IMPORT_SECONDS", 0.2)
    check = fastwi.doctor._ffcv()
    assert "0.2 seconds" in check.found
    assert check.fix == fastwi.doctor.FFCV_FIX


def test_the_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 8})
    monkeypatch.setattr("os.cpu_count", lambda: 77)
    monkeypatch.setattr(fastwi.doctor, "_ffcv", lambda: Check("FFCV", "not looked for"))
    checks = {check.subject: check for check in examine()}
    assert checks["CPU cores"].found == "3 for this process, 77 in all"


@pytest.mark.parametrize("there", [True, False])
def test_what_training_does_not_need_is_looked_for(monkeypatch, tmp_path, there):
    """Whatever this machine has of it."""
    find, path = importlib.util.find_spec, sysconfig.get_path

    def found(name, *more):
        return find("json" if there else "no_such_module") if name in ("simplejpeg", "triton") else find(name, *more)

    monkeypatch.setattr("importlib.util.find_spec", found)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path) if name == "include" else path(name))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(__version__="0.1") if there else None)
    monkeypatch.setattr("fastwi.data.split.free_host_bytes", lambda: 3 * 2**29)
    monkeypatch.setattr(fastwi.doctor, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(fastwi.doctor, "_ffcv", lambda: Check("FFCV", "not looked for"))
    if there:
        (tmp_path / "Python.h").touch()
    checks = {check.subject: check for check in examine()}
    assert checks["free memory"].found == "1.5 GiB"
    assert (checks["Triton"].found == "installed") == there
    assert ("simplejpeg" not in checks) == there
    for subject in ("torchvision", "C++ compiler"):
        assert (checks[subject].fix == "") == there, checks[subject]
    assert not any(check.needed and check.fix for check in checks.values())


def test_the_packages_are_those_of_the_project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]}
    looked_for = {(pip or name).split("==")[0] for name, pip in fastwi.doctor._PACKAGES.items()}
    assert looked_for | {"torch", "torchvision", "simplejpeg"} == declared
    assert f"torch>={'.'.join(map(str, fastwi.doctor.LOWEST_TORCH))}" in project["dependencies"]
    assert project["optional-dependencies"]["ffcv"] == [fastwi.doctor.FFCV_FIX.split()[-1]]
