"""benchmarks.pairs: its contestants arrive at the same accuracies, and those that do not are refused."""

import json

import numpy as np
import pytest

from benchmarks import pairs
from fastwi.errors import UserError


def test_table_and_files(digits_directory, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        pairs, "stock", lambda task, test, population: pairs.fastwi_pairs(task, test, population, "loop")
    )
    argv = [
        "--data",
        str(digits_directory),
        "--device",
        "cpu",
        "--pairs",
        "2",
        "--statistics",
        "128",
        "--images",
        "20",
    ]
    assert pairs.main([*argv, "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "pairs/s" in capsys.readouterr().out
    told = json.loads((tmp_path / "pairs-cpu.json").read_text())
    assert {row["contestant"] for row in told["measurements"]} >= {
        "(a) stock",
        "(b) fastwi loop",
        "(b) fastwi stacked",
    }
    assert all(row["pairs_per_s_median"] > 0 for row in told["measurements"])
    assert (tmp_path / "pairs-cpu.png").stat().st_size > 1000


def test_another_accuracy_is_refused():
    with pytest.raises(UserError, match="has accuracies"):
        pairs.verify({pairs.STOCK: lambda: np.array([10.0, 20.0]), "other": lambda: np.array([10.0, 25.0])})
    pairs.verify({pairs.STOCK: lambda: np.array([10.0, 20.0]), "other": lambda: np.array([10.5, 20.0])})
