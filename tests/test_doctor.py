"""The doctor's table, its mending lines and its exit code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastwi.doctor
from fastwi.doctor import Check, can_train, examine, main

ROOT = Path(fastwi.doctor.__file__).parents[1]


def by_subject(findings: list[Check]) -> dict[str, Check]:
    return {finding.subject: finding for finding in findings}


def test_only_what_is_needed_and_lacking_stops_training() -> None:
    there = Check("a", "1.0", needed=True)
    could = Check("b", "none", mend="apt-get install b")
    lacks = Check("c", "none", mend="pip install c", needed=True)
    assert can_train([there, could])
    assert not can_train([there, could, lacks])


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for subject in (
        "Python",
        "torch",
        "CUDA device",
        "Triton",
        "CPU precision",
        "FFCV",
        "CPU cores",
        "free memory",
    ):
        assert f" {subject} " in out
    assert out.endswith("fastwi can train on this machine\n")


def test_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(fastwi.doctor, "_ffcv", lambda: Check("FFCV", "not asked"))
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "LACKS  torch          cannot be imported" in out
    assert "mend: pip install 'torch>=2.11' torchvision" in out
    assert out.endswith("fastwi cannot train on this machine as it is\n")


@pytest.mark.parametrize(("version", "enough"), [("2.10.1+cpu", False), ("2.11.0", True), ("3.0.0a0", True)])
def test_the_lowest_torch(monkeypatch: pytest.MonkeyPatch, version: str, enough: bool) -> None:
    monkeypatch.setattr("torch.__version__", version)
    monkeypatch.setattr(fastwi.doctor, "_ffcv", lambda: Check("FFCV", "not asked"))
    torch = by_subject(list(examine()))["torch"]
    assert (torch.found, torch.needed, torch.mend == "") == (version, True, enough)


def test_missing_packages_are_named_as_pip_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"numpy": "numpy", "no_such_module": "no-such-package", "nor_this": "other==1.0"}
    monkeypatch.setattr(fastwi.doctor, "_PACKAGES", packages)
    assert fastwi.doctor._packages() == Check(
        "packages",
        "no-such-package, other==1.0 missing",
        "pip install no-such-package other==1.0",
        needed=True,
    )


def test_ffcv_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    ffcv = fastwi.doctor._ffcv()
    assert not ffcv.needed
    assert ffcv.mend == ("apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv==1.0.2")


def test_ffcv_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ffcv.py").write_text("raise ImportError('libopencv_core.so.9: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ffcv = fastwi.doctor._ffcv()
    assert ffcv.found == "cannot be imported (ImportError: libopencv_core.so.9: no such file)"
    assert ffcv.mend.endswith("pip install ffcv==1.0.2")


def test_ffcv_that_crashes_takes_only_its_own_process_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ffcv.py").write_text("import os\nos.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert fastwi.doctor._ffcv().found == "cannot be imported (exit code -6)"


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from fastwi.doctor import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage: python -m fastwi.doctor")


def test_the_packages_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]}
    looked_for = {pip.split("==")[0] for pip in fastwi.doctor._PACKAGES.values()}
    assert looked_for | {"torch", "torchvision", "simplejpeg"} == declared
    assert project["optional-dependencies"]["ffcv"] == [fastwi.doctor.FFCV_PIP.split()[-1]]
