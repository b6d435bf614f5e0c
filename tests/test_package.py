"""What `pip install` brings, and what `import fastwi` gives."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import fastwi
from fastwi.beside import data_prep_module
from fastwi.errors import UserError

TOP = Path(__file__).parents[1]


def python(directory: Path, *arguments: str, path: Path = TOP) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds what the wheel holds."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("fastwi", "data_prep", "configs"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    built = python(source, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist")
    assert built.returncode == 0, built.stderr
    [wheel] = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_wheel_holds_every_file_and_nothing_else(installed: Path) -> None:
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    expected = {
        path.relative_to(TOP).as_posix()
        for name in ("fastwi", "data_prep")
        for path in (TOP / name).rglob("*")
        if path.is_file() and not re.search(r"/__pycache__/|/\.|~$", f"/{path.relative_to(TOP).as_posix()}")
    }
    expected |= {f"fastwi/configs/{path.name}" for path in (TOP / "configs").iterdir()}
    assert {path for path in found if ".dist-info/" not in path} == expected


def test_commands_work_from_an_empty_directory(installed: Path, tmp_path: Path) -> None:
    made = python(tmp_path, "-m", "data_prep", "digits", "--out", "data/digits", "--writer", "raw", path=installed)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "data" / "digits" / "card.json").exists()
    command = ["-m", "fastwi", "sweep", "--config", "fastwi:digits_k_s_grid", "--print-config"]
    shown = python(tmp_path, *command, path=installed)
    assert shown.returncode == 0, shown.stderr
    assert "data/digits" in shown.stdout


def test_every_entry_point_leads_to_a_function(installed: Path) -> None:
    [distribution] = importlib.metadata.distributions(path=[str(installed)])
    points = [point for point in distribution.entry_points if point.group == "console_scripts"]
    assert {"fastwi", "fastwi-data-prep"} < {point.name for point in points}
    assert all(callable(point.load()) for point in points)


def test_another_data_prep_does_not_come_between(tmp_path: Path) -> None:
    (tmp_path / "data_prep.py").write_text("raise SystemExit('of the user')\n")
    assert python(tmp_path, "-c", "import data_prep").stderr == "of the user\n"
    made = python(tmp_path, "-m", "fastwi", "data-prep", "digits", "--out", "digits", "--writer", "raw")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "digits" / "card.json").exists()


def test_another_data_prep_that_is_imported_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ModuleType("data_prep")
    other.__file__ = str(tmp_path / "data_prep" / "__init__.py")
    monkeypatch.setitem(sys.modules, "data_prep", other)
    with pytest.raises(UserError, match=rf"{other.__file__}: has the name of"):
        data_prep_module("memory")


def test_modules_and_names_are_there_on_first_use() -> None:
    code = (
        "import sys, fastwi; fastwi.sweep, fastwi.run; assert 'torch' not in sys.modules;"
        "print(callable(fastwi.sweep), fastwi.train.main, fastwi.average, fastwi.models.__name__)"
    )
    shown = python(TOP, "-c", code)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("True ")
    assert shown.stdout.rstrip().endswith("fastwi.models")
    modules = {path.stem for path in (TOP / "fastwi").iterdir() if not path.stem.startswith("_")} - {"py"}
    assert modules | set(fastwi.__all__) <= set(dir(fastwi))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        fastwi.nothing_of_this_name  # noqa: B018
