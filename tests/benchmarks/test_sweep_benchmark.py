"""benchmarks.sweep: what it counts is what its sweeps are planned to do, of this commit and of another checkout."""

import json
from pathlib import Path

import pytest

from benchmarks import sweep

ROOT = Path(__file__).parents[2]
SMALL = ["--rounds", "1", "--threads", "1", "--parents", "2", "--pairs", "3", "--images", "64", "--epochs", "1000"]


@pytest.mark.parametrize("part", ["path", "pairs", "grid", "long"])
def test_counts(part, tmp_path, capsys):
    assert sweep.main([*SMALL, "--parts", part, "--out", str(tmp_path), "--place", str(tmp_path)]) == 0
    assert "target" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "sweep-cpu.json").read_text())["measurements"]
    assert found["what"] == sweep.HERE
    counted = {
        # Parents to k = 20; 4 children of each k for s = 10; 10 epochs of each of their 2 averages.
        "path": ("epochs", 2 * (20 + 2 * 4 * 10 + 2 * 2 * 10)),
        "pairs": ("pairs", 3),
        # k to 6; 8 children of 3 k for 4 epochs; 2 epochs of 4 averages in 9 cells.
        "grid": ("epochs", 6 + 3 * 8 * 4 + 9 * 4 * 2),
        "long": ("epochs", 100 + 8 * 100 + 4 * 25),
    }
    name, expected = counted[part]
    assert found[name] == expected
    assert all(value >= 0 for name, value in found.items() if name.endswith("_s") and isinstance(value, float))
    if part == "grid":
        assert 0 < found["in_engine_s"] < found["seconds"]
    if part == "long":
        assert sorted(found["tenths_s"]) == found["tenths_s"]
        assert len(found["tenths_s"]) == 10
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # stores are removed


def test_another_checkout_beside(tmp_path):
    """A copy of the sources stands for it: what was measured ran there."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("fastwi", "data_prep", "configs"):
        (other / name).symlink_to(ROOT / name)
    argv = [*SMALL[:4], "--parents", "1", "--parts", "path", "--before", str(other), "--out", str(tmp_path)]
    assert sweep.main(argv) == 0
    measured = json.loads((tmp_path / "sweep-cpu.json").read_text())["measurements"]
    assert {(found["what"], found["epochs"]) for found in measured} == {(sweep.HERE, 140), (sweep.BEFORE, 140)}


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--parts", "path,walk"])
    assert "want some of path, pairs, grid, long" in capsys.readouterr().err
