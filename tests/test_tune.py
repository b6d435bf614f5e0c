"""`python -m fastwi.tune`: what it measures is what `engine.name: auto` takes; a damaged table is no table."""

import json

import pytest
import torch

from fastwi import tune
from fastwi.config.read import read_request
from fastwi.engine.choose import (
    ENGINES,
    build_engine,
    build_network,
    engine_name,
    entry_key,
    fastest,
    read_speeds,
    table_path,
    write_speeds,
)
from fastwi.engine.loop import LoopEngine

CPU = torch.device("cpu")
FLAGS = [
    "--model.name=convnet", "--model.width=0.0625", "--optimizer.batch_size=4", "--engine.device=cpu",
    "--engine.precision=fp32", "--engine.backend=eager", "--engine.threads=1",
]  # fmt: skip
CONFIG = read_request(FLAGS, "fastwi.tune").config
KEY = entry_key(CONFIG, CPU, torch.float32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "LEAST_S", 0.0)
    monkeypatch.setattr(tune, "STEPS", 1)
    monkeypatch.setattr(tune, "MEMBERS", {"cpu": (1, 2)})


def test_auto_takes_the_fastest(capsys):
    assert engine_name(CONFIG) == "loop"  # nothing was measured yet
    assert tune.main([*FLAGS, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {(row["engine"], row["members"]) for row in shown["measured"]} == {(e, m) for e in ENGINES for m in (1, 2)}
    assert all(row["images_per_s"] > 0 for row in shown["measured"])
    assert shown["key"] == KEY
    best = max(shown["measured"], key=lambda row: row["images_per_s"])
    assert fastest(read_speeds(KEY)) == (best["engine"], best["members"])
    assert engine_name(CONFIG) == best["engine"]
    assert type(build_engine(CONFIG, build_network(CONFIG, 10))) is ENGINES[best["engine"]]


def test_what_fails_and_what_there_is_no_time_for_is_reported(monkeypatch, capsys):
    def fails(*_arguments):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(LoopEngine, "train_epoch", fails)
    assert tune.main(FLAGS) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines() if "no such kernel" in line] == [["loop", "1"]]
    assert "loop" not in read_speeds(KEY)
    assert str(table_path()) in out
    found = [row for row, _ in tune.measure(CONFIG, CPU, budget_s=-1.0)]
    assert {(row.images_per_s, row.why) for row in found} == {(None, "no time left")}


def test_entries_are_kept_apart():
    write_speeds("one", {"loop": {1: 10.0}})
    write_speeds("other", {"stacked": {4: 20.0}, "loop": {4: 30.0, 1: 5.0}})
    write_speeds(KEY, {"warp": {1: 1e9}})
    assert read_speeds("one") == {"loop": {1: 10.0}}
    assert fastest(read_speeds("other")) == ("loop", 4)
    assert fastest(read_speeds("neither")) is None
    assert engine_name(CONFIG) == "loop"  # an engine that this fastwi lacks is not taken


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"k": 1}', '{"k": {"loop": 3}}', '{"k": {"loop": {"one": 3}}}', "null"]
)
def test_a_damaged_table_is_no_table(text):
    table_path().parent.mkdir(parents=True)
    table_path().write_text(text)
    assert engine_name(CONFIG) == "loop"
    write_speeds(KEY, {"loop": {1: 1.0}})
    assert fastest(read_speeds(KEY)) == ("loop", 1)


def test_dry_run_measures_nothing(capsys):
    assert tune.main([*FLAGS, "--dry-run"]) == 0
    assert capsys.readouterr().out.strip() == KEY
    assert not table_path().exists()
