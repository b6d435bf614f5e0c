"""`python -m fastwi.tune`: what it measures is what `engine.name: auto` takes; a damaged table is no table."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastwi import tune
from fastwi.config.read import read_request
from fastwi.config.schema import Config
from fastwi.engine.choose import (
    ENGINES,
    build_engine,
    build_network,
    entry_key,
    fastest,
    read_speeds,
    table_path,
    write_speeds,
)
from fastwi.engine.loop import LoopEngine
from fastwi.errors import ConfigError
from fastwi.kernels import compiler

CPU = torch.device("cpu")
FLAGS = [
    "--model.name=convnet", "--model.width=0.0625", "--optimizer.batch_size=4", "--engine.device=cpu",
    "--engine.precision=fp32", "--engine.backend=eager", "--engine.threads=1",
]  # fmt: skip
CONFIG = read_request(FLAGS, "fastwi.tune").config
KEY = entry_key(CONFIG, CPU, torch.float32)


def engine_name(config: Config, *arguments: Any) -> str:
    """The engine of a network."""
    return build_engine(config, build_network(config, 10), *arguments).name


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
    assert {(row["engine"], row["members"]) for row in shown["measured"]} == {
        (name, members) for name in ENGINES if name != "halo" for members in (1, 2)
    }
    assert all(row["images_per_s"] > 0 for row in shown["measured"])
    assert shown["key"] == KEY
    # The table is rounded, so the two fastest may be as fast there.
    most = max(row["images_per_s"] for row in shown["measured"])
    best = {(row["engine"], row["members"]) for row in shown["measured"] if row["images_per_s"] > most - 1}
    found = fastest(read_speeds(KEY))
    assert found in best
    assert engine_name(CONFIG) == found[0]


def test_speeds_are_of_all_images_of_all_members(monkeypatch):
    """In two rounds of two steps of 4 images; the clock is read at the beginning, after each round and at the end.

    The round before them, which may compile, is not timed.
    """
    train_epoch, rounds = LoopEngine.train_epoch, list[int]()

    def noted(engine, population, *given):
        rounds.append(population.members)
        return train_epoch(engine, population, *given)

    monkeypatch.setattr(LoopEngine, "train_epoch", noted)
    monkeypatch.setattr(tune, "LEAST_S", 1.5)
    monkeypatch.setattr(tune, "STEPS", 2)
    monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    assert tune._speed(LoopEngine, CONFIG, CPU, 3) == 2 * 3 * 8 / 3
    assert rounds == [3] * 3


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


def test_an_earlier_measurement_stays_where_nothing_can_be_measured(monkeypatch, capsys):
    write_speeds(KEY, {"loop": {1: 1.0}})
    monkeypatch.setattr(tune.measure, "__defaults__", (-1.0,))
    assert tune.main(FLAGS) == 0
    assert "no time left" in capsys.readouterr().out
    assert read_speeds(KEY) == {"loop": {1: 1.0}}


def test_auto_ignores_speeds_where_the_engine_is_deterministic(monkeypatch, capsys):
    """And those of its kernels, which are slower, are not taken where it is not."""
    write_speeds(KEY, {"loop": {1: 1.0}})
    monkeypatch.setattr(tune, "measure", lambda *_: [(tune.Measured("graph", 1, 9.0), 0.1)])
    assert tune.main([*FLAGS, "--engine.deterministic=true"]) == 0
    out = capsys.readouterr().out
    assert "engine.deterministic" in out
    assert "takes graph" not in out
    assert read_speeds(KEY) == {"loop": {1: 1.0}}
    assert tune.main(FLAGS) == 0
    assert "takes graph" in capsys.readouterr().out


def test_what_is_no_network_is_refused(capsys):
    """Not listed as a failure of every engine, as if it had been measured."""
    for more in ([], ["--dry-run"]):
        assert tune.main(["--model.name=nowhere.py:Net", *FLAGS[2:], *more]) == 2
        assert "nowhere.py" in capsys.readouterr().err
    assert not table_path().exists()


def test_weights_do_not_matter(tmp_path):
    """They may be for another number of classes than the random images have."""
    network = build_network(CONFIG, 7)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert tune.main([*FLAGS, f"--model.weights={tmp_path / 'w.pt'}", "--dry-run"]) == 0


def test_entries_are_kept_apart():
    write_speeds("one", {"loop": {1: 10.0}})
    write_speeds("other", {"stacked": {4: 20.0}, "loop": {4: 30.0, 1: 5.0}})
    write_speeds(KEY, {"warp": {1: 1e9}})
    assert read_speeds("one") == {"loop": {1: 10.0}}
    assert fastest(read_speeds("other")) == ("loop", 4)
    assert fastest(read_speeds("neither")) is None
    assert engine_name(CONFIG) == "loop"  # an engine that this fastwi lacks is not taken


def test_what_speeds_depend_on_is_in_the_key(monkeypatch):
    others = [("model", "name", "resnet20"), ("model", "width", 0.125), ("optimizer", "batch_size", 5),
              ("engine", "threads", 2)]  # fmt: skip
    configs = [replace(CONFIG, **{part: replace(getattr(CONFIG, part), **{name: v})}) for part, name, v in others]
    keys = {
        entry_key(config, CPU, dtype) for config in [CONFIG, *configs] for dtype in (torch.float32, torch.bfloat16)
    }
    for version in ("torch.__version__", "fastwi.engine.choose.__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(version, "0.1")
            keys.add(entry_key(CONFIG, CPU, torch.float32))
    assert len(keys) == 12


TOO_LARGE, TOO_DEEP = f'{{"k": {{"loop": {{"1": 1{400 * "0"}}}}}}}', 20_000 * "[" + 20_000 * "]"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"k": 1}', '{"k": {"loop": 3}}', '{"k": {"loop": {"one": 3}}}', "null", TOO_LARGE, TOO_DEEP],
    ids=range(9),
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
    assert tune.main([*FLAGS, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"key": KEY, "table": str(table_path())}
    assert not table_path().exists()


def test_a_user_without_a_home_directory_has_no_table(capsys, monkeypatch):
    """As in a container that is run under any user; `tune` alone needs a place to keep it."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert engine_name(CONFIG) == "loop"
    build = compiler.built("a", ".txt", ["part"], lambda path: path.write_text("made"), Path.read_text)
    assert build == "made"
    assert tune.main([*FLAGS, "--dry-run", "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "XDG_CACHE_HOME" in line


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(x_NCHW.flatten(1) if x_NCHW.sum() > 0 else -x_NCHW.flatten(1))


def named(name: str) -> Config:
    return replace(CONFIG, engine=replace(CONFIG.engine, name=name))


@pytest.fixture
def gpu(monkeypatch):
    """The choice is made as on a GPU, and the engine that is chosen is built on this machine."""
    monkeypatch.setattr("fastwi.engine.choose.resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("fastwi.engine.choose.entry_key", lambda *_: "a GPU")
    monkeypatch.setattr("fastwi.engine.choose.has_triton", lambda _: True)


@pytest.mark.parametrize(("members", "name"), [(1, "graph"), (3, "graph"), (4, "stacked"), (512, "stacked")])
def test_an_untuned_gpu_gets_graph_or_for_several_networks_stacked(gpu, members, name):
    assert engine_name(CONFIG, members) == name
    assert engine_name(CONFIG, members, False) == "loop"  # images are streamed
    write_speeds("a GPU", {"loop": {4: 2.0}, "stacked": {4: 1.0}})
    assert engine_name(CONFIG, members) == "loop"  # measured
    write_speeds("a GPU", {"stacked": {4: 2.0}})
    assert engine_name(CONFIG, members) == "stacked"
    assert engine_name(CONFIG, members, False) == "loop"


@pytest.mark.parametrize("members", [1, 512])
def test_the_choice_of_a_deterministic_engine_depends_on_the_device_alone(gpu, monkeypatch, members):
    config = replace(CONFIG, engine=replace(CONFIG.engine, deterministic=True))
    write_speeds("a GPU", {"loop": {4: 2.0}, "graph": {1: 3.0}})
    assert engine_name(CONFIG, members) == "graph"
    assert engine_name(config, members) == "stacked"
    monkeypatch.setattr("fastwi.engine.choose.resolve_device", lambda _: CPU)
    assert engine_name(config, members) == "loop"


def test_without_triton_no_network_is_stacked(gpu, monkeypatch):
    monkeypatch.setattr("fastwi.engine.choose.has_triton", lambda _: False)
    assert engine_name(CONFIG, 512) == "graph"


def test_auto_takes_loop_for_networks_that_the_others_refuse(gpu):
    """Measured or not. Where they are asked for by name, they still refuse."""
    drops = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, 10))
    drops_channels = nn.Sequential(nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(12, 10))
    for network in (drops, drops_channels):
        assert build_engine(CONFIG, network, 512).name == "loop"
    assert build_engine(CONFIG, Branching(), 512).name == "loop"
    write_speeds("a GPU", {"stacked": {4: 1.0}})
    assert build_engine(CONFIG, drops).name == "loop"
    assert build_engine(CONFIG, Branching()).name == "stacked"  # as it was measured
    with pytest.raises(ConfigError, match=r"engine\.name: stacked"):
        build_engine(named("stacked"), drops)
    with pytest.raises(ConfigError, match=r"engine\.backend: fused"):
        build_engine(replace(CONFIG, engine=replace(CONFIG.engine, backend="fused")), drops)
